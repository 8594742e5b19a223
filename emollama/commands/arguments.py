"""Arguments that several commands and the entry scripts share."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from emollama.errors import UserError
from emollama.logs.verbosity import configure


class Overrides(argparse.Action):
    """Collects the values of ``--options``, and refuses the option without a value: a forgotten value must not start a run."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        """Add the values to those of an earlier ``--options``.

        Raises:
            argparse.ArgumentError: there is none.
        """
        if not values:
            raise argparse.ArgumentError(self, "no value follows. The form is: --options run.max_epoch=1")
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values])


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path`` and ``--options`` to a parser."""
    parser.add_argument("--cfg-path", required=True, help="the YAML configuration")
    text = "values that override the YAML's"
    parser.add_argument("--options", nargs="*", action=Overrides, default=[], metavar="a.b=c", help=text)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet``, ``--verbose`` and ``--debug``, which every command has."""
    amount = parser.add_mutually_exclusive_group()
    given: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS}
    amount.add_argument("-q", "--quiet", help="print warnings and errors only", **given)
    amount.add_argument("-v", "--verbose", help="print debug messages and the libraries' warnings too", **given)
    parser.add_argument("--debug", help="print the traceback of every error", **given)


def apply_output_options(arguments: argparse.Namespace) -> None:
    """Apply the options of :func:`add_output_options` to this process, and remove them from the arguments."""
    given = vars(arguments)
    options = {name: given.pop(name, False) for name in ("quiet", "verbose", "debug")}
    configure(**options)
    if options["verbose"]:
        from emollama.logs.logger import set_up

        set_up(is_main=os.environ.get("RANK", "0") == "0")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """``--dry-run``."""
    text = "check the configuration, data, checkpoints and memory without loading weights, print a summary, and stop"
    parser.add_argument("--dry-run", action="store_true", help=text)


def add_answers(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """``--predictions``, ``--truth``, ``--task``."""
    parser.add_argument("--predictions", nargs="+", required=required, metavar="FILE", help="files of answers, one a model")
    truth = "what is true: labels, descriptions, emotion words, a file of each (default: the references in .jsonl files)"
    parser.add_argument("--truth", nargs="+", default=[], metavar="FILE", help=truth)
    task = "the only task to look at, of files that hold several: emotion, reason, reason_v2, caption"
    parser.add_argument("--task", metavar="NAME", help=task)


def add_resampling(parser: argparse.ArgumentParser, seed: str = "of the draws (default: 0)") -> None:
    """``--resamples``, ``--seed``."""
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default: 1000; 0: none)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=seed)


def add_judge(parser: argparse.ArgumentParser) -> None:
    """``--judge``."""
    text = "who judges descriptions: lexical, or openai model=... base_url=... (its keys as key=value)"
    parser.add_argument("--judge", nargs="+", default=[], metavar=("TYPE", "KEY=VALUE"), help=text)


def judge_block(given: Sequence[str]) -> dict[str, Any]:
    """What ``--judge`` asks for, as a judge's block of a configuration; empty where nothing was given."""
    if not given:
        return {}
    kind, *keys = given
    return {"type": kind} | {key: _value(text) for key, text in pairs(keys, "--judge", "KEY=VALUE").items()}


def _value(text: str) -> Any:
    """60, 0.5, true, null as such; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def pairs(items: Sequence[str], option: str, form: str) -> dict[str, str]:
    """``key=value`` arguments as a mapping.

    Raises:
        UserError: one without a key or =, or a key twice.
    """
    found: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UserError(f"{option}: '{item}' is not {form}")
        if key in found:
            raise UserError(f"{option}: '{key}' is given twice")
        found[key] = value
    return found
