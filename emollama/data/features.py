"""Feature stores: (clip name, slot) -> raw rows.

A folder holds one ``<name>.npy`` a clip. Utterance features (MAE, VideoMAE, HuBERT) are (D,) or (1, D); an EVA cache is
(1 + P, D), whose row 0 is the class token and the rest the image, so that one array serves the slots ``cls`` and ``image``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from emollama.errors import UserError
from emollama.paths import PATHS

FLOAT_TYPES = (np.float16, np.float32, np.float64)
VALUES_CHECKED_UP_TO = 1 << 20  # bytes; the values of larger files are checked when they are read, their headers always


class SlotShape(NamedTuple):
    """What a model expects of a slot.

    Attributes:
        rows: of one clip; how a missing one is filled with zeros.
        width: D of each row; checked.
        group: the number of rows is a multiple of this; checked.
    """

    rows: int
    width: int
    group: int = 1


@dataclass(frozen=True)
class FeatureFolder:
    """The .npy files of one encoder.

    Args:
        folder: where they lie.
        slots: the slots that one array fills; ``("image", "cls")`` for an EVA cache, else one name.
        shape: what the model expects of the first slot.
        key: the configuration key that named the folder, for messages.
        names: the clips that have a file.
    """

    folder: Path
    slots: tuple[str, ...]
    shape: SlotShape
    key: str
    names: frozenset[str]

    @classmethod
    def open(cls, folder: str, slots: tuple[str, ...], shape: SlotShape, key: str, wanted: Iterable[str]) -> FeatureFolder:
        """List a folder once.

        Raises:
            UserError: there is no such folder.
        """
        if not PATHS.isdir(folder):
            raise UserError(f"{key}: no folder '{folder}' (seen from {os.getcwd()}). Correct the path, or set {key}: null.")
        root = Path(PATHS.get_local_path(folder))
        present = {name.removesuffix(".npy") for name in os.listdir(root) if name.endswith(".npy")}
        nested = {name for name in wanted if "/" in name and (root / f"{name}.npy").is_file()}
        return cls(root, slots, shape, key, frozenset(present | nested))

    def path(self, name: str) -> Path:
        """Where a clip's array lies."""
        return self.folder / f"{name}.npy"

    def read(self, name: str) -> dict[str, Tensor]:
        """The clip's rows by slot, float32: {"image": (P, D), "cls": (1, D)} or {slot: (n, D)}.

        Raises:
            UserError: another width or shape, object dtype, a truncated file, NaN or inf: names file and slot.
        """
        with np.errstate(over="ignore"):  # what overflows is told below
            array = np.atleast_2d(self._opened(name, None)).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise UserError(self._complaint(name, "holds NaN or inf, or a value beyond float32"))
        rows = torch.from_numpy(array)
        return {"image": rows[1:], "cls": rows[:1]} if self._is_cache else {self.slots[0]: rows}

    def problems(self, names: Iterable[str], *, all_values: bool = False) -> list[str]:
        """What is wrong with the present files of these clips: header and size always, values of small files or of all."""
        present = [name for name in names if name in self.names]
        limit = sys.maxsize if all_values else VALUES_CHECKED_UP_TO
        with ThreadPoolExecutor(16) as pool:
            return [text for text in pool.map(lambda name: self._problem(name, limit), present) if text is not None]

    def _problem(self, name: str, values_up_to: int) -> str | None:
        try:
            if self.path(name).stat().st_size <= values_up_to:
                self.read(name)
            else:
                self._opened(name, "r")  # refuses a file that is shorter than its header says
        except UserError as error:
            return str(error)
        except OSError as error:
            return self._complaint(name, f"cannot be read: {error}")
        return None

    def _opened(self, name: str, mmap_mode: Literal["r"] | None) -> np.ndarray:
        """The array, of an acceptable shape and dtype."""
        try:
            array = np.load(self.path(name), mmap_mode=mmap_mode, allow_pickle=False)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise UserError(self._complaint(name, f"cannot be read: {error}")) from None
        if not isinstance(array, np.ndarray):
            raise UserError(self._complaint(name, "is an archive of arrays, expected one array"))
        if array.dtype not in FLOAT_TYPES:
            raise UserError(self._complaint(name, f"dtype {array.dtype}, expected float16, float32 or float64"))
        if self._is_cache:
            good = array.ndim == 2 and array.shape[0] >= 1 and array.shape[1] == self.shape.width
            expected = f"(1 + P, {self.shape.width})"
        else:
            good = array.shape in ((self.shape.width,), (1, self.shape.width))
            expected = f"({self.shape.width},) or (1, {self.shape.width})"
        if not good:
            raise UserError(self._complaint(name, f"shape {array.shape}, expected {expected}"))
        if self._is_cache and (len(array) - 1) % self.shape.group:
            expected = f"a multiple of {self.shape.group} beside the class row"
            raise UserError(self._complaint(name, f"{len(array) - 1} image rows, expected {expected}"))
        return array

    def _complaint(self, name: str, problem: str) -> str:
        return f"{self.path(name)} (slot {' + '.join(self.slots)}): {problem}. Extract this clip again."

    @property
    def _is_cache(self) -> bool:
        return self.slots == ("image", "cls")
