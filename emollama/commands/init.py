"""``emollama init``: a starter configuration, filled in with what a data folder contains."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from emollama.errors import UserError
from emollama.logs.console import aligned, write

HELP = "write a starter YAML, filled in with what is found in a data folder"
EXAMPLE = "emollama init stage1 --data /data/emotion"
DOCS = "README.md#install-as-a-package"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kind, ``--data``, ``--output``."""
    from emollama.starter.kinds import KINDS

    kinds = f"what the configuration is for: {', '.join(KINDS)}. Without one, the kinds are listed"
    parser.add_argument("kind", nargs="?", choices=[*KINDS], metavar="KIND", help=kinds)
    data = "where to look (default: $EMOLLAMA_DATA, else data/ if it exists, else the working folder)"
    parser.add_argument("--data", metavar="FOLDER", help=data)
    parser.add_argument("--output", metavar="FILE", help="the file to write (default: KIND.yaml); an existing one is an error")


def run(arguments: argparse.Namespace) -> None:
    """Write the file; print what was found, what is missing and the next commands."""
    from emollama.paths import atomic_write, require_new_file, require_utf8, require_writable
    from emollama.starter.kinds import KINDS
    from emollama.starter.starter import build_starter
    from emollama.starter.survey import require_data_folder

    if arguments.kind is None:
        lines = aligned([[f"  {name}", kind.text] for name, kind in KINDS.items()], left=(0, 1))
        write("\n".join(["Kinds of configurations (emollama init KIND [--data FOLDER]):", *lines]) + "\n")
        return
    output = arguments.output or f"{arguments.kind}.yaml"
    variable = os.environ.get("EMOLLAMA_DATA")
    folder = arguments.data or variable or ("data" if os.path.isdir("data") else ".")
    source = "--data" if arguments.data or not variable else "EMOLLAMA_DATA"
    require_data_folder(Path(require_utf8(folder, source)), source)
    place = require_new_file(output)
    require_writable(place.parent, "--output")
    starter = build_starter(arguments.kind, Path(folder), output, source)
    try:
        with atomic_write(place) as file:
            file.write(starter.text)
    except OSError as error:
        raise UserError(f"--output: cannot write '{output}': {error.strerror}. Name another file.") from None
    lines = [f"Wrote {output} for {starter.folder}.", "Found:", *(f"  {line}" for line in starter.found_items)]
    if starter.missing_items:
        lines += ["Missing (search the file for MISSING):", *(f"  {line}" for line in starter.missing_items)]
    lines += ["Next:", *(f"  {command}" for command in starter.commands)]
    write("\n".join(lines) + "\n")
