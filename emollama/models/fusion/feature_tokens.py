"""What fusion modules and models share: projections of feature vectors, and the positions of feature tokens in a sequence.

Shape letters: n = feature vectors of a slot in the whole micro-batch, D = size of a feature vector of the slot, H = hidden size
of the language model, T = tokens of a packed micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

# CPU libraries multiply matrices with fewer rows by a different routine, which sums in a different order. Smaller inputs are
# padded, so that the features of a sample are bit-equal alone and in a micro-batch.
MIN_GEMM_ROWS = 4


def project(layer: nn.Module, vectors: Tensor) -> Tensor:
    """Apply a layer to feature vectors: (n, D) -> (n, H). The result for a vector does not depend on n."""
    padding = max(0, MIN_GEMM_ROWS - len(vectors))
    projected: Tensor = layer(nn.functional.pad(vectors, (0, 0, 0, padding)))
    return projected[: len(vectors)]


def place_feature_tokens(text: Tensor, ids: Tensor, tokens: Mapping[str, Tensor], first_id: int) -> Tensor:
    """Replace the embeddings at placeholder ids by feature tokens.

    Args:
        text: (T, H) embeddings of the text; the values at placeholder ids are not used.
        ids: (T,) token ids; ``first_id + j`` is the placeholder id of a feature token of the j-th entry of ``tokens``.
        tokens: part of a fusion module's output -> (count, H), in the order of their placeholder ids.
        first_id: the first placeholder id, which is the number of rows of the embedding table.

    Raises:
        ValueError: If the numbers of placeholder ids and of feature tokens differ.
    """
    for index, (part, value) in enumerate(tokens.items()):
        positions = (ids == first_id + index).nonzero().squeeze(1)
        if len(positions) != len(value):
            raise ValueError(
                f"{len(positions)} placeholders for '{part}', but the fusion module returned {len(value)} feature tokens"
            )
        text = text.index_copy(0, positions, value.to(text.dtype))
    return text
