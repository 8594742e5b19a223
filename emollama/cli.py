"""Command lines: what the entry scripts share, and ``python -m emollama <command>``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import NoReturn

from emollama import distributed
from emollama.errors import EchoedError, UserError

SPEAKER_FIRST = 3.0  # seconds that a silent process waits, so that the launcher does not end the one that speaks


def parse_run(description: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """``--cfg-path`` and ``--options``, as every command that reads a configuration takes them."""
    parser = argparse.ArgumentParser(description=description)
    add_run_arguments(parser)
    return parser.parse_args(arguments)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path`` and ``--options`` to a parser."""
    parser.add_argument("--cfg-path", required=True, help="the YAML configuration")
    parser.add_argument("--options", nargs="*", default=[], metavar="a.b=c", help="values that override the YAML's")


def entry_point(main: Callable[[], None]) -> None:
    """Run; an error that is meant for the user is printed without a traceback, once, and exits with 1.

    With several processes a failing one leaves at once, without waiting for the others in the group's clean-up.
    """
    try:
        main()
    except UserError as error:
        every_rank_has_it = not distributed.joined() and int(os.environ.get("LOCAL_RANK", 0)) > 0
        if isinstance(error, EchoedError) or every_rank_has_it:
            time.sleep(SPEAKER_FIRST)
        else:
            sys.stderr.write(f"error: {error}\n")
        _leave(1)
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", 0)) == 0:
            sys.stderr.write("interrupted; a training run goes on by run.job_id and run.resume_ckpt_path: auto\n")
        _leave(130)
    except Exception:
        if not distributed.joined():
            raise
        traceback.print_exc()
        _leave(1)
    distributed.stop()


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """``emollama <command>``."""
    parser = argparse.ArgumentParser(prog="emollama", description="Tools around training and evaluation.")
    commands = parser.add_subparsers(dest="command", required=True)
    planned = commands.add_parser("plan", help="parameters, memory and tokens of a run, without weights or data")
    add_run_arguments(planned)
    planned.add_argument("--json", action="store_true", help="print a JSON object instead of tables")
    planned.set_defaults(run=_plan)
    shown = commands.add_parser("demo", help="both training stages and inference on an invented corpus")
    shown.add_argument("--folder", default="demo_run", help="where everything goes (default: demo_run)")
    shown.add_argument("--seed", type=int, default=42, help="of the corpus and of training")
    shown.add_argument("--processes", type=int, default=2, help="processes of each torchrun")
    shown.add_argument("--corpus-only", action="store_true", help="write the corpus and the tiny Llama, and stop")
    shown.set_defaults(run=_demo)
    listed = commands.add_parser("reference", help="every configuration key with its default, as Markdown")
    listed.set_defaults(run=_reference)
    arguments = parser.parse_args()
    entry_point(lambda: arguments.run(arguments))


def _plan(arguments: argparse.Namespace) -> None:
    from emollama.config import load
    from emollama.planning import plan

    result = plan(load(arguments.cfg_path, arguments.options))
    sys.stdout.write(json.dumps(asdict(result), indent=2) + "\n" if arguments.json else result.text() + "\n")


def _demo(arguments: argparse.Namespace) -> None:
    from emollama.demo.run import run_demo

    run_demo(arguments.folder, seed=arguments.seed, processes=arguments.processes, corpus_only=arguments.corpus_only)


def _reference(arguments: argparse.Namespace) -> None:
    from emollama.reference import markdown

    sys.stdout.write(markdown())
