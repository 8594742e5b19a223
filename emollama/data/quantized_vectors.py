"""Reads the int8 feature vectors of packed shards with their scales, so that they become float32 on the device."""

from __future__ import annotations

import numpy as np

from emollama.data.array_shapes import fits
from emollama.data.int8_vectors import with_scales
from emollama.data.slots import SlotShape
from emollama.dtypes import LARGEST
from emollama.stores.packed import PackedStore
from emollama.stores.store import ArrayStore

LARGEST_INT8 = 128


def read_quantized(store: ArrayStore, slots: tuple[str, ...], shape: SlotShape, name: str) -> np.ndarray | None:
    """Return the int8 vectors of a clip with their scales, (n, D + 4), in the layout of :mod:`emollama.data.int8_vectors`.

    Returns:
        None if the store has other values, the array does not fit the slot, or a value may be too large for the run; the values
        in float32 are checked then.
    """
    if not isinstance(store, PackedStore):
        return None
    array_shape, _ = store.header(name)
    if not fits(array_shape, slots, shape.num_vectors, shape.dim):
        return None
    parts = store.load_quantized(name)
    # Nothing is at most a number if a scale is NaN.
    is_small = parts is not None and LARGEST_INT8 * float(np.abs(parts[0]).max()) <= LARGEST[shape.compute_dtype]
    return with_scales(*parts) if parts is not None and is_small else None
