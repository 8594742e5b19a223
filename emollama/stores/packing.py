"""Packing: checks and converts the arrays of source stores, and writes them as shards."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emollama.disk import reason, remedy
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.paths import PATHS, temporary_prefix
from emollama.stores import tar_index, tar_paths
from emollama.stores.manifest import FILE, Manifest, differences
from emollama.stores.npy import is_float
from emollama.stores.quantization import NO_DEVIATION, Deviation, Values, deviation, encode
from emollama.stores.shard_writers import Writer, WrittenShards
from emollama.stores.store import ArrayStore, NpyFolder, open_store

READERS = 4  # threads that read and convert arrays, while one thread writes
AHEAD = 16  # maximum number of arrays that are read ahead of the writer


class UnpackableArray(ValueError):
    """Raised if an array cannot be packed; the message names the array."""


class TooLarge(UnpackableArray):
    """Raised if a value exceeds the range of the chosen dtype."""


class PreparedArray(NamedTuple):
    """An array, converted for writing.

    Attributes:
        parts: the arrays to write, as :func:`emollama.stores.quantization.encode` returns them.
        deviation: their deviation from the source array.
    """

    parts: tuple[np.ndarray, ...]
    deviation: Deviation


@dataclass(frozen=True)
class PackingReport:
    """Result of packing.

    Attributes:
        clips: number of packed clips.
        output: the written shards.
        deviation: the largest deviation among all clips.
        skipped: one message for each clip that was left out.
    """

    clips: int
    output: WrittenShards
    deviation: Deviation
    skipped: list[str]


def collect_sources(paths: list[str]) -> dict[str, ArrayStore]:
    """Return the sorted clip names of several sources with the store of each clip.

    Raises:
        UserError: If a store does not exist, the stores are empty, or two stores have a clip of the same name.
    """
    stores: dict[str, ArrayStore] = {}
    duplicates = []
    for path in paths:
        store = open_store(path, "--source")
        for name in _names(store):
            if name in stores:
                duplicates.append(f"{stores[name].location(name)} and {store.location(name)}")
            stores[name] = store
    if duplicates:
        text = f"several sources have clips of the same name, {_lines(sorted(duplicates))}"
        raise UserError(f"--source: {text}Rename the clips, or remove a source.")
    if not stores:
        raise UserError(f"--source: {abbreviated(paths)} contains no arrays. Correct the path.")
    return {name: stores[name] for name in sorted(stores)}


def common_manifest(paths: list[str]) -> Manifest | None:
    """Return the manifest of several sources; None if they have none.

    Raises:
        UserError: If the manifests differ, or only some sources have one.
    """
    manifests = {path: Manifest.read(path) for path in paths}
    first, *others = manifests
    for other in others:
        one, two = manifests[first], manifests[other]
        if (one is None) != (two is None):
            path = first if one is None else other
            remedy = "Pack it separately, or copy the manifest of the others into it if it was computed in the same way."
            raise UserError(f"--source: '{path}' has no {FILE}, but others have. {remedy}")
        if one and two and (different := differences(one.fields(), two.fields())):
            text = f"'{first}' and '{other}' were computed differently: {'; '.join(different)}"
            raise UserError(f"--source: {text}. Pack them separately.")
    return manifests[first]


def pack(
    sources: dict[str, ArrayStore], writer: Writer, *, values: Values, skip_bad: bool = False, advance: Callable[[], object]
) -> PackingReport:
    """Check, convert and write every array.

    Args:
        sources: the clip names in order, with the store of each clip.
        writer: the writer of the shards.
        values: the dtype in which values are stored.
        skip_bad: leave out arrays that are unreadable or contain NaN or inf, instead of raising an error.
        advance: called after each clip.

    Raises:
        UserError: If some arrays cannot be packed. The message lists all of them. The caller must delete the incomplete output.
    """
    worst, count = NO_DEVIATION, 0
    skipped: list[str] = []
    too_large: list[str] = []
    with closing(writer), ThreadPoolExecutor(READERS) as pool:
        for name, future in _ahead(pool, lambda name: prepare(sources[name], name, values), sources):
            try:
                parts, deviates = future.result()
            except UnpackableArray as error:
                (too_large if isinstance(error, TooLarge) else skipped).append(str(error))
            else:
                # After the first problem, the remaining arrays are only checked, so that all problems are reported at once.
                if not too_large and (skip_bad or not skipped):
                    writer.add(name, parts)
                    worst, count = worst.or_worse(deviates), count + 1
            advance()
    if too_large:
        raise UserError(f"values too large for --dtype {values}, {_lines(too_large)}Choose another --dtype.")
    if skipped and not skip_bad:
        raise UserError(f"some arrays cannot be packed, {_lines(skipped)}Extract these clips again, or set --skip-bad.")
    if not count:
        raise UserError(f"none of the arrays can be packed, {_lines(skipped)}Extract these clips again.")
    return PackingReport(count, writer.finish(), worst, skipped)


def prepare(store: ArrayStore, name: str, values: Values) -> PreparedArray:
    """Read, check and convert an array.

    Raises:
        UnpackableArray: If the array is unreadable, is empty, contains NaN or inf, or has a dtype other than float16, float32 or
            float64.
        TooLarge: If a value exceeds the range of the chosen dtype.
    """
    try:
        array = store.load(name)
    except (OSError, ValueError, MemoryError) as error:
        raise UnpackableArray(f"{store.location(name)}: cannot be read: {error}") from None
    if not is_float(array.dtype):
        raise UnpackableArray(f"{store.location(name)}: dtype {array.dtype}, expected float16, float32 or float64")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 0 or array.size == 0:
        raise UnpackableArray(f"{store.location(name)}: shape {array.shape} contains no feature vectors")
    if not np.isfinite(array).all():
        raise UnpackableArray(f"{store.location(name)}: contains NaN or inf")
    try:
        parts, restored = encode(array, values)
    except OverflowError as error:
        raise TooLarge(f"{store.location(name)}: {error}") from None
    return PreparedArray(parts, NO_DEVIATION if values == "stored" else deviation(array, restored))


def leftovers(output: Path) -> list[Path]:
    """Return the incomplete folders of interrupted calls with the same output."""
    return sorted(path for path in output.absolute().parent.iterdir() if path.name.startswith(temporary_prefix(output)))


def index_tars(path: str, output: Path | None) -> dict[Path, dict[str, int]]:
    """Write the index of each tar shard, next to the shards or into a folder.

    Args:
        path: the shards, as in the configuration.
        output: the folder for the indexes; None writes them next to the shards.

    Returns:
        Path of each shard's index -> number of members that are not arrays, by extension.

    Raises:
        UserError: If there are no shards, a shard has unsuitable members, or an index cannot be written.
    """
    shards = tar_paths.list_shards(tar_paths.split_slot(path)[0])
    names = [os.path.basename(shard) for shard in shards]
    if duplicates := sorted({name for name in names if output and names.count(name) > 1}):
        text = f"several shards have the same name ({listing(duplicates, 'name')})"
        raise UserError(f"--output: {text}. Write their indexes into different folders.")
    written = {}
    for shard, name in zip(shards, names, strict=True):
        local = tar_paths.is_local(shard)
        if not local and output is None:
            raise UserError(f"{shard}: cannot write an index to a remote location. Set a folder for the indexes with --output.")
        location = None if output is None else os.path.abspath(shard) if local else shard
        target = (output or Path(shard).parent) / (name + tar_index.SUFFIX)
        try:
            index = tar_index.scan(PATHS.get_local_path(shard), shard, location)
            tar_index.write(index, target)
            written[target] = index.skipped
        except OSError as error:
            what = remedy(error, "set a folder for the indexes with --output")
            raise UserError(f"{shard}: cannot write '{target}': {reason(error)}. {what}") from None
    return written


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[str], PreparedArray], names: Iterable[str]
) -> Iterator[tuple[str, Future[PreparedArray]]]:
    """Yield each name with the future of its work, in order; work starts up to ``AHEAD`` names in advance."""
    waiting: deque[tuple[str, Future[PreparedArray]]] = deque()
    for name in names:
        waiting.append((name, pool.submit(work, name)))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _names(store: ArrayStore) -> Iterator[str]:
    """Yield the clip names of a store; for a folder of .npy files also those in subfolders, as ``a/b``."""
    if not isinstance(store, NpyFolder):
        yield from store.names()
        return
    for folder, _, files in os.walk(store.folder, onerror=_raise_unreadable):
        subfolder = os.path.relpath(folder, store.folder)
        prefix = "" if subfolder == "." else f"{subfolder}/"
        yield from (prefix + name.removesuffix(".npy") for name in files if name.endswith(".npy"))


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"--source: cannot read '{error.filename}': {error.strerror}. {remedy(error)}")


def _lines(problems: list[str]) -> str:
    """Return the number of problems and a colon, then one line for each problem."""
    return f"{len(problems):,}:\n  " + abbreviated(problems, "\n  ") + "\n"
