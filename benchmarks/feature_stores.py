"""How fast features are read from packed shards and tar shards, against a folder of .npy files, and how fast names are found.

    python benchmarks/feature_stores.py

Everything is written to a temporary folder (about 2 GiB) and is in the page cache when it is read. Each figure is a ratio of two
medians over rounds that are run in turn in one process. Run it without MALLOC_MMAP_MAX_: with that, fresh memory for each array
of an EVA cache costs ten times as much as reading it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from emollama.commands.pack import rounded_up
from emollama.stores import tar_index, tar_set
from emollama.stores.name_index import join_names, make_entries
from emollama.stores.packed import PackedStore
from emollama.stores.packing import PackingReport, pack
from emollama.stores.quantization import Values
from emollama.stores.shard_writers import PackedWriter, TarWriter
from emollama.stores.store import NpyFolder
from emollama.stores.tars import TarStore

ROUNDS = 5
SHARD = 2**30
Way = tuple[Callable[[str], object], Sequence[str]]  # how a name is read, and the names


def timed(work: Callable[[str], object], names: Sequence[str]) -> float:
    """Seconds a name."""
    begun = time.perf_counter()
    for name in names:
        work(name)
    return (time.perf_counter() - begun) / len(names)


def medians(ways: dict[str, Way], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds a name of each way, over rounds in which the ways take turns; a round before them is not counted."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, (work, names) in ways.items():
            times[way].append(timed(work, names))
    return {way: median(found[1:]) for way, found in times.items()}


def write_npy(folder: Path, shape: tuple[int, ...], dtype: str, count: int) -> None:
    """A folder of invented features."""
    rng = np.random.default_rng(count)
    folder.mkdir()
    for number in range(count):
        np.save(folder / f"sample_{number:08d}.npy", rng.normal(size=shape).astype(dtype))


def packed(source: Path, target: Path, values: Values = "stored", *, to: type[PackedWriter] | type[TarWriter]) -> PackingReport:
    """Pack a folder of .npy files."""
    target.mkdir()
    store = NpyFolder.open(source)
    return pack(dict.fromkeys(sorted(store.names()), store), to(target, SHARD), values=values, advance=lambda: None)


def index_of(folder: Path, count: int) -> PackedStore:
    """A store of this many clips, each a single number."""
    folder.mkdir()
    writer = PackedWriter(folder, SHARD)
    value = np.zeros(1, np.float32)
    for number in range(count):
        writer.add(f"sample_{number:08d}", (value,))
    writer.finish()
    return PackedStore.open(folder)


def tar_index_of(folder: Path, count: int) -> str:
    """Ten sparse shards of 4 KiB arrays, every byte zero, and their indexes as :class:`TarWriter` writes them; their path."""
    folder.mkdir()
    layout = tar_index.Layout((1024,), np.dtype(np.float32), False, 640)
    indexes, paths, each = [], [f"{folder}/shard-{number:05d}.tar{tar_index.SUFFIX}" for number in range(10)], count // 10
    for number, path in enumerate(paths):
        names = [f"sample_{place:08d}" for place in range(number * each, (number + 1) * each)]
        entries = make_entries(names)
        entries["offset"], entries["check"] = 640 + 5120 * np.arange(each, dtype=np.uint64), zlib.crc32(bytes(640))
        indexes.append(tar_index.TarIndex(None, 5120 * each, (layout,), {"npy": each}, entries, *join_names(names)))
        tar_index.write(indexes[-1], path)
        with open(path.removesuffix(tar_index.SUFFIX), "wb") as file:
            file.truncate(5120 * each)
    tar_set.write(indexes, paths)
    return str(folder)


def tell_tars(folder: Path, count: int) -> None:
    """Print how long the index of ten tar shards takes to open, to tell the shards of all clips, and a lookup."""
    path = tar_index_of(folder / "tars", count)
    names = [f"sample_{place:08d}" for place in np.random.default_rng(0).permutation(count // 10 * 10)]
    opened = median(timed(TarStore.open, [path]) for _ in range(ROUNDS))
    store = TarStore.open(path)
    grouped = median(timed(lambda _: store.groups(names), [path]) for _ in range(ROUNDS))
    found = median(timed(store.__contains__, names[:100_000]) for _ in range(ROUNDS))
    sys.stdout.write(f"index of {count} clips in 10 tars opens in {opened:.3f} s, tells the shards of all in {grouped:.3f} s")
    sys.stdout.write(f"   lookup {1e6 * found:6.3f} us\n")
    for index_set in Path(path).glob(f"*{tar_set.SUFFIX}"):
        index_set.unlink()
    sys.stdout.write(f"  from the sidecars alone it opens in {timed(TarStore.open, [path]):.3f} s\n")


def lookups(folder: Path, counts: Sequence[int], asked: int) -> tuple[float, dict[int, float]]:
    """Median seconds to open the largest store; median seconds a lookup in stores of each size, of names at random."""
    stores = {count: index_of(folder / f"index_{count}", count) for count in counts}
    opened = [timed(lambda name: PackedStore.open(name), [str(folder / f"index_{max(counts)}")]) for _ in range(ROUNDS)]
    rng = np.random.default_rng(0)
    names = {count: [f"sample_{number:08d}" for number in rng.integers(0, count, asked)] for count in counts}
    found = medians({str(count): (stores[count].__contains__, names[count]) for count in counts})
    return median(opened), {count: found[str(count)] for count in counts}


def compare(folder: Path, label: str, shape: tuple[int, ...], dtype: str, count: int) -> None:
    """Print how reading one kind of features from each store compares with .npy files."""
    source = folder / label
    write_npy(source, shape, dtype, count)
    packed(source, folder / f"{label}_packed", to=PackedWriter)
    packed(source, folder / f"{label}_tar", to=TarWriter)
    report = packed(source, folder / f"{label}_int8", "int8", to=PackedWriter)
    files, shards = NpyFolder.open(source), PackedStore.open(folder / f"{label}_packed")
    tars, small = TarStore.open(str(folder / f"{label}_tar")), PackedStore.open(folder / f"{label}_int8")
    names = sorted(files.names())
    assert all(np.array_equal(files.load(name), store.load(name)) for name in names for store in (shards, tars))
    bound = float(rounded_up(report.deviation.absolute))
    assert all(np.abs(files.load(name).astype(np.float64) - small.load(name)).max() <= bound for name in names)
    order = [names[place] for place in np.random.default_rng(1).permutation(count)]
    by_numpy = (lambda name: np.load(source / f"{name}.npy", allow_pickle=False), order)
    sys.stdout.write(f"{label}: {shape} {dtype}, {count} clips; values identical, int8 within {bound:.2e}\n")
    tell({"np.load": by_numpy, "packed": (shards.load, order)})
    tell({"np.load": by_numpy, "npy folder": (files.load, order), "tar": (tars.load, order)})
    tell({"np.load": by_numpy, "packed int8": (small.load, order)})


def tell(ways: dict[str, Way]) -> None:
    """Print how much faster than np.load each way is. Ways that leave memory in another state are told apart."""
    took = medians(ways)
    for way, seconds in list(took.items())[1:]:
        ratio = took["np.load"] / seconds
        figures = f"{1e6 * seconds:9.2f} us, np.load {1e6 * took['np.load']:9.2f} us"
        sys.stdout.write(f"  {way:12} {figures}: {ratio:6.2f} times as fast\n")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000, help="of the largest index (default: a million)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare(folder, "eva", (1025, 1408), "float16", 120)
        compare(folder, "utterance", (1024,), "float32", 4000)
        counts = (1000, 10_000, 100_000, arguments.clips)
        opened, found = lookups(folder, counts, 100_000)
        sys.stdout.write(f"index of {arguments.clips} clips opens in {opened:.3f} s\n")
        for count, seconds in found.items():
            sys.stdout.write(f"  lookup in {count:8} clips {1e6 * seconds:6.3f} us   ratio {seconds / found[1000]:.2f}\n")
        tell_tars(folder, arguments.clips)


if __name__ == "__main__":
    main()
