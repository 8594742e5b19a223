"""The disk space of a run's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from emollama.config import RunConfig
from emollama.memory import GIB

BYTES_PER_PARAMETER = 12  # the float32 value and the two moments of AdamW


@dataclass(frozen=True)
class Disk:
    """The checkpoints of a run.

    Attributes:
        checkpoint_gib: size of one checkpoint.
        files: number of files at the end of the run, or while the newest one is written.
        total_gib: size of all of them.
    """

    checkpoint_gib: float
    files: int
    total_gib: float

    def rows(self) -> list[list[str]]:
        """Return the rows of a table."""
        names = ("one checkpoint (GiB)", "number of checkpoints", "all checkpoints (GiB)")
        return [[name, text] for name, text in zip(names, self._texts(), strict=True)]

    def _texts(self) -> tuple[str, str, str]:
        return f"{self.checkpoint_gib:.3f}", str(self.files), f"{self.total_gib:.2f}"


def checkpoint_files(config: RunConfig) -> int:
    """Return the largest number of checkpoints of a run that exist at a time."""
    run = config.run
    # The oldest checkpoint is deleted only after the new one is complete.
    epochs = run.max_epoch if run.keep_last is None else min(run.max_epoch, run.keep_last + 1)
    return int(epochs + (run.save_every_iters is not None) + bool(run.save_best))


def disk_of(config: RunConfig, trained: int) -> Disk:
    """Return the disk space of the checkpoints of a run with this number of trained parameters."""
    size, files = trained * BYTES_PER_PARAMETER / GIB, checkpoint_files(config)
    return Disk(size, files, size * files)
