"""Command-line arguments that several commands and the entry scripts share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from emollama.errors import UserError
from emollama.json_io import parse_json
from emollama.logs.verbosity import configure


class Overrides(argparse.Action):
    """Combines the values of repeated ``--options`` and rejects the option without values."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        """Append the values to those of earlier ``--options``.

        Raises:
            argparse.ArgumentError: there are no values. Without this error, a run would start with unintended settings.
        """
        if not values:
            raise argparse.ArgumentError(self, "expected at least one value, such as --options run.max_epoch=1")
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values])


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path`` and ``--options`` to a parser."""
    parser.add_argument("--cfg-path", required=True, metavar="FILE", help="YAML configuration file")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--options`` to a parser."""
    text = "override values of the configuration file, for example run.max_epoch=1"
    parser.add_argument("--options", nargs="*", action=Overrides, default=[], metavar="KEY=VALUE", help=text)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet``, ``--verbose`` and ``--debug``, which every command has."""
    level = parser.add_mutually_exclusive_group()
    # Suppressed defaults: the parser of a command must not overwrite an option that precedes the command.
    flag: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS}
    level.add_argument("-q", "--quiet", help="print only warnings and errors", **flag)
    level.add_argument("-v", "--verbose", help="also print debug messages and warnings of libraries", **flag)
    parser.add_argument("--debug", help="print the traceback of an error", **flag)


def apply_output_options(arguments: argparse.Namespace) -> None:
    """Apply the options of :func:`add_output_options` to this process, and remove them from the arguments."""
    values = vars(arguments)
    options = {name: values.pop(name, False) for name in ("quiet", "verbose", "debug")}
    configure(**options)
    if options["verbose"]:
        from emollama.logs.logger import set_up

        set_up(is_main=os.environ.get("RANK", "0") == "0")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add ``--dry-run`` to a parser."""
    text = "check the configuration, data, checkpoints and memory without loading weights, print a summary and exit"
    parser.add_argument("--dry-run", action="store_true", help=text)


def add_predictions(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add ``--predictions``, ``--truth`` and ``--task`` to a parser."""
    parser.add_argument("--predictions", nargs="+", required=required, metavar="FILE", help="files of predictions, one per model")
    references = "files of references: labels, descriptions or emotion words, one of each kind (default: those in .jsonl files)"
    parser.add_argument("--truth", nargs="+", default=[], metavar="FILE", help=references)
    task = "use only this task, if the files contain several: emotion, reason, reason_v2 or caption"
    parser.add_argument("--task", metavar="NAME", help=task)


def add_resampling(parser: argparse.ArgumentParser, seed: str = "seed of the bootstrap (default: 0)") -> None:
    """Add ``--resamples`` and ``--seed`` to a parser; ``seed`` is the help of the latter."""
    resamples = "bootstrap resamples for the confidence intervals; 0 disables the intervals (default: 1000)"
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help=resamples)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=seed)


def add_imports(parser: argparse.ArgumentParser, components: str, *, repeated: bool = False) -> None:
    """Add ``--imports`` to the parser of a command without a configuration.

    Args:
        parser: the parser.
        components: the components that the command can use, for its help.
        repeated: whether the option takes one module and can be repeated, as in commands with positional arguments, which would
            otherwise be read as modules.
    """
    if repeated:
        text = f"your Python module that registers {components}, such as my_metrics; the option can be repeated"
        parser.add_argument("--imports", action="append", default=[], metavar="MODULE", help=text)
    else:
        text = f"your Python modules that register {components}, such as my_metrics (for my_metrics.py in the current directory)"
        parser.add_argument("--imports", nargs="+", default=[], metavar="MODULE", help=text)


def import_modules(arguments: argparse.Namespace) -> None:
    """Import the modules of ``--imports``.

    Raises:
        UserError: If a module cannot be imported.
    """
    if arguments.imports:
        from emollama.config.user_modules import import_user_modules, require_module_names

        require_module_names("--imports", arguments.imports)
        import_user_modules(arguments.imports, "--imports")


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Add ``--judge`` to a parser."""
    text = "judge of descriptions: lexical, or openai with its keys, such as openai model=NAME base_url=URL"
    parser.add_argument("--judge", nargs="+", default=[], metavar=("TYPE", "KEY=VALUE"), help=text)


def judge_block(values: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``--judge`` as the ``judge`` block of a configuration; without values, the block is empty."""
    if not values:
        return {}
    kind, *keys = values
    return {"type": kind} | {key: _value(text) for key, text in pairs(keys, "--judge", "KEY=VALUE").items()}


def _value(text: str) -> Any:
    """Parse a number, true, false, null or another JSON value; return anything else as text."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def pairs(items: Sequence[str], option: str, form: str) -> dict[str, str]:
    """Parse ``key=value`` arguments.

    Args:
        items: the arguments.
        option: the option that has them, for messages.
        form: the expected form, such as ``KEY=VALUE``, for messages.

    Raises:
        UserError: If an argument does not have this form, or a key occurs twice.
    """
    mapping: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UserError(f"{option}: expected {form}, got '{item}'.")
        if key in mapping:
            raise UserError(f"{option}: '{key}' occurs twice. Keep one value.")
        mapping[key] = value
    return mapping
