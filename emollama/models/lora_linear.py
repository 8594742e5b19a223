"""Linear layers with LoRA adapters, computed with few operations and little memory.

The adapters of peft compute in float32 even where autocast computes in bf16, store the input of the adapter and its dropout mask,
and round their output several times. Here everything is computed in the dtype of autocast, and the backward pass computes the
dropped input again.

Shape letters: T = tokens, I and O = input and output features of the layer, r = LoRA rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn

from emollama.models.dropout import CounterDropout, DropoutMask
from emollama.models.fp8_linear import Fp8Linear


class LoRALinear(Linear):
    """peft's layer for a frozen ``nn.Linear`` with one adapter. What its fast form does not cover is left to peft."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output with the adapter's, (..., I) -> (..., O)."""
        adapters = self.active_adapters
        if args or kwargs or len(adapters) != 1 or adapters[0] not in self.lora_A or self.disable_adapters or self.merged:
            return self._plain(x, *args, **kwargs)
        (name,) = adapters
        base: Any = self.base_layer
        a: Any = self.lora_A[name].weight
        b: Any = self.lora_B[name].weight
        weight = base.weight
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype: Any = torch.get_autocast_dtype(x.device.type) if autocast else a.dtype
        is_fp8 = isinstance(base, Fp8Linear)
        if weight.requires_grad or not (is_fp8 or weight.dtype == dtype) or not (autocast or x.dtype == dtype):
            return self._plain(x)
        if torch.compiler.is_compiling():
            return self._compiled(x.to(dtype), a.to(dtype), b.to(dtype), name)
        mask = None
        if self.training and not isinstance(dropout := self.lora_dropout[name], nn.Identity) and dropout.p:
            mask = dropout.current_mask(x.shape[:-1].numel()) if isinstance(dropout, CounterDropout) else None
            if mask is None:
                return self._plain(x)
        constants = _Constants(None if is_fp8 else weight, None if is_fp8 else base.bias, self.scaling[name], mask)
        low = x.to(dtype)
        output: Tensor = _LoRA.apply(low, a, b, constants)
        return output + base(low) if is_fp8 else output

    def _compiled(self, x: Tensor, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Return the output with operations of which torch.compile derives the backward pass, and what it computes again."""
        dropout: Any = self.lora_dropout[name]
        dropped = dropout.compiled(x) if isinstance(dropout, CounterDropout) else x
        output: Tensor = self.base_layer(x) + F.linear(F.linear(dropped, a), b) * self.scaling[name]
        return output

    def _plain(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = super().forward(x, *args, **kwargs)
        return output


def use_lora_linear(llm: nn.Module) -> None:
    """Let the layers of peft with ordinary linear layers compute as :class:`LoRALinear`."""
    for module in llm.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear and not module.lora_variant:
            # Only the methods differ.
            module.__class__ = LoRALinear


@dataclass(frozen=True)
class _Constants:
    """What a layer with an adapter does not learn.

    Attributes:
        weight: (O, I), in the dtype of the input; None if another function computes the layer's own product.
        bias: (O,).
        scale: factor of the adapter's output.
        mask: dropout of the adapter's input.
    """

    weight: Tensor | None
    bias: Tensor | None
    scale: float
    mask: DropoutMask | None


class _LoRA(torch.autograd.Function):
    """``x W^T + bias + scale * dropout(x) A^T B^T`` with A (r, I) and B (O, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, constants: _Constants) -> Tensor:
        rows, weight, mask, bias = x.flatten(0, -2), constants.weight, constants.mask, constants.bias
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        inner = (rows if mask is None else mask.applied_to(rows)) @ low_a.T
        ctx.save_for_backward(rows, weight, low_a, low_b, inner)
        ctx.scale, ctx.mask, ctx.dtypes = constants.scale, mask, (a.dtype, b.dtype)
        if weight is None:
            output = (inner @ low_b.T).mul_(constants.scale)
        else:
            output = F.linear(rows, weight, bias if bias is None else bias.to(x.dtype))
            output.addmm_(inner, low_b.T, alpha=constants.scale)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        rows, weight, a, b, inner = ctx.saved_tensors
        g = grad.flatten(0, -2)
        # beta=0: products with a factor, in one operation each.
        grad_inner = torch.addmm(inner, g, b, beta=0, alpha=ctx.scale)
        grad_b = torch.addmm(b, g.T, inner, beta=0, alpha=ctx.scale)
        grad_x, mask = None, ctx.mask
        if ctx.needs_input_grad[0]:
            # Without a weight, another function adds the gradient of the layer's own product.
            grad_x = torch.zeros_like(rows) if weight is None else g @ weight
        if mask is None:
            dropped = rows
            grad_x = grad_x if grad_x is None else grad_x.addmm_(grad_inner, a)
        elif grad_x is None:
            dropped = mask.applied_to(rows)
        else:
            dropped = mask.applied_to_both(rows, grad_x, grad_inner @ a)
        grad_a = grad_inner.T @ dropped
        grad_x = grad_x if grad_x is None else grad_x.view(*grad.shape[:-1], -1)
        return grad_x, grad_a.to(ctx.dtypes[0]), grad_b.to(ctx.dtypes[1]), None
