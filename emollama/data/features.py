"""Features: (clip name, slot) -> raw rows, checked against what the model expects.

Utterance features (MAE, VideoMAE, HuBERT) are (D,) or (1, D); an EVA cache is (1 + P, D), whose row 0 is the class token and
the rest the image, so that one array serves the slots ``cls`` and ``image``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from emollama.data.problems import Problem
from emollama.data.slots import FRAME, IMAGE, PATCH, SlotShape
from emollama.data.validation_cache import ValidationCache
from emollama.errors import UserError
from emollama.logs.console import Progress
from emollama.stores.npy import FLOAT_TYPES
from emollama.stores.store import ArrayStore, open_store

T = TypeVar("T")
VALUES_CHECKED_UP_TO = 1 << 20  # bytes; the values of larger arrays are checked when they are read, their headers always
READERS = 16  # threads at most
SHARE = 64  # arrays that each thread looks at before their number is chosen anew
ALIKE = "alike"  # in place of a digest, where all values are the same number


class FileCheck(NamedTuple):
    """What a look at a good array told, all in words.

    Attributes:
        dtype, shape: as stored.
        size: bytes of its values.
        digest: of its values, to tell equal arrays; :data:`ALIKE` where they are all one number, "" where they were not read.
    """

    dtype: str
    shape: str
    size: str
    digest: str


class FeatureCheck(NamedTuple):
    """Looks at the good arrays by clip, and what is wrong with the others."""

    good: dict[str, FileCheck]
    problems: list[Problem]


@dataclass(frozen=True)
class Features:
    """The arrays of one encoder, as rows of the slots that they fill.

    Args:
        store: the arrays.
        path: where they lie, as configured.
        slots: the slots that one array fills; ``("image", "cls")`` for an EVA cache, else one name.
        shape: what the model expects of the first slot.
        key: the configuration key that named the store, for messages.
        remedy: what to do about an array that cannot be used.
    """

    store: ArrayStore
    path: str
    slots: tuple[str, ...]
    shape: SlotShape
    key: str
    remedy: str = "Extract this clip again."

    @classmethod
    def open(cls, path: str, slots: tuple[str, ...], shape: SlotShape, key: str) -> Features:
        """Open the store at a path.

        Raises:
            UserError: there is none.
        """
        return cls(open_store(path, key), path, slots, shape, key)

    def __contains__(self, name: object) -> bool:
        return name in self.store

    @property
    def fills(self) -> tuple[str, ...]:
        """The slots that hold rows of these arrays in the end: a frame's become image and class rows in the model."""
        return IMAGE if self.slots == (FRAME,) else self.slots

    def read(self, name: str) -> dict[str, Tensor]:
        """The clip's rows by slot, float32: {"image": (P, D), "cls": (1, D)} or {slot: (n, D)}.

        Raises:
            UserError: another width or shape, object dtype, a truncated file, NaN or inf: names file and slot.
        """
        rows = torch.from_numpy(np.atleast_2d(self._finite(name, self._stored(self.store.load, name))))
        return {"image": rows[1:], "cls": rows[:1]} if self._is_cache else {self.slots[0]: rows}

    def problems(self, names: Iterable[str], *, all_values: bool = False) -> list[Problem]:
        """What is wrong with the present arrays of these clips: header and size always, values of small ones or of all."""
        names = list(names)
        with Progress(len(names), f"checking {' + '.join(self.slots)}", unit="clips") as bar:
            return self.survey(names, all_values=all_values, advance=bar.update).problems

    def survey(self, names: Iterable[str], *, all_values: bool = False, advance: Callable[[int], Any] = int) -> FeatureCheck:
        """Look at the present arrays of these clips: at header and size of each, at the values of small ones or of all.

        What was found good is remembered by its stamp (:mod:`emollama.data.validation_cache`) and not opened again.

        Args:
            names: the clips.
            all_values: read large arrays too.
            advance: told how many more arrays have been looked at.
        """
        limit = sys.maxsize if all_values else VALUES_CHECKED_UP_TO
        present = [name for name in names if name in self.store]
        seen = ValidationCache.load("arrays", os.path.abspath(self.path), str(self.slots), str(tuple(self.shape)), str(limit))
        survey = FeatureCheck({}, [])
        for batch, looks in _in_batches(lambda name: self._look(name, limit, seen), present):
            for name, look in zip(batch, looks, strict=True):
                if isinstance(look, Problem):
                    survey.problems.append(look)
                else:
                    survey.good[name] = look
            advance(len(batch))
        seen.save()
        return survey

    def _look(self, name: str, values_up_to: int, seen: ValidationCache) -> FileCheck | Problem:
        try:
            stamp = self._stored(self.store.stamp, name)
            if (known := seen.recall(name, stamp)) is not None:
                return FileCheck(*known.split("|"))
            look = self._first_look(name, stamp[0] if stamp else sys.maxsize, values_up_to)
        except UserError as error:
            return Problem("unusable features", str(error), (name,))
        seen.add(name, stamp, "|".join(look))
        return look

    def _first_look(self, name: str, file_size: int, values_up_to: int) -> FileCheck:
        if file_size > values_up_to:  # else the array in it is small too
            shape, dtype = self._stored(self.store.header, name)
            self._check_shape(name, shape, dtype)
            size = int(np.prod(shape)) * dtype.itemsize
            if size > values_up_to:
                return FileCheck(str(dtype), str(shape), str(size), "")
        array = self._stored(self.store.load, name)
        self._finite(name, array)
        digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=8).hexdigest()
        alike = (array == array.flat[0]).all()
        return FileCheck(str(array.dtype), str(array.shape), str(array.nbytes), ALIKE if alike else digest)

    def _stored(self, read: Callable[[str], Any], name: str) -> Any:
        """What one of the store's methods gives; its errors name the place."""
        try:
            return read(name)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(self._complaint(name, f"cannot be read: {reason}")) from None

    def _finite(self, name: str, array: np.ndarray) -> np.ndarray:
        """The array in float32, as it is read in training, if nothing is wrong with it."""
        self._check_shape(name, array.shape, array.dtype)
        with np.errstate(over="ignore"):  # what overflows is told below
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise UserError(self._complaint(name, "holds NaN or inf, or a value beyond float32"))
        return array

    def _check_shape(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        rows, width = self.shape
        if dtype not in FLOAT_TYPES:
            raise UserError(self._complaint(name, f"dtype {dtype}, expected float16, float32 or float64"))
        if not self._is_cache and shape not in ((width,), (1, width)):
            raise UserError(self._complaint(name, f"shape {shape}, expected ({width},) or (1, {width})"))
        if self._is_cache and shape != (1 + rows, width):
            side, found = round(rows**0.5) * PATCH, _side(shape)
            made = f"; it was made at image_size {found}" if found and found != side else ""
            expected = f"expected ({1 + rows}, {width}), which is image_size {side}{made}"
            raise UserError(self._complaint(name, f"shape {shape}, {expected} (or set model.image_size)"))

    def _complaint(self, name: str, problem: str) -> str:
        return f"{self.store.place(name)} (slot {' + '.join(self.slots)}): {problem}. {self.remedy}"

    @property
    def _is_cache(self) -> bool:
        return self.slots == IMAGE


def _side(shape: tuple[int, ...]) -> int | None:
    """The image_size that an EVA cache of this shape was made at; None where no square of patches gives its rows."""
    patches = round(max(shape[0] - 1, 0) ** 0.5) if len(shape) == 2 else 0
    return patches * PATCH if patches and patches**2 == shape[0] - 1 else None


def _in_batches(look: Callable[[str], T], names: Sequence[str]) -> Iterator[tuple[Sequence[str], list[T]]]:
    """What ``look`` gives for each name, in order, a batch at a time.

    As many threads look as keep one core busy: several where files are waited for, one where they are in memory (more would
    hand Python's lock to and fro, which takes longer than looking).
    """
    readers, first = 1, 0
    with ThreadPoolExecutor(READERS) as pool:
        while batch := names[first : first + SHARE * readers]:
            begun, worked = time.perf_counter(), time.process_time()
            shares = [batch[start : start + SHARE] for start in range(0, len(batch), SHARE)]
            looks = (pool.map if readers > 1 else map)(lambda share: [look(name) for name in share], shares)
            found = [one for share in looks for one in share]
            busy = (time.process_time() - worked) / (time.perf_counter() - begun)  # cores
            first, readers = first + len(batch), min(READERS, max(1, int(readers / max(busy, 1 / READERS))))
            yield batch, found
