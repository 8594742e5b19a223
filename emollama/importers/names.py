"""Names of clips that are composed of several columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter

from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.suggestions import did_you_mean

EXAMPLE = "dia{Dialogue_ID}_utt{Utterance_ID}"  # the names of MELD's videos


class NameFormat:
    """A format string over the columns of a table, such as ``dia{Dialogue_ID}_utt{Utterance_ID}``.

    A column may have a format specification, ``{number:05}``, which is applied to whole numbers as numbers and to other cells as
    text.

    Args:
        template: the value of ``--name``.

    Raises:
        UserError: If the template is not a format string or contains no column.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            self._parts = list(Formatter().parse(template))
        except ValueError as error:
            raise UserError(f"--name: '{template}' is not a format string ({error}). Write for example '{EXAMPLE}'.") from None
        self.columns = [column for _, column, _, _ in self._parts if column is not None]
        if not self.columns or "" in self.columns or any(conversion for *_, conversion in self._parts):
            text = f"--name: expected a format string with columns in braces, such as '{EXAMPLE}', got '{template}'."
            raise UserError(f"{text} Use --name-column for a single column of names." if not self.columns else text)

    def require_columns(self, path: str, header: Sequence[str]) -> None:
        """Check that a table has all columns.

        Raises:
            UserError: If a column is missing.
        """
        if missing := [column for column in self.columns if column not in header]:
            hint = "".join(did_you_mean(column, header) for column in missing)
            columns = f"{path}, line 1: no column {', '.join(map(repr, missing))}, which --name '{self.template}' contains."
            raise UserError(f"{columns}{hint} The header is {abbreviated(header)}.")

    def name(self, row: Mapping[str, str]) -> str:
        """Return the name of a row.

        Raises:
            ValueError: If a cell is empty, or does not fit the format specification.
        """
        text = ""
        for literal, column, specification, _ in self._parts:
            text += literal
            if column is not None:
                text += _formatted(row[column], column, specification or "")
        return text


def _formatted(cell: str, column: str, specification: str) -> str:
    if not cell:
        raise ValueError(f"the column '{column}' is empty, which --name needs")
    value: int | str = int(cell) if specification and cell.isdecimal() else cell
    try:
        return format(value, specification)
    except ValueError as error:
        raise ValueError(f"--name: cannot format '{cell}' of the column '{column}' as '{specification}' ({error})") from None
