"""Sharded checkpoints: the values of divided tensors are in several files, of which each process writes one.

The checkpoint itself, ``checkpoint_<n>.pth``, has all entries of an ordinary one. The tensors that were divided among the
processes are on the meta device in it, and its entry ``parts`` names the files with their values, their sizes and digests::

    checkpoint_3.pth
    checkpoint_parts/4000-1f2e3d4c/shard-00001-model-00001-of-00002.safetensors

It is written after all of these files are complete, so the files of a checkpoint that was interrupted are named nowhere. They are
in a format of PyTorch's distributed checkpoint (that of ``HuggingFaceStorageWriter`` with ``save_distributed``), which reads them
for any number of processes. Unlike its default format, this one contains no pickle.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emollama.errors import UserError
from emollama.file_digests import DamagedError, HashedFile
from emollama.paths import sha256
from emollama.replaced_file import replaced
from emollama.sharded_tensors import first_row, is_sharded, own_part
from emollama.tensor_files import write_tensors

if TYPE_CHECKING:
    from torch.distributed.checkpoint.storage import StorageReader

ENTRY = "parts"  # of a checkpoint
COPIED_TO = "copied_to"  # in the entry while a run reads files that it has copied from other machines
FOLDER = "checkpoint_parts"  # next to checkpoints
DIVIDED = ("model", "optimizer")  # entries of a checkpoint with tensors
FOLDER_NAME = re.compile(r"\d+-[0-9a-f]+")  # the number of completed steps, and random digits
THREADS = 8  # that hash files, which does not need the interpreter


@dataclass(frozen=True)
class CheckpointPart:
    """One of the files of a sharded checkpoint.

    Attributes:
        name: its name.
        sha256: its digest.
        bytes: its size.
        host: the machine that wrote it.
    """

    name: str
    sha256: str
    bytes: int
    host: str

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder contains the file in its full size; its content may be damaged."""
        path = folder / self.name
        return path.is_file() and path.stat().st_size == self.bytes


@dataclass(frozen=True)
class Parts:
    """The files of a sharded checkpoint.

    Attributes:
        path: the checkpoint, for messages.
        folder: the folder with the files on this machine.
        files: the files.
    """

    path: str
    folder: Path
    files: tuple[CheckpointPart, ...]

    def require_intact(self, key: str) -> None:
        """Check that the files exist and match their digests.

        Args:
            key: the configuration key or option with the path of the checkpoint, for messages.

        Raises:
            DamagedError: If they do not. The message names one of the files.
        """
        for part in self.files:
            if not part.is_in(self.folder):
                raise DamagedError(key, self.path, self.missing(part))
        intact = self.intact()
        for part in self.files:
            if part.name not in intact:
                file = self.folder / part.name
                text = f"{file} was changed after it was saved: its SHA-256 differs from that in {self.path}."
                raise DamagedError(key, file, f"{text} Use another checkpoint.")

    def intact(self) -> set[str]:
        """Return the names of the files that are on this machine and match their digests."""
        present = [part for part in self.files if part.is_in(self.folder)]
        with ThreadPoolExecutor(THREADS) as threads:
            digests = threads.map(lambda part: sha256(self.folder / part.name), present)
            return {part.name for part, digest in zip(present, digests, strict=True) if digest == part.sha256}

    def missing(self, part: CheckpointPart) -> str:
        """Return a message about a file that is missing or not complete."""
        return (
            f"{self.path} is a sharded checkpoint, and its file {self.folder / part.name} ({part.bytes} bytes, written by"
            f" {part.host}) is missing or incomplete. Copy the folder {self.folder.name} with all of its files to"
            f" {self.folder.parent}, or use another checkpoint."
        )

    def fill(self, stored: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
        """Copy values into tensors, of which each process can have a part. Only the needed rows are read.

        Args:
            stored: the content of the checkpoint. Its tensors that are not on the meta device are left out.
            targets: the same names -> tensor to fill; other entries are ignored.
        """
        # Imported here because it takes two seconds, and ordinary checkpoints do not need it.
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_loader import load

        divided = {name for name, tensor in _named(stored) if isinstance(tensor, Tensor) and tensor.is_meta}
        tensors = {name: tensor.detach() for name, tensor in _named(targets) if name in divided}
        if not tensors:
            return
        with warnings.catch_warnings(), torch.no_grad():
            # It assumes that a single process wants to load, which is so: processes read files without each other.
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            try:
                load(tensors, storage_reader=self._reader(), no_dist=True)
            except CheckpointException as error:
                reasons = [str(reason).partition("\n")[0] for reason, _ in error.failures.values()]
                text = f"{self.path}: its files in {self.folder} do not have the values of all tensors ({reasons[0]})."
                raise UserError(f"{text} Use another checkpoint.") from None

    def _reader(self) -> StorageReader:
        """Return PyTorch's reader of these files. By itself, it would read all files of the folder."""
        from torch.distributed.checkpoint.filesystem import FileSystem
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        files = [str(self.folder / part.name) for part in self.files if part.is_in(self.folder)]

        class Listed(FileSystem):
            def ls(self, path: str | os.PathLike[str]) -> list[str]:
                return files

        reader = HuggingFaceStorageReader(str(self.folder))
        reader.fs = Listed()
        return reader

    def read(self, stored: Mapping[str, Tensor], entry: str) -> dict[str, Tensor]:
        """Return the tensors of an entry of the checkpoint with their values, whole, on the CPU."""
        whole = {name: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor for name, tensor in stored.items()}
        self.fill({entry: stored}, {entry: whole})
        return whole


def parts_of(content: Mapping[str, Any], path: str | Path) -> Parts | None:
    """Return the files of a sharded checkpoint; None for an ordinary one.

    Args:
        content: the content of the checkpoint.
        path: its path, which can be a link; the folder with the files is next to it, unless ``content`` has the folder to which
            this machine has copied them.

    Raises:
        UserError: If the entry of the checkpoint is invalid.
    """
    entry = content.get(ENTRY)
    if entry is None:
        return None
    try:
        names = [entry["folder"], *(part["name"] for part in entry["files"])]
        # Names from a file must not lead to another place.
        if not all(re.fullmatch(r"[\w-][\w.-]*", name) for name in names):
            raise ValueError(names)
        files = tuple(CheckpointPart(**part) for part in entry["files"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: the entry '{ENTRY}' of this checkpoint is invalid. Use another checkpoint.") from None
    return Parts(str(path), Path(entry.get(COPIED_TO) or Path(path).resolve().parent / FOLDER) / entry["folder"], files)


def divided(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Separate a checkpoint from the values of its tensors that are divided among the processes.

    Returns:
        A copy of the content with these tensors on the meta device, which later steps do not change; and name -> tensor for
        them. If there are none, the content itself.
    """
    tensors = {name: tensor for name, tensor in _named(content) if isinstance(tensor, Tensor) and is_sharded(tensor)}
    if not tensors:
        return dict(content), {}
    described = {entry: _described(content[entry]) for entry in DIVIDED if entry in content}
    return copy.deepcopy({**content, **described}), tensors


def _named(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield names such as ``optimizer.state.0.exp_avg`` and values of the entries of a checkpoint with tensors."""
    pending = [(entry, content[entry]) for entry in reversed(DIVIDED) if entry in content]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(f"{name}.{key}", inner) for key, inner in reversed([*value.items()])]
        else:
            yield name, value


def _described(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _described(inner) for key, inner in value.items()}
    if isinstance(value, Tensor) and is_sharded(value):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return value


def own_values(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return what this process writes of divided tensors, and the first row of each; nothing if it is a replica of another."""
    own = {name: own_part(tensor) for name, tensor in tensors.items()}
    rows = {name: first_row(tensor) for name, tensor in tensors.items()}
    kept = [name for name, part in own.items() if part.numel() and rows[name] is not None]
    return {name: own[name] for name in kept}, {name: row for name in kept if (row := rows[name]) is not None}


def write(path: Path, tensors: Mapping[str, Tensor], rows: Mapping[str, int], host: str) -> CheckpointPart:
    """Write a file of a sharded checkpoint, with a file of its digest.

    Args:
        path: the file.
        tensors: name -> what this process has of a divided tensor.
        rows: name -> number of its first row in the whole tensor.
        host: name of this machine.

    Raises:
        UserError: If the file cannot be written, for example because the disk is full.
    """
    offsets = {name: {"saved_offsets": [rows[name], *[0] * (tensor.ndim - 1)]} for name, tensor in tensors.items()}
    with replaced(path) as file:
        counted = _Counted(file)
        write_tensors(tensors, counted, {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)})
    return CheckpointPart(path.name, file.hexdigest(), counted.bytes, host)


class _Counted:
    """A file whose bytes are counted."""

    def __init__(self, file: HashedFile) -> None:
        self._file, self.bytes = file, 0

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes; returns their number."""
        self.bytes += len(data)
        return self._file.write(data)


def file_name(rank: int) -> str:
    """Return the name of the file that a process writes."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def entry(folder: str, files: Iterable[CheckpointPart]) -> dict[str, Any]:
    """Return the entry ``parts`` of a checkpoint whose files are in this folder."""
    return {"folder": folder, "files": [asdict(part) for part in files]}


def remove_other_folders(parent: Path, used: set[str]) -> None:
    """Delete the files of checkpoints that no longer exist.

    Args:
        parent: the folder of a run.
        used: names of the folders that checkpoints refer to.
    """
    for folder in folders(parent):
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def folders(parent: Path) -> list[Path]:
    """Return the folders of the parts of checkpoints in a run's folder."""
    return sorted(path for path in (parent / FOLDER).glob("*") if FOLDER_NAME.fullmatch(path.name))
