"""Frozen linear layers whose products are computed with 8-bit floating-point numbers (float8_e4m3fn), for recent GPUs.

The weights are rounded once, the inputs and gradients in each step, with a factor for each row. There are two copies of the
weights, because the backward pass sums over the other dimension; together they have as many bytes as one copy in 16 bits.

Shape letters: T = tokens, I and O = input and output features, R = rows, C = columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emollama.errors import UserError
from emollama.models.configs import FrozenDtype
from emollama.models.planned_gpu import is_on_gpu

DTYPE = torch.float8_e4m3fn
LARGEST = 448.0  # of DTYPE
MULTIPLE = 16  # of the widths of a product's matrices
CAPABILITY = (9, 0)  # lowest compute capability whose products have a factor for each row (H100)


class Rounded(NamedTuple):
    """A matrix in 8 bits, whose values are ``values * factors``.

    Attributes:
        values: (R, C), 8 bits.
        factors: (R, 1), float32.
    """

    values: Tensor
    factors: Tensor


def rounded(matrix: Tensor) -> Rounded:
    """Round a matrix (R, C) to 8 bits, with the largest factor for each row that avoids overflow."""
    factors = matrix.abs().amax(-1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    # The products of a GPU need contiguous rows, and a gradient may have other strides.
    return Rounded((matrix.float() / factors).to(DTYPE).contiguous(), factors)


def product(left: Rounded, right: Rounded, dtype: torch.dtype) -> Tensor:
    """Return ``left right^T`` of matrices with as many columns, in the given dtype."""
    if is_on_gpu(left.values):
        output: Tensor = torch._scaled_mm(
            left.values, right.values.T, scale_a=left.factors, scale_b=right.factors.T, out_dtype=dtype, use_fast_accum=True
        )
        return output
    # The same sums in float32, for tests on devices without such products.
    return (left.values.float() @ right.values.float().T * left.factors * right.factors.T).to(dtype)


class Fp8Linear(nn.Linear):
    """A frozen ``nn.Linear`` after :func:`use_fp8`.

    Attributes:
        factors: (O, 1), the factors of the rows of the weight, which is (O, I) in 8 bits.
        transposed: (I, O), 8 bits; the weight's transpose, rounded with factors of its own.
        transposed_factors: (I, 1).
    """

    factors: Tensor
    transposed: Tensor
    transposed_factors: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the output in the dtype of autocast, or of the input: (..., I) -> (..., O)."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        output: Tensor = _Product.apply(input, self, dtype)
        return output if self.bias is None else output + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: Fp8Linear, dtype: torch.dtype) -> Tensor:
        # Nothing is saved: the gradient of a frozen layer's input depends on the weights only.
        ctx.layer, ctx.dtype, ctx.input_dtype = layer, dtype, input.dtype
        output = product(rounded(input.flatten(0, -2)), Rounded(layer.weight, layer.factors), dtype)
        return output.view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight = Rounded(ctx.layer.transposed, ctx.layer.transposed_factors)
        # In the dtype of the forward pass: a GPU has no such products in float32, which the input may have in autocast.
        result = product(rounded(grad.flatten(0, -2)), weight, ctx.dtype).to(ctx.input_dtype)
        return result.view(*grad.shape[:-1], -1), None, None


def layers_of(llm: Any) -> list[nn.Linear]:
    """Return the frozen linear layers of a language model whose widths are multiples of 16, except the output layer."""
    head = llm.get_output_embeddings()
    linear = [module for module in llm.modules() if type(module) is nn.Linear and module is not head]
    return [
        layer
        for layer in linear
        if not (layer.weight.requires_grad or layer.in_features % MULTIPLE or layer.out_features % MULTIPLE)
    ]


def use_fp8(llm: Any) -> None:
    """Round the weights of :func:`layers_of`, which then compute in 8 bits."""
    for layer in layers_of(llm):
        _round(layer)


def _round(layer: Any) -> None:
    values, factors = rounded(layer.weight.data)
    transposed = rounded(layer.weight.data.T.contiguous())
    # Only the methods differ; the name of the weight remains.
    layer.__class__ = Fp8Linear
    layer.weight = nn.Parameter(values, requires_grad=False)
    for name, value in (("factors", factors), ("transposed", transposed.values), ("transposed_factors", transposed.factors)):
        layer.register_buffer(name, value, persistent=False)


def require_fp8(key: FrozenDtype, device: torch.device, dtype: torch.dtype) -> None:
    """Check that the device of the run has products in 8 bits if the key demands them, and that their results are in bfloat16.

    Args:
        key: the value of ``model.frozen_dtype``.
        device: device of the run; the meta device stands for a GPU that this machine does not have.
        dtype: dtype of autocast, or float32 without it.

    Raises:
        UserError: If it does not have them, or the run does not compute in bfloat16.
    """
    if key != "fp8":
        return
    is_known = device.type != "meta"
    if is_known and (device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"the device {device.type}"
        other = "run.device: auto on a machine with such a GPU, or " if device.type == "cpu" else ""
        raise UserError(
            f"model.frozen_dtype: fp8 needs a GPU with compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or higher, such as H100"
            f" or H200, but this is {name}. Set {other}model.frozen_dtype: auto."
        )
    if dtype != torch.bfloat16:
        raise UserError(
            f"model.frozen_dtype: fp8 needs a run in bfloat16, but this one computes in {str(dtype).removeprefix('torch.')}. Set"
            " run.amp: True and run.amp_dtype: bf16, or model.frozen_dtype: auto."
        )
