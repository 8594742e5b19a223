"""What fusion modules and models share: projections of feature vectors, and the order of feature tokens.

Shape letters: n = feature vectors of a slot in the whole micro-batch, D = size of a feature vector of the slot, H = hidden size
of the language model, F = feature tokens of a packed micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

# CPU libraries multiply matrices with fewer rows by a different routine, which sums in a different order. Smaller inputs are
# padded, so that the features of a sample are bit-equal alone and in a micro-batch.
MIN_GEMM_ROWS = 4


def project(layer: nn.Module, vectors: Tensor) -> Tensor:
    """Apply a layer to feature vectors: (n, D) -> (n, H). The result for a vector does not depend on n."""
    padding = max(0, MIN_GEMM_ROWS - len(vectors))
    projected: Tensor = layer(nn.functional.pad(vectors, (0, 0, 0, padding)))
    return projected[: len(vectors)]


def joined_feature_tokens(tokens: Mapping[str, Tensor], counts: Sequence[int]) -> Tensor:
    """Return the feature tokens of all parts in the order of their placeholder ids, (F, H).

    Args:
        tokens: part of a fusion module's output -> (count, H), in the order of their placeholder ids.
        counts: number of placeholders of each part; without its last numbers if they are 0.

    Raises:
        ValueError: If the numbers of placeholders and of feature tokens of a part differ.
    """
    assert len(counts) <= len(tokens), "a placeholder id belongs to no part"
    for (part, value), count in zip(tokens.items(), [*counts, *[0] * (len(tokens) - len(counts))], strict=True):
        if len(value) != count:
            raise ValueError(f"{count} placeholders for '{part}', but the fusion module returned {len(value)} feature tokens")
    return torch.cat(list(tokens.values()))


def pad_positions(positions: Tensor) -> Tensor:
    """Repeat the last position until there are ``MIN_GEMM_ROWS``, because the head multiplies one matrix row per position."""
    return torch.cat([positions, positions[-1:].expand(max(0, MIN_GEMM_ROWS - len(positions)))])
