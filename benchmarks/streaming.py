"""Count the requests and bytes of streamed features in the order of training, for several sizes of the cache.

    python benchmarks/streaming.py

The files (about 180 MB) are in a temporary folder. A transport that reads them takes the place of a server: it counts requests,
and waits before each answer like a distant server. Counts are those of two epochs with loads of four samples, of which the next
two are requested ahead, as in a run without data workers. Times are compared in one process.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from emollama.data.sampling import DatasetSampling, MixtureSampler
from emollama.paths import PATHS, cache_folder
from emollama.remote import streaming
from emollama.remote.downloads import Downloads
from emollama.remote.handler import RemoteFiles
from emollama.remote.transport import Version
from emollama.stores.shard_writers import TarWriter
from emollama.stores.store import open_store
from emollama.stores.streamed_tars import StreamedTarStore
from emollama.variables import STREAM_CACHE

CLIPS, TARS, WINDOW, LOAD, EPOCHS = 240, 8, 4, 4, 2
SHAPES = {"eva": ((257, 1408), np.float16), "face": ((1024,), np.float32)}
DELAY = 0.02  # seconds before each answer
STEP = 0.05  # seconds of computation between two loads


class LocalFiles:
    """Reads local files instead of those of a server. Implements :class:`emollama.remote.transport.Transport`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self.requests = self.bytes = self.questions = 0
        self.delay = 0.0

    def version(self, url: str) -> Version:
        """Return the size of a file."""
        self.questions += 1
        return self._version(url)

    def _version(self, url: str) -> Version:
        return Version("1", None, self._path(url).stat().st_size)

    def read(self, url: str, begin: int, size: int) -> tuple[bytes, Version]:
        """Return a part of a file."""
        time.sleep(self.delay)
        with self._lock:
            self.requests, self.bytes = self.requests + 1, self.bytes + size
        with open(self._path(url), "rb") as file:
            file.seek(begin)
            return file.read(size), self._version(url)

    def download(self, url: str, earlier: Version | None, file: BinaryIO) -> Version | None:
        """Copy a file."""
        with open(self._path(url), "rb") as source:
            shutil.copyfileobj(source, file)
        self.requests += 1
        return self._version(url)

    def _path(self, url: str) -> Path:
        return self._folder / url.partition("://")[2]


def write(folder: Path) -> list[str]:
    """Write the tars of both slots, and return the names of the clips."""
    names, rng = [f"sample_{index:08d}" for index in range(CLIPS)], np.random.default_rng(0)
    for slot, (shape, dtype) in SHAPES.items():
        (folder / slot).mkdir()
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize + 1024
        writer = TarWriter(folder / slot, nbytes * CLIPS // TARS if slot == "eva" else 2**30)
        for name in names:
            writer.add(name, (rng.normal(size=shape).astype(dtype),))
        writer.finish()
        writer.close()
    return names


def opened(folder: Path) -> list[StreamedTarStore]:
    """Open the streamed stores of both slots."""
    stores = []
    for slot in SHAPES:
        last = len(list((folder / slot).glob("*.tar"))) - 1
        store = open_store(f"counted://{slot}/shard-{{00000..{last:05}}}.tar", slot, stream=True)
        assert isinstance(store, StreamedTarStore)
        stores.append(store)
    return stores


def requests_at_start(folder: Path, files: LocalFiles, processes: int) -> list[int]:
    """Return how many requests each of several processes makes to open the stores, the first one before the others."""
    counts = []
    for _ in range(processes):
        reader, writer = os.pipe()
        # The processes of a run start together, so that each began before the first one has asked the server.
        if os.fork() == 0:
            opened(folder)
            os.write(writer, str(files.requests + files.questions).encode())
            os._exit(0)
        os.wait()
        counts.append(int(os.read(reader, 20)))
    return counts


def order(names: list[str], store: StreamedTarStore) -> list[str]:
    """Return the clips of all epochs in the order of training."""
    sampling = DatasetSampling(len(names), shards=store.shard_ids(names), window=WINDOW)
    sampler = MixtureSampler(1, (sampling,))
    return [names[sampler.at(index).index] for index in range(EPOCHS * len(names))]


def read(stores: list[StreamedTarStore], clips: list[str], ahead: int, step: float = 0.0) -> float:
    """Read all clips, and return the seconds for which the reader waited."""
    waited = 0.0
    for first in range(0, len(clips), LOAD):
        for name in clips[first : first + (ahead + 1) * LOAD] if ahead else ():
            for store in stores:
                store.read_ahead(name)
        start = time.perf_counter()
        for name in clips[first : first + LOAD]:
            for store in stores:
                store.load(name)
        waited += time.perf_counter() - start
        time.sleep(step)
    return waited


def whole_tars(clips: list[str], store: StreamedTarStore, limit: float, tar_bytes: int) -> tuple[int, int]:
    """Return how many tars, and how many bytes of them, a cache of whole tars of the same size would download."""
    cached: OrderedDict[int, None] = OrderedDict()
    ids = store.shard_ids(clips)
    assert ids is not None
    downloads = 0
    for number in ids.tolist():
        downloads += number not in cached
        cached[number] = None
        cached.move_to_end(number)
        while len(cached) * tar_bytes > limit and len(cached) > 1:
            cached.popitem(last=False)
    return downloads, downloads * tar_bytes


def fresh(mib: int) -> None:
    """Set an empty cache of this size."""
    shutil.rmtree(cache_folder() / streaming.FOLDER, ignore_errors=True)
    os.environ[STREAM_CACHE] = str(mib / 1024)
    streaming._process.cache_clear()


def report(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Print counts and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        files = LocalFiles(root)
        PATHS.register_handler(RemoteFiles(["counted"], Downloads(files, lambda: cache_folder() / "downloads")))
        names = write(root)
        fresh(256)
        report(f"requests of four processes of a machine at the start: {requests_at_start(root, files, 4)}")
        fresh(0)
        clips = order(names, opened(root)[0])
        least = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in SHAPES.values())
        tar_bytes = max(path.stat().st_size for path in (root / "eva").glob("*.tar"))
        total = sum(path.stat().st_size for slot in SHAPES for path in (root / slot).glob("*.tar"))
        window = WINDOW * tar_bytes / 2**20
        report(f"{CLIPS} clips x {EPOCHS} epochs; all tars {total / 2**20:.0f} MiB, a window {window:.0f} MiB")
        for mib in (0, 64, 128, 256):
            fresh(mib)
            stores, files.requests, files.bytes = opened(root), 0, 0
            read(stores, clips, ahead=2 if mib else 0)
            tars, tar_total = whole_tars(clips, stores[0], mib * 2**20, tar_bytes)
            requests, size = files.requests / len(clips), files.bytes / len(clips) / least
            text = f"cache {mib:4} MiB: {requests:.2f} requests and {size:.2f} x the bytes of its arrays per sample"
            report(f"{text}; whole tars: {tars} downloads, {tar_total / len(clips) / least:.2f} x")
        files.delay = DELAY
        waits = {}
        for ahead in (0, 2):
            fresh(256)
            waits[ahead] = read(opened(root), clips[: len(names) // 2], ahead, STEP)
        report(f"waiting with read-ahead: {waits[2] / waits[0]:.2f} x that without, {DELAY} s per request and {STEP} s per step")


if __name__ == "__main__":
    main()
