"""Smaller copies of an array's values, and how far they are from the original."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

Values = Literal["stored", "float16", "int8"]
_LARGEST = 127  # of int8, the same on both sides of zero


class Deviation(NamedTuple):
    """The largest difference between what was read and what will be read back.

    Attributes:
        absolute: of any value.
        relative: the same, as a share of the largest value of its array.
    """

    absolute: float
    relative: float

    def or_worse(self, other: Deviation) -> Deviation:
        """The larger of each figure."""
        return Deviation(max(self.absolute, other.absolute), max(self.relative, other.relative))


NO_DEVIATION = Deviation(0.0, 0.0)


def encode(array: np.ndarray, values: Values) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """What is stored of an array, and what is read back from that.

    Args:
        array: (..., width) finite values.
        values: ``stored`` keeps them; ``float16`` rounds; ``int8`` stores (rows, 1) float32 scales and (..., width) int8.

    Raises:
        OverflowError: a value is beyond float16's 65504, or beyond float32, in which int8 is read back.
    """
    if values == "stored":
        return (np.ascontiguousarray(array),), array
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is told below
        parts = _int8_rows(array) if values == "int8" else (np.ascontiguousarray(array.astype(np.float16)),)
        back = dequantize(*parts) if values == "int8" else parts[0]
    if not np.isfinite(back).all():
        raise OverflowError(f"{np.abs(array).max():.6g} is too large for {values}")
    return parts, back


def dequantize(scales: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(..., width) float32 from the scales of the rows (rows, 1) and int8 values (..., width)."""
    values: np.ndarray = np.multiply(whole.reshape(len(scales), -1), scales, dtype=np.float32)
    return values.reshape(whole.shape)


def deviation(array: np.ndarray, back: np.ndarray) -> Deviation:
    """How far ``back`` is from ``array``."""
    largest = float(np.abs(array).max())
    absolute = float(np.abs(array.astype(np.float64) - back).max())
    return Deviation(absolute, absolute / largest if largest else 0.0)


def _int8_rows(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
    scales = (np.abs(rows).max(axis=1, keepdims=True) / _LARGEST).astype(np.float32)
    steps = np.where(scales > 0, scales, 1).astype(np.float64)
    whole = np.clip(np.rint(rows / steps), -_LARGEST, _LARGEST).astype(np.int8)
    return scales, whole.reshape(array.shape)
