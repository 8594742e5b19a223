"""What the tests of the importers share: invented sources, and the command run over them."""

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
    """``emollama import`` with these arguments, in this process."""
    parser = argparse.ArgumentParser()
    importing.add_arguments(parser)
    importing.run(parser.parse_args([str(argument) for argument in arguments]))


def refusal(*arguments: object) -> str:
    """What the command says when it refuses these arguments."""
    with pytest.raises(UserError) as error:
        run(*arguments)
    return str(error.value)


def written(path: Path, text: str | bytes) -> Path:
    """The path, after writing the text to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(folder: Path) -> list[tuple[str, str]]:
    """(name, label) of the list that an import wrote, through the datasets' reader."""
    return [(clip.name, clip.label) for clip in read_annotations(str(folder / "clips.txt"))]


def table(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sentences(folder: Path) -> list[list[str]]:
    """Rows of the transcripts that an import wrote, without the header."""
    with (folder / "transcription_en_all.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, to see that nothing changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
