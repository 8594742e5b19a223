"""Trains after another program has filled /dev/shm: ``python filled_shared_memory.py CONFIG FREE_BYTES``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from emollama import config
from emollama.entry import entry_point


def train() -> None:
    """Prepare the run, fill /dev/shm, and train."""
    loaded = config.load(sys.argv[1])
    runner = loaded.runner_class(loaded)
    free = shutil.disk_usage("/dev/shm").free
    Path("/dev/shm/other").write_bytes(bytes(free - int(sys.argv[2])))
    runner.train()


if __name__ == "__main__":
    entry_point(train)
