"""Send one request to each model, and follow the texts of their answers."""

from __future__ import annotations

import queue
from collections.abc import Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from emollama.inference.requests import Answer, Request

if TYPE_CHECKING:
    from emollama.inference.engine import Engine
    from emollama.inference.pending import PendingAnswer

SECONDS = 0.5  # between two updates of the elapsed time while there is no new text


def follow_answers(
    engines: Sequence[Engine], requests: Sequence[Request]
) -> Generator[tuple[str, ...], None, tuple[Answer, ...]]:
    """Yield the texts so far, one per model, whenever one of them grows, and at least every :data:`SECONDS`.

    Closing the generator cancels the requests.

    Args:
        engines: the models.
        requests: one request per model.

    Returns:
        The answers.

    Raises:
        UserError: If a model cannot answer. The requests to the others are then cancelled.
    """
    # None instead of a text: the answer is complete, or the model has failed.
    events: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
    texts = ["" for _ in engines]
    pending: list[PendingAnswer] = []
    try:
        for index, (engine, request) in enumerate(zip(engines, requests, strict=True)):
            pending.append(engine.submit(request, on_text=partial(_put, events, index)))
            pending[-1].future.add_done_callback(lambda _, index=index: events.put((index, None)))  # type: ignore[misc]
        missing = len(pending)
        while missing:
            for index, piece in _next(events):
                if piece is None:
                    pending[index].future.result()
                    missing -= 1
                else:
                    texts[index] += piece
            yield tuple(texts)
        return tuple(each.future.result() for each in pending)
    finally:
        for each in pending:
            each.cancel()


def _put(events: queue.SimpleQueue[tuple[int, str | None]], index: int, piece: str) -> None:
    events.put((index, piece))


def _next(events: queue.SimpleQueue[tuple[int, str | None]]) -> list[tuple[int, str | None]]:
    """Wait for an event, and return it with all others that have happened; nothing if there was none for a while."""
    new = []
    try:
        new.append(events.get(timeout=SECONDS))
        while True:
            new.append(events.get_nowait())
    except queue.Empty:
        return new
