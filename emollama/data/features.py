"""Features of samples, read from an array store and checked against the shapes that the model expects.

A slot with one feature vector per clip (MAE, VideoMAE, HuBERT) has arrays of shape (D,) or (1, D), a slot with n vectors (n, D).
The EVA features of a clip are one array (1 + P, D) of the class token and P patches; it fills the slots ``cls`` and ``image``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from emollama.data.problems import Problem
from emollama.data.slots import IMAGE, PATCH, PIXELS, FrameSelection, SlotShape
from emollama.data.validation_cache import ValidationCache
from emollama.disk import REMEDIES, remedy
from emollama.errors import DownloadError, UserError
from emollama.logs.console import Progress
from emollama.remote.manager import is_remote
from emollama.stores.feature_cache import FeatureCache
from emollama.stores.npy import FLOAT_TYPES
from emollama.stores.store import ArrayStore, open_store
from emollama.stores.tar_index import skipped_note
from emollama.stores.tars import TarStore

T = TypeVar("T")
# Arrays up to this size in bytes are read and checked at the start. Values of larger ones are checked when they are used.
VALUES_CHECKED_UP_TO = 1 << 20
MAX_THREADS = 16
CHUNK_SIZE = 64  # arrays that each thread checks before the number of threads is chosen again
# Replaces the digest of an array whose values are all equal. Validation caches contain this value.
CONSTANT_DIGEST = "alike"


class FileCheck(NamedTuple):
    """Properties of an array that passed the checks; all are strings, so that the validation cache loads quickly.

    Attributes:
        dtype, shape: of the stored array.
        size: bytes of its values.
        digest: hash of its values; :data:`CONSTANT_DIGEST` if all values are equal, "" if the values were not read.
    """

    dtype: str
    shape: str
    size: str
    digest: str


class FeatureCheck(NamedTuple):
    """Result of checking the arrays of several clips.

    Attributes:
        valid: clip name -> properties of its array, for arrays that passed.
        problems: what is wrong with the others.
    """

    valid: dict[str, FileCheck]
    problems: list[Problem]


@dataclass(frozen=True)
class Features:
    """The features of one encoder, returned as feature vectors by slot.

    Args:
        store: the arrays.
        path: the configured path of the store.
        slots: the slots that each array fills: one, or two if its first vector is a class token, ("image", "cls").
        shape: the shape that the model expects of the first slot.
        key: the configuration key that named the store, for messages.
        remedy: what to do about an unusable array, for messages.
        all_values: whether a check reads the values of large arrays, too.
        frame_selection: which frame of a video the store reads; None for features. ``model.frame_manifest`` describes the
            features that the model computes from it.
    """

    store: ArrayStore
    path: str
    slots: tuple[str, ...]
    shape: SlotShape
    key: str
    remedy: str = "Extract this clip again."
    all_values: bool = False
    frame_selection: FrameSelection | None = None
    # Names passed to check() -> the problems of their arrays.
    _problems: dict[tuple[str, ...], list[Problem]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: str, slots: tuple[str, ...], shape: SlotShape, key: str) -> Features:
        """Open the store at a path.

        Raises:
            UserError: If the store does not exist.
        """
        return cls(open_store(path, key), path, slots, shape, key)

    def __contains__(self, name: object) -> bool:
        return name in self.store

    def names(self) -> Iterable[str]:
        """Return the names of all clips that have an array, or none if the store does not list them."""
        return self.store.names()

    @property
    def filled_slots(self) -> tuple[str, ...]:
        """The model's slots that these arrays fill. The model replaces a frame by image and class features."""
        return IMAGE if self.slots == (PIXELS,) else self.slots

    def read(self, name: str) -> dict[str, Tensor]:
        """Read a clip's feature vectors as float32: {slot: (n, D)}, and {"image": (P, D), "cls": (1, D)} with a class token.

        Raises:
            UserError: If an array has an unexpected shape or dtype, is truncated, or contains NaN or inf. The message names the
                file and the slot.
        """
        array = self._finite(name, self._from_store(self.store.load, name))
        vectors = torch.from_numpy(array.reshape(-1, self.shape.dim))
        if not self._has_class_token:
            return {self.slots[0]: vectors}
        return {self.slots[0]: vectors[1:], self.slots[1]: vectors[:1]}

    def problems(self, names: Iterable[str]) -> list[Problem]:
        """Return the problems of these clips' arrays, which are checked unless :meth:`check` has checked the same clips."""
        names = tuple(names)
        if names in self._problems:
            return self._problems[names]
        with Progress(len(names), f"checking {' + '.join(self.slots)}", unit="clips") as bar:
            return self._checked(names, bar.update).problems

    def check(self, names: Iterable[str], advance: Callable[[int], Any] = int) -> FeatureCheck:
        """Check header and size of the arrays of these clips, and the values of small arrays. Missing arrays are skipped.

        Arrays that passed are remembered by their stamps (:mod:`emollama.data.validation_cache`) and not opened again.

        Args:
            names: names of the clips.
            advance: called with the number of arrays that were checked since the last call.
        """
        names = tuple(names)
        result = self._checked(names, advance)
        self._problems[names] = result.problems
        return result

    def _checked(self, names: Sequence[str], advance: Callable[[int], Any]) -> FeatureCheck:
        limit = sys.maxsize if self.all_values else VALUES_CHECKED_UP_TO
        present = [name for name in names if name in self.store]
        path = self.path if is_remote(self.path) else os.path.abspath(self.path)
        shape = (self.shape.num_vectors, self.shape.dim)
        cache = ValidationCache.load("arrays", path, str(self.slots), str(shape), str(limit))
        result = FeatureCheck({}, [])
        for batch, outcomes in _in_batches(lambda name: self._check_cached(name, limit, cache), present):
            for name, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Problem):
                    result.problems.append(outcome)
                else:
                    result.valid[name] = outcome
            advance(len(batch))
        cache.save()
        return result

    def _check_cached(self, name: str, values_up_to: int, cache: ValidationCache) -> FileCheck | Problem:
        try:
            stamp = self._from_store(self.store.stamp, name)
            if (cached := cache.get(name, stamp)) is not None:
                return FileCheck(*cached.split("|"))
            file_check = self._check_array(name, stamp[0] if stamp else sys.maxsize, values_up_to)
        except UserError as error:
            return Problem("unusable features", str(error), (name,))
        cache.add(name, stamp, "|".join(file_check))
        return file_check

    def _check_array(self, name: str, file_size: int, values_up_to: int) -> FileCheck:
        # An array in a small file is small, too, and is read at once instead of opening the file twice.
        if file_size > values_up_to:
            shape, dtype = self._from_store(self.store.header, name)
            self._check_shape(name, shape, dtype)
            size = int(np.prod(shape)) * dtype.itemsize
            if size > values_up_to:
                return FileCheck(str(dtype), str(shape), str(size), "")
        array = self._from_store(self.store.load, name)
        self._finite(name, array)
        digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=8).hexdigest()
        constant = (array == array.flat[0]).all()
        return FileCheck(str(array.dtype), str(array.shape), str(array.nbytes), CONSTANT_DIGEST if constant else digest)

    def _from_store(self, read: Callable[[str], Any], name: str) -> Any:
        """Call a method of the store; its errors become user errors that name the array."""
        try:
            return read(name)
        except DownloadError as error:
            raise UserError(f"{self.key}: {error}") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            what = remedy(error) if isinstance(error, OSError) and error.errno in REMEDIES else None
            raise UserError(self._complaint(name, f"cannot be read: {reason}", what)) from None

    def _finite(self, name: str, array: np.ndarray) -> np.ndarray:
        """Check an array and return it as float32, the dtype of training."""
        self._check_shape(name, array.shape, array.dtype)
        # A float64 value beyond float32 becomes inf, which the next check reports.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise UserError(self._complaint(name, "contains NaN or inf, or a value beyond float32"))
        return array

    def _check_shape(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if dtype not in FLOAT_TYPES:
            raise UserError(self._complaint(name, f"dtype {dtype}, expected float16, float32 or float64"))
        if not self._fits(shape):
            raise UserError(self._complaint(name, f"shape {shape}, expected {self._expected(shape)}"))

    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape has the expected number of vectors of the expected size."""
        several = self.shape.num_vectors != 1 and not self._has_class_token
        # Extractors of several vectors often store the batch, a leading dimension of size 1.
        stored = shape[1:] if several and len(shape) == 3 and shape[0] == 1 else shape
        rows, dim = (1, *stored) if len(stored) == 1 else stored if len(stored) == 2 else (0, 0)
        rows -= self._has_class_token
        return dim == self.shape.dim and (rows >= 1 if self.shape.num_vectors is None else rows == self.shape.num_vectors)

    def _expected(self, shape: tuple[int, ...]) -> str:
        """Return the expected shapes for a message about an array that does not fit, and the key that sets them."""
        num_vectors, dim, slot = self.shape.num_vectors, self.shape.dim, self.slots[0]
        if self.slots == IMAGE and num_vectors is not None:
            image_size, stored_size = round(num_vectors**0.5) * PATCH, _image_size(shape)
            mismatch = f"; it was computed at image_size {stored_size}" if stored_size and stored_size != image_size else ""
            keys = ["model.image_size"] if stored_size != image_size else []
            keys += [f"model.slots.image.dim: {shape[-1]}"] if stored_size and shape[-1] != dim else []
            remedy = " and ".join(keys or ["model.image_size"])
            return f"({1 + num_vectors}, {dim}), which is image_size {image_size}{mismatch} (or set {remedy})"
        token = "1 + " if self._has_class_token else ""
        expected = f"({token}{'n' if num_vectors is None else num_vectors}, {dim})"
        if num_vectors is None:
            expected += " with n of at least 1"
        elif num_vectors == 1 and not token:
            expected = f"({dim},) or {expected}"
        if slot == PIXELS or not shape or not all(shape):
            return expected
        if shape[-1] != dim:
            return f"{expected} (or set model.slots.{slot}.dim: {shape[-1]}, if all arrays have this size)"
        if num_vectors is None or len(shape) != 2:
            return expected
        length = f"{shape[0] - self._has_class_token}, if all arrays have this number of vectors, or null for any number"
        return f"{expected} (or set model.slots.{slot}.length: {length})"

    def _complaint(self, name: str, problem: str, what: str | None = None) -> str:
        return f"{self.store.location(name)} (slot {' + '.join(self.slots)}): {problem}. {what or self.remedy}"

    @property
    def _has_class_token(self) -> bool:
        return len(self.slots) == 2


def feature_cache(shape: SlotShape) -> FeatureCache | None:
    """Return the cache of a slot whose features the model computes from images; None if they are not cached."""
    if shape.cache_folder is None or shape.num_vectors is None:
        return None
    return FeatureCache(shape.cache_folder, (shape.num_vectors, shape.dim))


def _image_size(shape: tuple[int, ...]) -> int | None:
    """Return the image_size of EVA features with this shape; None if its patches do not form a square."""
    patches = round(max(shape[0] - 1, 0) ** 0.5) if len(shape) == 2 else 0
    return patches * PATCH if patches and patches**2 == shape[0] - 1 else None


def _in_batches(check: Callable[[str], T], names: Sequence[str]) -> Iterator[tuple[Sequence[str], list[T]]]:
    """Apply ``check`` to each name in order, and yield batches of names with their results.

    The number of threads adapts so that they keep one core busy. Several threads help if the disk is slow. For files in memory
    one thread is fastest, because of the GIL.
    """
    threads, first = 1, 0
    with ThreadPoolExecutor(MAX_THREADS) as pool:
        while batch := names[first : first + CHUNK_SIZE * threads]:
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            chunks = [batch[start : start + CHUNK_SIZE] for start in range(0, len(batch), CHUNK_SIZE)]
            checked = (pool.map if threads > 1 else map)(lambda chunk: [check(name) for name in chunk], chunks)
            results = [result for chunk in checked for result in chunk]
            busy_cores = (time.process_time() - cpu_start) / (time.perf_counter() - wall_start)
            first, threads = first + len(batch), min(MAX_THREADS, max(1, int(threads / max(busy_cores, 1 / MAX_THREADS))))
            yield batch, results


def skipped_members(features: Iterable[Features]) -> str:
    """Return a sentence about the members of tar shards that are not read; "" if there are none."""
    stores = (source.store for source in features)
    # Several slots may be read from the same shards.
    by_shard = {shard: counts for store in stores if isinstance(store, TarStore) for shard, counts in store.skipped.items()}
    return skipped_note(by_shard.values())
