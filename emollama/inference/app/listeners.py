"""Which pages receive the results of their events, and how many answers a session may have computed at a time.

A browser sends an event, and opens a connection for its results right after it. Events of a client that never opens one would
occupy the places of other visitors.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from emollama.errors import UserError

GRACE_SECONDS = 15.0  # from an event until the connection for its results, or from the end of one until the next
MAX_UNHEARD = 6  # events of a session without such a connection; fewer than answers are computed at a time
MAX_ANSWERS = 4  # that are computed for a session at a time


@dataclass
class _Page:
    """A page with recent events.

    Attributes:
        session: the session of the page.
        since: when it began to have no connection.
        connections: number of its connections for results.
        unheard: number of its events without one.
    """

    session: str
    since: float
    connections: int = 0
    unheard: int = 0


@dataclass(frozen=True)
class AnswerLimit:
    """When an answer ends early: after some time, or when its page receives nothing any more.

    Attributes:
        listeners: the pages that receive answers.
        page: the page of the answer.
        seconds: maximum time of the answer.
        deadline: end of this time.
    """

    listeners: Listeners
    page: str
    seconds: float
    deadline: float

    def require(self) -> None:
        """Check that the answer may continue.

        Raises:
            UserError: If it may not.
        """
        if (reason := self._reason()) is not None:
            raise UserError(reason)

    def is_over(self) -> bool:
        """Return whether the answer has to end."""
        return self._reason() is not None

    def _reason(self) -> str | None:
        """Return why the answer has to end; None if it may continue."""
        if self.listeners.has_passed(self.deadline):
            text = f"The answer was not complete after {self.seconds:g} seconds."
            return f"{text} Lower the maximum length under Options, or ask again later."
        return None if self.listeners.is_listening(self.page) else "The page does not receive the answer. Reload it."


class Listeners:
    """The connections of pages for results. All methods are thread-safe.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._pages: dict[str, _Page] = {}
        self._answers: Counter[str] = Counter()

    def add_event(self, session: str, page: str) -> None:
        """Register an event of a page.

        Raises:
            UserError: If nobody receives the results of too many events of the session.
        """
        with self._lock:
            pages = self._recent_pages()
            if page in pages and pages[page].connections:
                return
            if sum(each.unheard for each in pages.values() if each.session == session) >= MAX_UNHEARD:
                raise UserError("The page does not receive the results of its events. Reload it, or try again later.")
            entry = pages.setdefault(page, _Page(session, self._clock()))
            entry.unheard += 1
            # The browser opens the connection for the results of this event now.
            entry.since = self._clock()

    @contextmanager
    def listening(self, session: str, page: str) -> Iterator[None]:
        """Register a connection for the results of a page in this context."""
        with self._lock:
            entry = self._pages.setdefault(page, _Page(session, self._clock()))
            entry.connections += 1
            entry.unheard = 0
        try:
            yield
        finally:
            with self._lock:
                entry.connections -= 1
                entry.since = self._clock()

    def is_listening(self, page: str) -> bool:
        """Return whether a page receives results, or may still open a connection for them."""
        with self._lock:
            return page in self._recent_pages()

    @contextmanager
    def answering(self, page: str) -> Iterator[None]:
        """Count an answer of the page's session in this context.

        Raises:
            UserError: If the session has too many of them.
        """
        with self._lock:
            entry = self._pages.get(page)
            session = page if entry is None else entry.session
            if self._answers[session] >= MAX_ANSWERS:
                raise UserError("Your questions in other windows are being answered. Wait for them, or stop one of them.")
            self._answers[session] += 1
        try:
            yield
        finally:
            with self._lock:
                self._answers[session] -= 1
                if not self._answers[session]:
                    del self._answers[session]

    def limit(self, page: str, seconds: float) -> AnswerLimit:
        """Return the limit of an answer to an event of a page that has just been sent."""
        return AnswerLimit(self, page, seconds, self._clock() + seconds)

    def has_passed(self, deadline: float) -> bool:
        """Return whether a time has passed."""
        return self._clock() > deadline

    def _recent_pages(self) -> dict[str, _Page]:
        """Forget the pages that receive no results any more, and return the others."""
        start = self._clock() - GRACE_SECONDS
        self._pages = {name: each for name, each in self._pages.items() if each.connections or each.since > start}
        return self._pages
