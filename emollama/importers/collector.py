"""What an import takes and what it leaves out, while a source is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from emollama.data.annotations import NO_VALENCE, safe_name
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.labels import NO_LABEL, SKIP, LabelMap
from emollama.listing import abbreviated
from emollama.registry import did_you_mean

OnProblem = Literal["error", "skip"]


@dataclass(frozen=True)
class Entry:
    """One clip, as far as its source knows it.

    Attributes:
        label: of the vocabulary, or :data:`NO_LABEL`.
        valence: None where there is none.
        sentence: what is said; "" is a clip without speech, None one of which nothing is known.
        caption: the coarse caption.
        fine: the clip's object in the fine captions' file, its caption under ``smp_reason_caption``; None where it has none.
        openset: emotion words without a fixed vocabulary.
    """

    name: str
    label: str = NO_LABEL
    valence: float | None = None
    sentence: str | None = None
    caption: str | None = None
    fine: dict[str, Any] | None = None
    openset: list[str] | None = None


class Collector:
    """Collects clips, problems and what is left out by the user's word.

    Args:
        labels: what the source's labels are called here.

    Attributes:
        entries: name -> clip.
        problems: what stops the import, or is left out with ``--on-problem skip``.
        left_out: reason -> names; by the user's word, or without loss.
        notes: lines for the user.
    """

    def __init__(self, labels: LabelMap) -> None:
        self.labels = labels
        self.entries: dict[str, Entry] = {}
        self.problems: list[Problem] = []
        self.left_out: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._unknown: dict[str, list[tuple[str, str]]] = {}  # raw label -> (clip, where)

    def report(self, problem: Problem) -> None:
        """Note a problem; the clip it is about is not taken."""
        self.problems.append(problem)

    def leave_out(self, reason: str, name: str) -> None:
        """Note a clip that is left out on purpose."""
        self.left_out.setdefault(reason, []).append(name)

    def is_usable(self, name: str, where: str) -> bool:
        """Whether a list can hold the name; if not, that is a problem."""
        try:
            if name.split() != [name]:
                says = f"the name {name!r} holds white space, which ends a name in a list. Rename the clip."
                raise ValueError(says if name.strip() else "the row has no name")
            safe_name(name)
        except ValueError as error:
            self.report(Problem("name", f"{where}: {error}", (name,)))
            return False
        return True

    def label(self, raw: str, name: str, where: str) -> str | None:
        """The label of a clip; None where it is left out: by the map, or because nothing says what the label is called here."""
        label = self.labels.resolve(raw)
        if label == SKIP:
            self.leave_out(f"the label map skips '{raw}'", name)
        elif label is None and not raw.strip():
            self.report(Problem("label", f"{where}: '{name}' has no label", (name,)))
        elif label is None:
            self._unknown.setdefault(raw, []).append((name, where))
        return None if label == SKIP else label

    def take(self, entry: Entry) -> None:
        """Take a clip whose name is usable and new."""
        self.entries[entry.name] = entry

    def settle(self, on_problem: OnProblem) -> None:
        """Close the collection.

        Raises:
            UserError: all problems at once, unless they are to be skipped; or no clip is left.
        """
        for raw, clips in self._unknown.items():
            self.report(Problem("label", self._complaint(raw, clips), tuple(name for name, _ in clips)))
        self._unknown = {}
        shown = "\n  " + abbreviated((problem.text for problem in self.problems), "\n  ") if self.problems else ""
        if self.problems and on_problem == "error":
            remedy = "Mend them, or leave these clips out with --on-problem skip"
            raise UserError(f"nothing was written; problems: {len(self.problems)}. {remedy}.{shown}")
        if not self.entries:
            skipped = "".join(f"\n  {len(names)} left out: {reason}" for reason, names in self.left_out.items())
            raise UserError(f"nothing was written; no clip is left of the source{shown}{skipped}")

    def _complaint(self, raw: str, clips: list[tuple[str, str]]) -> str:
        mapped = self.labels.mapped(raw)
        became = "" if mapped == raw else f", which a map makes '{mapped}',"
        return (
            f"{clips[0][1]}: the label '{raw}'{became} is none of {abbreviated(self.labels.labels)}"
            f" ({len(clips)} clips have it).{did_you_mean(mapped, self.labels.labels)}"
            f" Say with --label-map what it is: '{raw}: LABEL', or '{raw}: {SKIP}'."
        )


def valence_of(value: Any) -> float | None:
    """A valence as a number, or None where there is none: empty, absent or -10.

    Raises:
        ValueError: anything but a finite number.
    """
    if value is None or value == "":
        return None
    try:
        valence = float(value)
    except (TypeError, ValueError):
        valence = math.nan
    if not math.isfinite(valence):
        raise ValueError(f"the valence {value!r} is no number")
    return None if valence == NO_VALENCE else valence
