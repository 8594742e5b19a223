"""``emollama checkpoint convert`` of language models that were trained as a whole (``train_llm: full``)."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import GOLDEN, golden_tree, loaded
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from emollama import checkpoint, checkpoint_parts
from emollama.convert import formats
from emollama.convert.weights import read
from emollama.errors import UserError
from emollama.models import checkpoint_names
from emollama.optim import trainable

LLAMA = GOLDEN / "llama"
IDS = torch.arange(5, 25)[None]


def trained_model(folder, llama=LLAMA):
    """A model whose weights differ from those of its folder, as after a training."""
    tree = golden_tree(folder)
    tree["model"] |= {"ckpt": None, "train_llm": "full", "llama_model": str(llama)}
    config = loaded(folder, tree)
    model = config.model_class(config.model, device=torch.device("cpu"), frozen_dtype=torch.float32).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def tensors_of(model):
    return {checkpoint_names.stored_name(name): parameter.detach() for name, parameter in trainable(model).items()}


def logits(llm):
    with torch.no_grad():
        return llm(input_ids=IDS, use_cache=False).logits


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trained_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def file(model, tmp_path):
    checkpoint.save(tmp_path / "checkpoint_0.pth", {"model": tensors_of(model), "step": 3})
    return str(tmp_path / "checkpoint_0.pth")


def merged(source, output, llama=LLAMA):
    formats.to_merged(read(str(source), "convert", values=False), str(output), None, str(llama))
    return output


def test_transformers_loads_the_trained_weights_and_the_tokenizer(model, file, tmp_path):
    folder = merged(file, tmp_path / "merged")
    assert logits(AutoModelForCausalLM.from_pretrained(folder).eval()).equal(logits(model.llama_model))
    assert AutoTokenizer.from_pretrained(folder)("a word").input_ids == AutoTokenizer.from_pretrained(LLAMA)("a word").input_ids


def test_the_other_trained_tensors_are_in_a_file_that_a_later_run_can_use(model, file, tmp_path):
    folder = merged(file, tmp_path / "merged")
    formats.to_pth(read(str(folder / "projectors.safetensors"), "convert"), str(tmp_path / "projectors.pth"))
    written = torch.load(tmp_path / "projectors.pth", weights_only=True)["model"]
    expected = {name: tensor for name, tensor in tensors_of(model).items() if not name.startswith("llama_model.")}
    assert written.keys() == expected.keys() and all(written[name].equal(expected[name]) for name in expected)
    checkpoint.load_trainable(model, written, path="projectors.pth", allow_missing=["llama_model.*"], dry=True)


def test_adapters_are_refused_with_the_formats_that_exist(file, tmp_path):
    with pytest.raises(UserError, match="as train_llm: full saves them. Convert them with --to merged or --to transformers"):
        formats.to_peft(read(file, "convert", values=False), str(tmp_path / "peft"), None, None)


@pytest.mark.slow
def test_a_sharded_checkpoint_gives_the_same_folder_and_is_read_one_tensor_at_a_time(model, file, tmp_path, monkeypatch):
    tensors = tensors_of(model)
    parts = []
    for rank in range(2):
        cut = {name: len(tensor) // 2 for name, tensor in tensors.items()}
        rows = {f"model.{name}": rank * cut[name] for name in tensors}
        own = {f"model.{name}": tensor[cut[name] :] if rank else tensor[: cut[name]] for name, tensor in tensors.items()}
        path = tmp_path / checkpoint_parts.FOLDER / "3-0" / checkpoint_parts.file_name(rank)
        parts.append(checkpoint_parts.write(path, own, rows, f"host{rank}"))
    content = {"model": {name: tensor.to("meta") for name, tensor in tensors.items()}, "step": 3}
    checkpoint.save(tmp_path / "sharded.pth", content | {"parts": checkpoint_parts.entry("3-0", parts)})
    sizes, read_values = [], checkpoint_parts.Parts.read

    def counted(self, stored, entry):
        sizes.append([name for name in stored if name.startswith("llama_model.")])
        return read_values(self, stored, entry)

    monkeypatch.setattr(checkpoint_parts.Parts, "read", counted)
    one, other = merged(file, tmp_path / "whole"), merged(tmp_path / "sharded.pth", tmp_path / "merged")
    assert max(map(len, sizes)) == 1
    for name in ("model.safetensors", "projectors.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.slow
def test_tied_weights_that_are_twice_in_the_folder_stay_equal(tmp_path):
    config = AutoConfig.from_pretrained(LLAMA, tie_word_embeddings=True)
    torch.manual_seed(1)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(LLAMA).save_pretrained(base)
    stored = load_file(base / "model.safetensors")
    save_file(
        stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, base / "model.safetensors", {"format": "pt"}
    )
    model = trained_model(tmp_path, base)
    checkpoint.save(tmp_path / "tied.pth", {"model": tensors_of(model)})
    folder = merged(tmp_path / "tied.pth", tmp_path / "merged", base)
    assert logits(AutoModelForCausalLM.from_pretrained(folder).eval()).equal(logits(model.llama_model))


@pytest.mark.slow
def test_the_dtype_and_the_files_are_those_of_the_folder(model, file, tmp_path):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(LLAMA, dtype=torch.bfloat16).save_pretrained(base, max_shard_size="100KB")
    folder = merged(file, tmp_path / "merged", base)
    files = sorted(path.name for path in base.glob("model*.safetensors"))
    assert len(files) > 1 and sorted(path.name for path in folder.glob("model*.safetensors")) == files
    written = {name: tensor for name in files for name, tensor in load_file(folder / name).items()}
    expected = {name.removeprefix("llama_model."): tensor for name, tensor in tensors_of(model).items()}
    assert all(tensor.equal(expected[name].to(torch.bfloat16)) for name, tensor in written.items())
    assert json.loads((folder / "model.safetensors.index.json").read_text()).keys() == {"metadata", "weight_map"}


@pytest.mark.slow
def test_an_export_has_the_trained_weights(model, file, tmp_path):
    from emollama.convert.hub_folder import ExportOptions, to_transformers

    tree = golden_tree(tmp_path)
    tree["model"] |= {"ckpt": None, "train_llm": "full"}
    weights = read(file, "convert", values=False)
    to_transformers(weights, loaded(tmp_path, tree), ExportOptions(str(tmp_path / "hub"), None, "Only for tests."))
    written = {name: tensor for path in (tmp_path / "hub").glob("*.safetensors") for name, tensor in load_file(path).items()}
    for name, tensor in tensors_of(model).items():
        exported = f"language_model.{name.removeprefix('llama_model.')}" if name.startswith("llama_model.") else f"fusion.{name}"
        assert written[exported].equal(tensor), name
