"""``failures.csv``: the clips that an encoder could make nothing of, and why. Every run tries them again.

The file is there before an array of zeros that stands in for such a clip, so that no such array is without its row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from emollama.errors import UserError
from emollama.paths import atomic_write, read_text

FILE = "failures.csv"


class ExtractionFailure(NamedTuple):
    """A row.

    Attributes:
        name: the clip.
        slot: what is missing of it.
        encoder: label of the encoder's block.
        folder: of the encoder's features; with the name it says which array is meant.
        video: the clip's file; "" where there is none.
        reason: why, in one line.
    """

    name: str
    slot: str
    encoder: str
    folder: str
    video: str
    reason: str


def read(output: Path) -> list[ExtractionFailure]:
    """The rows of the last run; none where there was none.

    Raises:
        UserError: a file of that name which is something else.
    """
    path = output / FILE
    if not path.is_file():
        return []
    try:
        header, *rows = csv.reader(io.StringIO(read_text(str(path)), newline=""), strict=True)
        if tuple(header) != ExtractionFailure._fields:
            raise ValueError(f"its header is {','.join(header)}")
        return [ExtractionFailure(*row) for row in rows]
    except (csv.Error, ValueError, TypeError) as error:
        text = f"{path}: not a list of failed clips as this command writes it ({error})."
        raise UserError(f"{text} Move it away: this run writes one there.") from None


def write(output: Path, failures: Iterable[ExtractionFailure]) -> None:
    """Write all rows anew, sorted by folder and name."""
    with atomic_write(output / FILE) as file:
        table = csv.writer(file)
        table.writerow(ExtractionFailure._fields)
        table.writerows(sorted(failures, key=attrgetter("folder", "name")))
