"""``failures.csv``: the clips that an encoder could not process, with reasons. Every extraction tries them again.

The file is written before the arrays of zeros that replace such clips. An array of zeros therefore always has a row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from emollama.data.csv_files import restore_formula, write_csv
from emollama.disk import remedy
from emollama.errors import UserError
from emollama.paths import read_text

FILE = "failures.csv"


class ExtractionFailure(NamedTuple):
    """A row of the file.

    Attributes:
        name: name of the clip.
        slot: the slot whose features are missing.
        encoder: label of the encoder's block.
        folder: the encoder's folder of features. Folder and name identify an array.
        video: path of the video; "" if there is no video.
        reason: the reason in one line.
    """

    name: str
    slot: str
    encoder: str
    folder: str
    video: str
    reason: str


def read(output: Path) -> list[ExtractionFailure]:
    """Read the failures of earlier extractions; return an empty list if the file does not exist.

    Raises:
        UserError: If the file cannot be read, or was not written by an extraction.
    """
    path = output / FILE
    if not path.is_file():
        return []
    try:
        header, *rows = csv.reader(io.StringIO(read_text(str(path)), newline=""), strict=True)
        if tuple(header) != ExtractionFailure._fields:
            raise ValueError(f"its header is {','.join(header)}")
        return [ExtractionFailure(*map(restore_formula, row)) for row in rows]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. {remedy(error)}") from None
    except (csv.Error, ValueError, TypeError) as error:
        text = f"{path}: not a list of failed clips in the format of this command ({error})."
        raise UserError(f"{text} Rename it, because the extraction writes a file with this name.") from None


def write(output: Path, failures: Iterable[ExtractionFailure]) -> None:
    """Write all failures, sorted by folder and name, in place of the existing file."""
    write_csv(output / FILE, [ExtractionFailure._fields, *sorted(failures, key=attrgetter("folder", "name"))])
