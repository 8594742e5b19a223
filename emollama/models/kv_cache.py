"""The key-value cache of sequences that are decoded together: preallocated, with one row per sequence, padded on the left.

Prompts are prefilled packed, or padded on the right, with a cache of transformers. Then their keys and values are moved.

Shape letters: B = sequences, T = tokens of all prompts, W = width of the padded cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from emollama.decoding_state import DecodingState


class RowLayer(DynamicLayer):
    """Keys and values of a layer, in buffers with room for more tokens and for the rows of finished sequences.

    All sequences end at the same column. The columns from ``start`` to ``end`` of the first rows are in use: ``keys`` and
    ``values`` are views of them. Unused elements are finite, because the attention multiplies those of the padding by zero.

    Args:
        keys: the keys of each sequence, B tensors (heads, tokens, head_dim).
        values: the same for the values.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True
        self.dtype, self.device = keys[0].dtype, keys[0].device
        width = max(piece.shape[1] for piece in keys)
        self._buffers = [_filled(pieces, width) for pieces in (keys, values)]
        self._rows, self._start, self._end = len(keys), 0, width
        self._set_views()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, (B, heads, new tokens, head_dim); return those of all tokens."""
        end = self._end + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            self._move(self._rows, self._end - self._start, key_states.shape[2])
            end = self._end + key_states.shape[2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._end : end] = new
        self._end = end
        self._set_views()
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens of all rows; their number is negative, as in transformers."""
        self._end += tokens_to_remove
        self._set_views()

    def append(self, other: Self) -> None:
        """Add the rows of another layer."""
        rows, width = self._rows + other._rows, other._end - other._start
        if rows > len(self._buffers[0]) or width > self._end:
            self._move(rows, max(width, self._end - self._start), 0)
        start = self._end - width
        for buffer, added in zip(self._buffers, (other.keys, other.values), strict=True):
            # A finished sequence may have left values that are not finite.
            buffer[self._rows : rows, :, self._start : start] = 0
            buffer[self._rows : rows, :, start : self._end] = added
        self._rows, self._start = rows, min(self._start, start)
        self._set_views()

    def copied(self, row: int, length: int, tokens: int) -> Self:
        """Return a layer with the first tokens of a row, which has ``length`` tokens."""
        start = self._end - length
        return type(self)(*([buffer[row, :, start : start + tokens]] for buffer in self._buffers))

    def drop(self, row: int, width: int) -> None:
        """Remove a row, whose place the last one takes, and the columns before the last ``width`` ones."""
        self._rows -= 1
        self._start = self._end - width
        if row < self._rows:
            for buffer in self._buffers:
                buffer[row, :, self._start : self._end] = buffer[self._rows, :, self._start : self._end]
        self._set_views()

    def _move(self, rows: int, end: int, more: int) -> None:
        """Move the content to the columns before ``end`` of buffers with this number of rows and room for more tokens."""
        start = end - (self._end - self._start)
        for index, used in enumerate((self.keys, self.values)):
            buffer = used.new_zeros(rows, used.shape[1], _capacity(end + more), used.shape[3])
            buffer[: self._rows, :, start:end] = used
            self._buffers[index] = buffer
        self._start, self._end = start, end

    def _set_views(self) -> None:
        self.keys, self.values = (buffer[: self._rows, :, self._start : self._end] for buffer in self._buffers)


class RowCache(DynamicCache):
    """A cache of transformers to which rows can be added, and from which they can be removed."""

    layers: list[Any]

    def __init__(self, layers: Sequence[RowLayer]) -> None:
        super().__init__()
        self.layers = list(layers)

    def append(self, other: Self) -> None:
        """Add the rows of another cache of the same model."""
        for own, added in zip(self.layers, other.layers, strict=True):
            own.append(added)

    def copied(self, row: int, length: int, tokens: int) -> Self:
        """Return a cache with the first tokens of a row, which has ``length`` tokens."""
        return type(self)([layer.copied(row, length, tokens) for layer in self.layers])

    def drop(self, row: int, width: int) -> None:
        """Remove a row; the last one takes its place.

        Args:
            row: index of the row.
            width: number of tokens of the longest remaining sequence; the padding of all is shortened.
        """
        for layer in self.layers:
            layer.drop(row, width)


def empty_cache() -> Any:
    """Return an empty key-value cache for the forward pass of prompts to fill."""
    return DynamicCache()


def unpacked_state(packed: Any, lengths: Sequence[int]) -> DecodingState:
    """Unpack the cache of a packed forward pass, (1, heads, T, head_dim) per layer."""
    sizes = list(lengths)
    layers = [RowLayer(layer.keys[0].split(sizes, 1), layer.values[0].split(sizes, 1)) for layer in packed.layers]
    return DecodingState(RowCache(layers), sizes)


def left_padded_state(padded: Any, lengths: Sequence[int]) -> DecodingState:
    """Move the padding of a cache, (B, heads, W, head_dim) per layer, from the right to the left."""

    def pieces(rows: Tensor) -> list[Tensor]:
        return [row[:, :length] for row, length in zip(rows, lengths, strict=True)]

    layers = [RowLayer(pieces(layer.keys), pieces(layer.values)) for layer in padded.layers]
    return DecodingState(RowCache(layers), list(lengths))


def _filled(pieces: Sequence[Tensor], width: int) -> Tensor:
    """Return a buffer with the pieces (heads, tokens, head_dim) in one row each; the last tokens are in column ``width`` - 1."""
    heads, _, size = pieces[0].shape
    buffer = pieces[0].new_zeros(len(pieces), heads, _capacity(width), size)
    for row, piece in enumerate(pieces):
        buffer[row, :, width - piece.shape[1] : width] = piece
    return buffer


def _capacity(width: int) -> int:
    """Return the number of columns of a buffer, so that only few tokens need a larger one."""
    return width + width // 4 + 64
