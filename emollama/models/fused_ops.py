"""Norm, rotary position embedding and SwiGLU of Llama, each as one operation that saves nothing but its inputs.

transformers computes each of them with several operations, whose intermediate results are saved for the backward pass. On a GPU,
the kernels of Liger are used if they are installed. Elsewhere the operations of transformers run inside an operator of PyTorch,
in the same order, so that results are equal.

Shape letters: T = tokens, C = channels, H = query heads, K = key/value heads, E = width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Both operators return float32 values for the backward pass: the factor of each row, and the gradient of the weight.
torch.library.define("emollama::rms_norm", "(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)")
torch.library.define(
    "emollama::rms_norm_backward", "(Tensor grad, Tensor x, Tensor weight, Tensor factor, bool trained) -> (Tensor, Tensor)"
)
torch.library.define("emollama::rope", "(Tensor query, Tensor key, Tensor cos, Tensor sin) -> (Tensor, Tensor)")
torch.library.define("emollama::silu_mul", "(Tensor gate, Tensor up) -> Tensor")
torch.library.define("emollama::silu_mul_backward", "(Tensor grad, Tensor gate, Tensor up) -> (Tensor, Tensor)")


@dataclass(frozen=True)
class FusedOps:
    """The operations of one implementation.

    Attributes:
        rms_norm: (x (..., C), weight (C,), eps) -> (..., C).
        rope: (query (1, H, T, E), key (1, K, T, E), cos, sin (1, T, E)) -> rotated query and key. The halves of sin are equal.
        silu_mul: (gate, up) -> silu(gate) * up, (..., C).
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    silu_mul: Callable[[Tensor, Tensor], Tensor]


def liger_ops() -> FusedOps:
    """Return the operations of Liger, which run on a GPU.

    Raises:
        ImportError: If it is not installed. Versions of Liger and Triton that do not fit raise other exceptions, too.
    """
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # In place, it would overwrite the gradient of the residual stream.
        output: Tensor = LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)
        return output

    return FusedOps(rms_norm, LigerRopeFunction.apply, LigerSiLUMulFunction.apply)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        output, factor = torch.ops.emollama.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, factor)
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        trained = ctx.needs_input_grad[1]
        grad_x, grad_weight = torch.ops.emollama.rms_norm_backward(grad, *ctx.saved_tensors, trained)
        return grad_x, grad_weight if trained else None, None


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        rotated: tuple[Tensor, Tensor] = torch.ops.emollama.rope(query, key, cos, sin)
        return rotated

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        # The gradient of a rotation is the rotation by the opposite angle.
        grad_query, grad_key = torch.ops.emollama.rope(query, key, cos, -sin)
        return grad_query, grad_key, None, None


class _SiLUMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        product: Tensor = torch.ops.emollama.silu_mul(gate, up)
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor] = torch.ops.emollama.silu_mul_backward(grad, *ctx.saved_tensors)
        return gradients


PLAIN = FusedOps(_RMSNorm.apply, _Rope.apply, _SiLUMul.apply)


def compiled_ops() -> FusedOps:
    """Return the operations in a form that torch.compile fuses with their neighbours."""
    return FusedOps(lambda x, weight, eps: _rms_norm(x, weight, eps)[0], _rope, _silu_mul)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    factor = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    # Not in place: without autocast, wide is x itself.
    return weight * (wide * factor).to(x.dtype), factor


def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, factor: Tensor, trained: bool) -> tuple[Tensor, Tensor]:
    normalized = x.float() * factor
    inner = (grad * weight).float()
    mean = (inner * normalized).mean(-1, keepdim=True)
    grad_weight = (grad * normalized.to(x.dtype)).flatten(0, -2).sum(0).to(weight.dtype) if trained else weight.new_empty(0)
    return inner.sub_(normalized.mul_(mean)).mul_(factor).to(x.dtype), grad_weight


def _rope(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + _half_turned(query) * sin, key * cos + _half_turned(key) * sin


def _half_turned(heads: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _silu_mul_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


for _name, _function in (
    ("rms_norm", _rms_norm),
    ("rms_norm_backward", _rms_norm_backward),
    ("rope", _rope),
    ("silu_mul", _silu_mul),
    ("silu_mul_backward", _silu_mul_backward),
):
    torch.library.impl(f"emollama::{_name}", "default", _function)
