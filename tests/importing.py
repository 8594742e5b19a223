"""Helpers for the tests of the importers: they write invented sources and run the command on them."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from emollama.commands import importing
from emollama.data.annotations import read_annotations
from emollama.errors import UserError


def run(*arguments: object) -> None:
    """Run ``emollama import`` with these arguments in this process."""
    parser = argparse.ArgumentParser()
    importing.add_arguments(parser)
    importing.run(parser.parse_args([str(argument) for argument in arguments]))


def refusal(*arguments: object) -> str:
    """The error message of the command for these arguments."""
    with pytest.raises(UserError) as error:
        run(*arguments)
    return str(error.value)


def write_file(path: Path, text: str | bytes) -> Path:
    """Write the text to the path and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(folder: Path) -> list[tuple[str, str]]:
    """(name, label) of each line of the list that an import wrote, read by the reader of the datasets."""
    return [(clip.name, clip.label) for clip in read_annotations(str(folder / "clips.txt"))]


def table(path: Path) -> Any:
    """Load a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sentences(folder: Path) -> list[list[str]]:
    """Rows of the transcripts that an import wrote, without the header."""
    with (folder / "transcription_en_all.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def tree(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder, to compare before and after."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
