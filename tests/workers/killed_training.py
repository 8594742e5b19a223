"""Run train.py and kill it after a number of logged steps: ``killed_training.py 21 --cfg-path config.yaml``."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from emollama.runners.run_checkpoints import RunCheckpoints

STEPS, save = int(sys.argv.pop(1)), RunCheckpoints.maybe_save


def save_unless_killed(self: Any, step: int) -> None:
    """Replace the method that the runner calls after each step. The checkpoints of earlier steps are complete."""
    if step == STEPS:
        self.finish()
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, step)


RunCheckpoints.maybe_save = save_unless_killed  # type: ignore[method-assign]
runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")
