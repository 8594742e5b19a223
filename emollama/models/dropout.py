"""Dropout that does not depend on how a global batch is split into processes and micro-batches.

Whether an element is dropped is a function of four values: the sample's random seed, the token's position in its sample, the
name of the dropout module, and the channel. Such a random number generator is called counter-based: it hashes the values instead
of advancing a state, so all elements of a micro-batch are computed at once, on a GPU with the same result as on a CPU.

Shape letters: B = samples, T = tokens of a packed micro-batch, C = channels of a dropout module's input.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from emollama.data.batch import Batch

BITS = 16  # random bits per element; a probability is rounded to a multiple of 2^-16


_OTHER_ROWS = (
    "a layer of the language model with dropout is not called with one vector per token, so its dropout depends on how the global"
    " batch is split. Set model.lora_dropout: 0, or choose other model.lora_target_modules, to avoid this."
)


class CounterDropout(nn.Dropout):
    """Dropout with a mask that is computed from the tokens' keys (:func:`token_keys_of`).

    Without keys, or if the input does not have one row for each token, it is torch's dropout.

    Args:
        p: probability of an element to be zeroed, in [0, 1). The others are multiplied by 1 / (1 - p).
        name: name of the module in the model. Modules with different names have independent masks.
    """

    def __init__(self, p: float, name: str) -> None:
        super().__init__(p)
        self._key = _signed(zlib.crc32(name.encode()))
        self._key_tensor: Tensor | None = None
        self._threshold = min(round(p * 2**BITS), 2**BITS - 1)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with some elements zeroed in training, and the input itself in evaluation: (..., C) -> (..., C)."""
        if not self.training or not self.p:
            return input
        keys = _STATE.keys
        if keys is None or keys.numel() != input.shape[:-1].numel():
            if keys is not None:
                warnings.warn(_OTHER_ROWS, stacklevel=2)
            return nn.functional.dropout(input, self.p)
        output: Tensor = _Dropout.apply(input, self.mask_of(keys))
        return output

    def prepare_compilation(self, device: torch.device) -> None:
        """Let :meth:`compiled` be called in compiled code on this device."""
        # Code that is compiled for a number is compiled again for another one, but all layers share the code for a tensor.
        self._key_tensor = torch.tensor(self._key, dtype=torch.int32, device=device)

    def compiled(self, input: Tensor) -> Tensor:
        """Return the values of :meth:`forward` with operations that torch.compile fuses with their neighbours."""
        if not self.training or not self.p:
            return input
        if _STATE.keys is None:
            return nn.functional.dropout(input, self.p)
        assert self._key_tensor is not None, "prepare_compilation was not called"
        columns = torch.arange(input.shape[-1], dtype=torch.int32, device=input.device)
        words = _mixed(_mixed(_STATE.keys.flatten() ^ self._key_tensor)[:, None] ^ _mixed(columns // 2 + 1))
        # The same halves of the words as in dropped_elements, which views them as numbers of 16 bits.
        halves = torch.where(columns % 2 == 0, words << BITS, words) >> BITS
        dropped = (halves < self._threshold - 2 ** (BITS - 1)).view(input.shape)
        return torch.where(dropped, 0.0, input * scale_of(self._threshold))

    def mask_of(self, keys: Tensor) -> DropoutMask:
        """Return the mask for tokens with these keys."""
        return DropoutMask(keys.flatten(), self._key, self._threshold)

    def current_mask(self, rows: int) -> DropoutMask | None:
        """Return the mask for an input with this number of rows; None if it has not one for each token."""
        keys = _STATE.keys
        return None if keys is None or keys.numel() != rows else self.mask_of(keys)


@dataclass(frozen=True)
class DropoutMask:
    """Which elements of a matrix (T, C) are zeroed, as numbers from which the mask is computed wherever it is needed.

    Attributes:
        keys: (T,) int32, the tokens' keys.
        module_key: a hash of the module's name.
        threshold: the probability times 2^16.
    """

    keys: Tensor
    module_key: int
    threshold: int

    def applied_to(self, values: Tensor) -> Tensor:
        """Return a copy with some elements zeroed and the others scaled, (..., C)."""
        output: Tensor = torch.ops.emollama.dropout(values, self.keys, self.module_key, self.threshold)
        return output

    def applied_to_both(self, values: Tensor, total: Tensor, added: Tensor) -> Tensor:
        """Return :meth:`applied_to` of ``values``, and add that of ``added`` to ``total``. The mask is computed once."""
        mask = (self.keys, self.module_key, self.threshold)
        output: Tensor = torch.ops.emollama.dropout_and_add_(values, total, added, *mask)
        return output


class _Dropout(torch.autograd.Function):
    """Saves nothing but the tokens' keys: the backward pass computes the mask again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, mask: DropoutMask) -> Tensor:
        ctx.mask = mask
        return mask.applied_to(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.mask.applied_to(grad), None


class _State:
    """The keys of the current forward pass: (T,) int32, or None outside of one."""

    keys: Tensor | None = None


# Not a thread-local variable, because the backward pass recomputes activations in another thread.
_STATE = _State()


@contextmanager
def use_keys(keys: Tensor | None) -> Iterator[None]:
    """Inside ``with``, dropout modules compute their masks from these keys: one for each token, int32, or None."""
    before, _STATE.keys = _STATE.keys, keys
    try:
        yield
    finally:
        _STATE.keys = before


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a layer's forward pass and of its recomputation, for ``context_fn`` of activation checkpointing."""
    return nullcontext(), use_keys(_STATE.keys)


def token_keys_of(batch: Batch) -> Tensor | None:
    """Return the key of each token, (T,) int32: a hash of its sample's seed and its position; None for samples without seeds."""
    if batch.dropout_seeds is None:
        return None
    tokens = len(batch.position_ids)
    seeds = _mixed(batch.dropout_seeds).repeat_interleave(batch.cu_seqlens.diff(), output_size=tokens)
    return _mixed(seeds ^ _mixed(batch.position_ids.int()))


def keys_at(positions: Tensor) -> Tensor | None:
    """Return the current keys of the tokens at these positions, (N,); None if there are no keys."""
    return None if _STATE.keys is None else _STATE.keys.flatten()[positions]


def split_keys(lengths: Sequence[int]) -> list[Tensor | None]:
    """Return the current keys of each sample, which has this number of tokens; None for each if there are no keys."""
    return [None] * len(lengths) if _STATE.keys is None else list(_STATE.keys.flatten().split(list(lengths)))


def padded_keys(lengths: Sequence[int]) -> Tensor | None:
    """Return the current keys for samples that are padded on the right, (B, W), where W is the longest length."""
    parts = [part for part in split_keys(lengths) if part is not None]
    return nn.utils.rnn.pad_sequence(parts, batch_first=True) if parts else None


@contextmanager
def sample_generator(sample_start: int, layer: int, device: torch.device) -> Iterator[None]:
    """Inside ``with``, torch's global generator is seeded for one sample and layer, if there are keys.

    It is for operations that draw random numbers themselves, and are called for one sample at a time.

    Args:
        sample_start: index of the sample's first token in the micro-batch.
        layer: index of the layer.
        device: device of the operation.
    """
    # The tensors of 'emollama plan' have no values.
    if _STATE.keys is None or type(_STATE.keys) is not Tensor:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(_STATE.keys.flatten()[sample_start]) * 2**16 + layer)
        yield


def replace_dropout(model: nn.Module) -> None:
    """Replace each ``nn.Dropout`` of a model that drops anything by a :class:`CounterDropout`."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is nn.Dropout and module.p:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, CounterDropout(module.p, name).train(module.training))


def scale_of(threshold: int) -> float:
    """Return the factor of the elements that are not zeroed."""
    return float(1 / (1 - threshold / 2**BITS))


def _dropout(values: Tensor, keys: Tensor, module_key: int, threshold: int) -> Tensor:
    return _without(dropped_elements(keys, values.shape[-1], module_key, threshold), values, threshold)


def _dropout_and_add(values: Tensor, total: Tensor, added: Tensor, keys: Tensor, module_key: int, threshold: int) -> Tensor:
    dropped = dropped_elements(keys, values.shape[-1], module_key, threshold)
    total.add_(_without(dropped, added, threshold))
    return _without(dropped, values, threshold)


def _without(dropped: Tensor, values: Tensor, threshold: int) -> Tensor:
    return values.masked_fill(dropped.view(values.shape), 0.0).mul_(scale_of(threshold))


# On a GPU with Triton, dropout_kernel.py has an implementation of both that is a single kernel.
torch.library.define("emollama::dropout", "(Tensor values, Tensor keys, int module_key, int threshold) -> Tensor")
torch.library.define(
    "emollama::dropout_and_add_",
    "(Tensor values, Tensor(a!) total, Tensor added, Tensor keys, int module_key, int threshold) -> Tensor",
)
torch.library.impl("emollama::dropout", "default", _dropout)
torch.library.impl("emollama::dropout_and_add_", "default", _dropout_and_add)


def dropped_elements(keys: Tensor, channels: int, module_key: int, threshold: int) -> Tensor:
    """Return which elements are zeroed, (T, C) bool.

    Args:
        keys: (T,) int32, the tokens' keys.
        channels: C.
        module_key: an integer of 32 bits, signed.
        threshold: the probability times 2^16.
    """
    # Each hash has 32 bits, enough for two channels.
    words = _mixed(_mixed(keys ^ module_key)[:, None] ^ _channel_keys((channels + 1) // 2, keys.device))
    dropped: Tensor = words.view(torch.int16)[:, :channels] < threshold - 2 ** (BITS - 1)
    return dropped


@lru_cache(maxsize=16)
def _channel_keys(count: int, device: torch.device) -> Tensor:
    return _mixed(torch.arange(1, count + 1, dtype=torch.int32, device=device))


def _mixed(values: Tensor) -> Tensor:
    """Return the hash of each value: int32 -> int32, the finalizer of MurmurHash3. Products are modulo 2^32."""
    # A right shift of int32 repeats the sign bit; the masks remove the copies.
    mixed = torch.bitwise_xor(values, (values >> 16) & 0xFFFF)
    mixed.mul_(_signed(0x85EBCA6B))
    mixed.bitwise_xor_((mixed >> 13) & 0x7FFFF)
    mixed.mul_(_signed(0xC2B2AE35))
    return mixed.bitwise_xor_((mixed >> 16) & 0xFFFF)


def _signed(number: int) -> int:
    """Return the signed integer with the same 32 bits."""
    return number - 2**32 if number >= 2**31 else number
