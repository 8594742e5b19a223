"""Feature stores: (clip name, slot) -> raw rows.

A folder holds one ``<name>.npy`` a clip. Utterance features (MAE, VideoMAE, HuBERT) are (D,) or (1, D); an EVA cache is
(1 + P, D), whose row 0 is the class token and the rest the image, so that one array serves the slots ``cls`` and ``image``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emollama.errors import UserError
from emollama.paths import PATHS

FLOAT_TYPES = (np.float16, np.float32, np.float64)
VALUES_CHECKED_UP_TO = 1 << 20  # bytes; the values of larger files are checked when they are read, their headers always


@dataclass(frozen=True)
class FeatureFolder:
    """The .npy files of one encoder.

    Args:
        folder: where they lie.
        slots: the slots that one array fills; ``("image", "cls")`` for an EVA cache, else one name.
        width: D, the length of a row.
        key: the configuration key that named the folder, for messages.
        names: the clips that have a file.
    """

    folder: Path
    slots: tuple[str, ...]
    width: int
    key: str
    names: frozenset[str]

    @classmethod
    def open(cls, folder: str, slots: tuple[str, ...], width: int, key: str, wanted: Iterable[str]) -> FeatureFolder:
        """List a folder once.

        Raises:
            UserError: there is no such folder.
        """
        if not PATHS.isdir(folder):
            raise UserError(f"{key}: no folder '{folder}' (seen from {os.getcwd()}). Correct the path, or set {key}: null.")
        root = Path(PATHS.get_local_path(folder))
        present = {name.removesuffix(".npy") for name in os.listdir(root) if name.endswith(".npy")}
        nested = {name for name in wanted if "/" in name and (root / f"{name}.npy").is_file()}
        return cls(root, slots, width, key, frozenset(present | nested))

    def path(self, name: str) -> Path:
        """Where a clip's array lies."""
        return self.folder / f"{name}.npy"

    def read(self, name: str) -> dict[str, Tensor]:
        """The clip's rows by slot, float32: {"image": (P, D), "cls": (1, D)} or {slot: (n, D)}.

        Raises:
            UserError: another width or shape, object dtype, a truncated file, NaN or inf: names file and slot.
        """
        path = self.path(name)
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} ({self._slot_text}): cannot be read: {error}. Extract this clip again.") from None
        problem = self._shape_problem(array.shape, array.dtype)
        if problem is None and not np.isfinite(array).all():
            problem = "holds NaN or inf"
        if problem is not None:
            raise UserError(f"{path} ({self._slot_text}): {problem}. Extract this clip again.")
        rows = torch.from_numpy(np.atleast_2d(array).astype(np.float32))
        if self.slots == ("image", "cls"):
            return {"image": rows[1:], "cls": rows[:1]}
        return {self.slots[0]: rows}

    def problems(self, names: Iterable[str]) -> list[str]:
        """What is wrong with the present files of these clips, all of them: header and size always, values of small files."""
        present = [name for name in names if name in self.names]
        with ThreadPoolExecutor(16) as pool:
            return [text for text in pool.map(self._problem, present) if text is not None]

    def _problem(self, name: str) -> str | None:
        path = self.path(name)
        if path.stat().st_size <= VALUES_CHECKED_UP_TO:
            try:
                self.read(name)
            except UserError as error:
                return str(error)
            return None
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # refuses a file that is shorter than its header says
        except (OSError, ValueError, EOFError) as error:
            return f"{path} ({self._slot_text}): cannot be read: {error}. Extract this clip again."
        problem = self._shape_problem(array.shape, array.dtype)
        return None if problem is None else f"{path} ({self._slot_text}): {problem}. Extract this clip again."

    def _shape_problem(self, shape: tuple[int, ...], dtype: np.dtype) -> str | None:
        if dtype not in FLOAT_TYPES:
            return f"dtype {dtype}, expected float16, float32 or float64"
        if self.slots == ("image", "cls"):
            good = len(shape) == 2 and shape[0] >= 1 and shape[1] == self.width
            expected = f"(1 + P, {self.width})"
        else:
            good = shape in ((self.width,), (1, self.width))
            expected = f"({self.width},) or (1, {self.width})"
        return None if good else f"shape {shape}, expected {expected}"

    @property
    def _slot_text(self) -> str:
        return f"slot {' + '.join(self.slots)}"
