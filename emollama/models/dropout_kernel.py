"""The operators of :mod:`emollama.models.dropout` as one Triton kernel, for GPUs.

Importing this module registers the kernel. It computes the same hash, and so the same masks, as the code for other devices.

Shape letters: T = tokens, C = channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from emollama.models.dropout import BITS, scale_of

BLOCK = tl.constexpr(1024)  # channels of a program


@triton.jit  # type: ignore[untyped-decorator]
def _mixed(values: Any) -> Any:
    # The finalizer of MurmurHash3. A right shift of int32 repeats the sign bit; the masks remove the copies.
    values = values ^ ((values >> 16) & 0xFFFF)
    values = values * -2048144789
    values = values ^ ((values >> 13) & 0x7FFFF)
    values = values * -1028477387
    return values ^ ((values >> 16) & 0xFFFF)


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(copy: Any, addition: Any, keys: Any, mask: Any, channels: Any, add: tl.constexpr) -> None:
    (output, values), (total, added), (module_key, limit, scale) = copy, addition, mask
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    # Each hash has 32 bits, the lower half for an even channel and the upper half for the next one.
    words = _mixed(_mixed(tl.load(keys + token) ^ module_key) ^ _mixed(columns // 2 + 1))
    dropped = (tl.where(columns % 2 == 0, words << 16, words) >> 16) < limit
    places = token.to(tl.int64) * channels + columns
    element = tl.load(values + places, mask=inside, other=0.0).to(tl.float32)
    # Rounded where the code for other devices rounds.
    tl.store(output + places, tl.where(dropped, 0.0, element * scale).to(output.dtype.element_ty), mask=inside)
    if add:
        element = tl.load(added + places, mask=inside, other=0.0).to(tl.float32)
        result = tl.where(dropped, 0.0, element * scale).to(total.dtype.element_ty).to(tl.float32)
        before = tl.load(total + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + places, (before + result).to(total.dtype.element_ty), mask=inside)


def dropout(values: Tensor, keys: Tensor, module_key: int, threshold: int) -> Tensor:
    """Return a copy with some elements zeroed and the others scaled: (..., C), with T vectors."""
    values = values.contiguous()
    output = torch.empty_like(values)
    _run((output, values), (output, values), keys, (module_key, threshold), add=False)
    return output


def dropout_and_add_(values: Tensor, total: Tensor, added: Tensor, keys: Tensor, module_key: int, threshold: int) -> Tensor:
    """Return the result of :func:`dropout` for ``values``, and add that for ``added`` to ``total``, which must be contiguous."""
    values = values.contiguous()
    output = torch.empty_like(values)
    _run((output, values), (total, added.contiguous()), keys, (module_key, threshold), add=True)
    return output


def _run(copy: tuple[Tensor, Tensor], addition: tuple[Tensor, Tensor], keys: Tensor, mask: tuple[int, int], *, add: bool) -> None:
    assert addition[0].is_contiguous(), "the kernel writes to contiguous memory"
    channels, (module_key, threshold) = copy[1].shape[-1], mask
    grid: Any = (keys.numel(), triton.cdiv(channels, BLOCK.value))
    numbers = (module_key, threshold - 2 ** (BITS - 1), scale_of(threshold))
    _kernel[grid](copy, addition, keys.contiguous(), numbers, channels, add)


torch.library.impl("emollama::dropout", "cuda", dropout)
torch.library.impl("emollama::dropout_and_add_", "cuda", dropout_and_add_)
