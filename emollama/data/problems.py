"""Problems in a user's data, collected so that all of them can be reported at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emollama.errors import UserError
from emollama.listing import abbreviated


@dataclass(frozen=True)
class Problem:
    """A problem in the data that would stop a run, or a remark that ``emollama check-data`` reports as a note.

    Attributes:
        kind: the subject in two or three words, such as "list", "label", "caption", "transcript" or "missing features".
        text: the message, which names the file, line or key, and the remedy.
        clips: names of the clips or images that have the problem; empty if it does not concern single ones.
        details: one text per clip that says what is wrong with it; empty if the clips' names suffice.
    """

    kind: str
    text: str
    clips: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


Report = Callable[[Problem], None]


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise one error with the messages of all problems; do nothing if there are none.

    Raises:
        UserError: If there are problems.
    """
    if problems:
        raise UserError(abbreviated((problem.text for problem in problems), "\n"))


def raise_problem(problem: Problem) -> None:
    """Raise the problem as an error. This is the default of the readers' ``report`` argument.

    Raises:
        UserError: Always.
    """
    raise UserError(problem.text)
