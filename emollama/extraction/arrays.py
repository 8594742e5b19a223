"""Write the arrays of an encoder, as a folder of .npy files or as packed shards.

With packed shards, arrays are first written to ``<folder>.npy_parts/``. After every clip is done or has failed, they are packed
into ``<folder>/``. Shards of an earlier extraction are moved into the folder of parts (:data:`EARLIER`) and packed again
together with the new arrays. If a process is killed, each finished array is in one of these folders, where the next extraction
finds it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emollama.errors import UserError
from emollama.extraction.disk import write_errors
from emollama.logs.console import Progress
from emollama.logs.logger import get_logger
from emollama.paths import atomic_write, new_folder, temporary_prefix
from emollama.stores import checksums
from emollama.stores.manifest import FILE as MANIFEST
from emollama.stores.manifest import Manifest, differences
from emollama.stores.name_set import NameSet
from emollama.stores.packed import PackedStore, is_packed
from emollama.stores.packing import pack
from emollama.stores.shard_writers import PackedWriter
from emollama.stores.store import ArrayStore, NpyFolder
from emollama.stores.tar_paths import is_tar_path

PARTS, EARLIER = ".npy_parts", ".packed"
SHARD_BYTES = 2**30
# Unfinished files of killed processes.
_TEMPORARY = re.compile(rf"\.(.+\.npy|{re.escape(MANIFEST)}|{checksums.FILE})\.tmp\d+")


class ArrayWriter:
    """Writes the arrays of one encoder.

    Args:
        output: output folder of the extraction.
        folder: name of the encoder's folder in it.
        packed: pack the arrays into shards at the end.

    Attributes:
        folder: the encoder's folder.
        packed: whether the arrays are packed into shards at the end.
        parts: the folder of arrays that are not packed yet.
        target: the folder that .npy files are written to: ``parts`` if ``packed``, otherwise ``folder``.
    """

    def __init__(self, output: Path, folder: str, *, packed: bool) -> None:
        self.folder, self.packed = output / folder, packed
        self.parts = output / f"{folder}{PARTS}"
        self.target = self.parts if packed else self.folder
        self._dropped: set[str] = set()

    def require_compatible(self, manifest: Manifest) -> None:
        """Check that existing arrays have the same settings and storage format. Write nothing.

        A manifest without arrays may have other settings.

        Args:
            manifest: the settings of this extraction.

        Raises:
            UserError: If existing arrays have different settings (all are listed), have a different format, or have no manifest.
        """
        shards = is_packed(str(self.folder)) or is_tar_path(str(self.folder))
        if self.packed and not shards and not _is_unused(self.folder):
            text = f"{self.folder}: contains files other than packed shards, but extraction.stored_as is packed."
            raise UserError(f"{text} Set stored_as: npy (emollama pack packs them later), or specify another folder.")
        if not self.packed and (shards or not _is_unused(self.parts)):
            written = self.folder if shards else self.parts
            text = f"{written}: was written with stored_as: packed, but extraction.stored_as is npy."
            raise UserError(f"{text} Set it to packed, specify another folder, or delete that one.")
        for folder in self._array_folders():
            _require_same_manifest(folder, manifest)

    def open(self, manifest: Manifest) -> None:
        """Prepare the folders: remove unfinished files of killed processes, and write the manifest.

        Args:
            manifest: the settings of this extraction. If there are arrays, their manifest, which is equal except for versions of
                libraries, is written again instead.

        Raises:
            UserError: If the manifest cannot be written.
        """
        for folder in (self.folder, self.parts):
            for leftover in folder.parent.glob(f"{temporary_prefix(folder)}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        for path in _files(self.target):
            if _TEMPORARY.fullmatch(os.path.basename(path)):
                os.unlink(path)
        other = self.folder if self.packed else self.parts
        with write_errors(self.target):
            existing = [Manifest.read(str(folder)) for folder in self._array_folders() if _has_arrays(folder)]
            if other.exists() and _is_unused(other):
                shutil.rmtree(other.resolve())
            (existing[0] if existing and existing[0] else manifest).write(self.target)

    def _array_folders(self) -> tuple[Path, Path, Path]:
        """Return the folders that may contain arrays."""
        return self.folder, self.parts, self.parts / EARLIER

    def stores(self) -> dict[str, ArrayStore]:
        """Return clip name -> store of its array. If a clip has several arrays, the store of the newest one is returned."""
        stores: dict[str, ArrayStore] = {}
        for shards in (self.parts / EARLIER, self.folder) if self.packed else ():
            if is_packed(str(shards)):
                store = PackedStore.open(shards)
                stores |= dict.fromkeys(store.names(), store)
        return stores | dict.fromkeys(_npy_names(self.target), NpyFolder(self.target, NameSet()))

    def write(self, name: str, array: np.ndarray) -> None:
        """Write the .npy file of a clip, completely or not at all, and its digest. Packed shards contain digests of their own.

        Raises:
            UserError: If the disk is full, or the file cannot be written for another reason.
        """
        # numpy's error for a failed write into a file does not contain the reason. The file object's own write does.
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, allow_pickle=False)
        with write_errors(self.target):
            path = self.target / f"{name}.npy"
            if not self.packed:
                # If the extraction is killed now, the array is missing. It must not be an older one than its digest.
                path.unlink(missing_ok=True)
                checksums.append(self.target, name, buffer.getbuffer())
            with atomic_write(path, "wb") as file:
                file.write(buffer.getbuffer())

    def require_visible(self, names: list[str]) -> None:
        """Check that this process can see the arrays that all processes wrote.

        Args:
            names: the clips whose arrays were written.

        Raises:
            UserError: If it cannot, for example because each machine writes to its own disk.
        """
        visible = {*_npy_names(self.target)}
        if invisible := [name for name in names if name not in visible]:
            text = f"{self.target}: rank 0 cannot see {len(invisible)} arrays of other ranks, such as '{invisible[0]}.npy'."
            raise UserError(f"{text} extraction.output must be a folder on a disk that all machines share.")

    def handle_failures(self, failed: list[str], zeros: np.ndarray | None) -> None:
        """Write zeros for clips that failed, or remove the zeros that an earlier extraction wrote for them.

        Args:
            failed: names of the clips.
            zeros: the array to write; None to leave the clips without an array.
        """
        stores = self.stores()
        for name in failed:
            if zeros is not None and name not in stores:
                self.write(name, zeros)
            elif zeros is None and name in stores and _contains_zeros(stores[name], name):
                (self.target / f"{name}.npy").unlink(missing_ok=True)
                self._dropped.add(name)

    def finish(self) -> None:
        """Pack the arrays if ``packed`` is set and there is something new; else tidy their digests.

        Raises:
            UserError: If the disk is full, or files cannot be written for another reason. The folder of parts then remains.
        """
        if not self.packed:
            with write_errors(self.folder):
                checksums.tidy(self.folder, {*_npy_names(self.folder)})
            return
        earlier = self.parts / EARLIER
        if self.folder.exists() and not self._dropped and not earlier.exists() and not any(_npy_names(self.parts)):
            return self._remove_parts()
        if is_packed(str(self.folder)):
            with write_errors(self.parts):
                # If both exist, the folder already contains the earlier shards: a process was killed before it removed them.
                shutil.rmtree(earlier, ignore_errors=True)
                os.replace(self.folder, earlier)
        stores = self.stores()
        sources = {name: stores[name] for name in sorted(stores) if name not in self._dropped}
        if sources:
            with new_folder(self.folder, key="extraction.output") as folder:
                with Progress(len(sources), f"pack {self.folder.name}", unit="clips") as bar:
                    pack(sources, PackedWriter(folder, SHARD_BYTES), values="stored", advance=bar.update)
                shutil.copyfile(self.parts / MANIFEST, folder / MANIFEST)
            self._remove_parts()

    def _remove_parts(self) -> None:
        # Renamed first: a process that is killed while it deletes files must not leave an incomplete folder of parts.
        renamed = self.parts.with_name(f"{temporary_prefix(self.parts)}{os.getpid()}")
        os.replace(self.parts, renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def _contains_zeros(store: ArrayStore, name: str) -> bool:
    try:
        return not store.load(name).any()
    except (OSError, ValueError):
        # A damaged array remains, and the check of the data reports it.
        return False


def _require_same_manifest(folder: Path, manifest: Manifest) -> None:
    if not _has_arrays(folder):
        return
    existing = Manifest.read(str(folder))
    if existing is None:
        text = f"{folder}: contains arrays but no manifest.json, so their settings are unknown."
        raise UserError(f"{text} Specify another folder, or delete that one.")
    if different := differences(_manifest_fields(existing), _manifest_fields(manifest)):
        text = f"{folder}: its features were extracted with other settings (existing, configured): {'; '.join(different)}."
        raise UserError(f"{text} Specify another folder, or delete that one.")
    if versions := differences(existing.versions, manifest.versions):
        text = "%s: its first features were extracted with other versions (existing, installed): %s"
        get_logger().info(text, folder, "; ".join(versions))


def _manifest_fields(manifest: Manifest) -> dict[str, object]:
    return manifest.fields() | {"slots": manifest.slots, "dtype": manifest.dtype}


def _has_arrays(folder: Path) -> bool:
    return is_packed(str(folder)) or is_tar_path(str(folder)) or any(_npy_names(folder))


def _is_unused(folder: Path) -> bool:
    """Whether a folder does not exist, or contains only files that an extraction writes besides arrays."""
    others = (MANIFEST, checksums.FILE)
    return all(name in others or _TEMPORARY.fullmatch(name) for _, _, files in os.walk(folder) for name in files)


def _files(root: Path) -> Iterator[str]:
    """Yield the files of a folder tree, without shards that wait to be packed again. Yield nothing if there is no folder."""
    for folder, subfolders, files in os.walk(root):
        if EARLIER in subfolders and Path(folder) == root:
            subfolders.remove(EARLIER)
        yield from (os.path.join(folder, name) for name in files)


def _npy_names(root: Path) -> Iterator[str]:
    """Yield the names of the clips that have a .npy file in a folder tree."""
    return (os.path.relpath(path, root).removesuffix(".npy") for path in _files(root) if path.endswith(".npy"))
