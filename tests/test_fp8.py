"""Frozen linear layers in 8 bits (model.frozen_dtype: fp8): the arithmetic, the change of a loss, and refusals."""

from __future__ import annotations

import pytest
import torch
from running import golden_config
from torch import nn
from transformers import GPT2Config

from emollama.config import load
from emollama.data.batch import collate
from emollama.errors import UserError
from emollama.models import fp8_linear, llm_weights
from emollama.models.configs import LLMConfig
from emollama.models.lora_linear import LoRALinear
from emollama.runners.runner_base import RunnerBase

CPU = torch.device("cpu")


def layer(inputs=64, outputs=48):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs).requires_grad_(False)


class Model(nn.Sequential):
    def get_output_embeddings(self):
        return self[-1]


def test_rounded_rows_differ_by_at_most_a_sixteenth_of_each_value_or_a_small_part_of_the_largest():
    matrix = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 20)[:, None]
    values, factors = fp8_linear.rounded(matrix)
    limit = (matrix.abs() / 16).maximum(matrix.abs().amax(1, keepdim=True) / 448 / 2**9)
    assert ((values.float() * factors - matrix).abs() <= limit * 1.001).all()


def test_rows_of_zeros_stay_zero():
    values, factors = fp8_linear.rounded(torch.zeros(3, 16))
    assert (values.float() * factors).equal(torch.zeros(3, 16))


def test_rounded_matrices_are_contiguous_whatever_the_strides():
    assert fp8_linear.rounded(torch.randn(16, 32).T).values.is_contiguous()


def test_outputs_and_gradients_are_those_of_the_rounded_matrices():
    plain = layer()
    rounded, x, direction = Model(layer(), layer(48, 32)), torch.randn(3, 7, 64, requires_grad=True), torch.randn(3, 7, 48)
    fp8_linear.use_fp8(rounded)

    def of(matrix):
        values, factors = fp8_linear.rounded(matrix)
        return values.float() * factors

    output = rounded[0](x)
    expected = of(x.detach().flatten(0, 1)) @ of(plain.weight).T + plain.bias
    torch.testing.assert_close(output.flatten(0, 1), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(output, x, direction)
    expected = of(direction.flatten(0, 1)) @ of(plain.weight.T.contiguous()).T
    torch.testing.assert_close(gradient.flatten(0, 1), expected, rtol=1e-5, atol=1e-5)


def test_products_for_a_float32_input_in_autocast_are_in_bfloat16_both_ways(monkeypatch):
    # A GPU has no others. Norms return float32 in autocast.
    model, x, dtypes, product = Model(layer(), layer(48, 32)), torch.randn(3, 7, 64, requires_grad=True), [], fp8_linear.product
    fp8_linear.use_fp8(model)
    monkeypatch.setattr(fp8_linear, "product", lambda *args: dtypes.append(args[-1]) or product(*args))
    with torch.autocast("cpu", torch.bfloat16):
        output = model[0](x)
    (gradient,) = torch.autograd.grad(output.float().square().sum(), x)
    assert (output.dtype, gradient.dtype, dtypes) == (torch.bfloat16, torch.float32, [torch.bfloat16] * 2)


def test_trained_layers_the_output_layer_and_layers_of_other_widths_keep_their_weights():
    model = Model(layer(), layer().requires_grad_(), layer(60, 48), layer())
    fp8_linear.use_fp8(model)
    assert [type(module) is fp8_linear.Fp8Linear for module in model] == [True, False, False, False]


@pytest.mark.slow
def test_the_loss_and_the_gradients_of_a_trained_model_change_little(tmp_path):
    runner = RunnerBase(load(str(golden_config(tmp_path))))
    model, batch = runner.model, collate([runner.samples[index] for index in range(4)])
    results = []
    for _ in range(2):
        loss = model(batch).mean()
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        results.append((loss.item(), torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])))
        # The second time with rounded weights.
        fp8_linear.use_fp8(model.llama_model)
    adapted = [module.base_layer for module in model.modules() if isinstance(module, LoRALinear)]
    assert adapted and all(isinstance(base, fp8_linear.Fp8Linear) for base in adapted)
    (plain, plain_gradient), (rounded, gradient) = results
    assert 0 < abs(rounded / plain - 1) < 0.02
    assert torch.cosine_similarity(gradient, plain_gradient, dim=0) > 0.95


def test_fp8_is_refused_on_a_device_without_such_products():
    with pytest.raises(
        UserError,
        match="compute capability 9.0 or higher, such as H100 or H200, but this is the device cpu. Set run.device: auto on",
    ):
        fp8_linear.require_fp8("fp8", CPU, torch.bfloat16)
    fp8_linear.require_fp8("auto", CPU, torch.float32)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_fp8_is_refused_in_runs_that_do_not_compute_in_bfloat16(monkeypatch, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: fp8_linear.CAPABILITY)
    device = torch.device("cuda")
    fp8_linear.require_fp8("fp8", device, torch.bfloat16)
    with pytest.raises(UserError, match=f"but this one computes in {dtype}. Set run.amp: True and run.amp_dtype: bf16, or"):
        fp8_linear.require_fp8("fp8", device, getattr(torch, dtype))


def test_fp8_is_refused_for_a_model_without_linear_layers():
    cfg = LLMConfig(llama_model="llm", frozen_dtype="fp8")
    with pytest.raises(UserError, match="models of the type 'gpt2' have no linear layers with widths that are multiples of 16"):
        llm_weights.check_options(cfg, GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20))


OTHERS = {"low_resource": True, "load_in_4bit": True, "train_llm": "full", "merge_adapters": True}


@pytest.mark.parametrize(("key", "value"), OTHERS.items())
def test_fp8_is_refused_with_keys_that_need_other_weights(key, value):
    with pytest.raises(ValueError, match=f"frozen_dtype: fp8 and {key}"):
        LLMConfig(llama_model="llm", frozen_dtype="fp8", **{key: value})
