"""Checks of many files by as many threads as keep one core busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
MAX_THREADS = 16
CHUNK_SIZE = 64  # files that each thread checks before the number of threads is chosen again


def in_batches(check: Callable[[Sequence[str]], Sequence[T]], names: Sequence[str]) -> Iterator[tuple[Sequence[str], list[T]]]:
    """Apply ``check`` to some names after the other, and yield batches of names with their results.

    The number of threads adapts so that they keep one core busy. Several threads help if the disk is slow. For files in memory
    one thread is fastest, because of the GIL.
    """
    threads, first = 1, 0
    with ThreadPoolExecutor(MAX_THREADS) as pool:
        while batch := names[first : first + CHUNK_SIZE * threads]:
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            chunks = [batch[start : start + CHUNK_SIZE] for start in range(0, len(batch), CHUNK_SIZE)]
            checked = (pool.map if threads > 1 else map)(check, chunks)
            results = [result for chunk in checked for result in chunk]
            busy_cores = (time.process_time() - cpu_start) / (time.perf_counter() - wall_start)
            first, threads = first + len(batch), min(MAX_THREADS, max(1, int(threads / max(busy_cores, 1 / MAX_THREADS))))
            yield batch, results
