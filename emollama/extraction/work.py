"""Encode one process's share of a job's clips. The next clip comes from a counter that all processes share.

No process waits for another. The array of a clip has the same bits in any process and in any batch. On a CPU, this holds for a
fixed number of threads, because torch rounds some functions differently at the boundaries of the threads' ranges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from emollama.distributed.process_group import World
from emollama.encoders.encoder import Encoder
from emollama.errors import UserError
from emollama.extraction.encoding import Loaded, encode_batch, reason
from emollama.extraction.jobs import Job
from emollama.extraction.progress import SharedProgress
from emollama.media.source import Source

READ_AHEAD = 2  # clips per reading thread that are read before they are encoded
MAX_BATCH_BYTES = 2**28  # of loaded clips that are encoded together; the last clip may exceed it


@dataclass
class Share:
    """The share of one process in a job.

    Attributes:
        job: the clips and the writer of their arrays.
        world: the processes that share the job.
        done: number of clips whose arrays this process wrote.
        failed: clip name -> reason, for the clips that this process could not encode.
    """

    job: Job
    world: World
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def work(self, encoder: Encoder, threads: int) -> None:
        """Encode clips until none is left. Threads read ahead, and write the arrays of a batch while the next one is encoded.

        Raises:
            UserError: If the disk is full, the device has too little memory, or an array has a different shape than the encoder's
                description. The other processes then finish the clips that they have started, and start no others.
        """
        try:
            with _pool(threads) as pool, closing(SharedProgress(self.job.label, len(self.job.todo), self.world)) as progress:
                self._work(encoder, pool, READ_AHEAD * threads, progress)
        except Exception:
            # Advance the counter to the end, so that the other processes start no further clips.
            self.world.count(self._counter, len(self.job.todo))
            raise

    @property
    def _counter(self) -> str:
        """Name of the shared counter, whose value is the index of the next clip."""
        return f"{self.job.label} started"

    def _work(self, encoder: Encoder, pool: ThreadPoolExecutor, read_ahead: int, progress: SharedProgress) -> None:
        writes: list[Future[None]] = []
        for batch in self._batches(encoder, pool, read_ahead):
            arrays, failed = encode_batch(self.job, encoder, batch)
            self.failed |= failed
            self._await(writes)
            writes = [pool.submit(self.job.arrays.write, name, array) for name, array in arrays.items()]
            progress.reach(self.done + len(self.failed))
        self._await(writes)
        progress.reach(self.done + len(self.failed))

    def _await(self, writes: list[Future[None]]) -> None:
        for future in writes:
            future.result()
            self.done += 1

    def _batches(self, encoder: Encoder, pool: ThreadPoolExecutor, read_ahead: int) -> Iterator[list[Loaded]]:
        batch: list[Loaded] = []
        for source, future in self._reads(encoder, pool, read_ahead):
            try:
                batch.append((source, future.result()))
            except UserError:
                raise
            except Exception as error:  # a library may raise anything for a broken file; other clips are not affected
                self.failed[source.name] = reason(error)
            if len(batch) == self.job.cfg.batch_size or sum(tensor.nbytes for _, tensor in batch) >= MAX_BATCH_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch

    def _reads(self, encoder: Encoder, pool: ThreadPoolExecutor, read_ahead: int) -> Iterator[tuple[Source, Future[Tensor]]]:
        """Yield the clips of this process with their loaded contents, while later ones are being read."""
        pending: deque[tuple[Source, Future[Tensor]]] = deque()
        while (index := self.world.count(self._counter)) < len(self.job.todo):
            source = self.job.todo[index]
            pending.append((source, pool.submit(encoder.load, source)))
            if len(pending) == read_ahead:
                yield pending.popleft()
        while pending:
            yield pending.popleft()


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that read and write. After an error, wait for started tasks; after an interrupt, do not."""
    pool, wait = ThreadPoolExecutor(threads), True
    try:
        yield pool
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
