"""Which shapes and dtypes of arrays fill a slot, and what a message says about others: what was expected, and the remedy.

Shape letters: T = number of vectors in an array, D = their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from emollama.data.slots import IMAGE, PATCH, PIXELS, SlotShape
from emollama.errors import UserError
from emollama.stores.conversion import conversion_command
from emollama.stores.npy import is_float


class UnusableArray(UserError):
    """An array cannot be used.

    Attributes:
        slot: the first slot that it fills.
        problem: what is wrong with its values, without the location of the array and the keys of the configuration.
    """

    # The defaults are for PyTorch, which creates the error of a data worker again from its message alone.
    def __init__(self, message: str, slot: str = "", problem: str = "") -> None:
        super().__init__(message)
        self.slot, self.problem = slot, problem


def fits(shape: tuple[int, ...], slots: Sequence[str], num_vectors: int | None, dim: int) -> bool:
    """Return whether an array of this shape has the expected number of vectors of the expected size.

    Args:
        shape: shape of the array. Extractors often store the batch, a leading dimension of size 1, which is ignored.
        slots: the slots that the array fills; the second one is that of the class token.
        num_vectors: expected number of vectors without the class token; None for any number of at least one.
        dim: expected size of the vectors.
    """
    stored = _without_batch(shape)
    rows, size = (1, *stored) if len(stored) == 1 else stored if len(stored) == 2 else (0, 0)
    rows -= len(slots) - 1
    return size == dim and (rows >= 1 if num_vectors is None else rows == num_vectors)


def expected_shape(slots: Sequence[str], expected: SlotShape) -> str:
    """Return the shapes of arrays that fill slots.

    Args:
        slots: the slots that an array fills; the second one is that of the class token.
        expected: the shape of the first slot.
    """
    num_vectors, dim, token = expected.num_vectors, expected.dim, len(slots) == 2
    if tuple(slots) == IMAGE and num_vectors is not None:
        return f"({1 + num_vectors}, {dim}), which is image_size {_side(num_vectors)}"
    if num_vectors is None:
        return f"({'1 + ' if token else ''}n, {dim}) with n of at least 1"
    return (
        f"(1 + {num_vectors}, {dim})" if token else f"({dim},) or (1, {dim})" if num_vectors == 1 else f"({num_vectors}, {dim})"
    )


def shape_advice(shape: tuple[int, ...], slots: Sequence[str], expected: SlotShape, pooling_key: str | None) -> str:
    """Return what a shape that does not fit may mean, and the keys that set the expected one, to be appended to it.

    Args:
        shape: shape of the array.
        slots: the slots that the array fills.
        expected: the shape of the first slot.
        pooling_key: the configuration key that accepts ``pooling: mean`` for this array; None if there is no such key.
    """
    num_vectors, dim, slot = expected.num_vectors, expected.dim, slots[0]
    if tuple(slots) == IMAGE and num_vectors is not None:
        return _image_advice(shape, num_vectors, dim)
    if slot == PIXELS or not shape or not all(shape):
        return ""
    if shape[-1] != dim:
        return f" (or set model.slots.{slot}.dim: {shape[-1]}, if all arrays have this size)"
    stored = _without_batch(shape)
    if num_vectors is None or len(stored) != 2:
        return ""
    mean = f"{pooling_key}: {{path: ..., pooling: mean}} for the mean of the vectors; or " if pooling_key else ""
    length = f"{stored[0] - len(slots) + 1}, if all arrays have this number of vectors, or null for any number"
    return f" (or set {mean if num_vectors == 1 else ''}model.slots.{slot}.length: {length})"


def _without_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Remove a leading dimension of size 1 in front of the number and the size of the vectors."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def dtype_problem(dtype: np.dtype) -> str | None:
    """Return what is wrong with a dtype, or None."""
    return None if is_float(dtype) else f"dtype {dtype}, expected float16, float32 or float64"


def dtype_remedy(dtype: np.dtype, folder: str | None) -> str | None:
    """Return what to do about arrays of an unsuitable dtype; None if there is no special remedy.

    Args:
        dtype: the dtype.
        folder: the folder of their .npy files; None for another store.
    """
    if dtype.kind in "iub":
        command = "" if folder is None else ": " + conversion_command(folder, "npy", 'np.load(f).astype("float32")')
        return f"If these integers are quantized values, extract the features again; else convert them to float32{command}"
    if dtype == np.dtype("V2"):
        return "These are probably bfloat16 values, which .npy files cannot store. Save them as float16 or float32."
    return None


def _image_advice(shape: tuple[int, ...], num_vectors: int, dim: int) -> str:
    """Return the image size to which EVA features with this shape belong, and the keys of the expected shape."""
    image_size, stored_size = _side(num_vectors), _image_size(shape)
    mismatch = f"; it was computed at image_size {stored_size}" if stored_size and stored_size != image_size else ""
    keys = ["model.image_size"] if stored_size != image_size else []
    keys += [f"model.slots.image.dim: {shape[-1]}"] if stored_size and shape[-1] != dim else []
    return f"{mismatch} (or set {' and '.join(keys or ['model.image_size'])})"


def _side(num_vectors: int) -> int:
    """Return the image_size that has this number of patches."""
    return round(math.sqrt(num_vectors)) * PATCH


def _image_size(shape: tuple[int, ...]) -> int | None:
    """Return the image_size of EVA features with this shape; None if its patches do not form a square."""
    patches = round(max(shape[0] - 1, 0) ** 0.5) if len(shape) == 2 else 0
    return patches * PATCH if patches and patches**2 == shape[0] - 1 else None
