"""Where an encoder's arrays go: a folder of .npy files; on the way to packed shards, a folder of parts beside it.

To be packed, arrays lie in ``<folder>.npy_parts/`` until every clip is done or failed. They are then packed into ``<folder>/``,
together with what an earlier run packed, which is moved into the parts (:data:`EARLIER`) meanwhile. A run that is killed at
any moment leaves each array in one of these places, where the next one finds it.
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
from emollama.extraction.disk import writing
from emollama.logs.console import Progress
from emollama.logs.logger import get_logger
from emollama.paths import atomic_write, new_folder, temporary_prefix
from emollama.stores.manifest import FILE as MANIFEST
from emollama.stores.manifest import Manifest, differences
from emollama.stores.packed import PackedStore, is_packed
from emollama.stores.packing import pack
from emollama.stores.shard_writers import PackedWriter
from emollama.stores.store import ArrayStore, NpyFolder
from emollama.stores.tars import is_tar_path

PARTS, EARLIER = ".npy_parts", ".packed"
SHARD_BYTES = 2**30
_LEFT = re.compile(r"\..+\.(npy|json)\.tmp\d+")  # what a killed process was writing


class ArrayWriter:
    """The arrays of one encoder.

    Args:
        output: folder of the extraction.
        folder: of this encoder, below it.
        packed: whether they end in packed shards.
    """

    def __init__(self, output: Path, folder: str, *, packed: bool) -> None:
        self.folder, self.packed = output / folder, packed
        self.parts = output / f"{folder}{PARTS}"
        self.place = self.parts if packed else self.folder
        self._dropped: set[str] = set()

    def require_fit(self, manifest: Manifest) -> None:
        """Refuse a place whose arrays this run would make or store otherwise; a manifest alone is no reason. Writes nothing.

        Raises:
            UserError: every difference, and the remedy.
        """
        shards = is_packed(str(self.folder)) or is_tar_path(str(self.folder))
        if self.packed and not shards and not _is_bare(self.folder):
            text = f"{self.folder}: holds files that are no packed shards, and extraction.stored_as is packed."
            raise UserError(f"{text} Set stored_as: npy (emollama pack packs them later), or name another folder.")
        if not self.packed and (shards or not _is_bare(self.parts)):
            text = f"{self.folder if shards else self.parts}: written by stored_as: packed, and extraction.stored_as is npy."
            raise UserError(f"{text} Set it back, name another folder, or delete that one.")
        for place in self._places():
            _require_same_manifest(place, manifest)

    def open(self, manifest: Manifest) -> None:
        """Make the place ready: nothing half-written by killed runs, and a manifest beside the arrays to come."""
        for place in (self.folder, self.parts):
            for left in place.parent.glob(f"{temporary_prefix(place)}*"):
                shutil.rmtree(left, ignore_errors=True)
        for path in _files(self.place):
            if _LEFT.fullmatch(os.path.basename(path)):
                os.unlink(path)
        other = self.folder if self.packed else self.parts
        with writing(self.place):
            held = [Manifest.read(str(place)) for place in self._places() if _has_arrays(place)]
            if other.exists() and _is_bare(other):
                shutil.rmtree(other.resolve())
            (held[0] if held and held[0] else manifest).write(self.place)

    def _places(self) -> tuple[Path, Path, Path]:
        """Where arrays may lie."""
        return self.folder, self.parts, self.parts / EARLIER

    def stores(self) -> dict[str, ArrayStore]:
        """The clips that have an array, and where it lies; of two the newer one."""
        found: dict[str, ArrayStore] = {}
        for shards in (self.parts / EARLIER, self.folder) if self.packed else ():
            if is_packed(str(shards)):
                store = PackedStore.open(shards)
                found |= dict.fromkeys(store.names(), store)
        return found | dict.fromkeys(_npy_names(self.place), NpyFolder(self.place, frozenset()))

    def write(self, name: str, array: np.ndarray) -> None:
        """Write a clip's .npy file, whole or not at all.

        Raises:
            UserError: the disk is full, or refuses otherwise.
        """
        raw = io.BytesIO()  # numpy writes arrays into files by a call that does not say why it failed
        np.lib.format.write_array(raw, array, allow_pickle=False)
        with writing(self.place), atomic_write(self.place / f"{name}.npy", "wb") as file:
            file.write(raw.getbuffer())

    def require(self, names: list[str]) -> None:
        """Check that this process sees what all processes wrote.

        Raises:
            UserError: it does not, as where each machine writes to a disk of its own.
        """
        there = {*_npy_names(self.place)}
        if unseen := [name for name in names if name not in there]:
            text = (
                f"{self.place}: the first process does not see {len(unseen)} arrays that others wrote, such as '{unseen[0]}.npy'."
            )
            raise UserError(f"{text} extraction.output must be one folder on a disk that all machines share.")

    def settle(self, failed: list[str], zeros: np.ndarray | None) -> None:
        """What becomes of clips that failed: an array of zeros in their place, or none, though an earlier run wrote zeros."""
        stores = self.stores()
        for name in failed:
            if zeros is not None and name not in stores:
                self.write(name, zeros)
            elif zeros is None and name in stores and not stores[name].load(name).any():
                (self.place / f"{name}.npy").unlink(missing_ok=True)
                self._dropped.add(name)

    def finish(self) -> None:
        """Pack the arrays, where they are to be packed and anything is new.

        Raises:
            UserError: the disk is full, or refuses otherwise; the parts are kept.
        """
        if not self.packed:
            return
        earlier = self.parts / EARLIER
        if self.folder.exists() and not self._dropped and not earlier.exists() and not any(_npy_names(self.parts)):
            return self._remove_parts()
        if is_packed(str(self.folder)):
            with writing(self.parts):
                shutil.rmtree(earlier, ignore_errors=True)  # packed again already: the run was killed before this was removed
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
        """At once, as others see it."""
        gone = self.parts.with_name(f"{temporary_prefix(self.parts)}{os.getpid()}")
        os.replace(self.parts, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _require_same_manifest(place: Path, manifest: Manifest) -> None:
    if not _has_arrays(place):
        return
    held = Manifest.read(str(place))
    if held is None:
        text = f"{place}: holds arrays and no manifest.json, so that nobody knows how they were made."
        raise UserError(f"{text} Name another folder, or delete that one.")
    if different := differences(_manifest_fields(held), _manifest_fields(manifest)):
        text = f"{place}: its features were made otherwise than this run would (there, and asked for): {'; '.join(different)}."
        raise UserError(f"{text} Name another folder, or delete that one.")
    if older := differences(held.versions, manifest.versions):
        get_logger().info("%s: begun with other versions (there, and here): %s", place, "; ".join(older))


def _manifest_fields(manifest: Manifest) -> dict[str, object]:
    return manifest.fields() | {"slots": manifest.slots, "dtype": manifest.dtype}


def _has_arrays(place: Path) -> bool:
    return is_packed(str(place)) or is_tar_path(str(place)) or any(_npy_names(place))


def _is_bare(place: Path) -> bool:
    """Whether there is nothing but what a run writes before its first array."""
    return all(name == MANIFEST or _LEFT.fullmatch(name) for _, _, files in os.walk(place) for name in files)


def _files(place: Path) -> Iterator[str]:
    """Every file below a folder, those that wait to be packed again apart; none where there is no folder."""
    for folder, below, files in os.walk(place):
        if EARLIER in below and Path(folder) == place:
            below.remove(EARLIER)
        yield from (os.path.join(folder, name) for name in files)


def _npy_names(place: Path) -> Iterator[str]:
    """The clips that have a .npy file below a folder."""
    return (os.path.relpath(path, place).removesuffix(".npy") for path in _files(place) if path.endswith(".npy"))
