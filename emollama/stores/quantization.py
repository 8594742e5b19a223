"""Conversion of arrays to float16 and int8, and the deviation from the original values."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

Values = Literal["stored", "float16", "int8"]
_LARGEST = 127  # -128 is not used, so that the range of int8 is symmetric


class Deviation(NamedTuple):
    """The largest difference between original values and stored values.

    Attributes:
        absolute: the largest absolute difference.
        relative: the largest difference as a fraction of the largest absolute value of its array.
    """

    absolute: float
    relative: float

    def or_worse(self, other: Deviation) -> Deviation:
        """Return the larger absolute and the larger relative difference of the two."""
        return Deviation(max(self.absolute, other.absolute), max(self.relative, other.relative))


NO_DEVIATION = Deviation(0.0, 0.0)


def encode(array: np.ndarray, values: Values) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the arrays to store, and the values that are read back from them.

    Args:
        array: (..., D) finite values of n feature vectors.
        values: ``stored`` keeps the dtype; ``float16`` rounds; ``int8`` stores (n, 1) float32 scales and (..., D) int8 values.

    Raises:
        OverflowError: If a value exceeds float16's 65504, or float32, to which int8 values are converted when they are read.
    """
    if values == "stored":
        return (np.ascontiguousarray(array),), array
    # Overflow is reported below, with the value.
    with np.errstate(over="ignore", invalid="ignore"):
        parts = _quantize(array) if values == "int8" else (np.ascontiguousarray(array.astype(np.float16)),)
        restored = dequantize(*parts) if values == "int8" else parts[0]
    if not np.isfinite(restored).all():
        raise OverflowError(f"{np.abs(array).max():.6g} is too large for {values}")
    return parts, restored


def dequantize(scales: np.ndarray, quantized: np.ndarray) -> np.ndarray:
    """Return (..., D) float32 from the scales (n, 1) of the feature vectors and their int8 values (..., D)."""
    values: np.ndarray = np.multiply(quantized.reshape(len(scales), -1), scales, dtype=np.float32)
    return values.reshape(quantized.shape)


def deviation(array: np.ndarray, restored: np.ndarray) -> Deviation:
    """Return the deviation of ``restored`` from ``array``."""
    largest = float(np.abs(array).max())
    absolute = float(np.abs(array.astype(np.float64) - restored).max())
    return Deviation(absolute, absolute / largest if largest else 0.0)


def _quantize(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    vectors = array.reshape(-1, array.shape[-1]).astype(np.float64)
    scales = (np.abs(vectors).max(axis=1, keepdims=True) / _LARGEST).astype(np.float32)
    steps = np.where(scales > 0, scales, 1).astype(np.float64)
    quantized = np.clip(np.rint(vectors / steps), -_LARGEST, _LARGEST).astype(np.int8)
    return scales, quantized.reshape(array.shape)
