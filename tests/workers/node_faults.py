"""A module for ``imports`` of a configuration: a fault in the workers, as the variable NODE_FAULT says.

``MOMENT:RANK:ACTION`` with the moment ``step``, ``save`` or ``evaluation``. The action ``pause`` creates the file ``paused`` in
the folder NODE_FAULT_FOLDER and waits for NODE_FAULT_SECONDS, until the file is gone, or for a request to stop; ``kill`` ends the
process in the first attempt, ``fail`` raises in each. The file ``starts`` in this folder gets a line for each start of a process.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emollama.distributed.stop_requests import STOP_REQUESTS

STEP = 4  # of the moment ``step``


def act() -> None:
    """Pause or end this process."""
    if ACTION == "pause":
        paused = Path(os.environ["NODE_FAULT_FOLDER"], "paused")
        paused.touch()
        end = time.monotonic() + float(os.environ.get("NODE_FAULT_SECONDS", "5"))
        while time.monotonic() < end and paused.exists() and not STOP_REQUESTS.reason:
            time.sleep(0.05)
    if ACTION == "kill" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    if ACTION == "fail":
        raise RuntimeError("the fault of the test")


def before(function: Callable[..., Any], condition: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
    """Let a function act first, the first time that a condition holds for its arguments."""
    acted = []

    def wrapped(*args: Any, **options: Any) -> Any:
        if not acted and condition(*args):
            acted.append(True)
            act()
        return function(*args, **options)

    return wrapped


if "RANK" in os.environ:
    with Path(os.environ["NODE_FAULT_FOLDER"], "starts").open("a") as file:
        file.write(f"{os.environ['RANK']}\n")
MOMENT, RANK, ACTION = (os.environ.get("NODE_FAULT") or "::").split(":")
if MOMENT and os.environ.get("RANK") == RANK:
    from emollama import checkpoint
    from emollama.runners.runner_base import RunnerBase
    from emollama.runners.validation import Validation

    if MOMENT == "step":
        RunnerBase._step = before(RunnerBase._step, lambda _, step, *__: step == STEP)  # type: ignore[method-assign]
    if MOMENT == "save":
        checkpoint.save = before(checkpoint.save)
    if MOMENT == "evaluation":
        Validation.run = before(Validation.run)  # type: ignore[method-assign]
