"""Environment variables that make small float32 batches fast on a CPU; ``make demo`` sets the same."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# One thread per process, no return of freed memory to the system, no threads of the tokenizer.
FAST = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "TOKENIZERS_PARALLELISM": "false",
}


def restart_with_fast_settings() -> None:
    """Restart the program with the variables that are not set yet. Child processes inherit them.

    A restart is necessary, because the C library reads its variables only when a process starts. Do nothing if emollama runs
    inside another program, such as a test or a notebook.
    """
    missing = {name: value for name, value in FAST.items() if name not in os.environ}
    if not missing or not _is_program():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | missing)


def _is_program() -> bool:
    """Whether this process runs ``emollama`` or ``python -m emollama``."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return bool(spec.name == "emollama.__main__")
    return Path(getattr(main, "__file__", "")).stem == "emollama"
