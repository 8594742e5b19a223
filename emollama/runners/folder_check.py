"""Check the folder of a run before anything expensive starts."""

from __future__ import annotations

from pathlib import Path

from emollama.disk import require_no_folder, require_readable
from emollama.paths import require_writable
from emollama.run_folder import CONFIG, EVALUATIONS, LOG, RESULT

KEY = "run.output_dir"
# The files that training or an evaluation reads or replaces, as glob patterns.
FILES = (
    *(CONFIG, LOG, EVALUATIONS, "checkpoint_*.pth", "checkpoint_*.sha256", "wandb_id.txt"),
    *(f"{RESULT}/{name}" for name in (CONFIG, "metrics_*.json", "predictions_*")),
    *(f"{RESULT}/epoch_*/{name}" for name in ("metrics_*.json", "predictions_*")),
)


def check_run_folder(folder: Path) -> None:
    """Check that files can be written to the folder of a run, which may not exist yet, and that its files can be read.

    Raises:
        UserError: If not, or if a folder has the name of a file. The message names the path.
    """
    require_writable(folder, KEY)
    if folder.is_dir():
        require_readable(str(folder), KEY)
    for path in (path for pattern in FILES for path in sorted(folder.glob(pattern))):
        require_no_folder(path)
        require_readable(str(path), KEY)
