"""Progress of an extraction over all processes."""

from __future__ import annotations

from emollama.distributed.process_group import World
from emollama.logs.console import Progress


class SharedProgress:
    """Shows the number of clips that all processes finished (done or failed), with clips/s and the remaining time.

    Args:
        label: label of the encoder.
        total: number of clips of all processes.
        world: the processes. Rank 0 prints.
    """

    def __init__(self, label: str, total: int, world: World) -> None:
        self._label, self._world = label, world
        self._progress = Progress(total, label, enabled=world.is_main, unit="clips")
        self._finished_here = 0

    def reach(self, clips: int) -> None:
        """Set the number of clips that this process has finished."""
        new, self._finished_here = clips - self._finished_here, clips
        self._progress.reach(self._world.count(f"{self._label} finished", new) + new)

    def close(self) -> None:
        """End the progress bar."""
        self._progress.close()
