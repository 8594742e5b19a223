"""Estimate the parameters, memory and tokens of a run, without loading weights or data."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from functools import partial

from emollama.commands.arguments import add_run_arguments
from emollama.distributed.launcher import positive
from emollama.logs.console import write

HELP = "estimate parameters, memory and tokens of a run, without loading weights or data"
EXAMPLE = "emollama plan --cfg-path train_configs/custom.yaml"
DOCS = "README.md#train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path``, ``--options``, ``--gpus``, ``--gpu``, ``--tflops`` and ``--json``."""
    add_run_arguments(parser)
    text = (
        "number of GPUs; with several, each value of run.parallel is planned, hsdp for groups of run.shard_size or 8 (default: 1)"
    )
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help=text)
    text = "memory of a GPU in GiB: prints whether the run fits, and the largest run.max_tokens that does"
    parser.add_argument("--gpu", type=_positive_number, metavar="GIB", help=text)
    text = "10^12 floating-point operations that a GPU computes per second in a step, to estimate the time of the run"
    parser.add_argument("--tflops", type=_positive_number, metavar="RATE", help=text)
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of tables")


def run(arguments: argparse.Namespace) -> None:
    """Print the plan."""
    from emollama.config import load
    from emollama.planning.estimate import plan
    from emollama.runners.sharding_check import require_keys, require_model
    from emollama.runners.step_layout import require_valid_steps

    config = load(arguments.cfg_path, arguments.options)
    require_valid_steps(config, arguments.gpus)
    require_keys(config, arguments.gpus, training=bool(config.datasets))
    check = partial(require_model, config=config)
    result = plan(config, gpus=arguments.gpus, gpu_gib=arguments.gpu, tflops=arguments.tflops, check=check)
    write(json.dumps(asdict(result), indent=2) + "\n" if arguments.json else result.text() + "\n")


def _positive_number(text: str) -> float:
    """Return a number above 0, for argparse."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number
