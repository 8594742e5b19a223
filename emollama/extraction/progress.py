"""How far all processes are together."""

from __future__ import annotations

import time

from emollama.distributed import World
from emollama.logging import get_logger, progress

SECONDS = 30.0  # between lines where there is no terminal


class Progress:
    """Clips that are done or failed over all processes: a bar with clips/s and ETA on a terminal, else a line now and then.

    Args:
        label: of the encoder.
        total: clips of this run.
        world: the processes; rank 0 shows.
    """

    def __init__(self, label: str, total: int, world: World) -> None:
        self.label, self.total, self.world = label, total, world
        self._bar = progress(total, label, enabled=world.is_main)
        self._bar.unit = " clips"
        self._begun = self._told = time.monotonic()
        self._here = 0

    def reach(self, clips: int) -> None:
        """So many of this process by now."""
        more, self._here = clips - self._here, clips
        finished = self.world.count(f"{self.label} finished", more) + more
        if not self.world.is_main:
            return
        self._bar.update(finished - self._bar.n)
        now = time.monotonic()
        if self._bar.disable and finished and now - self._told >= SECONDS:
            rate = finished / (now - self._begun)
            minutes, seconds = divmod(int((self.total - finished) / rate), 60)
            text = "%s: %d of %d clips, %.1f clips/s, eta %d:%02d"
            get_logger().info(text, self.label, finished, self.total, rate, minutes, seconds)
            self._told = now

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
