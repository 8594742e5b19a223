"""What a model keeps of the sequences that it continues.

Shape letters: B = sequences, W = tokens of the longest sequence, Q = new tokens per sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class DecodingState:
    """The cache of B sequences, and their lengths.

    The lengths are on the host, so that no step waits for the device.

    Attributes:
        cache: keys and values, (B, heads, W, head_dim) per layer, padded on the left; or another object of the model's own with
            the methods ``append`` and ``drop`` of :class:`~emollama.models.kv_cache.RowCache`.
        lengths: the number of tokens of each sequence.
    """

    cache: Any
    lengths: list[int]

    @property
    def width(self) -> int:
        """W."""
        return max(self.lengths)

    def mask(self, tokens: int, device: torch.device) -> Tensor | None:
        """Return the attention mask (B, W + tokens) for new tokens, int64; None if no sequence is padded."""
        lengths = [length + tokens for length in self.lengths]
        return left_padding_mask(lengths, device) if min(lengths) < max(lengths) else None

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Return the positions (B, tokens) of new tokens, int64."""
        return torch.tensor(self.lengths, device=device)[:, None] + torch.arange(tokens, device=device)

    def extend(self, tokens: int) -> None:
        """Count new tokens that the cache contains."""
        self.lengths = [length + tokens for length in self.lengths]

    def append(self, other: DecodingState) -> None:
        """Add the sequences of another state of the same model."""
        self.cache.append(other.cache)
        self.lengths += other.lengths

    def copied(self, row: int, tokens: int) -> DecodingState:
        """Return the state of the first tokens of a sequence; only of a cache with the method ``copied``."""
        return DecodingState(self.cache.copied(row, self.lengths[row], tokens), [tokens])

    def drop(self, row: int) -> None:
        """Remove a sequence; the last one takes its row."""
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()
        self.cache.drop(row, max(self.lengths, default=0))


def left_padding_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the attention mask (B, W) of sequences with these numbers of tokens: 0 at the padding, which is on the left."""
    width = max(lengths)
    padding = torch.tensor([width - length for length in lengths], device=device)
    return (torch.arange(width, device=device) >= padding[:, None]).long()
