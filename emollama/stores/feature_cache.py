"""A cache of the features that a model computes from images, as .npy files.

The name of a file is the digest of the image's bytes. A changed image therefore gets a new entry, and equal images in two folders
share one. The manifest of the folder records how the features were computed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.paths import atomic_write, require_writable
from emollama.stores.manifest import FILE, Manifest, differences
from emollama.stores.npy import read_npy


@dataclass(frozen=True)
class FeatureCache:
    """A folder of cached features.

    Attributes:
        folder: the folder, which need not exist yet.
        shape: (num_vectors, D) of the features of an image.
    """

    folder: str
    shape: tuple[int, int]

    @staticmethod
    def cache_key(image_path: str) -> str:
        """Return the key of an image file.

        Raises:
            OSError: If the image cannot be read.
        """
        with open(image_path, "rb") as file:
            return FeatureCache.content_key(file.read())

    @staticmethod
    def content_key(image: bytes) -> str:
        """Return the key of the bytes of an image file, which is the path of its features below the folder."""
        digest = hashlib.blake2b(image, digest_size=16).hexdigest()
        return os.path.join(digest[:2], f"{digest[2:]}.npy")

    def read(self, key: str) -> np.ndarray | None:
        """Read the cached features (num_vectors, D) float32; None if there are none or the file is damaged."""
        try:
            with open(os.path.join(self.folder, key), "rb") as file:
                vectors = read_npy(file)
        except (OSError, ValueError):
            return None
        valid = vectors.shape == self.shape and vectors.dtype == np.float32 and np.isfinite(vectors).all()
        return vectors if valid else None

    def write(self, key: str, vectors: np.ndarray) -> None:
        """Cache features (num_vectors, D) float32. If the file cannot be written, log a warning once and continue."""
        try:
            with atomic_write(os.path.join(self.folder, key), "wb", durable=False) as file:
                np.save(file, vectors)
        except OSError as error:
            _warn_once(self.folder, str(error.strerror), remedy(error, "set another folder"))

    def require_same_manifest(self, manifest: Manifest, key: str, *, write: bool) -> None:
        """Check that the cached features were computed as this manifest says.

        Args:
            manifest: how the model computes features now.
            key: the configuration key that named the folder, for messages.
            write: write the manifest if the folder has none.

        Raises:
            UserError: If the features were computed differently (the message lists the differences), there is no readable
                manifest, or the folder is not writable.
        """
        delete = f"Delete '{self.folder}' to compute the features again, or set another folder."
        try:
            stored = Manifest.read(self.folder)
        except UserError:
            raise UserError(
                f"{key}: cannot read {FILE} in the folder, which records how its features were computed. {delete}"
            ) from None
        if stored is not None and (different := differences(stored.fields(), manifest.fields())):
            raise UserError(f"{key}: the features in the folder were computed differently: {'; '.join(different)}. {delete}")
        if stored is None and any(Path(self.folder).glob("*/*.npy")):
            raise UserError(f"{key}: the folder has features but no {FILE} that records how they were computed. {delete}")
        require_writable(Path(self.folder), key)
        if stored is None and write:
            try:
                manifest.write(self.folder)
            except OSError as error:
                what = remedy(error, "set another folder")
                raise UserError(f"{key}: cannot write in '{self.folder}': {error.strerror}. {what}") from None


@cache
def _warn_once(folder: str, reason: str, what: str) -> None:
    text = "%s: features cannot be cached (%s) and are computed again each time. %s"
    logging.getLogger("emollama").warning(text, folder, reason, what)
