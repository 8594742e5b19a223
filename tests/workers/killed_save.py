"""Run train.py and kill it while a checkpoint is written: ``killed_save.py SAVE FUNCTION NUMBER --cfg-path config.yaml``.

The process is killed in the background, before the call with this number of a function in the save with this number.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from emollama import checkpoint
from emollama.file_digests import HashedFile

FUNCTIONS: dict[str, tuple[Any, str]] = {"write": (HashedFile, "write"), "fsync": (os, "fsync"), "replace": (os, "replace")}
SAVE, FUNCTION, NUMBER = int(sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1))
save, (owner, name) = checkpoint.save, FUNCTIONS[FUNCTION]
original, saves, calls = getattr(owner, name), [0], [0]


def counted(*arguments: Any) -> None:
    """Replace the function that writes a checkpoint."""
    assert threading.current_thread() is not threading.main_thread()
    saves[0], calls[0] = saves[0] + 1, 0
    save(*arguments)


def killed(*arguments: Any) -> Any:
    """Replace the function."""
    if threading.current_thread().name.startswith("emollama: checkpoint"):
        calls[0] += 1
        if (saves[0], calls[0]) == (SAVE, NUMBER):
            os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)


checkpoint.save = counted  # type: ignore[assignment]
setattr(owner, name, killed)
runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")
