"""The answers of an unfinished evaluation on disk, from which the same evaluation continues after an interruption."""

from __future__ import annotations

import glob
import hashlib
import json
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from torch import uint8

from emollama.data.dataset import SampleDataset
from emollama.data.features import Features
from emollama.logs.logger import get_logger
from emollama.optim import HasParameters, trainable
from emollama.paths import atomic_write
from emollama.run_folder import PredictionRecord
from emollama.sharded_tensors import whole

BatchItems = tuple[int, ...]  # positions of a batch's items in the list of all items


class PartialAnswers:
    """The finished batches of one block and one process: a file with a header line and one line per batch.

    The file is used only if it belongs to the same evaluation. Lines that are incomplete are ignored. If the file cannot be
    written, the evaluation continues without it.

    Args:
        folder: the folder of the evaluation's results.
        block_name: name of the config block.
        identity: a digest of everything on which the answers depend (:func:`identity_of`).
        rank: rank of this process.
        size: number of processes.
    """

    def __init__(self, folder: Path, block_name: str, identity: str, rank: int, size: int) -> None:
        self._folder, self._block_name, self._rank = folder, block_name, rank
        self._path = folder / f".answers_{block_name}_{rank}_of_{size}.jsonl"
        self._header = {"identity": identity}
        self._writable = True

    def read(self) -> dict[BatchItems, list[PredictionRecord]]:
        """Return the answers of the batches that are finished, and prepare the file for further ones."""
        batches = self._read()
        # Of several nodes with disks of their own, only the first one has the folder.
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
        # The file is written again, because its last line can be incomplete.
        lines = [self._header, *(_line(items, answers) for items, answers in batches.items())]
        self._write(lines, atomic_write(self._path, durable=False))
        return batches

    def append(self, items: Sequence[int], answers: Sequence[PredictionRecord]) -> None:
        """Add a finished batch."""
        self._write([_line(items, answers)], _appended(self._path))

    def remove(self) -> None:
        """Delete the file after the evaluation, and on rank 0 those of an earlier number of processes."""
        others = self._folder.glob(f".answers_{glob.escape(self._block_name)}_*_of_*.jsonl") if self._rank == 0 else ()
        with suppress(OSError):
            for path in {self._path, *others}:
                path.unlink(missing_ok=True)

    def _read(self) -> dict[BatchItems, list[PredictionRecord]]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
            if not lines or json.loads(lines[0]) != self._header:
                return {}
        except (OSError, ValueError):
            return {}
        batches = {}
        for line in lines[1:]:
            try:
                content = json.loads(line)
                if content.pop("checksum") != _checksum(content):
                    continue
                batches[tuple(content["items"])] = [PredictionRecord(**row) for row in content["answers"]]
            except (ValueError, KeyError, TypeError):
                continue
        return batches

    def _write(self, lines: Sequence[dict[str, Any]], opened: AbstractContextManager[IO[str]]) -> None:
        if not self._writable:
            return
        try:
            with opened as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            self._writable = False
            text = "%s cannot be written (%s): after an interruption, this evaluation would start again"
            get_logger().warning(text, self._path, error.strerror)


@contextmanager
def _appended(path: Path) -> Iterator[IO[str]]:
    with path.open("a", encoding="utf-8") as file:
        yield file


def _line(items: Sequence[int], answers: Sequence[PredictionRecord]) -> dict[str, Any]:
    content = {"items": list(items), "answers": list(map(asdict, answers))}
    return content | {"checksum": _checksum(content)}


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def input_stamps(dataset: SampleDataset) -> list[Any]:
    """Return numbers that change if an array, image or video of a dataset may have changed.

    For a dataset whose inputs have no such numbers, they are random, so that its answers are never used again.
    """
    stamps: list[Any] = []
    for source in dataset.features:
        source_stamps = (
            [source.store.stamp(name) for name in dataset.names() if name in source] if isinstance(source, Features) else [()]
        )
        stamps.append(source_stamps if all(source_stamps) else uuid.uuid4().hex)
    return stamps


def file_stamps(*paths: str | None) -> list[Any]:
    """Return size, times and inode of files, and of the files in folders."""
    files = [file for path in map(Path, filter(None, paths)) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    stamps = []
    for file in files:
        with suppress(OSError):
            status = file.stat()
            stamps.append([str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
    return stamps


def identity_of(settings: Any, members: Sequence[HasParameters]) -> str:
    """Return a digest of an evaluation: its settings, and the values of the tensors that were trained.

    Args:
        settings: JSON values of the configuration, the data and the environment.
        members: the model, or the members of an ensemble.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for member in members:
        for name, parameter in sorted(trainable(member).items()):
            digest.update(name.encode())
            digest.update(whole(parameter.detach()).cpu().contiguous().flatten().view(uint8).numpy().tobytes())
    return digest.hexdigest()
