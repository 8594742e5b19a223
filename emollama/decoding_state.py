"""What a model keeps of the sequences that it continues.

Shape letters: B = sequences, W = width of the padded cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass
class DecodingState:
    """Key-value cache and attention mask of B sequences.

    Attributes:
        cache: keys and values, (B, heads, W, head_dim) per layer, padded on the left; or another object of the model's own with
            the methods ``append`` and ``drop`` of this class.
        mask: (B, W) int64, 0 at padding.
    """

    cache: Any
    mask: Tensor

    def extended(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return the mask (B, W + tokens) and position_ids (B, tokens) for new tokens, without changing the state."""
        ones = self.mask.new_ones(len(self.mask), tokens)
        return torch.cat([self.mask, ones], 1), self.mask.sum(1, keepdim=True) + ones.cumsum(1) - 1

    def append(self, other: DecodingState) -> None:
        """Add the sequences of another state of the same model."""
        self.cache.append(other.cache)
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, other.mask)])

    def drop(self, row: int) -> None:
        """Remove a sequence; the last one takes its row."""
        self.cache.drop(row)
        self.mask[row] = self.mask[-1]
        self.mask = self.mask[:-1]
