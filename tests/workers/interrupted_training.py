"""Run train.py in one of two ranks and send SIGTERM to both: ``interrupted_training.py POINT NUMBER PIDS --cfg-path ...``.

POINT is the name of a method; the signals are sent when rank 0 calls it for the NUMBER-th time. PIDS is a file with the process
ids of both ranks.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from emollama.distributed.parallel import Parallel
from emollama.file_digests import HashedFile
from emollama.runners.evaluation import Evaluation
from emollama.runners.partial_answers import PartialAnswers
from emollama.runners.runner_base import RunnerBase

POINTS: dict[str, tuple[Any, str]] = {
    "step": (RunnerBase, "_step"),
    "gradients": (Parallel, "clip_grad_norm"),
    "save": (HashedFile, "hexdigest"),
    "answers": (PartialAnswers, "append"),
    "scores": (Evaluation, "_score"),
    "build": (RunnerBase, "_build"),
    "first": (RunnerBase, "_train_steps"),
}
POINT, NUMBER, PIDS = sys.argv.pop(1), int(sys.argv.pop(1)), Path(sys.argv.pop(1))
owner, name = POINTS[POINT]
original, calls = getattr(owner, name), [0]


def interrupted(*arguments: Any, **more: Any) -> Any:
    """Replace the method."""
    calls[0] += 1
    if calls[0] == NUMBER and os.environ.get("RANK", "0") == "0":
        # This process comes last, because its signal can end this function.
        for pid in reversed(list(map(int, PIDS.read_text().split()))):
            os.kill(pid, signal.SIGTERM)
    return original(*arguments, **more)


setattr(owner, name, interrupted)
runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")
