"""Features of samples, read from an array store and checked against the shapes that the model expects.

A slot with one feature vector per clip (MAE, VideoMAE, HuBERT) has arrays of shape (D,) or (1, D), a slot with n vectors (n, D).
The EVA features of a clip are one array (1 + P, D) of the class token and P patches; it fills the slots ``cls`` and ``image``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emollama.data.array_cache import ArrayCache, DigestCheck, FeatureCheck, FileCheck
from emollama.data.array_shapes import UnusableArray, dtype_problem, dtype_remedy, expected_shape, fits, shape_advice
from emollama.data.checks_in_batches import in_batches
from emollama.data.problems import Problem
from emollama.data.quantized_vectors import read_quantized
from emollama.data.remembered_checks import RememberedChecks, names_digest
from emollama.data.slots import IMAGE, PIXELS, FrameSelection, Pooling, SlotShape
from emollama.data.validation_cache import Stamp
from emollama.disk import REMEDIES, remedy
from emollama.dtypes import LARGEST
from emollama.errors import UserError
from emollama.logs.console import Progress
from emollama.remote.manager import is_remote
from emollama.stores.npy import largest_magnitude
from emollama.stores.store import ArrayStore, NpyFolder, open_store
from emollama.stores.streamed_tars import is_streamed

# Arrays up to this size in bytes are read and checked at the start. Values of larger ones are checked when they are used.
VALUES_CHECKED_UP_TO = 1 << 20
# Replaces the digest of an array whose values are all equal. Validation caches contain this value.
CONSTANT_DIGEST = "alike"


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
        pooling: "mean" to read arrays of any number of vectors, (T, D), and use their mean; None to use all vectors.
        accepts_pooling: whether the configuration key accepts ``pooling``, for messages.
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
    pooling: Pooling | None = None
    accepts_pooling: bool = False
    frame_selection: FrameSelection | None = None
    # Digest of the names passed to check() -> the problems of their arrays.
    _problems: dict[str, list[Problem]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls, path: str, slots: tuple[str, ...], shape: SlotShape, key: str, pooling: Pooling | None = None, stream: bool = False
    ) -> Features:
        """Open the store at a path; with ``stream``, remote tars are not downloaded.

        Raises:
            UserError: If the store does not exist.
        """
        return cls(open_store(path, key, stream), path, slots, shape, key, pooling=pooling)

    def __contains__(self, name: object) -> bool:
        return name in self.store

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return the names of the clips that have no array, in order."""
        # For many names, a set of Python strings is faster than the folder's own.
        listed = frozenset(self.store.names()) if isinstance(self.store, NpyFolder) else self.store
        remembered = RememberedChecks.of(self.store, self._location)
        return list(
            remembered.once("missing", names, lambda: [name for name in names if name not in listed and name not in self.store])
        )

    def shard_ids(self, names: Sequence[str]) -> np.ndarray | None:
        """Return the (n,) shard of each clip if reading shard by shard is faster; else None."""
        return RememberedChecks.of(self.store, self._location).shard_ids(self.store, names)

    def names(self) -> Iterable[str]:
        """Return the names of all clips that have an array, or none if the store does not list them."""
        return self.store.names()

    @property
    def filled_slots(self) -> tuple[str, ...]:
        """The model's slots that these arrays fill. The model replaces a frame by image and class features."""
        return IMAGE if self.slots == (PIXELS,) else self.slots

    def read(self, name: str) -> dict[str, Tensor]:
        """Read a clip's feature vectors: {slot: (n, D)}, and {"image": (P, D), "cls": (1, D)} with a class token.

        Their dtype is the stored one, float16 or float32; float64 is converted to float32. Vectors of int8 stores are (n, D + 4):
        each is followed by the bytes of its scale (:func:`~emollama.data.int8_vectors.dequantized`).

        Raises:
            UserError: If an array has an unexpected shape or dtype, is truncated, or contains NaN, inf, or a value that overflows
                the dtype in which the run computes. The message names the file and the slot.
        """
        array = None if self.pooling else self._from_store(partial(read_quantized, self.store, self.slots, self.shape), name)
        if array is None:
            array = self._vectors(name, self._from_store(self.store.load, name))
        vectors = torch.from_numpy(array)
        if len(self.slots) == 1:
            return {self.slots[0]: vectors}
        return {self.slots[0]: vectors[1:], self.slots[1]: vectors[:1]}

    def problems(self, names: Sequence[str]) -> list[Problem]:
        """Return the problems of these clips' arrays, which are checked unless :meth:`check` has checked the same clips."""
        if (problems := self._problems.get(names_digest(names))) is not None:
            return problems
        if RememberedChecks.of(self.store, *self._check_settings).get("usable", names):
            return []
        with Progress(len(names), f"checking {' + '.join(self.slots)}", unit="clips") as bar:
            return self._checked(names, bar.update).problems

    def check(self, names: Iterable[str], advance: Callable[[int], Any] = int) -> FeatureCheck:
        """Check header and size of the arrays of these clips, and the values of small arrays. Missing arrays are skipped.

        Arrays that passed are remembered by their stamps (:mod:`emollama.data.validation_cache`) and not opened again.

        Args:
            names: names of the clips.
            advance: called with the number of arrays that were checked since the last call.
        """
        names = names if isinstance(names, Sequence) else list(names)
        result = self._checked(names, advance)
        self._problems[names_digest(names)] = result.problems
        return result

    def _checked(self, names: Sequence[str], advance: Callable[[int], Any]) -> FeatureCheck:
        limit, settings = self._values_up_to, self._check_settings
        remembered = RememberedChecks.of(self.store, *settings)
        missing = set(self.missing(names))
        present = [name for name in names if name not in missing]
        cache = ArrayCache.load(*settings)
        result = FeatureCheck({}, [])
        for batch, outcomes in in_batches(lambda chunk: self._check_cached(chunk, limit, cache), present):
            for name, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Problem):
                    result.problems.append(outcome)
                else:
                    result.valid[name] = outcome
            advance(len(batch))
        cache.save()
        if not result.problems:
            remembered.add("usable", names, True)
        return result

    def verify(self, names: Iterable[str], advance: Callable[[int], Any] = int) -> DigestCheck:
        """Read the arrays of these clips, and compare them with the digests that were recorded when they were written.

        Clips without an array are skipped. An array that cannot be read counts as changed.

        Raises:
            UserError: If a remote file cannot be downloaded, which says nothing about its bytes.
        """
        present = [name for name in names if name in self.store]
        changed: list[str] = []
        without_digest: list[str] = []
        for batch, outcomes in in_batches(lambda chunk: [self._is_intact(name) for name in chunk], present):
            changed += [name for name, intact in zip(batch, outcomes, strict=True) if intact is False]
            without_digest += [name for name, intact in zip(batch, outcomes, strict=True) if intact is None]
            advance(len(batch))
        return DigestCheck(changed, without_digest)

    def _is_intact(self, name: str) -> bool | None:
        try:
            return self.store.is_intact(name)
        except UserError as error:
            raise UserError(f"{self.key}: {error}") from None
        except (OSError, ValueError):
            return False

    def _check_cached(self, names: Sequence[str], values_up_to: int, cache: ArrayCache) -> list[FileCheck | Problem]:
        """Check the arrays of some clips, and add those to the cache that are not there."""
        stamps = [self._stamp(name) for name in names]
        cached = cache.find(names, [() if isinstance(stamp, Problem) else stamp for stamp in stamps])
        return [
            result or (stamp if isinstance(stamp, Problem) else self._check_new(name, stamp, values_up_to, cache))
            for name, stamp, result in zip(names, stamps, cached, strict=True)
        ]

    def _stamp(self, name: str) -> Stamp | Problem:
        try:
            return tuple(self._from_store(self.store.stamp, name))
        except UserError as error:
            return Problem("unusable features", str(error), (name,))

    def _check_new(self, name: str, stamp: Stamp, values_up_to: int, cache: ArrayCache) -> FileCheck | Problem:
        try:
            file_check = self._check_array(name, stamp[0] if stamp else sys.maxsize, values_up_to)
        except UserError as error:
            return Problem("unusable features", str(error), (name,))
        cache.add(name, stamp, file_check)
        return file_check

    def _check_array(self, name: str, file_size: int, values_up_to: int) -> FileCheck:
        # An array in a small file is small, too, and is read at once instead of opening the file twice.
        if file_size > values_up_to:
            shape, dtype = self._from_store(self.store.header, name)
            self._check_shape(name, shape, dtype)
            size = math.prod(shape) * dtype.itemsize
            if size > values_up_to:
                return FileCheck(str(dtype), str(shape), str(size), "")
        array = self._from_store(self.store.load, name)
        self._vectors(name, array)
        digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=8).hexdigest()
        constant = (array == array.flat[0]).all()
        return FileCheck(str(array.dtype), str(array.shape), str(array.nbytes), CONSTANT_DIGEST if constant else digest)

    def _from_store(self, read: Callable[[str], Any], name: str) -> Any:
        """Call a method of the store; its errors become user errors that name the array."""
        try:
            return read(name)
        except UserError as error:  # a tar cannot be downloaded, or is not that of its index
            raise UserError(f"{self.key}: {error}") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            what = remedy(error) if isinstance(error, OSError) and error.errno in REMEDIES else None
            raise self._unusable(name, f"cannot be read: {reason}", remedy=what) from None

    def _vectors(self, name: str, array: np.ndarray) -> np.ndarray:
        """Check an array and return its vectors, pooled if they are to be, in float16 or float32 of the machine's byte order."""
        self._check_shape(name, array.shape, array.dtype)
        # A float64 value beyond float32 becomes inf, which the next check reports.
        with np.errstate(over="ignore"):
            array = array.astype(np.float16 if array.dtype.itemsize == 2 else np.float32, copy=False)
        largest = largest_magnitude(array)
        if not math.isfinite(largest):
            raise self._unusable(name, "contains NaN or inf, or a value beyond float32")
        array = array.reshape(-1, self.shape.dim)
        if self.pooling == "mean":
            # The sum of float32 values could overflow.
            array = array.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
            largest = largest_magnitude(array)
        dtype = self.shape.compute_dtype
        if largest > LARGEST[dtype]:
            others = "run.amp: False" if dtype == "bf16" else "run.amp_dtype: bf16 or run.amp: False"
            text = f"contains a value of size {largest:.6g}, but this run computes in {dtype}, whose largest value is"
            raise self._unusable(name, f"{text} {LARGEST[dtype]:.6g}", remedy=f"Set {others}, or correct the array.")
        return array

    def _check_shape(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if problem := dtype_problem(dtype):
            folder = self.path if isinstance(self.store, NpyFolder) else None
            raise self._unusable(name, problem, remedy=dtype_remedy(dtype, folder))
        if not fits(shape, self.slots, self._stored_vectors, self.shape.dim):
            expected = dataclasses.replace(self.shape, num_vectors=self._stored_vectors)
            problem = f"shape {shape}, expected {expected_shape(self.slots, expected)}"
            advice = shape_advice(shape, self.slots, expected, self.key if self.accepts_pooling else None)
            raise self._unusable(name, problem, advice)

    @property
    def _values_up_to(self) -> int:
        """Size in bytes of arrays whose values are checked at the start. Streamed ones are checked when they are used."""
        return sys.maxsize if self.all_values else 0 if is_streamed(self.store) else VALUES_CHECKED_UP_TO

    @property
    def _location(self) -> str:
        return self.path if is_remote(self.path) else os.path.abspath(self.path)

    @property
    def _check_settings(self) -> tuple[str, ...]:
        """Everything that the result of a check depends on besides the files."""
        shape = (self._stored_vectors, self.pooling, self.shape.dim, self.shape.compute_dtype)
        return self._location, str(self.slots), str(shape), str(self._values_up_to)

    @property
    def _stored_vectors(self) -> int | None:
        """Number of vectors in an array; None for any number of at least one."""
        return None if self.pooling else self.shape.num_vectors

    def _unusable(self, name: str, problem: str, advice: str = "", *, remedy: str | None = None) -> UnusableArray:
        """Return the error for an array: where it is, what is wrong with it, what that may mean, and what to do."""
        text = f"{self.store.location(name)} (slot {' + '.join(self.slots)}): {problem}{advice}. {remedy or self.remedy}"
        return UnusableArray(text, self.slots[0], problem)
