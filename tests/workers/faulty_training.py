"""Run train.py with a fault in one step of one rank: ``faulty_training.py FAULT RANK STEP --cfg-path config.yaml``.

With ``FAULT@0``, the fault happens only in the first attempt of torchrun.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

from emollama.logs.console import track
from emollama.runners.runner_base import RunnerBase

FAULT, _, ATTEMPT = sys.argv.pop(1).partition("@")
RANK, STEP = int(sys.argv.pop(1)), int(sys.argv.pop(1))
step_without_fault = RunnerBase._step


class Finalized:
    """Its finalizer gets the signal of Ctrl-C, and Python ignores the exception there."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)


def fault(runner: Any) -> None:
    """Let this process fail."""
    if FAULT == "error":
        raise ValueError("the fault of the test")
    if FAULT == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == "ignored interrupt":
        Finalized()
    if FAULT == "hang":
        (runner.folder / "hanging").touch()
        time.sleep(3600)
    if FAULT == "hang in a library":  # which does not release the global interpreter lock
        ctypes.PyDLL(None).sleep(3600)
    if FAULT == "slow":
        for _ in track(range(100), 100, "slow work"):
            time.sleep(0.15)


def step_with_fault(self: Any, step: int, batches: Any) -> Any:
    """Replace the method that runs a step."""
    if step == STEP and self.world.rank == RANK and ATTEMPT in ("", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        fault(self)
    return step_without_fault(self, step, batches)


RunnerBase._step = step_with_fault  # type: ignore[method-assign]
runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")
