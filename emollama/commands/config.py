"""``emollama config show``: what a YAML file comes to, and which layer gave each value."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from emollama.commands.arguments import add_run_arguments
from emollama.logs.console import output_errors, write_plain

HELP = "show the resolved configuration, and which layer set each value"
EXAMPLE = "emollama config show --cfg-path train_configs/custom.yaml"
DOCS = "docs/configuration.md"
SHOW = (
    "Print the configuration of a YAML file with the layer that gave each value; what is printed is itself a configuration."
    " Interpolations such as ${oc.env:NAME} are shown as they are written, so that nothing secret is printed."
)
COLUMN = 56  # where the layers begin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``show`` with ``--cfg-path``, ``--options``, ``--json``."""
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="print it", description=SHOW)
    add_run_arguments(show)
    show.add_argument("--json", action="store_true", help="print {key: {value, layer}} instead")


def run(arguments: argparse.Namespace) -> None:
    """Print the configuration; its warnings go to standard error."""
    from emollama.config import load
    from emollama.config.layers import leaves

    config = load(arguments.cfg_path, arguments.options)
    tree = config.plain()
    if arguments.json:
        values = {key: {"value": value, "layer": config.sources[key]} for key, value in leaves(tree)}
        write_plain(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    else:
        write_plain("".join(f"{line}\n" for line in _lines(tree, config.sources)))
    with output_errors():
        sys.stdout.flush()
    sys.stderr.writelines(f"warning: {text}\n" for text in config.warnings)


def _lines(node: dict[str, Any], sources: dict[str, str], path: str = "") -> Iterator[str]:
    """YAML of a tree, a value a line, its layer in a comment."""
    indent = "  " * path.count(".") if path else ""
    for key, value in node.items():
        name = key if re.fullmatch(r"[A-Za-z_][\w-]*", key) else json.dumps(key, ensure_ascii=False)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, sources, f"{path}{key}.")
        else:
            text = f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}"
            yield f"{text:<{COLUMN}}  # {sources[path + key]}"
