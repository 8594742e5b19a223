"""Rows that a model made of images, kept as .npy files, so that they are made once.

A file is called after the digest of the image's bytes: an image that was changed has another place, and one that lies in two
folders has one. How rows were made stands in the folder's manifest.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from emollama.errors import UserError
from emollama.paths import atomic_write, require_writable
from emollama.stores.manifest import FILE, Manifest, differences
from emollama.stores.npy import read_npy


@dataclass(frozen=True)
class FeatureCache:
    """A folder of rows.

    Attributes:
        folder: need not exist yet.
        shape: (rows, width) of an image.
    """

    folder: str
    shape: tuple[int, int]

    @staticmethod
    def cache_key(image: str) -> str:
        """Where rows of an image stand below the folder.

        Raises:
            OSError: there is no such file.
        """
        with open(image, "rb") as file:
            digest = hashlib.blake2b(file.read(), digest_size=16).hexdigest()
        return os.path.join(digest[:2], f"{digest[2:]}.npy")

    def read(self, place: str) -> np.ndarray | None:
        """The rows (rows, width) float32 at a place; None where there are none, or none that are whole."""
        try:
            with open(os.path.join(self.folder, place), "rb") as file:
                found = read_npy(file)
        except (OSError, ValueError):
            return None
        return found if found.shape == self.shape and found.dtype == np.float32 and np.isfinite(found).all() else None

    def write(self, place: str, rows: np.ndarray) -> None:
        """Keep rows (rows, width) float32. Where the disk refuses, they are not kept, and a warning says so once."""
        try:
            with atomic_write(os.path.join(self.folder, place), "wb", durable=False) as file:
                np.save(file, rows)
        except OSError as error:
            _warn_once(self.folder, str(error.strerror))

    def require_same_manifest(self, manifest: Manifest, key: str, *, write: bool) -> None:
        """Check that the folder holds rows made as this manifest says.

        Args:
            manifest: how rows are made now.
            key: the configuration key that named the folder, for messages.
            write: write the manifest where there is none.

        Raises:
            UserError: they were made otherwise (names what differs), nobody knows how, or nothing can be written there.
        """
        remedy = f"Delete '{self.folder}', and the rows are made again, or name another folder."
        try:
            held = Manifest.read(self.folder)
        except UserError:
            raise UserError(
                f"{key}: the folder's {FILE} cannot be read, so nobody knows how its rows were made. {remedy}"
            ) from None
        if held is not None and (different := differences(held.fields(), manifest.fields())):
            raise UserError(f"{key}: the folder holds rows that were made otherwise: {'; '.join(different)}. {remedy}")
        if held is None and any(Path(self.folder).glob("*/*.npy")):
            raise UserError(f"{key}: the folder holds rows and no {FILE}, so nobody knows how they were made. {remedy}")
        require_writable(Path(self.folder), key)
        if held is None and write:
            try:
                manifest.write(self.folder)
            except OSError as error:
                raise UserError(f"{key}: cannot write in '{self.folder}': {error.strerror}. Name another folder.") from None


@cache
def _warn_once(folder: str, reason: str) -> None:
    text = "%s: rows are not kept (%s): they are made again each time. Make room, or name another folder."
    logging.getLogger("emollama").warning(text, folder, reason)
