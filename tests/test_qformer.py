"""BLIP-2's Q-Former: the published outputs with the original tensor names, and errors for unusable files."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN
from safetensors.torch import load_file, save_file

from emollama.encoders.eva_vit import read_ln_vision
from emollama.encoders.qformer import QFormer, read_qformer
from emollama.encoders.shapes import QFormerShape
from emollama.errors import UserError

WEIGHTS = GOLDEN / "qformer/weights.safetensors"
CPU, META = torch.device("cpu"), torch.device("meta")
LAYER = "Qformer.bert.encoder.layer"
HEADS = 4  # of the golden Q-Former; they cannot be inferred from its width of 48


@pytest.fixture(scope="module")
def reference():
    return load_file(GOLDEN / "qformer/input_to_output.safetensors")


@pytest.fixture(scope="module")
def golden():
    return load()


def load(path=WEIGHTS, *, heads=HEADS, device=CPU):
    return QFormer.load(str(path), device=device, key="model.q_former_model", heads=heads)


def text_side(width=48, inner=96, layers=4):
    """Return invented values for the other tensors in the files of BLIP-2's training stages."""
    bert = {
        "Qformer.bert.embeddings.position_ids": torch.arange(16)[None],
        "Qformer.bert.embeddings.word_embeddings.weight": torch.ones(30, width),
        "Qformer.bert.embeddings.position_embeddings.weight": torch.ones(16, width),
        "Qformer.cls.predictions.bias": torch.ones(30),
        "Qformer.cls.predictions.transform.dense.weight": torch.ones(width, width),
    }
    for layer in range(layers):
        bert[f"{LAYER}.{layer}.intermediate.dense.weight"] = torch.ones(inner, width)
        bert[f"{LAYER}.{layer}.output.dense.weight"] = torch.ones(width, inner)
        bert[f"{LAYER}.{layer}.output.LayerNorm.weight"] = torch.ones(width)
    others = ("t5_proj.weight", "llm_proj.bias", "opt_proj.weight", "itm_head.weight", "visual_encoder.blocks.0.norm1.weight")
    return bert | {name: torch.ones(3) for name in others} | {"temp": torch.tensor(0.07)}


# Outputs


def test_outputs_of_ln_vision_q_former_and_llama_proj_equal_the_published_code(reference, golden):
    stored = load_file(WEIGHTS)
    weight, bias = read_ln_vision(str(WEIGHTS), 176, "k")
    vectors = F.layer_norm(reference["vit_out"], (176,), weight, bias, 1e-5)
    assert (vectors - reference["after_ln_vision"]).abs().max() < 1e-5
    queries = golden(vectors)
    assert (queries - reference["query_output"]).abs().max() < 1e-5
    projected = F.linear(queries, stored["llama_proj.weight"], stored["llama_proj.bias"])
    assert (projected - reference["llama_proj_output"]).abs().max() < 1e-5


def test_sizes_of_the_q_former_are_read_from_its_tensors():
    shape, tensors = read_qformer(str(WEIGHTS), "k", HEADS)
    assert shape == QFormerShape(width=48, layers=4, heads=4, inner=96, every=2, queries=8, vision=176)
    assert set(tensors) == set(QFormer(shape, device=META).state_dict())


def test_text_weights_and_other_modules_in_a_file_are_ignored(reference, golden, tmp_path):
    torch.save({"model": load_file(WEIGHTS) | text_side()}, tmp_path / "blip2.pth")
    save_file(load_file(WEIGHTS) | text_side(), tmp_path / "blip2.safetensors")
    expected = golden(reference["after_ln_vision"])
    for name in ("blip2.pth", "blip2.safetensors"):
        assert torch.equal(load(tmp_path / name)(reference["after_ln_vision"]), expected)


def test_half_precision_weights_are_read_into_float32(reference, golden, tmp_path):
    save_file({name: value.half() for name, value in load_file(WEIGHTS).items()}, tmp_path / "half.safetensors")
    q_former = load(tmp_path / "half.safetensors")
    assert {value.dtype for value in q_former.parameters()} == {torch.float32}
    assert 0 < (q_former(reference["after_ln_vision"]) - golden(reference["after_ln_vision"])).abs().max() < 0.05


def test_a_batch_gives_the_same_outputs_as_its_images_alone(reference, golden):
    vectors = reference["after_ln_vision"]
    alone = torch.cat([golden(row[None]) for row in vectors])
    assert (golden(vectors) - alone).abs().max() < 5e-6  # a few roundings of values up to 2.5
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_autocast_does_not_change_the_output(reference, golden):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = golden(reference["after_ln_vision"])
    assert output.dtype == torch.float32
    assert torch.equal(output, golden(reference["after_ln_vision"]))


def original_names(layers, every):
    """Return the original tensor name of each name in transformers."""
    ends = ("weight", "bias")
    pairs = {f"layernorm.{end}": f"Qformer.bert.embeddings.LayerNorm.{end}" for end in ends}
    for layer in range(layers):
        own, old = f"encoder.layer.{layer}", f"{LAYER}.{layer}"
        for block in ("attention", "crossattention") if layer % every == 0 else ("attention",):
            for part in ("query", "key", "value"):
                pairs |= {f"{own}.{block}.attention.{part}.{end}": f"{old}.{block}.self.{part}.{end}" for end in ends}
            for part in ("dense", "LayerNorm"):
                pairs |= {f"{own}.{block}.output.{part}.{end}": f"{old}.{block}.output.{part}.{end}" for end in ends}
        for part in ("intermediate_query.dense", "output_query.dense", "output_query.LayerNorm"):
            pairs |= {f"{own}.{part}.{end}": f"{old}.{part}.{end}" for end in ends}
    return pairs


@pytest.mark.parametrize(("layers", "every"), [(3, 1), (4, 2), (5, 3), (2, 2)])
def test_a_transformers_model_with_original_tensor_names_gives_the_same_output(tmp_path, layers, every):
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 80, "encoder_hidden_size": 40}
    model = Blip2QFormerModel(Blip2QFormerConfig(num_hidden_layers=layers, cross_attention_frequency=every, **sizes)).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, 0, 0.3)
    query, vectors = torch.randn(1, 5, 128), torch.randn(2, 9, 40)
    pairs = original_names(layers, every)
    tensors = {pairs[name]: value for name, value in model.state_dict().items()}
    assert len(tensors) == len(pairs)
    torch.save({"model": tensors | {"query_tokens": query}}, tmp_path / "blip2.pth")
    q_former = load(tmp_path / "blip2.pth", heads=None)
    assert q_former.shape == QFormerShape(128, layers, 2, 80, every, 5, 40)
    with torch.no_grad():
        expected = model(query_embeds=query.expand(2, -1, -1), encoder_hidden_states=vectors).last_hidden_state
    assert (q_former(vectors) - expected).abs().max() < 1e-5


def test_the_published_sizes_give_32_by_768_outputs_and_the_published_parameter_count():
    q_former = QFormer(QFormerShape(), device=META)
    square, norm = 768 * 768 + 768, 2 * 768
    layer = 4 * square + norm + (768 * 3072 + 3072) + (3072 * 768 + 768) + norm
    cross = 2 * square + 2 * (1408 * 768 + 768) + norm
    assert sum(value.numel() for value in q_former.parameters()) == 12 * layer + 6 * cross + norm + 32 * 768 == 105_162_240
    q_former.to_empty(device=CPU)
    assert q_former(torch.zeros(1, 257, 1408)).shape == (1, 32, 768)


def test_the_q_former_stays_frozen_and_in_eval_mode(reference, golden):
    q_former = golden.train()
    assert not any(module.training for module in q_former.modules())
    assert not any(value.requires_grad for value in q_former.parameters())
    assert q_former(reference["after_ln_vision"].clone().requires_grad_()).grad_fn is None


# Files


def spoiled(tmp_path, change):
    tensors = load_file(WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / "spoiled.safetensors")
    return tmp_path / "spoiled.safetensors"


def without_the_qformer(tensors):
    for name in [name for name in tensors if not name.startswith("ln_vision")]:
        del tensors[name]


@pytest.mark.parametrize("device", [CPU, META], ids=str)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: t.pop(f"{LAYER}.3.attention.self.query.weight"),
            rf"missing tensors or wrong shapes \(1 tensor: {LAYER}.3.attention.self.query.weight",
        ),
        (lambda t: t.pop("Qformer.bert.embeddings.LayerNorm.bias"), "1 tensor: Qformer.bert.embeddings.LayerNorm.bias"),
        (lambda t: t.pop("query_tokens"), "1 tensor: query_tokens"),
        (lambda t: t.pop(f"{LAYER}.0.crossattention.self.key.weight"), f"1 tensor: {LAYER}.0.crossattention.self.key.weight"),
        (lambda t: t.update({"query_tokens": torch.ones(8, 48)}), "1 tensor: query_tokens"),
        (lambda t: t.update({"query_tokens": torch.ones(1, 8, 64)}), "1 tensor: query_tokens"),
        (lambda t: t.update({f"{LAYER}.2.crossattention.self.value.weight": torch.ones(48, 99)}), "2.crossattention.self.value"),
        (
            lambda t: t.update({f"{LAYER}.1.attention.self.more": torch.ones(1)}),
            rf"1 unknown tensor: {LAYER}.1.attention.self.more",
        ),
        (without_the_qformer, r"contains no Q-Former \(its tensors: ln_vision"),
    ],
)
def test_a_file_with_wrong_tensors_is_refused_with_the_tensor_file_and_remedy(tmp_path, change, expected, device):
    with pytest.raises(UserError, match=rf"^model\.q_former_model: '.*spoiled\.safetensors' .*{expected}.*Name an original file"):
        load(spoiled(tmp_path, change), device=device)


@pytest.mark.parametrize(("heads", "expected"), [(None, "the width of a head, 64"), (5, "the number of heads, 5")])
def test_a_width_that_is_not_a_multiple_of_the_heads_is_refused(heads, expected):
    with pytest.raises(UserError, match=rf"'.*weights\.safetensors' has width 48, which is not a multiple of {expected}"):
        load(heads=heads)


def test_a_missing_file_is_reported_with_its_key(tmp_path):
    with pytest.raises(UserError, match=r"model\.q_former_model: no file .*nowhere\.pth.*Download"):
        load(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"blip2{suffix}"
    tensors = load_file(WEIGHTS)
    torch.save({"model": tensors}, path) if suffix == ".pth" else save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match=rf"model\.q_former_model: .*blip2\{suffix} is truncated.*Download it again"):
        load(path)


def test_a_q_former_on_the_meta_device_has_no_values():
    assert {value.device.type for value in load(device=META).parameters()} == {"meta"}
