"""The nine YAML files of MiniGPT-4 and MiniGPT-v2 with only their paths changed, and the tars that stage 1 reads."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import minigpt_files as files
import numpy as np
import pytest
import torch
from flickr_world import make_flickr_world
from helpers import NAMES, golden_block, golden_tree, loaded
from running import read_jsonl

from emollama.checks.check_data import check
from emollama.checks.report import text_of
from emollama.config import load
from emollama.data.batch import IGNORED
from emollama.data.sampling import MixtureSampler
from emollama.data.shard_properties import values_digests
from emollama.data.slots import PIXELS, SlotShape
from emollama.datasets.configs import ImageTextTarsConfig
from emollama.datasets.image_text_tars import ImageTextTars
from emollama.errors import UserError
from emollama.media.image_files import read_image
from emollama.media.image_transforms import blip2_image

pytestmark = pytest.mark.faults

SIDE = 56
SHAPES = {"image": SlotShape(8, 64), PIXELS: SlotShape(1, 3 * SIDE**2)}
CAPTION = "A {} picture: it shows shape No. {}!"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny models and images of ``flickr_world``, as tars of laion and cc_sbu and as the folder cc_sbu_align."""
    folder = tmp_path_factory.mktemp("minigpt")
    world = make_flickr_world(folder)
    images = sorted(world.images.glob("*.jpg"))
    for tar, chosen in {"laion/00000": images[:5], "laion/00001": images[5:9], "cc_sbu/00000": images[9:13]}.items():
        samples = [files.sample(f"{number:09}", path.read_bytes(), caption_of(number)) for number, path in enumerate(chosen)]
        files.write_tar(folder / f"{tar}.tar", [member for members in samples for member in members])
    (folder / "cc_sbu_align/image").mkdir(parents=True)
    entries = [{"image_id": path.stem, "caption": caption_of(number)} for number, path in enumerate(images[:4])]
    for path in images[:4]:
        shutil.copy(path, folder / "cc_sbu_align/image")
    (folder / "cc_sbu_align/filter_cap.json").write_text(json.dumps({"annotations": entries}))
    # Without a Q-Former, four vectors of 176 numbers enter the projection.
    weights = {"llama_proj.weight": torch.randn(64, 704) / 26, "llama_proj.bias": torch.zeros(64)}
    torch.save({"model": weights}, folder / "projection_llama2.pth")
    return SimpleNamespace(folder=folder, world=world, image=images[0].read_bytes())


def caption_of(number):
    return CAPTION.format("nice", number)


def options(tiny, model_type):
    """Sizes of the tiny models, and a CPU in place of GPUs."""
    world = tiny.world
    model = {"vit_weights": world.eva, "image_size": SIDE, "vit_precision": "fp32", "low_resource": False}
    if model_type == "pretrain_llama2":
        model["vit_width"] = 176
    else:
        model |= {"q_former_model": world.q_former, "num_query_token": 8, "query_width": 64}
    run = {"device": "cpu", "amp": False, "log_freq": 1}
    return [f"model.{key}={value}" for key, value in model.items()] + [f"run.{key}={value}" for key, value in run.items()]


def training_options(tiny, model_type, job_id):
    short = {"max_epoch": 1, "iters_per_epoch": 2, "warmup_steps": 1, "num_workers": 0, "wandb_log": False, "job_id": job_id}
    return options(tiny, model_type) + [f"run.{key}={value}" for key, value in short.items()]


def smaller_batches(tree):
    return [f"datasets.{name}.batch_size=2" for name in tree["datasets"]]


def trained(folder, tree, *changes):
    config = loaded(folder, tree, *changes)
    return config.runner_class(config).train()


def refusal(call, *arguments, **keys):
    with pytest.raises(UserError) as refused:
        call(*arguments, **keys)
    return str(refused.value)


# The released files


@pytest.mark.parametrize("model_type", ["pretrain_vicuna0", "pretrain_llama2"])
def test_the_files_of_stage_1_and_stage_2_train_one_after_the_other(tiny, tmp_path, model_type):
    width = 704 if model_type == "pretrain_llama2" else 64
    first = files.stage_1(tiny.folder, tiny.world, model_type)
    begun = trained(tmp_path, first, *training_options(tiny, model_type, f"{model_type}_1"), *smaller_batches(first))
    second = files.stage_2(tiny.folder, tiny.world, model_type, begun / "checkpoint_0.pth")
    ended = trained(tmp_path, second, *training_options(tiny, model_type, f"{model_type}_2"), *smaller_batches(second))
    for folder in (begun, ended):
        stored = torch.load(folder / "checkpoint_0.pth", weights_only=True)["model"]
        assert {name: tuple(value.shape) for name, value in stored.items()} == {
            "llama_proj.weight": (64, width),
            "llama_proj.bias": (64,),
        }
        assert [np.isfinite(row["loss"]) for row in read_jsonl(folder / "log.jsonl")] == [True, True]
        assert load(str(folder / "config.yaml")).warnings == []


@pytest.mark.parametrize("model_type", ["pretrain_vicuna0", "pretrain_llama2"])
def test_the_files_of_the_demo_caption_images_of_an_added_evaluation_block(tiny, tmp_path, emollama, model_type):
    ckpt = tiny.folder / "projection_llama2.pth" if model_type == "pretrain_llama2" else tiny.world.projection
    (tmp_path / "config.yaml").write_text(json.dumps(files.demo(tiny.world, model_type, ckpt)))
    storage = f"evaluation_datasets.cc_sbu_align.build_info.storage={tiny.folder}/cc_sbu_align"
    more = ["evaluation_datasets.cc_sbu_align.max_new_tokens=3", f"run.output_dir={tmp_path}", "run.job_id=run"]
    more.append("evaluation_datasets.cc_sbu_align.metrics=[loss]")
    ended = emollama("eval", "--cfg-path", tmp_path / "config.yaml", "--options", *options(tiny, model_type), storage, *more)
    assert ended.returncode == 0, ended.stderr
    rows = read_jsonl(tmp_path / "run/result/predictions_cc_sbu_align.jsonl")
    assert [row["reference"] for row in rows] == [[caption_of(number)] for number in range(4)]


@pytest.mark.parametrize("model_type", ["pretrain_vicuna0", "pretrain", "pretrain_llama2"])
def test_a_file_of_the_demo_alone_has_nothing_to_evaluate_and_the_warning_names_the_key_to_set(
    tiny, tmp_path, emollama, model_type
):
    (tmp_path / "config.yaml").write_text(json.dumps(files.demo(tiny.world, model_type, tiny.world.projection)))
    few = [option for option in options(tiny, "") if "model." not in option] + ["model.low_resource=False"]
    ended = emollama("eval", "--cfg-path", tmp_path / "config.yaml", "--options", *few, f"run.output_dir={tmp_path}")
    assert ended.returncode == 1 and "'evaluation_datasets' has no block" in ended.stderr
    assert "evaluation_datasets.cc_sbu_align.build_info.storage" in ended.stderr


def v2_options():
    """The options with which a file of MiniGPT-v2 uses the golden corpus and its models."""
    tree = golden_tree(Path("."))["model"]
    keys = ("llama_model", "ckpt", "lora_r", "lora_dropout", "image_size", "slot_dims")
    return [f"model.{key}={json.dumps(tree[key])}" for key in keys]


def test_the_demo_file_of_minigpt_v2_evaluates_an_added_block(tiny, tmp_path, emollama):
    (tmp_path / "config.yaml").write_text(json.dumps(files.demo(tiny.world, "pretrain", tiny.world.projection)))
    block = {**golden_block(), "task_pool": ["emotion"], "max_new_tokens": 2, "batch_size": 8, "metrics": ["waf"]}
    run = ["run.device=cpu", "run.amp=False", f"run.output_dir={tmp_path}", "run.job_id=run"]
    line = ["--options", *v2_options(), *run, f"evaluation_datasets.golden={json.dumps(block)}"]
    ended = emollama("eval", "--cfg-path", tmp_path / "config.yaml", *line)
    assert ended.returncode == 0, ended.stderr
    assert len(read_jsonl(tmp_path / "run/result/predictions_golden.jsonl")) == len(NAMES)


@pytest.mark.parametrize("kind", ["finetune", "benchmark"])
def test_the_datasets_of_minigpt_v2_are_refused_together_with_the_reason_and_the_remedy(tiny, tmp_path, kind):
    group, names = ("datasets", files.V2_TRAINING) if kind == "finetune" else ("evaluation_datasets", files.V2_BENCHMARKS)
    build = files.v2_finetune if kind == "finetune" else files.v2_benchmark
    message = refusal(loaded, tmp_path, build(tiny.folder, tiny.world, tiny.world.projection))
    assert [name for name in names if f"{group}.{name}" not in message] == []
    for part in ("cannot read", "BLOCK=null", "docs/extending.md"):
        assert part in message


def test_the_files_of_minigpt_v2_run_with_a_dataset_of_this_package_in_place_of_theirs(tiny, tmp_path):
    tree = files.v2_finetune(tiny.folder, tiny.world, tiny.world.projection)
    removed = [f"datasets.{name}=null" for name in tree["datasets"]]
    block = f"datasets.golden={json.dumps({**golden_block(), 'task_pool': ['emotion']})}"
    folder = trained(tmp_path, tree, *removed, block, *v2_options(), *training_options_v2())
    assert len(read_jsonl(folder / "log.jsonl")) == 2


def training_options_v2():
    short = {"device": "cpu", "amp": False, "log_freq": 1, "max_epoch": 1, "iters_per_epoch": 2, "warmup_steps": 1}
    short |= {"num_workers": 0, "wandb_log": False, "job_id": "v2"}
    return [f"run.{key}={value}" for key, value in short.items()]


# What model_type and run imply


def test_stage_1_has_no_prompt_and_ends_captions_with_a_line_break(tiny, tmp_path):
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    config = loaded(tmp_path, tree, *options(tiny, "pretrain_vicuna0"))
    prompt = config.model_class.prompt_format(config.model)
    shapes = config.model_class.slot_shapes(config.model)
    dataset = config.dataset_class("datasets.laion")(
        config.datasets["laion"], slot_shapes=shapes, block_path="datasets.laion", training=True
    )
    tokens = prompt.tokenize(dataset.record(0, "caption", ""))
    answer = prompt.tokenizer("a nice picture it shows shape no 0\n", add_special_tokens=False).input_ids
    assert tokens.input_ids[0] == prompt.tokenizer.bos_token_id
    assert (tokens.input_ids[1:9] < 0).all()
    assert tokens.input_ids[9:].tolist() == answer
    assert (tokens.labels[:9] == IGNORED).all() and tokens.labels[9:].tolist() == answer


@pytest.mark.parametrize("model_type", ["pretrain_vicuna0", "pretrain_vicuna", "pretrain_llama2"])
def test_a_model_type_sets_what_the_file_does_not(tiny, tmp_path, model_type):
    tree = files.stage_1(tiny.folder, tiny.world, model_type)
    model = loaded(tmp_path, tree).model
    assert (model.image_size, model.vit_precision, model.max_txt_len, model.end_sym) == (224, "fp16", 32, "\n")
    assert model.has_qformer == (model_type != "pretrain_llama2") and model.num_query_token == 32
    changed = loaded(tmp_path, tree, "model.max_txt_len=64", "model.image_size=56", "model.has_qformer=True").model
    assert (changed.max_txt_len, changed.image_size, changed.has_qformer, changed.end_sym) == (64, 56, True, "\n")


@pytest.mark.parametrize("key", ["prompt_template", "prompt_path"])
def test_a_file_that_sets_a_prompt_gets_that_prompt(tiny, tmp_path, key):
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    tree["model"][key] = {"prompt_template": "###Human: {} ###Assistant: ", "prompt_path": str(tiny.world.prompts)}[key]
    config = loaded(tmp_path, tree)
    prompt = config.model_class.prompt_format(config.model)
    assert prompt.apply_instruction("", None).startswith("<Img><ImageHere></Img> ")
    assert config.model.prompt_template == "###Human: {} ###Assistant: "


def test_a_preset_takes_precedence_over_a_model_type(tiny, tmp_path):
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    config = loaded(tmp_path, tree, "model.preset=tiny")
    assert (config.model.max_txt_len, config.model.end_sym) == (200, "\n")
    assert config.sources["model.max_txt_len"].startswith("preset tiny")
    assert config.sources["model.end_sym"] == "model_type pretrain_vicuna0"


def test_an_unknown_model_type_is_refused_with_a_suggestion(tiny, tmp_path):
    message = refusal(loaded, tmp_path, files.stage_1(tiny.folder, tiny.world, "pretrain_llama_2"))
    assert "arch minigpt4 has no model_type 'pretrain_llama_2'. Did you mean 'pretrain_llama2'?" in message


def test_the_warning_says_what_a_model_type_sets(tiny, tmp_path):
    (warning,) = loaded(tmp_path, files.stage_2(tiny.folder, tiny.world, "pretrain_llama2", tiny.world.projection)).warnings
    (line,) = [line for line in warning.splitlines() if line.startswith("- model.model_type")]
    assert "has_qformer: False" in line and "max_txt_len" not in line and "prompt" not in line


def test_the_batch_size_of_run_is_that_of_blocks_without_their_own(tiny, tmp_path):
    tree = files.stage_2(tiny.folder, tiny.world, "pretrain_vicuna0", tiny.world.projection)
    tree["evaluation_datasets"] = {"cc_sbu_align": {"build_info": {"storage": "x"}}}
    tree["run"]["batch_size_eval"] = 7
    config = loaded(tmp_path, tree)
    assert config.datasets["cc_sbu_align"].batch_size == 12
    assert config.evaluation_datasets["cc_sbu_align"].dataset.batch_size == 7
    assert loaded(tmp_path, tree, "datasets.cc_sbu_align.batch_size=3").datasets["cc_sbu_align"].batch_size == 3
    tree["run"]["batch_size_train"] = "twelve"
    assert refusal(loaded, tmp_path, tree).startswith("run.batch_size_train: 'datasets.cc_sbu_align.batch_size'")


def test_cc_sbu_align_reads_its_folder_and_its_captions_are_unchanged(tiny, tmp_path):
    config = loaded(tmp_path, files.stage_2(tiny.folder, tiny.world, "pretrain_vicuna0", tiny.world.projection))
    cfg, path = config.datasets["cc_sbu_align"], "datasets.cc_sbu_align"
    assert cfg.annotation_file == f"{tiny.folder}/cc_sbu_align/filter_cap.json"
    assert cfg.image_path == f"{tiny.folder}/cc_sbu_align/image"
    dataset = config.dataset_class(path)(cfg, slot_shapes=SHAPES, block_path=path, training=True)
    assert dataset.problems() == [] and dataset.record(0, "caption", "").turns[0][1] == caption_of(0)
    assert f"{path}.text_processor.train.name: MiniGPT-4 trains on these captions unchanged" in config.warnings[0]
    tree = files.stage_2(tiny.folder, tiny.world, "pretrain_vicuna0", tiny.world.projection)
    assert loaded(tmp_path, tree, f"{path}.text_processor=blip_caption").datasets["cc_sbu_align"].text_processor == "blip_caption"


@pytest.mark.parametrize("block", ["laion", "cc_sbu"])
def test_a_block_of_stage_1_without_its_tars_is_an_error_and_not_left_out(tiny, tmp_path, block):
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    del tree["datasets"][block]["build_info"]
    assert refusal(loaded, tmp_path, tree).startswith(f"'datasets.{block}.storage' is missing")


def test_a_block_with_the_name_of_a_dataset_may_select_another_class(tmp_path):
    tree = golden_tree(tmp_path)
    tree["datasets"] = {name: {**golden_block(), "task_pool": ["emotion"]} for name in ("laion", "refcoco", "cc_sbu_align")}
    config = loaded(tmp_path, tree, "datasets.laion.batch_size=2")
    assert {config.names[f"datasets.{name}"] for name in tree["datasets"]} == {"feature_face_caption"}


# The tars


def block(storage, **keys):
    return ImageTextTarsConfig(storage=storage if isinstance(storage, list) else str(storage), **keys)


def build(storage, *, training=True, **keys):
    return ImageTextTars(block(storage, **keys), slot_shapes=SHAPES, block_path="datasets.laion", training=training)


def test_a_record_has_the_pixels_and_the_processed_caption_of_its_sample(tiny):
    dataset = build(tiny.folder / "laion/{00000..00001}.tar")
    assert dataset.names() == [f"00000/{key:09}" for key in range(5)] + [f"00001/{key:09}" for key in range(4)]
    record = dataset.record(6, "caption", "")
    image = sorted(tiny.world.images.glob("*.jpg"))[6]
    assert record.features[PIXELS].equal(blip2_image(read_image(image), SIDE).reshape(1, -1))
    assert record.reference == [caption_of(1)] and record.turns == [("", "a nice picture it shows shape no 1")]


@pytest.mark.parametrize("form", ["laion", "laion/*.tar", "list"])
def test_tars_can_be_a_folder_a_pattern_or_a_list(tiny, form):
    storage = [str(tiny.folder / f"laion/0000{number}.tar") for number in range(2)]
    assert (
        build(storage if form == "list" else tiny.folder / form).names()
        == build(tiny.folder / "laion/{00000..00001}.tar").names()
    )


def test_training_shuffles_within_tars_that_come_in_random_order(tiny):
    sampling = build(tiny.folder / "laion", shuffle_window=1).sampling()
    orders = set()
    for seed in range(8):
        sampler = MixtureSampler(seed, (sampling,))
        order = [sampler.at(index).index for index in range(9)]
        assert sorted(order) == list(range(9))
        tars = [int(index >= 5) for index in order]
        assert tars in ([0] * 5 + [1] * 4, [1] * 4 + [0] * 5)
        orders.add(tuple(order))
    assert len(orders) > 2


def test_held_out_and_excluded_samples_are_left_out_by_name(tiny):
    train, test = (build(tiny.folder / "laion", training=training, held_out=0.4) for training in (True, False))
    assert sorted(train.names() + test.names()) == build(tiny.folder / "laion").names()
    assert len(train) and len(test)
    assert test.record(0, "caption", "").name == test.names()[0]
    left = build(tiny.folder / "laion", exclude=["00001/000000002"])
    assert len(left) == 8 and "00001/000000002" not in left.names() and left.digest() != build(tiny.folder / "laion").digest()
    assert "exclude contains 1 sample: no, which" in refusal(build, tiny.folder / "laion", exclude=["no"])


def test_a_resumed_run_continues_with_the_same_samples(tiny, tmp_path):
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    tree["run"]["output_dir"] = str(tmp_path / "out")
    changes = [*training_options(tiny, "pretrain_vicuna0", "whole"), *smaller_batches(tree), "run.max_epoch=2"]
    whole = trained(tmp_path, tree, *changes)
    (tmp_path / "out/half").mkdir()
    for name in ("checkpoint_0.pth", "checkpoint_0.pth.sha256"):
        shutil.copy(whole / name, tmp_path / "out/half")
    half = trained(tmp_path, tree, *changes, "run.job_id=half", "run.resume_ckpt_path=auto")
    losses = [row["loss"] for row in read_jsonl(whole / "log.jsonl")]
    assert [row["loss"] for row in read_jsonl(half / "log.jsonl")] == losses[2:] and len(losses) == 4
    moved = shutil.copytree(tiny.folder / "laion", tmp_path / "laion")
    again = [*changes, "run.job_id=half", "run.resume_ckpt_path=auto", "run.max_epoch=3"]
    storage = f"datasets.laion.build_info.storage={moved}"
    assert len(read_jsonl(trained(tmp_path, tree, *again, storage) / "log.jsonl")) == 4
    files.write_tar(moved / "00001.tar", files.sample("000000000", tiny.image, "Another caption"))
    assert "laion" in refusal(trained, tmp_path, tree, *again, storage, "run.max_epoch=4")


def test_cached_features_of_tars_give_the_same_losses(tiny, tmp_path):
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    changes = [*training_options(tiny, "pretrain_vicuna0", "x"), *smaller_batches(tree), "model.cache_visual=True"]
    changes += [f"model.visual_cache_path={tmp_path}/cache", f"run.output_dir={tmp_path}"]
    losses = [
        [row["loss"] for row in read_jsonl(trained(tmp_path, tree, *changes, f"run.job_id={job_id}") / "log.jsonl")]
        for job_id in ("encoded", "cached")
    ]
    assert losses[0] == losses[1] and len(list((tmp_path / "cache").glob("*/*.npy"))) >= 2


def test_tars_are_evaluated_in_order_and_predict_skips_them(tiny, tmp_path, emollama):
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    tree["evaluation_datasets"] = {"cc_sbu": {**tree["datasets"].pop("cc_sbu"), "max_new_tokens": 2, "metrics": ["bleu_1"]}}
    tree["model"]["ckpt"] = str(tiny.world.projection)
    (tmp_path / "config.yaml").write_text(json.dumps(tree))
    run = [f"run.output_dir={tmp_path}", "run.job_id=run", "evaluation_datasets.cc_sbu.caption_tokenizer=treebank"]
    line = ["--cfg-path", tmp_path / "config.yaml", "--options", *options(tiny, "pretrain_vicuna0"), *run]
    assert emollama("eval", *line).returncode == 0
    rows = read_jsonl(tmp_path / "run/result/predictions_cc_sbu.jsonl")
    assert [row["name"] for row in rows] == [f"00000/{number:09}" for number in range(4)]
    (tmp_path / "clips").mkdir()
    shutil.copy(tiny.world.train, tmp_path / "clips/x.mp4")
    ended = emollama("predict", "--video", tmp_path / "clips", *line)
    assert ended.returncode == 1 and "cc_sbu" in ended.stderr and "Traceback" not in ended.stderr


def test_an_index_is_used_again_until_its_tar_changes_and_replaced_if_it_is_damaged(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tar = files.write_tar(tmp_path / "a.tar", files.sample("x", tiny.image, "One"))
    first = build(tar)
    (cached,) = (tmp_path / "cache/emollama/image-text-3").iterdir()
    written = cached.stat()
    assert build(tar).digest() == first.digest() and cached.stat().st_mtime_ns == written.st_mtime_ns
    cached.write_bytes(cached.read_bytes()[:-40])
    assert build(tar).digest() == first.digest() and cached.stat().st_size == written.st_size
    files.write_tar(tar, files.sample("x", tiny.image, "Two"))
    assert build(tar).record(0, "caption", "").reference == ["Two"] and build(tar).digest() != first.digest()


def test_a_tar_that_changes_during_a_run_is_reported_with_the_sample(tiny, tmp_path):
    tar = files.write_tar(tmp_path / "a.tar", files.sample("x", tiny.image, "One"))
    dataset = build(tar)
    tar.write_bytes(bytes(tar.stat().st_size))
    message = refusal(dataset.record, 0, "caption", "")
    assert str(tar) in message and "sample 'a/x'" in message and "has changed" in message


def test_a_tar_that_is_replaced_by_one_of_the_same_size_during_a_run_is_reported(tiny, tmp_path):
    tar = files.write_tar(tmp_path / "a.tar", files.sample("x", tiny.image, "One"))
    dataset = build(tar)
    files.write_tar(tmp_path / "new.tar", files.sample("x", tiny.image, "Two"))
    (tmp_path / "new.tar").replace(tar)
    assert f"{tar}, sample 'a/x': the tar has changed; start the run again." in refusal(dataset.record, 0, "caption", "")


def test_other_images_with_the_same_captions_have_another_digest(tiny, tmp_path):
    digests = []
    for number, image in enumerate((tiny.image, tiny.image + b" ")):
        tar = files.write_tar(tmp_path / str(number) / "a.tar", files.sample("x", image, "One"))
        dataset = build(tar)
        digests.append((dataset.digest(), values_digests(dataset.features)))
    assert digests[0][0] == digests[1][0] and digests[0][1].keys() == {"frame"} and digests[0][1] != digests[1][1]


def test_a_tar_that_is_named_in_two_ways_is_refused(tiny, tmp_path, monkeypatch):
    tar = files.write_tar(tmp_path / "a.tar", files.sample("x", tiny.image, "One"))
    (tmp_path / "link.tar").symlink_to(tar)
    monkeypatch.chdir(tmp_path)
    for other in ("a.tar", "link.tar"):
        assert f"'{tar}' appears twice" in refusal(build, [str(tar), other])


def test_relative_and_absolute_paths_of_tars_can_be_mixed(tiny, tmp_path, monkeypatch):
    for name in "ab":
        files.write_tar(tmp_path / f"{name}.tar", files.sample("x", tiny.image, "One"))
    monkeypatch.chdir(tmp_path)
    assert build([str(tmp_path / "a.tar"), "b.tar"]).names() == ["a/x", "b/x"]


def test_local_tars_and_those_at_urls_cannot_be_mixed(tiny, tmp_path):
    tar = files.write_tar(tmp_path / "a.tar", files.sample("x", tiny.image, "One"))
    assert "some tars are local and others are at URLs" in refusal(build, [str(tar), "https://example.org/a.tar"])


def test_a_key_that_is_not_utf8_makes_a_sample_unusable(tiny, tmp_path):
    tar = files.write_tar(
        tmp_path / "t/0.tar", files.sample("good", tiny.image, "Good") + files.sample("b\udcff", tiny.image, "Bad")
    )
    (problem,) = findings(tiny, tmp_path, tar).of_level("problem")
    assert f"{tar}, sample '0/b\\xff': its name is not UTF-8" in problem.text


# Damaged tars


class Planted:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def findings(tiny, tmp_path, storage, **keys):
    """The problems of check-data for stage 1 with these tars."""
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    tree["datasets"] = {"laion": {**tree["datasets"]["laion"], "build_info": {"storage": str(storage)}, **keys}}
    return check(loaded(tmp_path, tree, *options(tiny, "pretrain_vicuna0")))


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("unreadable", "sample '0/bad': its image cannot be read: it is not an image"),
        ("cut off", "sample '0/bad': its image cannot be read: it is cut off or damaged"),
        ("empty image", "sample '0/bad': its image cannot be read: the file is empty"),
        ("no image", "sample '0/bad': it has no image"),
        ("no caption", "sample '0/bad': its .json has no \"caption\""),
        ("null caption", "sample '0/bad': its .json has no \"caption\""),
        ("number", "sample '0/bad': a caption must be text, got '7'"),
        ("blank", "sample '0/bad': a caption is empty"),
        ("no json", "sample '0/bad': it has no .json with a caption"),
        ("broken json", "sample '0/bad': its .json is not JSON"),
    ],
)
def test_check_data_names_the_tar_and_the_sample_that_cannot_be_used(tiny, tmp_path, fault, part):
    image = {"unreadable": b"no image", "cut off": tiny.image[:-60], "empty image": b"", "no image": None}.get(fault, tiny.image)
    fields = {"no caption": {"url": "x"}, "null caption": {"caption": None}, "number": {"caption": 7}, "blank": {"caption": " "}}
    text = json.dumps(fields.get(fault, {"caption": "Well"})).encode()
    text = {"broken json": text[:-1], "no json": None}.get(fault, text)
    left = [(name, content) for name, content in (("bad.jpg", image), ("bad.json", text)) if content is not None]
    tar = files.write_tar(tmp_path / "t/0.tar", files.sample("good", tiny.image, "Good") + left)
    report = findings(tiny, tmp_path, tar)
    (problem,) = report.of_level("problem")
    assert f"{tar}, {part}" in problem.text and "missing_images: skip" in problem.text and problem.clips == ("0/bad",)
    skipped = findings(tiny, tmp_path, tar, missing_images="skip")
    assert not skipped.of_level("problem") and "missing_images: skip leaves out 1 sample: 0/bad" in text_of(skipped)
    assert not findings(tiny, tmp_path, tar, exclude=["0/bad"]).of_level("problem")


@pytest.mark.parametrize(
    "fault",
    "truncated/no end/zeros/appended/number/pickle/pickled caption/link/path/twice/compressed/missing/text".split("/"),
)
def test_check_data_refuses_a_damaged_or_unsafe_tar_by_name_and_executes_nothing(tiny, tmp_path, fault):
    tar, trap = tmp_path / "t/0.tar", tmp_path / "executed"
    members = files.sample("good", tiny.image, "Good")
    payload = pickle.dumps(Planted(trap))
    more = {
        "pickle": [("good.pkl", payload)],
        "pickled caption": [("good.extra.pyd", payload)],
        "path": [("../good.jpg", tiny.image)],
        "twice": [("good.jpg", tiny.image)],
    }
    files.write_tar(tar, members + more.get(fault, []))
    if fault == "truncated":
        tar.write_bytes(tar.read_bytes()[:700])
    elif fault == "no end":
        tar.write_bytes(tar.read_bytes()[: files.end_of_members(tar)])
    elif fault == "zeros":  # a copy into a file of the final size was interrupted
        end = files.end_of_members(tar)
        tar.write_bytes(tar.read_bytes()[:end] + bytes(2**17))
    elif fault == "appended":
        tar.write_bytes(2 * tar.read_bytes())
    elif fault == "number":  # a size of 2**80
        content = bytearray(tar.read_bytes())
        content[124:136] = b"\x80" + (2**80).to_bytes(11, "big")
        content[148:156] = b" " * 8
        content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
        tar.write_bytes(content)
    elif fault == "link":
        with tarfile.open(tar, "a") as archive:
            link = tarfile.TarInfo("other.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    elif fault == "compressed":
        tar.write_bytes(gzip.compress(tar.read_bytes()))
    elif fault == "missing":
        tar.unlink()
    elif fault == "text":
        tar.write_text("no tar")
    parts = {
        "truncated": "not a complete, uncompressed tar",
        "no end": "truncated or damaged",
        "zeros": "truncated or damaged",
        "appended": "truncated or damaged",
        "number": "not a complete, uncompressed tar",
        "pickle": "member 'good.pkl' is a pickle, which could execute code",
        "pickled caption": "member 'good.extra.pyd' is a pickle",
        "link": "member 'other.jpg' is a link",
        "path": "member '../good.jpg' has a path that leads out of its folder",
        "twice": "member 'good.jpg' is a second image",
        "compressed": "not a complete, uncompressed tar",
        "missing": "no tar",
        "text": "not a complete, uncompressed tar",
    }
    report = findings(tiny, tmp_path, tar, missing_images="skip")
    (problem,) = report.of_level("problem")
    assert str(tar) in problem.text and parts[fault] in problem.text and "storage" in problem.text
    assert not trap.exists()


def test_all_damaged_tars_are_reported_at_once(tiny, tmp_path):
    for number in range(3):
        files.write_tar(tmp_path / f"t/{number}.tar", files.sample("good", tiny.image, "Good"))
    for number in (0, 2):
        (tmp_path / f"t/{number}.tar").write_bytes(b"damaged")
    message = refusal(build, tmp_path / "t/{0..3}.tar")
    assert "3 tars cannot be used" in message
    assert [f"t/{number}.tar" in message for number in range(4)] == [True, False, True, True]


def test_the_command_check_data_ends_with_status_1_for_a_damaged_tar(tiny, tmp_path, emollama):
    tar = files.write_tar(tmp_path / "t/0.tar", files.sample("good", tiny.image, "Good"))
    tar.write_bytes(tar.read_bytes()[:700])
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    tree["datasets"]["laion"]["build_info"]["storage"] = str(tar)
    (tmp_path / "config.yaml").write_text(json.dumps(tree))
    ended = emollama("check-data", "--cfg-path", tmp_path / "config.yaml", "--options", *options(tiny, "pretrain_vicuna0"))
    assert ended.returncode == 1 and f"{tar}: not a complete, uncompressed tar" in ended.stdout.replace("\n", "")


def test_a_dry_run_checks_the_tars_and_writes_nothing(tiny, tmp_path, emollama):
    tree = files.stage_1(tiny.folder, tiny.world, "pretrain_vicuna0")
    tree["run"]["output_dir"] = str(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(json.dumps(tree))
    more = [*training_options(tiny, "pretrain_vicuna0", "run"), *smaller_batches(tree)]
    ended = emollama("train", "--dry-run", "--cfg-path", tmp_path / "config.yaml", "--options", *more)
    assert ended.returncode == 0 and "9 samples; tasks: caption" in ended.stdout and not (tmp_path / "out").exists()
    tar = files.write_tar(tmp_path / "t.tar", files.sample("bad", tiny.image, None) + files.sample("good", tiny.image, "Good"))
    more.append(f"datasets.laion.build_info.storage={tar}")
    ended = emollama("train", "--dry-run", "--cfg-path", tmp_path / "config.yaml", "--options", *more)
    assert ended.returncode == 1 and "sample 't/bad'" in ended.stdout + ended.stderr
