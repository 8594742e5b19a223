"""The key-value cache of a batch of sequences, one row per sequence, padded on the left.

Prompts are prefilled packed, or padded on the right; then keys and values are moved.

Shape letters: B = sequences, T = tokens of all prompts, W = width of the padded cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from emollama.decoding_state import DecodingState


class BatchCache(DynamicCache):
    """A cache of transformers to which rows can be added, and from which they can be removed."""

    layers: list[Any]

    def append(self, other: Self) -> None:
        """Add the rows of another cache of the same model; the narrower one gets padding on the left."""
        for own, added in zip(self.layers, other.layers, strict=True):
            own.keys, own.values = _joined(own.keys, added.keys), _joined(own.values, added.values)

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        for layer in self.layers:
            layer.keys[row], layer.values[row] = layer.keys[-1], layer.values[-1]
            layer.keys, layer.values = layer.keys[:-1], layer.values[:-1]


def empty_cache() -> Any:
    """Return an empty key-value cache for a forward pass to fill."""
    return BatchCache()


def left_padding_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the attention mask (B, W) of sequences with these numbers of tokens: 0 at the padding, which is on the left."""
    sizes = torch.tensor(lengths, device=device)
    width = int(sizes.max())
    return (torch.arange(width, device=device) >= width - sizes[:, None]).long()


def unpacked_state(packed: Any, lengths: list[int]) -> DecodingState:
    """Unpack and pad the cache of a packed forward pass, (1, heads, T, head_dim) per layer."""
    return _state(packed, lengths, _unpack)


def left_padded_state(padded: Any, lengths: list[int]) -> DecodingState:
    """Move the padding of a cache, (B, heads, W, head_dim) per layer, from the right to the left."""
    return _state(padded, lengths, _left_padded)


def _state(filled: Any, lengths: list[int], convert: Callable[[Tensor, list[int]], Tensor]) -> DecodingState:
    cache = BatchCache()
    for index, layer in enumerate(filled.layers):
        cache.update(convert(layer.keys, lengths), convert(layer.values, lengths), index)
    return DecodingState(cache, left_padding_mask(lengths, filled.layers[0].keys.device))


def _unpack(packed: Tensor, lengths: list[int]) -> Tensor:
    """Convert (1, heads, T, head_dim) to (B, heads, W, head_dim), padded with zeros on the left."""
    pieces = packed[0].transpose(0, 1).split(lengths)
    return pad_sequence(list(pieces), batch_first=True, padding_side="left").transpose(1, 2)


def _left_padded(padded: Tensor, lengths: list[int]) -> Tensor:
    pieces = [row[:, :length].transpose(0, 1) for row, length in zip(padded, lengths, strict=True)]
    return pad_sequence(pieces, batch_first=True, padding_side="left").transpose(1, 2)


def _joined(rows: Tensor, added: Tensor) -> Tensor:
    width = max(rows.shape[2], added.shape[2])
    return torch.cat([pad(part, (0, 0, width - part.shape[2], 0)) for part in (rows, added)])
