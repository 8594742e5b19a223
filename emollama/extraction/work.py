"""A process's share of an encoder's clips: taken from a counter that all processes share, read ahead, encoded, written.

No process waits for another, and a clip's array is the same to the bit, whoever makes it in whatever company. (On a CPU, with
the same number of threads: torch rounds some functions otherwise at the borders of what a thread does.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from emollama.distributed.process_group import World
from emollama.encoders.encoder import Encoder
from emollama.errors import UserError
from emollama.extraction.jobs import Job
from emollama.extraction.progress import SharedProgress
from emollama.media.source import Source, UnusableMedia

AHEAD = 2  # clips for each reading thread, taken and not yet encoded
GROUP_BYTES = 2**28  # of loaded clips that are encoded together, at most by one clip more
REASON = 300  # characters at most

Loaded = tuple[Source, Tensor]


@dataclass
class Share:
    """What this process does of a job.

    Attributes:
        job: the clips, and where their arrays go.
        world: the processes that share them.
        done: clips whose arrays were written here.
        failed: name -> why nothing could be made of it here.
    """

    job: Job
    world: World
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def work(self, encoder: Encoder, threads: int) -> None:
        """Take clips until none is left. Threads read ahead, and write a group's arrays while the next one is encoded.

        Raises:
            UserError: a full disk, too little memory of the device, an encoder that does not keep its word. The other
                processes then end what they began, and take no more.
        """
        try:
            with _pool(threads) as pool, closing(SharedProgress(self.job.label, len(self.job.todo), self.world)) as progress:
                self._work(encoder, pool, AHEAD * threads, progress)
        except Exception:
            self.world.count(self._taken, len(self.job.todo))
            raise

    @property
    def _taken(self) -> str:
        """The counter that says which clip is the next to be taken."""
        return f"{self.job.label} taken"

    def _work(self, encoder: Encoder, pool: ThreadPoolExecutor, ahead: int, progress: SharedProgress) -> None:
        begun: list[Future[None]] = []
        for group in self._groups(encoder, pool, ahead):
            arrays = list(self._arrays(encoder, group))
            self._finish(begun)
            begun = [pool.submit(self.job.arrays.write, name, array) for name, array in arrays]
            progress.reach(self.done + len(self.failed))
        self._finish(begun)
        progress.reach(self.done + len(self.failed))

    def _finish(self, begun: list[Future[None]]) -> None:
        for future in begun:
            future.result()
            self.done += 1

    def _groups(self, encoder: Encoder, pool: ThreadPoolExecutor, ahead: int) -> Iterator[list[Loaded]]:
        group: list[Loaded] = []
        for source, future in self._reading(encoder, pool, ahead):
            try:
                group.append((source, future.result()))
            except UserError:
                raise
            except Exception as error:  # whatever a reader says of a file: the others go on
                self._fail(source, error)
            if len(group) == self.job.cfg.batch_size or sum(tensor.nbytes for _, tensor in group) >= GROUP_BYTES:
                yield group
                group = []
        if group:
            yield group

    def _reading(self, encoder: Encoder, pool: ThreadPoolExecutor, ahead: int) -> Iterator[tuple[Source, Future[Tensor]]]:
        """The clips that this process takes, their reading begun."""
        waiting: deque[tuple[Source, Future[Tensor]]] = deque()
        while (place := self.world.count(self._taken)) < len(self.job.todo):
            source = self.job.todo[place]
            waiting.append((source, pool.submit(encoder.load, source)))
            if len(waiting) == ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _arrays(self, encoder: Encoder, group: list[Loaded]) -> Iterator[tuple[str, np.ndarray]]:
        """Names and arrays of a group as they are stored."""
        label, cfg, shape = self.job.label, self.job.cfg, self.job.shape
        for source, array in self._encoded(encoder, group):
            if array.shape != shape:
                text = f"encoders.{label}: its array of '{source.name}' has the shape {array.shape}, and it describes {shape}."
                raise UserError(f"{text} The encoder's class must be mended.")
            with np.errstate(over="ignore"):
                stored = array.astype(cfg.dtype)
            if np.isfinite(stored).all():
                yield source.name, stored
            else:
                text = f"features that are no finite numbers with precision {cfg.precision}, dtype {cfg.dtype}"
                self._fail(source, UnusableMedia(text))

    def _encoded(self, encoder: Encoder, group: list[Loaded]) -> Iterator[tuple[Source, np.ndarray]]:
        """The arrays of a group; where it fails, of its clips one by one."""
        try:
            arrays = encoder.encode([tensor for _, tensor in group])
        except torch.OutOfMemoryError:
            key = f"encoders.{self.job.label}"
            text = f"{key}.batch_size: {self.job.cfg.batch_size} is more than the device's memory holds. Lower it, or set"
            raise UserError(f"{text} {key}.precision: bf16; finished clips are kept.") from None
        except (UserError, torch.AcceleratorError):
            raise
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0][0], error)
                return
            for one in group:
                yield from self._encoded(encoder, [one])
            return
        yield from zip((source for source, _ in group), arrays, strict=True)

    def _fail(self, source: Source, error: Exception) -> None:
        text = str(error) if isinstance(error, UnusableMedia) else f"{type(error).__name__}: {error}"
        self.failed[source.name] = " ".join(text.split())[:REASON]


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that read and write. An error ends when they have ended what they began; an interrupt does not wait for them."""
    pool, wait = ThreadPoolExecutor(threads), True
    try:
        yield pool
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
