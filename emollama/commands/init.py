"""Write a starter configuration, with the paths of the data that a folder contains."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.logs.console import aligned, write

HELP = "write a starter configuration with the paths of your data"
EXAMPLE = "emollama init stage1 --data /data/emotion"
DOCS = "README.md#install-as-a-package"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the kind, ``--data`` and ``--output``."""
    from emollama.starter.kinds import KINDS

    kinds = f"kind of configuration: {', '.join(KINDS)}. Without a kind, the command describes all kinds"
    parser.add_argument("kind", nargs="?", choices=[*KINDS], metavar="KIND", help=kinds)
    data = "folder to search for data (default: $EMOLLAMA_DATA, or data/ if it exists, or the current directory)"
    parser.add_argument("--data", metavar="FOLDER", help=data)
    parser.add_argument("--output", metavar="FILE", help="the file to write, which must not exist (default: KIND.yaml)")


def run(arguments: argparse.Namespace) -> None:
    """Write the file; print the files that it uses, the missing ones and the next commands."""
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
    path = require_new_file(output)
    require_writable(path.parent, "--output")
    starter = build_starter(arguments.kind, Path(folder), output, source)
    try:
        with atomic_write(path) as file:
            file.write(starter.text)
    except OSError as error:
        what = remedy(error, "specify another file")
        raise UserError(f"--output: cannot write '{output}': {error.strerror}. {what}") from None
    lines = [f"Wrote {output} for {starter.folder}.", "Found:", *(f"  {line}" for line in starter.found_items)]
    if starter.missing_items:
        lines += ["Missing (search the file for MISSING):", *(f"  {line}" for line in starter.missing_items)]
    lines += ["Next:", *(f"  {command}" for command in starter.commands)]
    write("\n".join(lines) + "\n")
