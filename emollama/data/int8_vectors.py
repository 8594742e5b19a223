"""The layout of int8 feature vectors on their way to the model: each is followed by the bytes of its float32 scale.

They become float32 on the device, so that a quarter of the bytes is copied there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SCALE_BYTES = 4  # after each feature vector


def with_scales(scales: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return n int8 vectors (n, D + 4) from their float32 scales (n, 1) and their values (..., D)."""
    return np.concatenate([values.reshape(len(scales), -1), scales.view(np.int8)], axis=1)


def dequantized(vectors: Tensor) -> Tensor:
    """Return feature vectors as numbers: int8 vectors (n, D + 4), each followed by the bytes of its scale, as (n, D) float32."""
    if vectors.dtype != torch.int8:
        return vectors
    # Not contiguous(): it returns the scale of a single vector as it is, at an offset that may be no multiple of 4.
    scales = vectors[:, -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return vectors[:, :-SCALE_BYTES].float() * scales
