"""Conversion of checkpoints: published names, PEFT folders, merged models, averages, differences."""

from __future__ import annotations

import functools
import json
import math
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN, golden_tree, loaded
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from emollama import checkpoint, file_digests
from emollama.convert import formats
from emollama.convert.inspection import diff, inspect
from emollama.convert.weights import Weights, read
from emollama.data.batch import collate
from emollama.errors import UserError
from emollama.models import adapters, checkpoint_names
from emollama.optim import trainable

LLAMA = GOLDEN / "llama"
SLIM = str(GOLDEN / "checkpoint_slim.pth")
CPU, META = torch.device("cpu"), torch.device("meta")
LAYER = "llama_model.base_model.model.model.layers.0.self_attn"


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return str(error.value)


def published():
    """name -> (shape, dtype) of the files that the published training code writes at the golden sizes."""
    lines = (GOLDEN / "state_keys.txt").read_text().splitlines()[1:]
    records = (line.split("\t") for line in lines)
    return {
        name: (tuple(json.loads(shape.replace("(", "[").replace(",)", ")").replace(")", "]"))), dtype)
        for name, shape, dtype in records
    }


@functools.lru_cache
def random_tensors(seed):
    """Random tensors under the names of a released Emotion-LLaMA file, with adapters of rank 64 (the golden ones have rank 4).

    The unused tensors ``attention.*`` are small here, so that files have 1 MB instead of 20 MB.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (shape, _) in published().items():
        sizes = [64 if ".lora_" in name and size == 4 else size for size in shape]
        if name.startswith("attention."):
            sizes = [min(size, 16) for size in sizes]
        tensors[name] = torch.randn(sizes, generator=generator) * 0.1
    return tensors


def released(seed=0, angles=True):
    """A new dict of :func:`random_tensors`, with the rotary angles of older files. Tests must not change the tensors."""
    tensors = dict(random_tensors(seed))
    if angles:
        tensors |= {f"llama_model.base_model.model.model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in (0, 1)}
    return tensors


def model_of(tmp_path, device=CPU, **keys):
    tree = golden_tree(tmp_path)
    tree["model"] |= {"ckpt": None, "lora_r": 64, **keys}
    config = loaded(tmp_path, tree)
    torch.manual_seed(1)
    return config.model_class(config.model, device=device, frozen_dtype=torch.float32).eval()


def load(model, tensors):
    return checkpoint.load_trainable(model, tensors, path="released.pth", allow_missing=[])


def by_stored_name(model):
    return {checkpoint_names.stored_name(name): parameter.detach() for name, parameter in trainable(model).items()}


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A folder with ``file.pth``, a checkpoint of rank 64 with its configuration, and ``peft``, the folder exported from it."""
    path = tmp_path_factory.mktemp("origin") / "file.pth"
    config = {"model": {"lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.05, "llama_model": "elsewhere"}, "run": {"seed": 1}}
    checkpoint.save(path, {"model": released(), "config": config, "epoch": 3, "step": 40, "optimizer": {}, "scaler": {}})
    exported(str(path), path.parent / "peft")
    return path.parent


@pytest.fixture
def file(origin, tmp_path):
    """A copy of the checkpoint with its digest, which the test may change."""
    for name in ("file.pth", "file.pth.sha256"):
        shutil.copy(origin / name, tmp_path)
    return str(tmp_path / "file.pth")


@pytest.fixture
def folder(origin, file, tmp_path):
    """A copy of the PEFT folder next to the copy of the checkpoint, which the test may change."""
    return Path(shutil.copytree(origin / "peft", tmp_path / "peft"))


def without_config(path):
    """The same file as another program writes it: only tensors, without a digest."""
    torch.save({"model": torch.load(path, weights_only=True)["model"]}, path)
    file_digests.digest_path(path).unlink()
    return path


def exported(source, output, alpha=None, base=None):
    formats.to_peft(read(source, "convert"), str(output), alpha, base)
    return output


# Published files


def test_every_tensor_of_a_released_file_is_loaded_or_set_aside(tmp_path):
    tensors = released()
    model = model_of(tmp_path)
    (note,) = load(model, tensors)
    aside = {name for name in tensors if name.startswith("attention.") or name.endswith("inv_freq")}
    first = [name for name in tensors if name in aside][:10]
    assert len(aside) == 36 + 2
    assert f"ignored 38 unused tensors: {', '.join(first)}, ... and 28 more (all of them: " in note
    assert set(Path(note.rpartition("all of them: ")[2].rstrip(").")).read_text().split()) == aside
    parameters = by_stored_name(model)
    assert {name for name, value in parameters.items() if value.equal(tensors[name])} == set(tensors) - aside
    assert parameters.keys() | aside == tensors.keys()


def test_every_tensor_of_a_minigpt_v2_file_is_loaded_initialized_or_ignored(tmp_path):
    tensors = {
        name: tensor
        for name, tensor in released().items()
        if name not in checkpoint_names.OPTIONAL_TENSOR_GROUP and not name.startswith("attention.")
    }
    model = model_of(tmp_path)
    before = {name: value.clone() for name, value in by_stored_name(model).items()}
    notes = load(model, tensors)
    assert (
        len(notes) == 2
        and "2 unused tensors: " in notes[0]
        and "inv_freq" in notes[0]
        and "initialized 8 missing tensors: " in notes[1]
    )
    parameters = by_stored_name(model)
    loaded_names = {name for name in parameters if name in tensors and parameters[name].equal(tensors[name])}
    unchanged = {name for name in parameters if parameters[name].equal(before[name])}
    assert unchanged == set(checkpoint_names.OPTIONAL_TENSOR_GROUP)
    assert loaded_names | unchanged == set(parameters) and len(loaded_names) + 2 == len(tensors)


def test_tensor_names_of_later_peft_versions_are_loaded(tmp_path):
    tensors = {name: tensor for name, tensor in released(angles=False).items() if not name.startswith("attention.")}
    longer = {name.replace(".weight", ".default.weight") if ".lora_" in name else name: value for name, value in tensors.items()}
    assert any("lora_A.default.weight" in name for name in longer)
    model = model_of(tmp_path)
    assert load(model, longer) == []
    assert all(value.equal(tensors[name]) for name, value in by_stored_name(model).items())


def test_two_tensors_for_one_name_are_refused(tmp_path):
    tensors = released()
    twice = f"{LAYER}.q_proj.lora_A.default.weight"
    tensors[twice] = tensors[f"{LAYER}.q_proj.lora_A.weight"]
    message = refusal(load, model_of(tmp_path, META), tensors)
    assert "contains two tensors for the same parameter" in message and "1 longer name: " in message and twice in message
    torch.save({"model": tensors}, tmp_path / "twice.pth")
    assert twice in refusal(read, str(tmp_path / "twice.pth"), "inspect")


def test_tensor_names_of_a_model_with_names_of_its_own_are_unchanged(tmp_path):
    names = ["fusion.gate.weight", "head.bias"]
    torch.save({"model": {name: torch.ones(1) for name in names}}, tmp_path / "own.pth")
    assert list(read(str(tmp_path / "own.pth"), "inspect").tensors) == names


@pytest.fixture(scope="module")
def saved_checkpoint(tmp_path_factory):
    """A checkpoint that the runner saved on the golden corpus."""
    folder = tmp_path_factory.mktemp("written")
    tree = golden_tree(folder)
    tree["run"] |= {"iters_per_epoch": 1, "init_lr": 1e-3}
    config = loaded(folder, tree)
    return str(config.runner_class(config).train() / "checkpoint_0.pth")


def test_our_checkpoints_have_the_names_shapes_and_dtypes_of_the_published_code(saved_checkpoint):
    ours = {name: (tuple(value.shape), str(value.dtype)[6:]) for name, value in read(saved_checkpoint, "x").tensors.items()}
    theirs = published()
    assert len(theirs) == 54
    assert ours == {name: row for name, row in theirs.items() if not name.startswith("attention.")}


def test_our_checkpoints_contain_the_lora_settings_that_peft_needs(saved_checkpoint, tmp_path):
    stored = json.loads((exported(saved_checkpoint, tmp_path / "peft") / "adapter_config.json").read_text())
    assert (stored["r"], stored["lora_alpha"], stored["lora_dropout"]) == (4, 16, 0.0)


# To PEFT and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_conversion_to_peft_and_back_is_bit_exact(tmp_path, dtype):
    before = {name: tensor.to(dtype) for name, tensor in released().items()}
    before["llama_proj.bias"] = torch.arange(64, dtype=torch.float32)[::2].repeat(2)
    checkpoint.save(tmp_path / "a.pth", {"model": before, "config": {"model": {"lora_alpha": 16}}})
    folder = exported(str(tmp_path / "a.pth"), tmp_path / "peft")
    formats.to_pth(read(str(folder), "convert"), str(tmp_path / "b.pth"))
    content = checkpoint.read(str(tmp_path / "b.pth"), "x")
    after = content["model"]
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape)
        assert after[name].equal(tensor)
    assert file_digests.is_intact(tmp_path / "b.pth")
    assert content["config"]["model"]["lora_alpha"] == 16 and content["config"]["model"]["lora_r"] == 64


def test_a_checkpoint_converted_back_from_peft_loads_as_model_ckpt(file, tmp_path):
    formats.to_pth(read(str(exported(file, tmp_path / "peft")), "convert"), str(tmp_path / "back.pth"))
    model = model_of(tmp_path)
    load(model, checkpoint.read(str(tmp_path / "back.pth"), "model.ckpt")["model"])
    assert all(value.equal(released()[name]) for name, value in by_stored_name(model).items())


def test_the_adapter_config_is_what_peft_itself_writes(file, tmp_path):
    stored = json.loads((exported(file, tmp_path / "peft", base=str(LLAMA)) / "adapter_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(LLAMA)
    own = LoraConfig(r=64, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    PeftModel(model, own).save_pretrained(tmp_path / "own")
    theirs = json.loads((tmp_path / "own/adapter_config.json").read_text())
    theirs["target_modules"].sort()
    assert stored == {key: value for key, value in theirs.items() if value}
    assert (
        load_file(tmp_path / "own/adapter_model.safetensors").keys()
        == load_file(tmp_path / "peft/adapter_model.safetensors").keys()
    )


def test_a_folder_that_peft_wrote_is_read(tmp_path):
    model = PeftModel(
        AutoModelForCausalLM.from_pretrained(LLAMA),
        LoraConfig(r=3, lora_alpha=5, target_modules=["k_proj", "gate_proj"], task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "own")
    weights = read(str(tmp_path / "own"), "inspect")
    assert len(weights.tensors) == 8 and weights.lora_alpha == 5
    expected = {
        f"llama_model.{checkpoint_names.stored_name(name)}": value for name, value in model.named_parameters() if "lora" in name
    }
    assert weights.tensors.keys() == expected.keys()
    assert all(weights.tensors[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("layers", "targets"),
    [
        (["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"], ["q_proj"]),
        ([f"model.layers.{i}.self_attn.{x}" for i in range(12) for x in ("v_proj", "q_proj")], ["q_proj", "v_proj"]),
        (["model.layers.1.self_attn.q_proj"], ["model.layers.1.self_attn.q_proj"]),
        (
            ["model.layers.0.mlp.up", "model.layers.1.mlp.up", "model.layers.0.mlp.down"],
            ["model.layers.0.mlp.down", "model.layers.0.mlp.up", "model.layers.1.mlp.up"],
        ),
        (["lm_head"], ["lm_head"]),
        (["layers.0.experts.0.up", "layers.0.experts.1.up"], ["layers.0.experts.0.up", "layers.0.experts.1.up"]),
    ],
)
def test_target_modules_are_short_names_if_every_block_has_them_and_full_names_otherwise(layers, targets):
    assert adapters.target_modules(layers) == targets


# The same logits in other programs


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, golden_dataset, golden_prompt):
    """The inputs_embeds (1, T, H) of a clip with features, our logits with the adapters, and the batch."""
    model = model_of(tmp_path_factory.mktemp("embedded"))
    load(model, released())
    record = golden_dataset.record(0, "reason", golden_dataset.pool.first_instruction("reason"))
    batch = collate([golden_prompt.tokenize(record)])
    with torch.no_grad():
        embeddings = model._embed(batch)[None]
        logits = model.llama_model(inputs_embeds=embeddings, use_cache=False).logits
        with model.llama_model.disable_adapter():
            plain = model.llama_model(inputs_embeds=embeddings, use_cache=False).logits
    assert (logits - plain).abs().max() > 1  # the adapters change the logits
    return embeddings, logits, batch


def test_peft_and_transformers_reproduce_our_logits_with_the_exported_adapter(embedded, file, tmp_path):
    embeddings, ours, _ = embedded
    folder = exported(file, tmp_path / "peft")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(LLAMA), folder).eval()
    with torch.no_grad():
        assert (model(inputs_embeds=embeddings).logits - ours).abs().max() < 1e-5


def test_merged_weights_give_our_logits(embedded, file, tmp_path):
    embeddings, ours, _ = embedded
    formats.to_merged(read(file, "convert"), str(tmp_path / "merged"), None, str(LLAMA))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert (model(inputs_embeds=embeddings).logits - ours).abs().max() < 1e-5


def test_the_exported_projectors_reproduce_our_feature_tokens(embedded, file, tmp_path):
    embeddings, _, batch = embedded
    layers = load_file(exported(file, tmp_path / "peft") / "projectors.safetensors")

    def projected(name, values):
        return F.linear(values, layers[f"{name}.weight"], layers[f"{name}.bias"])

    slots = {name: packed.values for name, packed in batch.slots.items()}
    image = projected("llama_proj", slots["image"].reshape(16, -1))
    face, video, audio = (projected(f"feats_llama_proj{i}", slots[x]) for i, x in enumerate(("face", "video", "audio"), 1))
    cls = projected("cls_tk_llama_proj", slots["cls"])
    assert torch.allclose(embeddings[0, batch.feature_positions], torch.cat([image, face, video, audio, cls]), atol=1e-5)


def test_a_merged_folder_differs_from_the_base_folder_only_in_the_adapted_weights(file, tmp_path):
    formats.to_merged(read(file, "convert"), str(tmp_path / "merged"), None, str(LLAMA))
    merged, base = load_file(tmp_path / "merged/model.safetensors"), load_file(LLAMA / "model.safetensors")
    changed = {name for name in base if not merged[name].equal(base[name])}
    assert merged.keys() == base.keys() and all(merged[name].dtype == base[name].dtype for name in base)
    assert changed == {f"model.layers.{i}.self_attn.{x}_proj.weight" for i in (0, 1) for x in "qv"}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (LLAMA / name).read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("a word").input_ids
    assert len(load_file(tmp_path / "merged/projectors.safetensors")) == 10 + 36 + 2
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())["weight_map"]
    assert index == dict.fromkeys(load_file(tmp_path / "merged/model.safetensors"), "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_into_half_precision_rounds_once(file, tmp_path, dtype):
    base = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(LLAMA, dtype=dtype).save_pretrained(base)
    formats.to_merged(read(file, "convert"), str(tmp_path / "merged"), None, str(base))
    weight = load_file(base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    tensors = released()
    exact = (
        weight.double()
        + tensors[f"{LAYER}.q_proj.lora_B.weight"].double() @ tensors[f"{LAYER}.q_proj.lora_A.weight"].double() / 4
    )
    merged = load_file(tmp_path / "merged/model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert merged.dtype == dtype
    assert (merged.double() - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps / 2 * 1.01


def test_sharded_weights_are_merged_into_the_same_shards(file, tmp_path):
    base = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(LLAMA).save_pretrained(base, max_shard_size="200KB")
    formats.to_merged(read(file, "convert"), str(tmp_path / "sharded-merged"), None, str(base))
    formats.to_merged(read(file, "convert"), str(tmp_path / "merged"), None, str(LLAMA))
    shards = sorted(path.name for path in (tmp_path / "sharded-merged").glob("model-*.safetensors"))
    assert len(shards) > 1 and shards == sorted(path.name for path in base.glob("model-*.safetensors"))
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / x).state_dict() for x in ("sharded-merged", "merged"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_a_merged_model_with_its_projectors_loads_as_a_model_without_adapters(embedded, file, tmp_path):
    _, ours, batch = embedded
    formats.to_merged(read(file, "convert"), str(tmp_path / "merged"), None, str(LLAMA))
    formats.to_pth(read(str(tmp_path / "merged/projectors.safetensors"), "convert"), str(tmp_path / "projectors.pth"))
    model = model_of(tmp_path, llama_model=str(tmp_path / "merged"), train_llm="none")
    load(model, checkpoint.read(str(tmp_path / "projectors.pth"), "model.ckpt")["model"])
    with torch.no_grad():
        logits = model.llama_model(inputs_embeds=model._embed(batch)[None], use_cache=False).logits
    assert (logits - ours).abs().max() < 1e-5


# Alpha


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_a_missing_alpha_requires_the_option(file, tmp_path, to):
    weights = read(without_config(file), "convert")
    call = (formats.to_peft if to == "peft" else formats.to_merged, weights, str(tmp_path / "out"))
    assert "--lora-alpha" in refusal(*call, None, str(LLAMA))
    assert not (tmp_path / "out").exists()
    call[0](*call[1:], 16.0, str(LLAMA))
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("stored", ["${oc.env:ALPHA}", None, True, "16"])
def test_a_stored_lora_alpha_that_is_not_a_number_is_ignored(tmp_path, stored):
    torch.save({"model": released(), "config": {"model": {"lora_alpha": stored}}}, tmp_path / "a.pth")
    assert read(str(tmp_path / "a.pth"), "x").lora_alpha is None


def test_a_lora_alpha_that_differs_from_the_stored_value_is_refused_with_both_values(file, tmp_path):
    message = refusal(exported, file, tmp_path / "out", alpha=32.0)
    assert "--lora-alpha is 32, but" in message and "was trained with 16" in message


def test_the_alpha_of_the_option_scales_the_adapters(embedded, file, tmp_path):
    embeddings, ours, _ = embedded
    folder = exported(without_config(file), tmp_path / "peft", alpha=32.0)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(LLAMA), folder).eval()
    with torch.no_grad():
        assert (model(inputs_embeds=embeddings).logits - ours).abs().max() > 0.1


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_a_lora_alpha_that_is_not_positive_and_finite_is_refused(file, tmp_path, alpha):
    assert "--lora-alpha is" in refusal(exported, without_config(file), tmp_path / "out", alpha=alpha)


# Checkpoints that cannot be converted


def spoiled(file, change):
    content = torch.load(file, weights_only=True)
    change(content["model"])
    checkpoint.save(Path(file), content)
    return file


def test_an_adapter_without_its_lora_b_tensor_is_refused_by_name(file, tmp_path):
    spoiled(file, lambda tensors: tensors.pop(f"{LAYER}.q_proj.lora_B.weight"))
    assert "1 missing tensor: model.layers.0.self_attn.q_proj.lora_B" in refusal(exported, file, tmp_path / "out")


def test_adapters_of_different_ranks_are_refused(file, tmp_path):
    spoiled(file, lambda tensors: tensors.update({f"{LAYER}.q_proj.lora_B.weight": torch.zeros(64, 8)}))
    assert "all adapters must have the same rank" in refusal(exported, file, tmp_path / "out")


def test_an_unsupported_adapter_tensor_is_refused_by_name(file, tmp_path):
    spoiled(file, lambda tensors: tensors.update({f"{LAYER}.q_proj.lora_magnitude_vector": torch.zeros(64)}))
    assert "lora_magnitude_vector" in refusal(exported, file, tmp_path / "out")


def test_a_file_without_adapters_is_refused(file, tmp_path):
    spoiled(file, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".lora_" in name])
    assert "no LoRA adapters" in refusal(exported, file, tmp_path / "out")


def test_adapters_of_another_language_model_are_refused_by_name(file, tmp_path):
    spoiled(file, lambda tensors: tensors.update({f"{LAYER}.q_proj.lora_A.weight": torch.zeros(64, 32)}))
    for call in (formats.to_peft, formats.to_merged):
        message = refusal(call, read(file, "x"), str(tmp_path / "out"), None, str(LLAMA))
        assert "q_proj.lora_A.weight has shape (64, 32), expected (64, 64)" in message and "1 mismatch: " in message
    spoiled(file, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name])
    message = refusal(formats.to_peft, read(file, "x"), str(tmp_path / "out"), None, str(LLAMA))
    assert "layers.1.self_attn.v_proj.lora_B.weight (64, 64) is missing" in message
    assert not (tmp_path / "out").exists()


def folder_without_weights(folder):
    shutil.copytree(LLAMA, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def folder_with_cut_weights(folder):
    shutil.copytree(LLAMA, folder)
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


def folder_with_a_lost_file(folder):
    AutoModelForCausalLM.from_pretrained(LLAMA).save_pretrained(folder, max_shard_size="200KB")
    next(folder.glob("model-00002*")).unlink()


def folder_with_a_strange_index(folder):
    shutil.copytree(LLAMA, folder)
    index = {"weight_map": {"model.embed_tokens.weight": "../../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def folder_with_a_damaged_index(folder):
    shutil.copytree(LLAMA, folder)
    (folder / "model.safetensors.index.json").write_text("{")


def folder_with_quantized_weights(folder):
    shutil.copytree(LLAMA, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors")


def folder_that_lacks_a_weight(folder):
    shutil.copytree(LLAMA, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.self_attn.v_proj.weight")
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: None, "no folder"),
        (folder_without_weights, "pytorch_model.bin"),
        (folder_with_cut_weights, "cannot read"),
        (folder_with_a_lost_file, "model-00002"),
        (folder_with_a_strange_index, "../../model.safetensors"),
        (folder_with_a_damaged_index, "is damaged"),
        (folder_with_quantized_weights, "int8"),
        (folder_that_lacks_a_weight, "1 tensor: model.layers.1.self_attn.v_proj.weight"),
    ],
)
def test_a_language_model_that_cannot_be_merged_into_is_refused(file, tmp_path, spoil, expected):
    spoil(tmp_path / "base")
    message = refusal(formats.to_merged, read(file, "x"), str(tmp_path / "out"), None, str(tmp_path / "base"))
    assert message.startswith("--llama-model: ") and expected in message
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


# PEFT folders that cannot be read


def configured(folder, **keys):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return str(folder)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"peft_type": "LOHA"}, "peft_type is LOHA"),
        ({"use_dora": True}, "use_dora = true"),
        ({"use_rslora": True}, "use_rslora = true"),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save = ["lm_head"]'),
        ({"bias": "all"}, 'bias = "all"'),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa"'),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_key_of_next_year": {"x": 1}}, "a_key_of_next_year"),
        ({"r": 8}, "r is 8"),
        ({"r": "64"}, "r is '64'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": -16}, "lora_alpha is -16"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ],
)
def test_unsupported_settings_of_an_adapter_config_are_refused_by_name(folder, keys, expected):
    assert expected in refusal(read, configured(folder, **keys), "inspect")


@pytest.mark.parametrize(
    "keys",
    [
        {"megatron_core": "megatron.core", "qalora_group_size": 16},
        {"use_dora": False, "layers_pattern": None},
        {"task_type": None},
    ],
)
def test_adapter_config_keys_without_effect_are_accepted(folder, keys):
    assert read(configured(folder, **keys), "inspect").lora_alpha == 16


def test_a_folder_without_adapter_config_is_refused(folder):
    (folder / "adapter_config.json").unlink()
    assert "has no adapter_config.json" in refusal(read, str(folder), "inspect")


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "adapter_config.json:1: not valid JSON"), ("[]", "peft_type"), ("{}", "peft_type")]
)
def test_an_invalid_adapter_config_is_refused(folder, text, expected):
    (folder / "adapter_config.json").write_text(text)
    assert expected in refusal(read, str(folder), "inspect")


def test_a_peft_folder_without_adapter_tensors_is_refused(folder):
    (folder / "adapter_model.safetensors").unlink()
    assert "no file" in refusal(read, str(folder), "inspect")
    (folder / "adapter_model.bin").touch()
    assert "adapter_model.bin" in refusal(read, str(folder), "inspect")


def test_tensors_beyond_plain_lora_are_refused_by_name(folder):
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": torch.zeros(2)}, path)
    file_digests.digest_path(path).unlink()
    assert "base_model.model.lm_head.weight" in refusal(read, str(folder), "inspect")


def test_tensors_in_both_files_are_refused_by_name(folder):
    path = folder / "projectors.safetensors"
    save_file({f"{LAYER}.q_proj.lora_A.weight": torch.zeros(2)}, path)
    file_digests.digest_path(path).unlink()
    assert f"1 tensor: {LAYER}.q_proj.lora_A.weight" in refusal(read, str(folder), "inspect")


# Damaged files


@pytest.mark.parametrize("name", ["file.pth", "peft/adapter_model.safetensors", "peft/projectors.safetensors"])
def test_a_flipped_bit_is_detected_by_the_digest(folder, tmp_path, name):
    path = tmp_path / name
    raw = bytearray(path.read_bytes())
    raw[-1000] ^= 1
    path.write_bytes(raw)
    assert "its SHA-256 differs" in refusal(read, str(folder if name.startswith("peft") else path), "inspect")


@pytest.mark.parametrize("name", ["file.pth", "peft/adapter_model.safetensors", "peft/projectors.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_without_a_digest_is_refused(folder, tmp_path, name, share):
    path = tmp_path / name
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    file_digests.digest_path(path).unlink()
    assert "is truncated" in refusal(read, str(folder if name.startswith("peft") else path), "inspect")


def test_a_corrupted_safetensors_file_is_either_read_or_refused_with_a_user_error(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, path)
    raw, generator, refused = path.read_bytes(), random.Random(5), 0
    for _ in range(300):
        broken = bytearray(raw)
        for _ in range(generator.randrange(1, 4)):
            broken[generator.randrange(len(broken))] = generator.randrange(256)
        path.write_bytes(broken)
        try:
            inspect(read(str(path), "inspect"))
        except UserError:
            refused += 1
    assert refused > 50


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_would_run_code_is_refused_and_never_executed(tmp_path):
    torch.save({"model": released(), "config": Payload(tmp_path / "executed")}, tmp_path / "bad.pth")
    assert "could run code" in refusal(read, str(tmp_path / "bad.pth"), "inspect")
    assert not (tmp_path / "executed").exists()


# Output paths


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_an_existing_output_folder_is_used_only_if_it_is_empty(file, tmp_path, to):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    call = formats.to_peft if to == "peft" else formats.to_merged
    assert "not an empty folder" in refusal(call, read(file, "x"), str(tmp_path / "out"), None, str(LLAMA))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "out/mine").unlink()
    call(read(file, "x"), str(tmp_path / "out"), None, str(LLAMA))
    assert (tmp_path / "out/projectors.safetensors").is_file()


def test_an_existing_output_file_is_never_overwritten(file, tmp_path):
    (tmp_path / "mine.pth").write_text("kept")
    for call in (formats.to_pth, exported):
        source = read(file, "x") if call is formats.to_pth else file
        assert "already" in refusal(call, source, str(tmp_path / "mine.pth"))
    assert (tmp_path / "mine.pth").read_text() == "kept"
    assert "Specify a file" in refusal(formats.to_pth, read(file, "x"), str(tmp_path))
    assert "already exists" in refusal(formats.average, [file, file], str(tmp_path / "mine.pth"))


def test_a_folder_that_cannot_be_written_is_reported(file, tmp_path):
    (tmp_path / "a_file").touch()
    assert "cannot write" in refusal(exported, file, str(tmp_path / "a_file/out"))
    assert "could not be written" in refusal(formats.to_pth, read(file, "x"), str(tmp_path / "a_file/out.pth"))


def test_an_output_folder_does_not_appear_before_it_is_complete(file, tmp_path, monkeypatch):
    states = []

    def interrupted(source, target):
        states.append((sorted(path.name for path in source.iterdir()), target.exists()))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exported(file, tmp_path / "out")
    parts = ["adapter_model.safetensors", "projectors.safetensors"]
    assert states == [(sorted(["adapter_config.json", *parts, *(f"{name}.sha256" for name in parts)]), False)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pth", "file.pth.sha256"]


def test_output_files_have_the_default_permissions(folder, tmp_path):
    (tmp_path / "any").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "any").stat().st_mode}


def test_conversion_does_not_modify_its_source_files(file, folder, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    formats.to_merged(read(file, "x"), str(tmp_path / "merged"), None, str(LLAMA))
    formats.to_pth(read(str(folder), "x"), str(tmp_path / "back.pth"))
    formats.average([file, str(folder)], str(tmp_path / "mean.pth"))
    assert {path: path.read_bytes() for path in before} == before


# Averages


def numbered(tmp_path, number, tensors, **entries):
    path = tmp_path / f"checkpoint_{number}.pth"
    config = {"model": {"lora_alpha": 16, "lora_r": 64}}
    checkpoint.save(path, {"model": tensors, "config": config, "epoch": number, "step": 10 * number, **entries})
    return str(path)


def test_an_average_is_computed_in_float64_and_stored_in_the_original_dtype(tmp_path):
    seeds = [released(seed=seed) for seed in range(3)]
    for tensors in seeds:
        tensors["llama_proj.weight"] = tensors["llama_proj.weight"].half()
    files = [numbered(tmp_path, number, tensors) for number, tensors in enumerate(seeds)]
    formats.average(files, str(tmp_path / "mean.pth"))
    averaged = read(str(tmp_path / "mean.pth"), "x").tensors
    assert averaged.keys() == seeds[0].keys()
    for name, tensor in averaged.items():
        exact = torch.stack([tensors[name].double() for tensors in seeds]).mean(0)
        assert tensor.dtype == seeds[0][name].dtype and tensor.equal(exact.to(tensor.dtype))


def test_the_average_of_a_file_with_itself_is_the_file(file, tmp_path):
    formats.average([file] * 3, str(tmp_path / "mean.pth"))
    assert diff(read(file, "x"), read(str(tmp_path / "mean.pth"), "x"))["equal"]


def test_an_average_contains_weights_and_configuration_but_no_training_state(tmp_path):
    files = [numbered(tmp_path, number, released(seed=number), optimizer={}, scaler={}) for number in (4, 5)]
    formats.average(files, str(tmp_path / "mean.pth"))
    content = checkpoint.read(str(tmp_path / "mean.pth"), "x")
    assert content.keys() == {"model", "config", "epoch", "averaged"}
    assert (content["epoch"], content["averaged"], content["config"]["model"]["lora_r"]) == ([4, 5], files, 64)
    assert file_digests.is_intact(tmp_path / "mean.pth")


def test_an_average_can_start_a_run_but_cannot_be_resumed_from(saved_checkpoint, tmp_path):
    formats.average([saved_checkpoint, saved_checkpoint], str(tmp_path / "checkpoint_0.pth"))
    tree = golden_tree(tmp_path)
    tree["run"]["resume_ckpt_path"] = str(tmp_path / "checkpoint_0.pth")
    config = loaded(tmp_path, tree)
    assert "contains weights, but not the state of a run" in refusal(config.runner_class, config)
    from emollama.runners import checkpoints

    assert checkpoints.newest(tmp_path, {}) is None
    tree["run"]["resume_ckpt_path"], tree["model"]["ckpt"] = None, str(tmp_path / "checkpoint_0.pth")
    config = loaded(tmp_path, tree)
    parameters = by_stored_name(config.runner_class(config).model)
    assert all(parameters[name].equal(tensor) for name, tensor in read(saved_checkpoint, "x").tensors.items())


def test_averaging_checkpoints_of_different_layouts_is_refused_with_the_reasons(tmp_path):
    tensors = released(seed=1)
    del tensors["llama_proj.bias"]
    tensors |= {"extra": torch.zeros(1), "feats_llama_proj1.bias": torch.zeros(3)}
    tensors["cls_tk_llama_proj.bias"] = tensors["cls_tk_llama_proj.bias"].half()
    other = numbered(tmp_path, 1, tensors, config={"model": {"lora_alpha": 32}})
    message = refusal(formats.average, [numbered(tmp_path, 0, released()), other], str(tmp_path / "mean.pth"))
    for part in (
        "checkpoint_0.pth: 1 tensor: llama_proj.bias",
        "checkpoint_1.pth: 1 tensor: extra",
        "feats_llama_proj1.bias [64] and [3]",
        "cls_tk_llama_proj.bias float32 and float16",
        "lora_alpha 16 and 32",
    ):
        assert part in message
    assert not (tmp_path / "mean.pth").exists()


def feature_entries(**settings):
    """Entries of a checkpoint that was trained on audio features with this provenance."""
    return {"features": {"audio": {"encoder": "hubert", "layers": [-1], **settings}}}


def test_averages_and_converted_files_contain_the_provenance_of_features(tmp_path):
    described, undescribed = numbered(tmp_path, 0, released(), **feature_entries()), numbered(tmp_path, 1, released())
    formats.average([undescribed, described], str(tmp_path / "mean.pth"))
    formats.to_pth(read(described, "k"), str(tmp_path / "copy.pth"))
    for name in ("mean.pth", "copy.pth"):
        assert checkpoint.read(str(tmp_path / name), "k")["features"] == feature_entries()["features"]


def test_checkpoints_with_different_features_have_no_average(tmp_path):
    files = [
        numbered(tmp_path, 0, released(), **feature_entries()),
        numbered(tmp_path, 1, released(), **feature_entries(layers=[-2])),
    ]
    message = refusal(formats.average, files, str(tmp_path / "mean.pth"))
    assert "audio features differ, layers: [-1] and [-2]" in message
    assert not (tmp_path / "mean.pth").exists()


def test_averaging_a_single_checkpoint_is_refused(file, tmp_path):
    assert "at least two" in refusal(formats.average, [file], str(tmp_path / "mean.pth"))


# Differences


def weights(tensors, **model):
    return Weights("x", "checkpoint", [], tensors, {"config": {"model": model}} if model else {})


def test_the_diff_of_equal_checkpoints_is_empty():
    report = diff(weights(released(), lora_alpha=16), weights(released(), lora_alpha=16))
    assert report["equal"] and report["config"] == {} and report["beyond"] == []
    assert set(report["tensors"]) == set(released())


def test_a_diff_reports_absolute_and_relative_differences():
    one, other = {"a": torch.tensor([1.0, -4.0]), "b": torch.ones(2)}, {"a": torch.tensor([1.0, -3.0]), "b": torch.ones(2)}
    report = diff(weights(one), weights(other))
    assert not report["equal"] and report["beyond"] == ["a"]
    assert report["tensors"] == {"a": {"max_abs": 1.0, "relative": 0.25}, "b": {"max_abs": 0.0, "relative": 0.0}}
    assert diff(weights(one), weights(other), 0.25)["equal"]
    assert not diff(weights(one), weights(other), 0.24)["equal"]


def test_a_difference_in_the_last_bit_counts_as_a_difference():
    one = torch.ones(3)
    assert not diff(weights({"a": one}), weights({"a": torch.nextafter(one, one * 2)}))["equal"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_equal_only_themselves(value):
    one, other = {"a": torch.tensor([value, 1.0])}, {"a": torch.tensor([2.0, 1.0])}
    assert diff(weights(one), weights(dict(one)))["equal"]
    report = diff(weights(one), weights(other), 1e9)
    assert not report["equal"] and report["tensors"]["a"] == {"max_abs": None, "relative": None}


def test_differing_names_shapes_dtypes_and_alpha_count_at_any_tolerance():
    zeros = torch.zeros
    for one, other, key, value in (
        ({"a": zeros(1), "b": zeros(1)}, {"a": zeros(1)}, "only_in_first", ["b"]),
        ({"a": zeros(1)}, {"a": zeros(1), "b": zeros(1)}, "only_in_second", ["b"]),
        ({"a": zeros(2, 3)}, {"a": zeros(3, 2)}, "shapes", {"a": [[2, 3], [3, 2]]}),
        ({"a": zeros(2)}, {"a": zeros(2).half()}, "dtypes", {"a": ["float32", "float16"]}),
    ):
        report = diff(weights(one), weights(other), 1.0)
        assert report[key] == value and not report["equal"]
    report = diff(weights({}, lora_alpha=16), weights({}, lora_alpha=32))
    assert report["lora_alpha"] == [16, 32] and not report["equal"]


def test_differing_configuration_keys_are_listed_but_do_not_count():
    report = diff(weights({}, lora_r=4, seed=1), weights({}, lora_r=4, seed=2, new=None))
    assert report["equal"] and report["config"] == {"model.seed": [1, 2]}


# Inspection


def test_an_inspection_reports_adapters_groups_the_digest_and_unused_tensors(file):
    report = inspect(read(file, "inspect"))
    assert report["lora"] == {"ranks": [64], "alpha": 16, "targets": ["q_proj", "v_proj"], "layers": 4, "parameters": 32768}
    assert (report["step"], report["epoch"], report["kind"], report["tensors"]) == (40, 3, "checkpoint", 18)
    assert report["parameters"] == 32768 + 64 * (704 + 3 * 1024 + 176 + 5)
    assert len(report["set_aside"]) == 38 and report["not_finite"] == []
    (file_report,) = report["files"]
    assert file_report["as_written"] is True and file_report["sha256"] == file_digests.digest_path(file).read_text().split()[0]
    groups = {row["name"]: row for row in report["groups"]}
    row = groups["llama_model.base_model.model.model.layers.*.self_attn.q_proj.lora_A.weight"]
    assert (row["shape"], row["dtype"], row["tensors"], row["parameters"]) == ([64, 64], "float32", 2, 8192)
    assert sum(row["tensors"] for row in report["groups"]) == 18 + 38


def test_a_released_file_without_digest_or_configuration_is_inspected(file):
    report = inspect(read(without_config(file), "inspect"))
    assert report["files"][0]["as_written"] is None and report["lora"]["alpha"] is None and report["step"] is None


def test_a_peft_folder_and_a_safetensors_file_are_inspected(folder):
    report = inspect(read(str(folder), "inspect"))
    assert report["kind"] == "PEFT folder" and report["lora"]["alpha"] == 16 and len(report["set_aside"]) == 38
    assert [file_report["as_written"] for file_report in report["files"]] == [True, True]
    assert inspect(read(str(folder / "projectors.safetensors"), "inspect"))["lora"] is None


def test_an_inspection_names_tensors_with_non_finite_values(file):
    spoiled(file, lambda tensors: tensors["llama_proj.bias"].fill_(math.nan))
    assert inspect(read(file, "inspect"))["not_finite"] == ["llama_proj.bias"]


def test_unusual_tensors_can_be_inspected_but_not_converted(file, tmp_path):
    odd = {f"{LAYER}.q_proj.lora_A.weight": torch.zeros(()), f"{LAYER}.q_proj.lora_B.weight": torch.zeros(8)}
    odd |= {
        "small": torch.zeros(2, dtype=torch.float8_e4m3fn),
        "empty": torch.zeros(0, 3),
        "whole": torch.ones(2, dtype=torch.int64),
    }
    spoiled(file, lambda tensors: tensors.update(odd))
    assert inspect(read(file, "inspect"))["lora"]["ranks"] == [64]
    assert diff(read(file, "diff"), read(file, "diff"))["equal"]
    assert "all adapters must have the same rank" in refusal(exported, file, tmp_path / "out")
