"""The environment variables with which small float32 batches run fastest on a CPU, as ``make demo`` sets them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# One thread per process; freed memory stays with the process; no threads of the tokenizer.
FAST = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "TOKENIZERS_PARALLELISM": "false"}


def restart_with_fast_settings() -> None:
    """Start the program again with those of the variables that are not set; child processes inherit them.

    The C library reads MALLOC_MMAP_MAX_ only when a process starts. Within another program (a test, a notebook) nothing is
    started again.
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
