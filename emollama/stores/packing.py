"""Packing: what lies in source stores is checked, converted and written as shards, whole or not at all."""

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

from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.paths import PATHS, temporary_prefix
from emollama.stores import tar_index, tar_set, tars
from emollama.stores.manifest import FILE, Manifest, differences
from emollama.stores.npy import FLOAT_TYPES
from emollama.stores.quantization import NO_DEVIATION, Deviation, Values, deviation, encode
from emollama.stores.shard_writers import Writer, WrittenShards
from emollama.stores.store import ArrayStore, NpyFolder, open_store
from emollama.stores.tar_index import TarIndex

READERS = 4  # threads that read and convert, while one writes
AHEAD = 16  # arrays read before they are written


class UnpackableArray(ValueError):
    """An array that cannot be packed; the message names it."""


class TooLarge(UnpackableArray):
    """A value that the chosen type cannot hold."""


class PreparedArray(NamedTuple):
    """An array as it will be written, and how far that is from the source."""

    parts: tuple[np.ndarray, ...]
    deviation: Deviation


@dataclass(frozen=True)
class PackingReport:
    """What was packed.

    Attributes:
        clips: how many.
        output: the shards that were written.
        deviation: the worst of all clips.
        skipped: what was wrong with each clip that was left out.
    """

    clips: int
    output: WrittenShards
    deviation: Deviation
    skipped: list[str]


def collect_sources(paths: list[str]) -> dict[str, ArrayStore]:
    """The clips of several sources, sorted, and the store that holds each.

    Raises:
        UserError: no such store, none that holds a clip, or a clip in two of them.
    """
    found: dict[str, ArrayStore] = {}
    twice = []
    for path in paths:
        store = open_store(path, "--source")
        for name in _names(store):
            if name in found:
                twice.append(f"{found[name].location(name)} and {store.location(name)}")
            found[name] = store
    if twice:
        raise UserError(f"--source: clips of the same name, {_lines(sorted(twice))}Rename them, or leave out a source.")
    if not found:
        raise UserError(f"--source: no arrays in {abbreviated(paths)}.")
    return {name: found[name] for name in sorted(found)}


def common_manifest(paths: list[str]) -> Manifest | None:
    """How the arrays of several sources were made; None where nobody knows.

    Raises:
        UserError: they were made otherwise, or only some of them tell.
    """
    known = {path: Manifest.read(path) for path in paths}
    first, *others = known
    for other in others:
        one, two = known[first], known[other]
        if (one is None) != (two is None):
            silent = first if one is None else other
            raise UserError(f"--source: '{silent}' has no {FILE}, others do. Pack it apart, or give it theirs if it was made so.")
        if one and two and (different := differences(one.fields(), two.fields())):
            raise UserError(f"--source: '{first}' and '{other}' were made differently: {'; '.join(different)}. Pack them apart.")
    return known[first]


def pack(
    sources: dict[str, ArrayStore], writer: Writer, *, values: Values, skip_bad: bool = False, advance: Callable[[], object]
) -> PackingReport:
    """Check, convert and write every array.

    Args:
        sources: the clips in order, and where each lies.
        writer: of the shards.
        values: how they are stored.
        skip_bad: leave out arrays that are unreadable or hold NaN or inf, instead of refusing all.
        advance: called after each clip.

    Raises:
        UserError: unfit arrays, all named; nothing should be kept of what was written.
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
                if not too_large and (skip_bad or not skipped):  # else only looking for more problems
                    writer.add(name, parts)
                    worst, count = worst.or_worse(deviates), count + 1
            advance()
    if too_large:
        raise UserError(f"values too large for --dtype {values}, {_lines(too_large)}Choose another --dtype.")
    if skipped and not skip_bad:
        raise UserError(f"unfit arrays, {_lines(skipped)}Extract these clips again, or leave them out with --skip-bad.")
    if not count:
        raise UserError(f"nothing is left to pack: unfit arrays, {_lines(skipped)}Extract these clips again.")
    return PackingReport(count, writer.finish(), worst, skipped)


def prepare(store: ArrayStore, name: str, values: Values) -> PreparedArray:
    """Read, check and convert an array.

    Raises:
        Unfit: unreadable, not of float16, float32 or float64, without values, NaN or inf, or too large.
    """
    try:
        array = store.load(name)
    except (OSError, ValueError, MemoryError) as error:
        raise UnpackableArray(f"{store.location(name)}: cannot be read: {error}") from None
    if array.dtype not in FLOAT_TYPES:
        raise UnpackableArray(f"{store.location(name)}: dtype {array.dtype}, expected float16, float32 or float64")
    if array.ndim == 0 or array.size == 0:
        raise UnpackableArray(f"{store.location(name)}: shape {array.shape}, which holds no rows")
    if not np.isfinite(array).all():
        raise UnpackableArray(f"{store.location(name)}: contains NaN or inf")
    try:
        parts, back = encode(array, values)
    except OverflowError as error:
        raise TooLarge(f"{store.location(name)}: {error}") from None
    return PreparedArray(parts, NO_DEVIATION if values == "stored" else deviation(array, back))


def leftovers(output: Path) -> list[Path]:
    """Folders of packs into the same place that did not come to their end."""
    return sorted(path for path in output.absolute().parent.iterdir() if path.name.startswith(temporary_prefix(output)))


def index_tars(path: str, output: Path | None) -> list[Path]:
    """Write the indexes of tar shards and of their set, beside them or into a folder; returns those of the shards.

    Raises:
        UserError: no shards; a shard with members that do not belong there; a place that cannot be written.
    """
    shards = tars.list_shards(tars.split_slot(path)[0])
    names = [os.path.basename(shard) for shard in shards]
    if twice := sorted({name for name in names if output and names.count(name) > 1}):
        raise UserError(f"--output: shards of the same name, {listing(twice)}. Index them into different folders.")
    written: dict[str, TarIndex] = {}
    for shard, name in zip(shards, names, strict=True):
        here = tars.is_here(shard)
        if not here and output is None:
            raise UserError(f"{shard}: nothing can be written beside it. Name a folder for the indexes with --output.")
        place = None if output is None else os.path.abspath(shard) if here else shard
        target = (output or Path(shard).parent) / (name + tar_index.SUFFIX)
        try:
            index = tar_index.scan(PATHS.get_local_path(shard), shard, place)
            tar_index.write(index, target)
            written[str(target)] = index
        except OSError as error:
            raise UserError(f"{shard}: cannot write '{target}': {error}. Name a folder for the indexes with --output.") from None
    for folder in sorted({os.path.dirname(path) for path in written}):
        paths = [path for path in written if os.path.dirname(path) == folder]
        tar_set.write([written[path] for path in paths], paths)
    return [Path(path) for path in written]


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[str], PreparedArray], names: Iterable[str]
) -> Iterator[tuple[str, Future[PreparedArray]]]:
    """Each name with its work begun, in order, a few of them ahead of what is taken."""
    waiting: deque[tuple[str, Future[PreparedArray]]] = deque()
    for name in names:
        waiting.append((name, pool.submit(work, name)))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _names(store: ArrayStore) -> Iterator[str]:
    """The clips of a store; of a folder of .npy files those in folders below too, as ``a/b``."""
    if not isinstance(store, NpyFolder):
        yield from store.names()
        return
    for folder, _, files in os.walk(store.folder, onerror=_refuse):
        below = os.path.relpath(folder, store.folder)
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name.removesuffix(".npy") for name in files if name.endswith(".npy"))


def _refuse(error: OSError) -> None:
    raise UserError(f"--source: cannot read '{error.filename}': {error.strerror}.")


def _lines(problems: list[str]) -> str:
    """``3:`` and a line each, and the end of the last line."""
    return f"{len(problems):,}:\n  " + abbreviated(problems, "\n  ") + "\n"
