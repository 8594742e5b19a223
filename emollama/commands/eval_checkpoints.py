"""``emollama eval-checkpoints``: what training began from and each epoch's checkpoint, evaluated alike: a table and a line chart.

A sweep that was stopped resumes where it stopped; during training, a later sweep evaluates only the new epochs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emollama.commands.arguments import add_dry_run, add_run_arguments, pairs
from emollama.distributed.launcher import add_launch_arguments, launch, processes_for
from emollama.logs.console import write

HELP = "evaluate every checkpoint of a run; write a table and a chart of the metrics by epoch"
EXAMPLE = "emollama eval-checkpoints --cfg-path eval_configs/eval_emotion.yaml --run-folder RUN"
DOCS = "docs/evaluation.md#every-checkpoint-of-a-run"
WHEN_INTERRUPTED = "stopped; rerun the same command to continue"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--run-folder``, ``--checkpoints``, ``--output``, ``--again``, ``--table-only``; those of a run and of the launcher."""
    add_run_arguments(parser)
    add_dry_run(parser)
    add_launch_arguments(parser)
    folder = "of the training run (torchrun takes --run for an option of its own)"
    parser.add_argument("--run-folder", "--run", type=Path, required=True, metavar="FOLDER", dest="folder", help=folder)
    more = "further rows: a name and a checkpoint each; pretrained=FILE replaces what config.yaml of the run says"
    parser.add_argument("--checkpoints", nargs="+", default=[], metavar="LABEL=FILE", help=more)
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="(default: sweep_<name of the YAML file> in the run's folder)"
    )
    parser.add_argument("--again", action="store_true", help="evaluate what was evaluated before, too")
    parser.add_argument("--table-only", action="store_true", help="evaluate nothing: draw table and chart again")


def run(arguments: argparse.Namespace) -> None:
    """Evaluate what is left to do, and write table and chart."""
    from emollama.reporting.checkpoint_table import read_checkpoint_table, write_checkpoint_table

    output = arguments.output or arguments.folder / f"sweep_{Path(arguments.cfg_path).stem}"
    if arguments.table_only:
        write(write_checkpoint_table(read_checkpoint_table(output)))
        return
    from emollama.config import load

    def configured(values: list[str]) -> Any:
        return load(arguments.cfg_path, [*arguments.options, *values])

    processes = processes_for(arguments, configured(["model.ckpt=null"]).run.device)
    from emollama.inference.run_checkpoints import checkpoints_of

    # Before the processes take seconds to start.
    checkpoints = checkpoints_of(arguments.folder, pairs(arguments.checkpoints, "--checkpoints", "LABEL=FILE"))
    if processes > 1 and not arguments.dry_run:
        launch(arguments, processes, when_interrupted=WHEN_INTERRUPTED)
        return
    from emollama.inference.eval_checkpoints import CheckpointEvaluation

    sweep = CheckpointEvaluation(configured, checkpoints, arguments.folder, output)
    if arguments.dry_run:
        from emollama.checks.dry_run import dry_run

        first, *others = sweep.configurations()
        write(dry_run(first, training=False, processes=processes, other_checkpoints=others))
        return
    try:
        write(sweep.run(again=arguments.again))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(WHEN_INTERRUPTED) from None
