"""Stop a run that a launcher restarts again and again without progress."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from emollama.distributed.worker_variables import integer
from emollama.errors import NoProgress
from emollama.paths import atomic_write
from emollama.run_folder import ATTEMPTS

LIMIT = 3  # attempts from the same step


def require_progress(folder: Path, step: int) -> None:
    """Check that one of the last attempts of the launcher started from another step than this one.

    Args:
        folder: folder of the run.
        step: the first step of this attempt.

    Raises:
        NoProgress: If :data:`LIMIT` attempts in a row have started from this step, and have failed.
    """
    count = integer("TORCHELASTIC_RESTART_COUNT", 0)
    steps = _read(folder)
    earlier = range(count - LIMIT, count)
    if count >= LIMIT and all(steps.get(number) == step for number in earlier):
        raise NoProgress(
            f"the run was started {LIMIT} times from step {step} and failed each time before it saved a later checkpoint, so"
            " it is not started again. The errors of these attempts are above; a process without one was killed, usually because"
            " the machine ran out of memory. Correct the cause, or save more often"
            " (run.save_every_iters), and run the same command again"
        )


def record_attempt(folder: Path, step: int) -> None:
    """Record the first step of an attempt for :func:`require_progress`."""
    if not integer("TORCHELASTIC_MAX_RESTARTS", 0):
        return
    count = integer("TORCHELASTIC_RESTART_COUNT", 0)
    steps = {number: earlier for number, earlier in _read(folder).items() if count - LIMIT <= number < count} | {count: step}
    # A full disk must not end the run here.
    with suppress(OSError), atomic_write(folder / ATTEMPTS) as file:
        json.dump(steps, file)


def _read(folder: Path) -> dict[int, int]:
    """Return number of an attempt -> its first step."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        content = json.loads((folder / ATTEMPTS).read_text(encoding="utf-8"))
        return {int(number): int(step) for number, step in content.items()}
    return {}
