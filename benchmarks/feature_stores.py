"""Time reading features from packed shards and tar shards, compared with a folder of .npy files, and looking up names.

    python benchmarks/feature_stores.py

All files are written to a temporary folder (about 2 GiB), and are in the page cache when they are read. Each result is a ratio of
two medians over rounds that alternate in one process. Do not set MALLOC_MMAP_MAX_: with it, allocating memory for an EVA array
takes ten times as long as reading the array.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from emollama.commands.pack import rounded_up
from emollama.stores import tar_index
from emollama.stores.packed import PackedStore
from emollama.stores.packing import PackingReport, pack
from emollama.stores.quantization import Values
from emollama.stores.shard_writers import PackedWriter, TarWriter
from emollama.stores.store import NpyFolder
from emollama.stores.tars import TarStore

ROUNDS = 5
SHARD = 2**30
Variant = tuple[Callable[[str], object], Sequence[str]]  # a function that reads a name, and the names


def timed(read: Callable[[str], object], names: Sequence[str]) -> float:
    """Return the time per name in seconds."""
    start = time.perf_counter()
    for name in names:
        read(name)
    return (time.perf_counter() - start) / len(names)


def medians(variants: dict[str, Variant], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median time per name of each variant, over alternating rounds after a warm-up round."""
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds + 1):
        for variant, (read, names) in variants.items():
            times[variant].append(timed(read, names))
    return {variant: median(seconds[1:]) for variant, seconds in times.items()}


def write_npy(folder: Path, shape: tuple[int, ...], dtype: str, count: int) -> None:
    """Write a folder of random features."""
    rng = np.random.default_rng(count)
    folder.mkdir()
    for index in range(count):
        np.save(folder / f"sample_{index:08d}.npy", rng.normal(size=shape).astype(dtype))


def packed(source: Path, target: Path, values: Values = "stored", *, to: type[PackedWriter] | type[TarWriter]) -> PackingReport:
    """Pack a folder of .npy files."""
    target.mkdir()
    store = NpyFolder.open(source)
    return pack(dict.fromkeys(sorted(store.names()), store), to(target, SHARD), values=values, advance=lambda: None)


def index_of(folder: Path, count: int) -> PackedStore:
    """Write a packed store of ``count`` clips with a single number each."""
    folder.mkdir()
    writer = PackedWriter(folder, SHARD)
    value = np.zeros(1, np.float32)
    for index in range(count):
        writer.add(f"sample_{index:08d}", (value,))
    writer.finish()
    return PackedStore.open(folder)


def tar_index_of(folder: Path, count: int) -> str:
    """Write ten sparse tar shards of 4 KiB arrays of zeros, with their indexes as :class:`TarWriter` writes them."""
    folder.mkdir()
    layout, each = tar_index.Layout((1024,), np.dtype(np.float32), False, 640), count // 10
    for shard in range(10):
        names = [f"sample_{index:08d}" for index in range(shard * each, (shard + 1) * each)]
        entries = np.zeros(each, tar_index.ENTRY)
        entries["offset"], entries["check"] = 640 + 5120 * np.arange(each, dtype=np.uint64), zlib.crc32(bytes(640))
        path = folder / f"shard-{shard:05d}.tar"
        tar_index.write(
            tar_index.TarIndex(None, 5120 * each, (layout,), {"npy": each}, {}, names, entries), f"{path}{tar_index.SUFFIX}"
        )
        with open(path, "wb") as file:
            file.truncate(5120 * each)
    return str(folder)


def print_tars(folder: Path, count: int) -> None:
    """Print the times to open the index of ten tar shards, to group all clips by shard, and to look up a name."""
    path = tar_index_of(folder / "tars", count)
    names = [f"sample_{index:08d}" for index in np.random.default_rng(0).permutation(count // 10 * 10)]
    built = timed(TarStore.open, [path])
    opened = median(timed(TarStore.open, [path]) for _ in range(ROUNDS))
    store = TarStore.open(path)
    grouped = median(timed(lambda _: store.shard_ids(names), [path]) for _ in range(ROUNDS))
    looked_up = median(timed(store.__contains__, names[:100_000]) for _ in range(ROUNDS))
    sys.stdout.write(f"index of {count} clips in 10 tars opens in {opened:.3f} s, groups all clips by shard in {grouped:.3f} s")
    sys.stdout.write(f"   lookup {1e6 * looked_up:6.3f} us\n")
    sys.stdout.write(f"  when it is opened for the first time, it takes {built:.3f} s\n")


def time_lookups(folder: Path, counts: Sequence[int], lookups: int) -> tuple[float, dict[int, float]]:
    """Return the median times in seconds to open the largest store, and to look up random names in stores of each size."""
    stores = {count: index_of(folder / f"index_{count}", count) for count in counts}
    opened = [timed(lambda name: PackedStore.open(name), [str(folder / f"index_{max(counts)}")]) for _ in range(ROUNDS)]
    rng = np.random.default_rng(0)
    names = {count: [f"sample_{index:08d}" for index in rng.integers(0, count, lookups)] for count in counts}
    seconds = medians({str(count): (stores[count].__contains__, names[count]) for count in counts})
    return median(opened), {count: seconds[str(count)] for count in counts}


def compare(folder: Path, label: str, shape: tuple[int, ...], dtype: str, count: int) -> None:
    """Print the speed of reading one kind of features from each store, compared with .npy files."""
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
    order = [names[index] for index in np.random.default_rng(1).permutation(count)]
    by_numpy = (lambda name: np.load(source / f"{name}.npy", allow_pickle=False), order)
    sys.stdout.write(f"{label}: {shape} {dtype}, {count} clips; values identical, int8 within {bound:.2e}\n")
    # Separate measurements, because the variants leave the memory allocator in different states.
    print_speed({"np.load": by_numpy, "packed": (shards.load, order)})
    print_speed({"np.load": by_numpy, "npy folder": (files.load, order), "tar": (tars.load, order)})
    print_speed({"np.load": by_numpy, "packed int8": (small.load, order)})


def print_speed(variants: dict[str, Variant]) -> None:
    """Print the speed of each variant relative to np.load."""
    times = medians(variants)
    for variant, seconds in list(times.items())[1:]:
        ratio = times["np.load"] / seconds
        text = f"{1e6 * seconds:9.2f} us, np.load {1e6 * times['np.load']:9.2f} us"
        sys.stdout.write(f"  {variant:12} {text}: {ratio:6.2f} times as fast\n")


def main() -> None:
    """Run all measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000, help="number of clips of the largest index (default: a million)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        compare(folder, "eva", (1025, 1408), "float16", 120)
        compare(folder, "utterance", (1024,), "float32", 4000)
        counts = (1000, 10_000, 100_000, arguments.clips)
        opened, times = time_lookups(folder, counts, 100_000)
        sys.stdout.write(f"index of {arguments.clips} clips opens in {opened:.3f} s\n")
        for count, seconds in times.items():
            sys.stdout.write(f"  lookup in {count:8} clips {1e6 * seconds:6.3f} us   ratio {seconds / times[1000]:.2f}\n")
        print_tars(folder, arguments.clips)


if __name__ == "__main__":
    main()
