"""A module for ``imports:`` that kills a process of the run with SIGKILL: ``EMOLLAMA_TEST_KILL="VICTIM MOMENT"``.

VICTIM is ``launcher`` or ``rank``: the rank that reaches the moment first, which is rank 0 for a save, and otherwise rank 1.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from emollama import checkpoint, checkpoint_parts
from emollama.file_digests import HashedFile
from emollama.runners.partial_answers import PartialAnswers
from emollama.runners.runner_base import RunnerBase

# Moment -> class or module, function, number of the call before which the process is killed, and the rank.
MOMENTS: dict[str, tuple[Any, str, int, str]] = {
    "step": (RunnerBase, "_step", 5, "1"),
    "save": (HashedFile, "hexdigest", 2, "0"),
    "part": (checkpoint_parts, "write", 2, "1"),
    "parts complete": (checkpoint, "save", 2, "0"),
    "evaluation": (PartialAnswers, "append", 2, "1"),
}


def kill_at(victim: str, moment: str) -> None:
    """Replace the method of this moment."""
    owner, name, number, rank = MOMENTS[moment]
    original, calls = getattr(owner, name), [0]

    def killed(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and os.environ["RANK"] == rank:
            os.kill(os.getpid() if victim == "rank" else os.getppid(), signal.SIGKILL)
        return original(*arguments)

    setattr(owner, name, killed)


if to_kill := os.environ.get("EMOLLAMA_TEST_KILL"):
    kill_at(*to_kill.split(maxsplit=1))
