"""Print the merged configuration of a YAML file, with the source of each value."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from emollama.commands.arguments import add_run_arguments
from emollama.logs.console import output_errors, write_plain

HELP = "show the merged configuration and the source of each value"
EXAMPLE = "emollama config show --cfg-path train_configs/custom.yaml"
DOCS = "docs/configuration.md"
SHOW = (
    "Print the configuration of a YAML file with all defaults, presets and --options. A comment names the source of each value."
    " The output is itself a valid configuration file. Interpolations such as ${oc.env:NAME} are printed unresolved, so that the"
    " output contains no secrets from environment variables."
)
COLUMN = 56  # column at which the comments start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-command ``show`` with ``--cfg-path``, ``--options`` and ``--json``."""
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="print the merged configuration", description=SHOW)
    add_run_arguments(show)
    show.add_argument("--json", action="store_true", help="print a JSON object {key: {value, layer}} instead of YAML")


def run(arguments: argparse.Namespace) -> None:
    """Print the configuration to standard output and its warnings to standard error."""
    from emollama.config import load
    from emollama.config.layers import leaves

    config = load(arguments.cfg_path, arguments.options)
    tree = config.unresolved()
    if arguments.json:
        values = {key: {"value": value, "layer": config.sources[key]} for key, value in leaves(tree)}
        write_plain(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    else:
        write_plain("".join(f"{line}\n" for line in _lines(tree, config.sources)))
    with output_errors():
        sys.stdout.flush()
    sys.stderr.writelines(f"warning: {text}\n" for text in config.warnings)


def _lines(node: dict[str, Any], sources: dict[str, str], path: str = "") -> Iterator[str]:
    """Yield a tree as YAML, with one value per line and its source in a comment."""
    indent = "  " * path.count(".") if path else ""
    for key, value in node.items():
        name = key if re.fullmatch(r"[A-Za-z_][\w-]*", key) else json.dumps(key, ensure_ascii=False)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, sources, f"{path}{key}.")
        else:
            text = f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}"
            yield f"{text:<{COLUMN}}  # {sources[path + key]}"
