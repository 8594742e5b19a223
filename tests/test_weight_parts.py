"""Language models of which each process loads only its part of the weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers import golden_tree, joined_parts, loaded
from running import GOLDEN
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workers import loaded_in_parts

from emollama import checkpoint
from emollama.errors import UserError
from emollama.optim import trainable
from emollama.runners.sharding_check import require_keys
from emollama.weight_parts import SEQUENTIAL, WeightShare, part_of

COUNT = 3
CPU = torch.device("cpu")
TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 64,
}
LAYERS, CONVERTED = 8, 4  # converting the experts of a layer takes several times their size
LARGE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": LAYERS, "vocab_size": 100}


def options(folder, train="none"):
    """Keyword arguments of LLMOptions."""
    lora = {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_targets": None}
    return {"path": str(folder), "train": train, **lora, "quantize": None, "recompute_every": 0, "attention": "eager"}


def built(folder, share=None, dtype=torch.float32, train="none", device=CPU):
    """The language model in a folder, loaded whole or in part."""
    from emollama.models import llm, llm_weights

    wanted = llm_weights.LLMOptions(**options(folder, train), share=share)
    return llm_weights.build(wanted, llm.read_config(str(folder)), dtype=dtype, device=device)


def stored(folder, family="llama", **keys):
    """A folder with a random model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **TINY | keys))
    model.save_pretrained(folder)
    return model


def assert_equal(actual, expected):
    assert list(actual) == list(expected)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 9])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_tensors_are_divided_as_torch_divides_them(rows, count):
    tensor = torch.arange(rows)
    chunks = tensor.chunk(count)
    expected = [chunks[index].tolist() if index < len(chunks) else [] for index in range(count)]
    assert [WeightShare(index, count).of(tensor).tolist() for index in range(count)] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_parts_of_all_processes_are_the_weights(dtype):
    whole = built(GOLDEN / "llama", dtype=dtype)
    parts = [built(GOLDEN / "llama", WeightShare(index, COUNT), dtype) for index in range(COUNT)]
    assert_equal(joined_parts(parts), dict(whole.named_parameters()))
    assert_equal(dict(parts[1].named_buffers()), dict(whole.named_buffers()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_only_the_parts_are_on_the_gpu(tmp_path):
    stored(tmp_path, **LARGE)
    torch.cuda.reset_peak_memory_stats()
    before, gpu = torch.cuda.memory_allocated(), torch.device("cuda", 0)
    parts = [built(tmp_path, WeightShare(index, COUNT), torch.bfloat16, device=gpu) for index in range(COUNT)]
    size = 2 * sum(one.numel() for one in parts[0].parameters())
    assert torch.cuda.max_memory_allocated() - before < 1.5 * size  # the parts of all processes
    whole = dict(built(tmp_path, dtype=torch.bfloat16).named_parameters())
    assert_equal({name: one.cpu() for name, one in joined_parts(parts).items()}, whole)
    assert all(one.is_cuda for one in (*parts[0].parameters(), *parts[0].buffers()))


def test_a_part_takes_only_its_share_of_the_memory():
    model = built(GOLDEN / "llama", WeightShare(0, COUNT))
    held = {part_of(one).values.untyped_storage() for one in model.parameters()} | {
        one.untyped_storage() for one in model.parameters()
    }
    assert sum(one.nbytes() for one in held) < 4 * sum(one.numel() for one in model.parameters()) * 1.02 / COUNT


def test_adapters_and_projections_start_from_the_values_that_they_have_without_sharding(tmp_path):
    config = loaded(tmp_path, golden_tree(tmp_path))
    values = []
    for weights in ("all", WeightShare(1, COUNT)):
        torch.manual_seed(5)
        model = config.model_class(config.model, device=CPU, frozen_dtype=torch.bfloat16, weights=weights)
        values.append({name: one for name, one in model.named_parameters() if one.requires_grad})
    assert_equal(values[1], values[0])


def test_weights_of_which_all_are_trained_are_loaded_in_parts(tmp_path):
    stored(tmp_path)
    parts = [built(tmp_path, WeightShare(index, COUNT), torch.bfloat16, train="full") for index in range(COUNT)]
    assert all(one.requires_grad and part_of(one).values.dtype == torch.float32 for one in parts[0].parameters())
    assert_equal(joined_parts(parts), dict(built(tmp_path, train="full").named_parameters()))


def test_a_checkpoint_of_all_weights_is_read_into_the_parts(tmp_path):
    tree = golden_tree(tmp_path)
    tree["model"] |= {"train_llm": "full", "ckpt": None}
    config = loaded(tmp_path, tree)
    models = []
    for index in range(COUNT):
        model = config.model_class(config.model, device=CPU, frozen_dtype=torch.float32, weights=WeightShare(index, COUNT))
        content = {model.stored_name(name): torch.full(one.shape, 3.0) for name, one in trainable(model).items()}
        checkpoint.load_trainable(model, content, path="x", allow_missing=[])
        models.append(model)
    tensors = joined_parts(models)
    assert len(tensors) == 21 and all((one == 3).all() for one in tensors.values())


def test_a_tied_weight_has_one_part(tmp_path):
    stored(tmp_path, tie_word_embeddings=True)
    model = built(tmp_path, WeightShare(1, COUNT))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert_equal(joined_parts([built(tmp_path, WeightShare(index, COUNT)) for index in range(COUNT)]), dict_of(built(tmp_path)))


def dict_of(model):
    return dict(model.named_parameters(remove_duplicate=False))


def test_weights_that_should_be_tied_but_differ_in_any_part_stay_separate(tmp_path):
    from safetensors.torch import load_file, save_file

    stored(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1] += 1  # a row of the last part
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    first = built(tmp_path, WeightShare(0, COUNT))
    assert first.get_output_embeddings().weight is not first.get_input_embeddings().weight


def test_missing_tensors_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    stored(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensor: model.layers.0.mlp.up_proj.weight\. Download them again"):
        built(tmp_path, WeightShare(0, COUNT))
    assert os.environ.get(SEQUENTIAL) is None


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_are_mapped_or_refused(tmp_path, zipped):
    model = stored(tmp_path / "llm")
    (tmp_path / "llm/model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "llm/pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    tree = golden_tree(tmp_path)
    tree["model"]["llama_model"] = str(tmp_path / "llm")
    tree["run"]["parallel"] = "fsdp"
    if zipped:
        require_keys(loaded(tmp_path, tree), 2, training=True)
        parts = [built(tmp_path / "llm", WeightShare(index, COUNT)) for index in range(COUNT)]
        assert_equal(joined_parts(parts), dict_of(built(tmp_path / "llm")))
    else:
        with pytest.raises(UserError, match=r"pytorch_model\.bin' .* Convert the weights to safetensors: .* run\.parallel: ddp"):
            require_keys(loaded(tmp_path, tree), 2, training=True)


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes that tensors of operators take at a time, without those of mapped files."""

    def __init__(self):
        super().__init__()
        self.peak, self._live = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._live = {one: size for one, size in self._live.items() if not one.expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if (key := StorageWeakRef(storage)) not in self._live:
                    self._live[key] = 0 if is_mapped(storage.data_ptr()) else storage.nbytes()
        self.peak = max(self.peak, sum(self._live.values()))
        return result


def is_mapped(address):
    """Whether an address belongs to a file of weights."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith((".safetensors", ".bin")):
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if start <= address < end:
                return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "keys", "stored_dtype"),
    [
        ("llama", {}, torch.bfloat16),
        ("llama", {}, torch.float32),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, torch.bfloat16),
    ],
    ids=["same dtype", "a different dtype", "experts that are stored one by one"],
)
def test_loading_never_holds_more_than_the_part_and_one_converted_tensor(tmp_path, family, keys, stored_dtype):
    model = stored(tmp_path, family, **LARGE, **keys).to(stored_dtype)
    model.save_pretrained(tmp_path)
    sizes = [2 * one.numel() for one in model.parameters()]
    converted = 0 if stored_dtype == torch.bfloat16 and family == "llama" else CONVERTED * max(sizes)
    with LiveBytes() as memory:
        built(tmp_path, WeightShare(0, 4), torch.bfloat16)
    assert sum(sizes) / 4 <= memory.peak <= sum(sizes) / 4 + converted + 10_000 < 0.6 * sum(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_was_loaded_in_parts_and_sharded_computes_the_same_logits(tmp_path, ranks, tied):
    # The rows of some weights cannot be divided equally.
    stored(tmp_path, num_hidden_layers=3, tie_word_embeddings=tied, intermediate_size=33, vocab_size=21)
    wanted, ids = options(tmp_path, "lora"), torch.arange(9)[None]
    for (whole, sharded), is_sharded in ranks(loaded_in_parts.logits, str(tmp_path), wanted, ids):
        assert torch.equal(sharded, whole)
        assert all(value == ("lora" not in name and name != "model.norm.weight") for name, value in is_sharded.items())
