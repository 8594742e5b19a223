"""Extract features from videos with the encoders of a configuration, in one or several processes.

If the command was stopped, rerun it to continue.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from emollama.commands.running import add_arguments
from emollama.distributed.launcher import launch, processes_for
from emollama.distributed.watchdog import watching
from emollama.logs.console import write

__all__ = ["add_arguments"]
HELP = "extract features from videos with the encoders of a configuration"
EXAMPLE = "emollama extract --cfg-path train_configs/demo_videos.yaml"
DOCS = "docs/extraction.md#extract"
WHEN_INTERRUPTED = "stopped; rerun the same command to continue"


def run(arguments: argparse.Namespace) -> None:
    """Extract the features that do not exist yet, and report failures."""
    from emollama.config import load
    from emollama.errors import UserError
    from emollama.paths import require_folder, require_writable

    config = load(arguments.cfg_path, arguments.options, needs_model=False)
    if config.extraction is None:
        raise UserError(f"{arguments.cfg_path}: no 'extraction' block. Add extraction: {{videos: FOLDER, output: FOLDER}}.")
    processes = processes_for(arguments, config.extraction.device, "extraction.device")
    if processes > 1 and not arguments.dry_run:
        # Checked before worker processes start, which takes seconds.
        require_folder(config.extraction.videos, "extraction.videos")
        require_writable(Path(config.extraction.output), "extraction.output")
        launch(arguments, processes, when_interrupted=WHEN_INTERRUPTED)
        return
    extraction = config.extractor_class(config)
    if arguments.dry_run:
        write(extraction.dry_run(processes))
        return
    try:
        with watching(config.run.hang_minutes):
            extraction.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(WHEN_INTERRUPTED) from None
