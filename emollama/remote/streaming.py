"""Remote files that are read in parts while a run needs them, instead of being downloaded before.

Parts are requested in blocks of equal size, which the processes of a machine share in a cache of bounded size
(:mod:`emollama.remote.block_cache`). Threads read the parts ahead that will be needed next.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from emollama.disk import reason, remedy
from emollama.errors import DownloadError, UserError
from emollama.heartbeat import beat
from emollama.remote.block_cache import BlockCache, Claim
from emollama.remote.direct import read_part
from emollama.remote.manager import cache_folder
from emollama.remote.transport import RESTART, Version, shown
from emollama.variables import STREAM_CACHE

BLOCK = 1 << 20  # bytes: requests for less would cost more time than their content, and small arrays share a block
FOLDER = "streamed"  # subfolder of the user's cache folder
DEFAULT_GIB = 16.0
THREADS = 8  # that read ahead in each process
MIN_BLOCKS = 64
_POLL = 0.005  # seconds between two looks at a block that another process is reading
_PATIENCE = 200.0  # seconds after which such a block is read again; more than all attempts of a request take


class StreamedFile:
    """A remote file that is read in parts. It may be used by several threads and in forked processes.

    Args:
        url: the file.
        size: size of the file in bytes, by which a replaced file is detected.
        content: what identifies the content of the file, such as the digest of its index. Blocks of other content are not used.
    """

    def __init__(self, url: str, size: int, content: str) -> None:
        self.url, self._size = url, size
        self._identity = hashlib.blake2b(f"{shown(url)}\0{content}".encode(), digest_size=16).digest()
        self._version: Version | None = None  # that of the first part

    def read(self, begin: int, size: int) -> bytes:
        """Return a part of the file, from the cache if it is there.

        Raises:
            DownloadError: If the part cannot be read, or the file has been replaced.
        """
        blocks, cache = self._blocks(begin, size), _this_process().cache
        if cache is None or len(blocks) > cache.slots // 4:
            return self._request(begin, size)
        parts: dict[int, bytes] = {}
        deadline = time.monotonic() + _PATIENCE
        while missing := [block for block in blocks if block not in parts]:
            new_parts = self._available(missing, cache)
            parts |= new_parts
            if not new_parts:
                # Other processes are reading the blocks.
                if time.monotonic() > deadline:
                    return self._request(begin, size)
                beat()
                time.sleep(_POLL)
        first = begin - blocks.start * BLOCK
        return b"".join(parts[block] for block in blocks)[first : first + size]

    def read_again(self, begin: int, size: int) -> bytes:
        """Return a part of the file as the server has it now, and remove what the cache has of it.

        Raises:
            DownloadError: As for :meth:`read`.
        """
        cache = _this_process().cache
        for block in self._blocks(begin, size) if cache else ():
            cache.forget(self._key(block))  # type: ignore[union-attr]
        return self._request(begin, size)

    def read_ahead(self, begin: int, size: int) -> None:
        """Read a part of the file into the cache in the background. Its errors are those of the read that needs the part."""
        process = _this_process()
        if process.cache is not None:
            process.read_ahead(self, self._blocks(begin, size))

    def fetch(self, blocks: Iterable[int], cache: BlockCache) -> None:
        """Read blocks into the cache that are neither there nor being read by another process or thread."""
        self._request_reserved(self._claims(blocks, cache), cache)

    def _available(self, blocks: Iterable[int], cache: BlockCache) -> dict[int, bytes]:
        """Return the content of those blocks that are in the cache, or that no other process or thread is reading."""
        claims = self._claims(blocks, cache)
        complete = {block: claim.slot for block, claim in claims.items() if claim.is_complete}
        cached = {block: cache.read(slot, self._key(block), self._length(block)) for block, slot in complete.items()}
        requested = self._request_reserved(claims, cache)
        return requested | {block: content for block, content in cached.items() if content is not None}

    def _claims(self, blocks: Iterable[int], cache: BlockCache) -> dict[int, Claim]:
        """Return the slots of blocks, except of those that another process or thread is reading."""
        claims = {block: cache.claim(self._key(block)) for block in blocks}
        return {block: claim for block, claim in claims.items() if claim is not None}

    def _request_reserved(self, claims: Mapping[int, Claim], cache: BlockCache) -> dict[int, bytes]:
        """Read the blocks into the cache that it does not have yet, and return their content."""
        reserved = {block: claim.slot for block, claim in claims.items() if not claim.is_complete}
        parts: dict[int, bytes] = {}
        try:
            for run in _consecutive(sorted(reserved)):
                begin, end = run.start * BLOCK, min(run.stop * BLOCK, self._size)
                content = self._request(begin, end - begin)
                for number, block in enumerate(run):
                    parts[block] = content[number * BLOCK : (number + 1) * BLOCK]
                    _this_process().write(reserved[block], self._key(block), parts[block])
        finally:
            for block, slot in reserved.items():
                cache.release(slot, self._key(block))
        return parts

    def _request(self, begin: int, size: int) -> bytes:
        """Read a part from the server, and check that the file is still the same."""
        if not size:
            return b""
        content, version = read_part(self.url, begin, size)
        if self._version is None:
            self._version = version
        if version != self._version or version.size not in (None, self._size):
            raise DownloadError(f"'{shown(self.url)}': the file has changed on the server. {RESTART}")
        return content

    def _blocks(self, begin: int, size: int) -> range:
        return range(begin // BLOCK, -(-(begin + size) // BLOCK))

    def _length(self, block: int) -> int:
        return min(BLOCK, self._size - block * BLOCK)

    def _key(self, block: int) -> int:
        """Return the key of a block in the cache, which is not 0, the key of an empty slot."""
        digest = hashlib.blake2b(self._identity + block.to_bytes(8, "little"), digest_size=8).digest()
        return int.from_bytes(digest, "little") or 1


def cache_gib() -> float:
    """Return the size of the cache of streamed files in GiB.

    Raises:
        UserError: If the environment variable is not a size.
    """
    text = os.environ.get(STREAM_CACHE) or str(DEFAULT_GIB)
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    least = MIN_BLOCKS * BLOCK / 2**30
    if gib and not least <= gib < math.inf:
        raise UserError(f"the environment variable {STREAM_CACHE} is '{text}'. Set it to at least {least:g} GiB, or to 0.")
    return gib


class _Process:
    """What a process needs to read files: the open cache, None if it cannot be used, and threads that read ahead."""

    def __init__(self) -> None:
        self.cache = _open_cache()
        self._queue: queue.SimpleQueue[tuple[StreamedFile, range]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def write(self, slot: int, key: int, content: bytes) -> None:
        """Write a block into the cache. If the disk is full, the process continues without a cache."""
        if self.cache is None:
            return
        try:
            self.cache.write(slot, key, content)
        except OSError as error:
            self.cache = None
            _warn(error)

    def read_ahead(self, file: StreamedFile, blocks: range) -> None:
        """Read blocks into the cache in the background."""
        if not self._threads:
            # The process ends without waiting for its daemon threads, as it could otherwise wait for a server.
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
            for thread in self._threads:
                thread.start()
        self._queue.put((file, blocks))

    def _work(self) -> None:
        while True:
            file, blocks = self._queue.get()
            if self.cache is not None:
                try:
                    file.fetch(blocks, self.cache)
                except Exception as error:  # the read that needs the part raises it again
                    logging.getLogger("emollama").debug("not read ahead: %s", error)


@functools.lru_cache(maxsize=1)
def _process(number: int) -> _Process:
    return _Process()


def _this_process() -> _Process:
    """Return the state of this process. A forked process has none of the threads of its parent, and other locks."""
    with _OPENING:
        return _process(os.getpid())


def _after_fork() -> None:
    global _OPENING
    _OPENING = threading.Lock()  # another thread of the parent may have held it


_OPENING = threading.Lock()
os.register_at_fork(after_in_child=_after_fork)


def _open_cache() -> BlockCache | None:
    slots = int(cache_gib() * 2**30 // BLOCK)
    if not slots:
        return None
    try:
        return BlockCache(cache_folder() / FOLDER, slots, BLOCK)
    except (OSError, RuntimeError) as error:
        _warn(error)
        return None


def _warn(error: Exception) -> None:
    text = "streamed files cannot be cached on this machine (%s), so each array is requested when it is needed. %s"
    alternative = f"set XDG_CACHE_HOME to another folder, or {STREAM_CACHE} to a smaller size"
    logging.getLogger("emollama").warning(text, reason(error), remedy(error, alternative))


def _consecutive(blocks: Sequence[int]) -> Iterator[range]:
    """Yield the ranges of consecutive numbers in a sorted list."""
    begin = 0
    for position in range(1, len(blocks) + 1):
        if position == len(blocks) or blocks[position] != blocks[position - 1] + 1:
            yield range(blocks[begin], blocks[position - 1] + 1)
            begin = position
