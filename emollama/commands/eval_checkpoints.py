"""Evaluate the start of training and the checkpoint of each epoch with one configuration; write a table and a line chart.

Checkpoints that are already evaluated are skipped. Rerun the command after an interruption, or when the run has new epochs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emollama.commands import running
from emollama.commands.arguments import pairs
from emollama.distributed.launcher import launch, processes_for
from emollama.distributed.stop_requests import STOP_REQUESTS
from emollama.errors import Stopped
from emollama.logs.console import write

HELP = "evaluate all checkpoints of a run; write a table and a chart of the metrics by epoch"
EXAMPLE = "emollama eval-checkpoints --cfg-path eval_configs/eval_emotion.yaml --run-folder RUN"
DOCS = "docs/evaluation.md#every-checkpoint-of-a-run"
WHEN_INTERRUPTED = "stopped; rerun the same command to continue"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--run-folder``, ``--checkpoints``, ``--output``, ``--again`` and ``--table-only``, and the arguments of a run."""
    running.add_arguments(parser)
    folder = "folder of the training run, output_dir/<job_id> (under torchrun, use the long name: torchrun has its own --run)"
    parser.add_argument("--run-folder", "--run", type=Path, required=True, metavar="FOLDER", dest="folder", help=folder)
    checkpoints = "additional checkpoints to evaluate; pretrained=FILE replaces the start of training in the run's config.yaml"
    parser.add_argument("--checkpoints", nargs="+", default=[], metavar="LABEL=FILE", help=checkpoints)
    output = "folder to write (default: sweep_<name of the YAML file> in the run folder)"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=output)
    parser.add_argument("--again", action="store_true", help="also evaluate checkpoints that are already evaluated")
    parser.add_argument("--table-only", action="store_true", help="only write the table and the chart again, without evaluation")


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the checkpoints that are not evaluated yet, and write the table and the chart."""
    with STOP_REQUESTS.handled():
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    from emollama.reporting.checkpoint_table import read_checkpoint_table, write_checkpoint_table

    output = arguments.output or arguments.folder / f"sweep_{Path(arguments.cfg_path).stem}"
    if arguments.table_only:
        write(write_checkpoint_table(read_checkpoint_table(output)))
        return
    from emollama.config import load

    def load_config(values: list[str]) -> Any:
        return load(arguments.cfg_path, [*arguments.options, *values])

    run_config = load_config(["model.ckpt=null"]).run
    processes = processes_for(arguments, run_config.device)
    from emollama.inference.run_checkpoints import checkpoints_of

    # Checked before worker processes start, which takes seconds.
    checkpoints = checkpoints_of(arguments.folder, pairs(arguments.checkpoints, "--checkpoints", "LABEL=FILE"))
    if processes > 1 and not arguments.dry_run:
        with running.supervised(run_config, launches=True):
            launch(arguments, processes, when_interrupted=WHEN_INTERRUPTED)
        return
    from emollama.inference.eval_checkpoints import CheckpointEvaluation

    if arguments.dry_run:
        from emollama.checks.dry_run import dry_run

        first, *others = CheckpointEvaluation(load_config, checkpoints, arguments.folder, output).configurations()
        write(dry_run(first, training=False, processes=processes, other_checkpoints=others))
        return
    try:
        with running.supervised(run_config, launches=False):
            write(CheckpointEvaluation(load_config, checkpoints, arguments.folder, output).run(again=arguments.again))
    except Stopped as stopped:
        raise Stopped(f"{stopped}; {WHEN_INTERRUPTED.partition('; ')[2]}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(WHEN_INTERRUPTED) from None
