"""MiniGPT-4: the trained tensors, how an image enters the language model, and the cache of the frozen encoders' outputs."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from flickr_world import make_flickr_world
from transformers import AutoModelForCausalLM

from emollama import checkpoint
from emollama.config import load
from emollama.data.batch import IGNORED, collate
from emollama.encoders.eva_vit import EvaFiles, EvaVit
from emollama.encoders.qformer import QFormer
from emollama.errors import UserError
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.scoring import Scoring
from emollama.registry import DATASETS, MODELS

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    flickr = make_flickr_world(tmp_path_factory.mktemp("flickr"))
    content = torch.load(flickr.q_former)
    content["model"]["ln_vision.weight"] += torch.linspace(-0.2, 0.2, 176)  # not the identity
    torch.save(content, flickr.q_former)
    return flickr


def configured(world, folder, *options, model=None, data=None, run=None):
    """Write a YAML file over the invented data and return its path; the dicts override blocks."""
    block = {"image_path": str(world.images), "batch_size": 3} | (data or {})
    test = {"type": "flickr30k_caption", "annotation_file": str(world.test), "batch_size": 4, "max_new_tokens": 8}
    tree = {
        "model": world.model(visual_cache_path=str(folder / "cache"), **(model or {})),
        "datasets": {"flickr30k_caption": {"annotation_file": str(world.train)} | block},
        "evaluation_datasets": {
            "test": {"image_path": str(world.images), "metrics": ["bleu_1", "cider_d", "loss"], "caption_tokenizer": "treebank"}
            | test
        },
        "run": {
            "output_dir": str(folder / "out"),
            "job_id": "run",
            "max_epoch": 2,
            "iters_per_epoch": 4,
            "init_lr": 1e-2,
            "amp": False,
            "num_workers": 0,
            "log_freq": 1,
        }
        | (run or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def trained(world, folder, *options, **blocks):
    """Train in this process and return the run's folder."""
    config = load(str(configured(world, folder, **blocks)), list(options))
    return config.runner_class(config).train()


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    """The folder of a run without a cache. Tests do not change it."""
    return trained(world, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def cached(world, tmp_path_factory):
    """(folder, cache) of the same run with a cache, which is empty at first. Tests do not change them."""
    root = tmp_path_factory.mktemp("cached")
    return trained(world, root, model={"cache_visual": True}), root / "cache"


def resumed(world, begun, folder, *options, **blocks):
    """The folder of a run that resumes from a copy of another run's checkpoint of the first epoch."""
    (folder / "out/run").mkdir(parents=True)
    for name in ("checkpoint_0.pth", "checkpoint_0.pth.sha256"):
        shutil.copy(begun / name, folder / "out/run")
    return trained(world, folder, "run.resume_ckpt_path=auto", *options, **blocks)


def logged(folder, key="loss"):
    return [json.loads(line)[key] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def refusal(world, folder, **blocks):
    with pytest.raises(UserError) as refused:
        trained(world, folder, **blocks)
    return str(refused.value)


def built(world, **changes):
    """Return (model, prompt format, Config); the projection is random unless the changes set a checkpoint."""
    keys = world.model(**changes)
    keys.pop("arch")
    model_class = MODELS.get("minigpt4")
    cfg = model_class.Config(**keys)
    torch.manual_seed(0)
    return model_class(cfg, device=CPU, frozen_dtype=torch.float32).eval(), model_class.prompt_format(cfg), cfg


def records(world, cfg, split="train", **keys):
    dataset_class = DATASETS.get("flickr30k_caption")
    block = dataset_class.Config(annotation_file=str(getattr(world, split)), image_path=str(world.images), **keys)
    dataset = dataset_class(block, slot_shapes=MODELS.get("minigpt4").slot_shapes(cfg), block_path="data", training=False)
    return [dataset.record(index, "caption", "") for index in range(len(dataset))]


def image_features(world, cfg, record):
    """Return the feature vectors of a record's image, (vectors, width), computed by the encoders alone."""
    norm = str(world.q_former) if cfg.has_qformer else "identity"
    eva = EvaFiles(str(world.eva), cfg.image_size, "fp32", ln_vision=norm)
    vit = EvaVit.load(eva, device=CPU, key="eva")
    vectors = vit(record.features["frame"].reshape(1, 3, cfg.image_size, cfg.image_size))
    if cfg.has_qformer:
        return QFormer.load(str(world.q_former), device=CPU, key="q")(vectors)[0]
    groups = vectors[0, 1:].split(4)
    return torch.stack([torch.cat(list(group)) for group in groups])


# Trained tensors


def test_only_the_projection_is_trained_and_stored(plain):
    content = checkpoint.read(str(plain / "checkpoint_1.pth"), "k")
    assert {name: tuple(value.shape) for name, value in content["model"].items()} == {
        "llama_proj.weight": (64, 64),
        "llama_proj.bias": (64,),
    }


def test_training_changes_only_the_projection(world):
    model, prompt, cfg = built(world)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1.0)
    model.train()
    model(collate([prompt.tokenize(record) for record in records(world, cfg)[:3]])).sum().backward()
    optimizer.step()
    moved = [name for name, value in model.state_dict().items() if not value.equal(before[name])]
    assert sorted(moved) == ["fusion.llama_proj.bias", "fusion.llama_proj.weight"]


def test_the_language_model_can_have_adapters_too(world):
    model, _, _ = built(world, train_llm="lora", lora_r=2)
    trained = {model.stored_name(name) for name, value in model.named_parameters() if value.requires_grad}
    assert sum(".lora_A." in name for name in trained) == 4 and "llama_proj.weight" in trained


def test_a_published_checkpoint_with_buffers_of_frozen_modules_is_loaded(world, tmp_path):
    model, _, _ = built(world)
    stored = checkpoint.read(str(world.projection), "k")["model"]
    extra = {"Qformer.bert.embeddings.position_ids": torch.arange(4)[None]}
    extra["llama_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    checkpoint.load_trainable(model, {**stored, **extra}, path="file", allow_missing=[])
    assert model.fusion.llama_proj.weight.equal(stored["llama_proj.weight"])


def test_a_checkpoint_of_minigpt_v2_is_refused_with_the_names_of_its_tensors(world, tmp_path):
    model, _, _ = built(world)
    weights = {"llama_proj.weight": torch.zeros(64, 704), "llama_proj.bias": torch.zeros(64)}
    stored = weights | {"feats_llama_proj1.bias": torch.ones(1)}
    with pytest.raises(UserError, match=r"llama_proj.weight.*feats_llama_proj1.bias|feats_llama_proj1.bias.*llama_proj.weight"):
        checkpoint.load_trainable(model, stored, path="file", allow_missing=[])


# How an image enters the language model


@pytest.mark.parametrize("changes", [{}, {"has_qformer": False, "vit_width": 176}], ids=["q-former", "without"])
def test_losses_equal_those_of_transformers_on_manually_built_embeddings(world, changes):
    model, prompt, cfg = built(world, prompt_template="[INST] {} [/INST] ", **changes)
    examples = records(world, cfg)[:3]
    plain = AutoModelForCausalLM.from_pretrained(world.llama, dtype=torch.float32, attn_implementation="eager").eval()
    table = plain.get_input_embeddings()
    losses = model(collate([prompt.tokenize(record) for record in examples])).split([len(answer(prompt, r)) for r in examples])

    def ids(text):
        return prompt.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]

    for record, loss in zip(examples, losses, strict=True):
        image = model.fusion.llama_proj(image_features(world, cfg, record))
        parts = [table(torch.tensor([1])), table(ids("[INST] <Img>")), image, table(ids("</Img> Describe this image. [/INST] "))]
        target = ids(record.turns[0][1] + "</s>")[: cfg.max_txt_len]
        target[-1] = prompt.tokenizer.eos_token_id  # a long answer is cut before its end
        embeddings = torch.cat([*parts, table(target)])[None]
        labels = torch.full((1, embeddings.shape[1]), IGNORED)
        labels[0, -len(target) :] = target
        assert loss.mean().item() == pytest.approx(plain(inputs_embeds=embeddings, labels=labels).loss.item(), abs=1e-5)


def answer(prompt, record):
    labels = prompt.tokenize(record).labels
    return labels[labels != IGNORED]


def test_four_adjacent_image_vectors_form_one_token_without_a_q_former(world):
    _, _, cfg = built(world, has_qformer=False, vit_width=176)
    shapes = MODELS.get("minigpt4").slot_shapes(cfg)
    assert (shapes["image"].num_vectors, shapes["image"].dim) == (4, 704) and shapes["frame"].dim == 3 * 56 * 56


def test_ln_vision_is_read_from_the_q_former_file_and_is_otherwise_the_identity(world):
    with_it, _, _ = built(world)
    stored = torch.load(world.q_former)["model"]["ln_vision.weight"]
    assert with_it.vision.vit.ln_vision.weight.equal(stored) and not stored.equal(torch.ones(176))
    without, _, _ = built(world, has_qformer=False, vit_width=176, q_former_model="nowhere.pth")
    assert without.vision.vit.ln_vision.weight.equal(torch.ones(176))


def test_the_features_of_an_image_are_bit_identical_alone_and_in_a_batch(world):
    model, prompt, cfg = built(world)
    samples = [prompt.tokenize(record) for record in records(world, cfg)[:7]]
    together = model.features_for_fusion(collate(samples))["image"].values
    alone = torch.cat([model.features_for_fusion(collate([sample]))["image"].values for sample in samples])
    assert together.equal(alone)


def test_the_encoders_stay_in_eval_mode_and_in_float32_under_autocast(world):
    model, prompt, cfg = built(world)
    batch = collate([prompt.tokenize(records(world, cfg)[0])])
    expected = model.features_for_fusion(batch)["image"].values
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.features_for_fusion(batch)["image"].values.equal(expected)
    assert not model.vision.vit.training and not model.vision.qformer.training


# Cache


def test_cached_and_uncached_training_give_bit_identical_losses(world, plain, cached, tmp_path):
    first, cache = logged(cached[0]), cached[1]
    files = sorted(cache.glob("*/*.npy"))
    again = logged(trained(world, tmp_path, f"model.visual_cache_path={cache}", model={"cache_visual": True}))
    assert logged(plain) == first == again and len(set(first)) == 8
    assert sorted(cache.glob("*/*.npy")) == files and len(files) == 12


@pytest.mark.slow
def test_each_image_is_encoded_only_once_with_a_cache(world, tmp_path, monkeypatch):
    from emollama.models.vision import IMAGES_PER_BATCH, FrozenVision

    batch_sizes = []
    encode = FrozenVision._encode
    monkeypatch.setattr(FrozenVision, "_encode", lambda self, images: batch_sizes.append(len(images)) or encode(self, images))
    trained(world, tmp_path, model={"cache_visual": True}, data={"batch_size": 4}, run={"iters_per_epoch": 3})
    assert batch_sizes == [IMAGES_PER_BATCH] * 3  # 12 images, drawn twice each
    trained(world, tmp_path, "run.job_id=again", "run.max_epoch=1", model={"cache_visual": True})
    assert len(batch_sizes) == 3


def test_a_micro_batch_may_mix_cached_features_and_new_images(world, tmp_path):
    model, prompt, cfg = built(world, cache_visual=True, visual_cache_path=str(tmp_path / "cache"))
    new = [prompt.tokenize(record) for record in records(world, cfg)[:4]]
    expected = model(collate(new))
    from_cache = [prompt.tokenize(record) for record in records(world, cfg)[:4]]
    assert [len(sample.slots["frame"]) for sample in from_cache] == [0] * 4
    mixed = [from_cache[0], new[1], new[2], from_cache[3]]
    assert model(collate(mixed)).equal(expected)


def test_a_damaged_file_of_cached_features_is_rewritten(world, tmp_path):
    model, prompt, cfg = built(world, cache_visual=True, visual_cache_path=str(tmp_path / "cache"))
    model(collate([prompt.tokenize(records(world, cfg)[0])]))
    (path,) = (tmp_path / "cache").glob("*/*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    model(collate([prompt.tokenize(records(world, cfg)[0])]))
    assert path.read_bytes() == whole


def test_a_cache_written_with_other_weights_is_refused_before_anything_is_written(world, cached, tmp_path):
    shutil.copytree(cached[1], tmp_path / "cache")
    other = make_flickr_world(tmp_path / "other", seed=2)
    blocks = {"cache_visual": True, "vit_weights": str(other.eva), "q_former_model": str(other.q_former)}
    message = refusal(world, tmp_path, model=blocks, run={"job_id": "other"})
    assert message.startswith("model.visual_cache_path: ") and "weights: " in message and "set another folder" in message
    assert not (tmp_path / "out/other").exists()


@pytest.mark.slow
def test_a_run_with_a_cache_resumes_bit_identically(world, cached, tmp_path):
    alone, cache = cached
    ended = resumed(world, alone, tmp_path, f"model.visual_cache_path={cache}", model={"cache_visual": True})
    assert logged(ended) == logged(alone)[4:]
    one, other = (checkpoint.read(str(folder / "checkpoint_1.pth"), "k")["model"] for folder in (ended, alone))
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.slow
def test_resuming_with_other_prompts_is_refused(world, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("<ImageHere> What is it?")
    trained(world, tmp_path, "run.max_epoch=1", "run.iters_per_epoch=1", model={"prompt_path": str(prompts)})
    prompts.write_text("<ImageHere> What is this?")
    message = refusal(world, tmp_path, model={"prompt_path": str(prompts)}, run={"resume_ckpt_path": "auto"})
    assert "the model's prompts: " in message


@pytest.mark.slow
def test_losses_with_workers_and_mixed_precision_are_the_same_with_and_without_a_cache(world, tmp_path):
    precision = ("run.amp=True", "run.amp_dtype=bf16", "run.device=cpu")
    options = (*precision, "run.num_workers=1", "run.max_epoch=1", "run.iters_per_epoch=2")
    plain = logged(trained(world, tmp_path / "plain", *options))
    first = logged(trained(world, tmp_path / "cached", *options, model={"cache_visual": True}))
    again = logged(trained(world, tmp_path / "cached", "run.job_id=again", *options, model={"cache_visual": True}))
    assert plain == first == again and len(set(plain)) == 2


@pytest.mark.slow
def test_two_checkpoints_can_be_evaluated_as_an_ensemble(plain, tmp_path):
    both = f"model.ckpt=[{plain}/checkpoint_0.pth,{plain}/checkpoint_1.pth]"
    options = [f"run.output_dir={tmp_path / 'out'}", "run.job_id=both", f"model.visual_cache_path={tmp_path / 'cache'}"]
    config = load(str(plain / "config.yaml"), [both, *options, "model.cache_visual=True"])
    config.runner_class(config, training=False).evaluate()
    lines = (tmp_path / "out/both/result/predictions_test.jsonl").read_text().splitlines()
    assert len(lines) == 6 and len(list((tmp_path / "cache").glob("*/*.npy"))) == 6


def test_the_engine_captions_an_image_like_an_evaluation(world, plain, tmp_path):
    from emollama.inference.engine import Engine
    from emollama.inference.requests import Request

    checkpoint = f"model.ckpt={plain}/checkpoint_1.pth"
    config = load(str(plain / "config.yaml"), [checkpoint, f"run.output_dir={tmp_path}", "run.job_id=captions"])
    config.runner_class(config, training=False).evaluate()
    row = json.loads((tmp_path / "captions/result/predictions_test.jsonl").read_text().splitlines()[0])
    with Engine(config) as engine:
        (answer,) = engine.answer([Request(image=world.images / f"{row['name']}.jpg")])
    assert (answer.text, answer.prompt) == (row["prediction"], row["instruction"])


@pytest.mark.slow
def test_the_cache_can_be_enabled_when_a_run_is_resumed(world, plain, tmp_path):
    ended = resumed(world, plain, tmp_path, model={"cache_visual": True})
    assert logged(ended) == logged(plain)[4:] and list((tmp_path / "cache").glob("*/*.npy"))


# Errors


@pytest.mark.parametrize("key", ["vit_weights", "q_former_model"])
def test_a_missing_weight_file_is_reported_with_its_key_before_anything_is_written(world, tmp_path, key):
    message = refusal(world, tmp_path, model={key: "nowhere.pth"})
    assert message.startswith(f"model.{key}: no file 'nowhere.pth'")
    assert not (tmp_path / "out/run").exists()


def test_evaluating_a_checkpoint_with_other_encoders_is_refused(plain, tmp_path):
    other = make_flickr_world(tmp_path / "other", seed=2)
    options = [f"model.ckpt={plain}/checkpoint_1.pth", f"model.q_former_model={other.q_former}"]
    config = load(str(plain / "config.yaml"), [*options, f"run.output_dir={tmp_path}"])
    with pytest.raises(
        UserError, match=r"(?s)was trained on image features that were extracted differently: .*q_former_model: .*allow_other"
    ):
        config.runner_class(config, training=False)


def test_a_checkpoint_trained_with_another_prompt_template_causes_a_warning(world, plain, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    changed = ["model.prompt_template='###Human: {} ###Assistant: '", "model.end_sym='###'"]
    options = [f"model.ckpt={plain}/checkpoint_1.pth", f"run.output_dir={tmp_path}", *changed]
    config = load(str(plain / "config.yaml"), options)
    config.runner_class(config, training=False)
    template = world.model()["prompt_template"]
    assert f"was trained with prompt_template {template!r}, but this run has '###Human: {{}} ###Assistant: '" in caplog.text
    assert "was trained with end_sym '</s>', but this run has '###': its answers end with another symbol" in caplog.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_query_token": 32}, "model.num_query_token is 32, but in model.q_former_model '.*' it is 8"),
        ({"query_width": 768}, "model.query_width is 768, but in model.q_former_model '.*' it is 64"),
        ({"has_qformer": False}, "model.vit_width is 1408, but in model.vit_weights '.*' it is 176"),
    ],
)
def test_sizes_that_differ_from_those_in_the_weight_files_are_refused(world, tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        trained(world, tmp_path, model=changes)


def test_swapped_files_are_reported(world, tmp_path):
    message = refusal(world, tmp_path, model={"vit_weights": str(world.q_former), "q_former_model": str(world.eva)})
    assert message.startswith("model.vit_weights: ") and "contains no EVA transformer" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_size": 50}, "image_size is 50; it must be a positive multiple of 28"),
        ({"num_query_token": 0}, "num_query_token"),
        ({"prompt_template": "[INST]"}, "must contain {} exactly once"),
        ({"end_sym": ""}, "end_sym is empty"),
    ],
)
def test_invalid_values_of_keys_are_refused_when_the_configuration_is_loaded(world, tmp_path, changes, expected):
    with pytest.raises(UserError) as refused:
        load(str(configured(world, tmp_path, model=changes)))
    assert expected in str(refused.value)


def test_a_dataset_with_slots_that_the_model_lacks_is_refused(world, tmp_path, corpus):
    tree = yaml.safe_load(configured(world, tmp_path).read_text())
    tree["datasets"] = {"feature_face_caption": {"annotation_file": str(corpus / "MERR_coarse_grained.txt")}}
    path = tmp_path / "clips.yaml"
    path.write_text(yaml.safe_dump(tree))
    config = load(str(path))
    message = r"datasets.feature_face_caption.features: .*no slot for face, video, audio. Its slots are image.*flickr30k_caption"
    with pytest.raises(UserError, match=message):
        config.runner_class(config)


# Evaluation and several processes


@pytest.fixture(scope="module")
def two_processes(world, tmp_path_factory, launch):
    """(folder, output) of a run of one epoch in two processes that uses a cache and evaluates during training."""
    folder = tmp_path_factory.mktemp("two")
    path = configured(world, folder, model={"cache_visual": True}, run={"evaluate": True, "device": "cpu", "max_epoch": 1})
    result = launch("train.py", "--cfg-path", str(path), processes=2)
    assert result.returncode == 0, result.stderr
    return folder / "out/run", result.stderr


@pytest.mark.slow
def test_two_processes_train_like_one_process_with_twice_the_batch_size(world, two_processes, tmp_path):
    one = logged(trained(world, tmp_path, data={"batch_size": 6}, run={"max_epoch": 1}))
    assert logged(two_processes[0]) == pytest.approx(one, abs=2e-5)


@pytest.mark.slow
def test_every_test_image_is_answered_once_with_all_its_captions_as_reference(world, two_processes):
    lines = (two_processes[0] / "result/epoch_0/predictions_test.jsonl").read_text().splitlines()
    rows = {row["name"]: row for row in map(json.loads, lines)}
    entries = json.loads(world.test.read_text())["annotations"]
    assert len(lines) == len(entries) == 6
    assert {name: row["reference"] for name, row in rows.items()} == {each["image_id"]: each["captions"] for each in entries}
    assert {row["instruction"] for row in rows.values()} == {"<Img><ImageHere></Img> Describe this image."}


@pytest.mark.slow
def test_two_processes_share_the_cache(world, two_processes):
    assert len(list((two_processes[0].parents[1] / "cache").glob("*/*.npy"))) == 12 + 6


@pytest.mark.slow
def test_one_process_gives_the_same_answers_and_losses_as_two(world, two_processes):
    folder = two_processes[0]
    config = load(str(folder / "config.yaml"), [f"model.ckpt={folder}/checkpoint_0.pth", "run.job_id=alone"])
    config.runner_class(config, training=False).evaluate()
    result = folder.parent / "alone/result"
    alone = [json.loads(line) for line in (result / "predictions_test.jsonl").read_text().splitlines()]
    then = [json.loads(line) for line in (folder / "result/epoch_0/predictions_test.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in alone] == [row["prediction"] for row in then]
    assert [row["loss"] for row in alone] == pytest.approx([row["loss"] for row in then], abs=1e-6)


@pytest.mark.slow
def test_cider_d_uses_the_document_frequencies_of_all_samples_with_two_processes(two_processes, tmp_path, launch):
    folder = two_processes[0]
    rows = [json.loads(line) for line in (folder / "result/epoch_0/predictions_test.jsonl").read_text().splitlines()]
    # The references contain predictions, so that the score is not zero.
    predictions = [row["prediction"] for row in rows]
    true = [[f"{text} a {number % 2} b", f"the {predictions[number - 1]}"] for number, text in enumerate(predictions)]
    entries = [{"image_id": row["name"], "caption": own[0], "captions": own} for row, own in zip(rows, true, strict=True)]
    path = tmp_path / "true.json"
    path.write_text(json.dumps(entries))
    options = [f"model.ckpt={folder}/checkpoint_0.pth", f"evaluation_datasets.test.annotation_file={path}"]
    arguments = ("--cfg-path", f"{folder}/config.yaml", "--options", *options, "run.job_id=by_two")
    result = launch("eval_emotion_EMER.py", *arguments, processes=2)
    assert result.returncode == 0, result.stderr
    config = load(str(folder / "config.yaml"), [*options, "run.job_id=by_one"])
    config.runner_class(config, training=False).evaluate()
    files = [folder.parent / name / "result/metrics_test.json" for name in ("by_one", "by_two")]
    one, two = (json.loads(file.read_text())["tasks"]["caption"]["metrics"] for file in files)
    assert one == pytest.approx(two, abs=1e-9)
    answers = [Prediction(row["name"], "caption", text, own) for row, text, own in zip(rows, predictions, true, strict=True)]
    halves = [cider_d(part) for part in (answers[0::2], answers[1::2])]
    assert one["cider_d"] == pytest.approx(cider_d(answers), abs=1e-9)
    assert one["cider_d"] > 0.1 and abs(one["cider_d"] - sum(halves) / 2) > 0.01


def cider_d(answers):
    """Return the CIDEr-D score of these answers alone."""
    cfg = Scoring.Config(metrics=["cider_d"], caption_tokenizer="treebank")
    scoring = Scoring(cfg, labels=[], aliases={}, tasks={"caption": ["reference"]}, key="block")
    return scoring.score(answers)["caption"].metrics["cider_d"]


def test_a_released_configuration_trains_with_one_compatibility_warning(world, tmp_path, caplog):
    text = f"""
model:
  arch: minigpt4
  model_type: pretrain_vicuna0
  freeze_vit: True
  freeze_qformer: True
  vit_model: eva_clip_g
  has_qformer: True
  q_former_model: {world.q_former}
  num_query_token: 8
  query_width: 64
  vit_weights: {world.eva}
  vit_precision: fp32
  image_size: 56
  llama_model: {world.llama}
  ckpt: {world.projection}
  max_txt_len: 160
  end_sym: "###"
  prompt_path: {world.prompts}
  prompt_template: '###Human: {{}} ###Assistant: '
datasets:
  flickr30k_caption:
    batch_size: 2
    vis_processor: {{train: {{name: blip2_image_train, image_size: 56}}}}
    text_processor: {{train: {{name: blip_caption}}}}
    build_info: {{ann_path: {world.train}, image_path: {world.images}}}
run:
  task: image_text_pretrain
  lr_sched: linear_warmup_cosine_lr
  init_lr: 3e-5
  min_lr: 1e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 1
  iters_per_epoch: 2
  num_workers: 0
  warmup_steps: 1
  seed: 42
  output_dir: {tmp_path}/out
  amp: False
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  device: "cpu"
  world_size: 1
  dist_url: "env://"
  distributed: True
  wandb_log: False
  job_name: minigpt4_finetune
  log_freq: 1
"""
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    config = load(str(path))
    assert len(config.warnings) == 1
    warning = config.warnings[0]
    for key in ("model.model_type", "model.freeze_qformer", "run.job_name", "datasets.flickr30k_caption.vis_processor"):
        assert key in warning
    for key in ("q_former_model", "prompt_path", "num_query_token", "has_qformer", "wandb_log"):
        assert key not in warning
    assert len(logged(config.runner_class(config).train())) == 2


def test_on_the_meta_device_missing_weights_get_the_published_encoder_shapes(world):
    _, _, cfg = built(world)
    cfg = dataclasses.replace(cfg, vit_weights="nowhere", image_size=224)
    model = MODELS.get("minigpt4")(cfg, device=META, frozen_dtype=torch.float32)
    assert sum(value.numel() for value in model.vision.vit.parameters()) == 985_897_344
    assert not os.path.exists("visual_cache")
