"""Collect the clips and problems of a source while it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from emollama.data.annotations import NO_VALENCE, RowReader, column_reader, safe_name
from emollama.data.label_map import SKIP, LabelMap
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.labels import NO_LABEL
from emollama.importers.names import NameFormat
from emollama.listing import abbreviated
from emollama.suggestions import did_you_mean

OnProblem = Literal["error", "skip"]


@dataclass(frozen=True)
class Entry:
    """The annotations of one clip.

    Attributes:
        name: name of the clip.
        label: a label of the vocabulary, or :data:`NO_LABEL`.
        valence: the valence, or None.
        sentence: the spoken text; "" for a clip without speech, None if the source has no transcript of the clip.
        caption: the coarse caption, or None.
        fine: the clip's object in the file of fine captions, with the caption under ``smp_reason_caption``; or None.
        openset: emotion words without a fixed vocabulary, or None.
    """

    name: str
    label: str = NO_LABEL
    valence: float | None = None
    sentence: str | None = None
    caption: str | None = None
    fine: dict[str, Any] | None = None
    openset: list[str] | None = None


class Collector:
    """Collects clips, problems, and clips that are left out on purpose.

    Args:
        labels: maps labels of the source to labels of the vocabulary.
        name_format: builds the names of clips from several columns of a table; None if one column contains them.

    Attributes:
        entries: name -> clip.
        problems: problems that stop the import; with ``--on-problem skip``, their clips are left out.
        left_out: reason -> names that are left out without being a problem.
        notes: remarks for the user.
    """

    def __init__(self, labels: LabelMap, name_format: NameFormat | None = None) -> None:
        self.labels = labels
        self.name_format = name_format
        self.entries: dict[str, Entry] = {}
        self.problems: list[Problem] = []
        self.left_out: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._unknown: dict[str, list[tuple[str, str]]] = {}  # raw label -> (clip, where)

    def report(self, problem: Problem) -> None:
        """Record a problem. The caller does not add the clip that it is about."""
        self.problems.append(problem)

    def name_reader(self, path: str, header: Sequence[str], name_columns: Sequence[str]) -> RowReader:
        """Return a function from a row of a table to the clip's name as written there; it raises a ValueError for invalid rows.

        Args:
            path: the table, for messages.
            header: its columns.
            name_columns: possible columns of the name without a name format; the first one in the header is used.

        Raises:
            UserError: If columns are missing.
        """
        if self.name_format is None:
            return column_reader(path, header, name_columns)
        self.name_format.require_columns(path, header)
        return self.name_format.name

    def leave_out(self, reason: str, name: str) -> None:
        """Record a clip that is left out on purpose."""
        self.left_out.setdefault(reason, []).append(name)

    def is_usable(self, name: str, where: str) -> bool:
        """Whether an annotation file can contain a name; record a problem if not."""
        try:
            if name.split() != [name]:
                text = f"the name {name!r} contains white space, which separates fields in an annotation file. Rename the clip."
                raise ValueError(text if name.strip() else "the row has no name")
            safe_name(name)
        except ValueError as error:
            self.report(Problem("name", f"{where}: {error}", (name,)))
            return False
        return True

    def label(self, raw: str, name: str, where: str) -> str | None:
        """Return the label of a clip.

        Args:
            raw: the label in the source.
            name: name of the clip.
            where: file and line, for messages.

        Returns:
            A label of the vocabulary; None if the map skips the clip, or if the label is empty or unknown, which is a problem.
        """
        label = self.labels.resolve(raw)
        if label == SKIP:
            self.leave_out(f"the label map skips '{raw}'", name)
        elif label is None and not raw.strip():
            self.report(Problem("label", f"{where}: '{name}' has no label", (name,)))
        elif label is None:
            self._unknown.setdefault(raw, []).append((name, where))
        return None if label == SKIP else label

    def add(self, entry: Entry) -> None:
        """Add a clip whose name is usable and new."""
        self.entries[entry.name] = entry

    def finish(self, on_problem: OnProblem) -> None:
        """Check the collection after the source was read.

        Raises:
            UserError: If there are problems and ``on_problem`` is ``error`` (all in one message), or no clip is left.
        """
        # An unknown label is one problem, even if many clips have it: one entry of the label map solves it.
        for raw, clips in self._unknown.items():
            self.report(Problem("label", self._unknown_label(raw, clips), tuple(name for name, _ in clips)))
        self._unknown = {}
        details = "\n  " + abbreviated((problem.text for problem in self.problems), "\n  ") if self.problems else ""
        if self.problems and on_problem == "error":
            remedy = "Correct them, or leave these clips out with --on-problem skip"
            raise UserError(f"nothing was written; problems: {len(self.problems)}. {remedy}.{details}")
        if not self.entries:
            skipped = "".join(f"\n  {len(names)} left out: {reason}" for reason, names in self.left_out.items())
            raise UserError(f"nothing was written; no clip of the source is left{details}{skipped}")

    def _unknown_label(self, raw: str, clips: list[tuple[str, str]]) -> str:
        mapped = self.labels.mapped(raw)
        became = "" if mapped == raw else f" (mapped to '{mapped}')"
        return (
            f"{clips[0][1]}: the label '{raw}'{became} is not one of {abbreviated(self.labels.labels)}"
            f" (number of clips: {len(clips)}).{did_you_mean(mapped, self.labels.labels)}"
            f" Map it with --label-map: '{raw}: LABEL', or '{raw}: {SKIP}' to leave these clips out."
        )


def parse_valence(value: Any) -> float | None:
    """Return a valence as a number; None if it is absent, empty or -10.

    Raises:
        ValueError: If the value is not a finite number.
    """
    if value is None or value == "":
        return None
    try:
        valence = float(value)
    except (TypeError, ValueError):
        valence = math.nan
    if not math.isfinite(valence):
        raise ValueError(f"the valence {value!r} is not a finite number")
    return None if valence == NO_VALENCE else valence
