"""How far all processes are together."""

from __future__ import annotations

from emollama.distributed.process_group import World
from emollama.logs.console import Progress


class SharedProgress:
    """Clips that are done or failed over all processes, with clips/s and the remaining time.

    Args:
        label: of the encoder.
        total: clips of this run.
        world: the processes; rank 0 shows.
    """

    def __init__(self, label: str, total: int, world: World) -> None:
        self._label, self._world = label, world
        self._shown = Progress(total, label, enabled=world.is_main, unit="clips")
        self._here = 0

    def reach(self, clips: int) -> None:
        """Set the number of clips that this process has finished."""
        more, self._here = clips - self._here, clips
        self._shown.reach(self._world.count(f"{self._label} finished", more) + more)

    def close(self) -> None:
        """End the bar."""
        self._shown.close()
