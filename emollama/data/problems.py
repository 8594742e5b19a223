"""What is wrong with a user's data, gathered so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emollama.errors import UserError


@dataclass(frozen=True)
class Problem:
    """Something that would stop a run.

    Attributes:
        kind: what it is about: "list", "label", "caption", "transcript", "missing features" or "unusable features".
        text: names file, line or key, and the remedy.
        clips: whose it is, where it is some clips'.
        details: the clips again, each with what is wrong with it; or nothing.
    """

    kind: str
    text: str
    clips: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


Report = Callable[[Problem], None]


def refuse(problem: Problem) -> None:
    """The report of a reader that nobody listens to: the first problem is an error.

    Raises:
        UserError: always.
    """
    raise UserError(problem.text)
