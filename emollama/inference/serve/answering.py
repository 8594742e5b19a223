"""Wait for answers of the engine until they are complete, the client disconnects, or the time is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request as HttpRequest

from emollama.inference.requests import Answer, Request
from emollama.inference.serve.errors import ApiError, ClientGone

if TYPE_CHECKING:
    from emollama.inference.engine import Engine

T = TypeVar("T")


class Caller:
    """A client that waits for an answer.

    Args:
        request: the HTTP request, whose body is complete.
        seconds: maximum time that the client waits from now on.
    """

    def __init__(self, request: HttpRequest, seconds: float) -> None:
        self._receive, self._seconds = request.receive, seconds
        self.deadline = asyncio.get_running_loop().time() + seconds

    async def wait(self, result: Awaitable[T]) -> T:
        """Return a result.

        Raises:
            ApiError: If the time is over before.
            ClientGone: If the client disconnects before.
        """
        waiting, gone = asyncio.ensure_future(result), asyncio.ensure_future(self._disconnect())
        try:
            timeout = self.deadline - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait({waiting, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if waiting in done:
                return waiting.result()
            raise ClientGone if gone in done else self.too_late()
        finally:
            waiting.cancel()
            gone.cancel()

    def too_late(self) -> ApiError:
        """Return the error if the time is over."""
        message = f"There was no complete answer after {self._seconds:g} seconds. Ask for fewer tokens, or try again later."
        return ApiError(504, message, code="timeout")

    async def _disconnect(self) -> None:
        """Return when the client has disconnected."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def answer(engine: Engine, request: Request, caller: Caller) -> Answer:
    """Return the answer to a request. After an error, the engine stops working on it.

    Raises:
        ApiError: If the time is over.
        ClientGone: If the client disconnected.
        UserError: If the engine cannot answer the request.
    """
    pending = engine.submit(request)
    try:
        return await caller.wait(asyncio.wrap_future(pending.future))
    finally:
        pending.cancel()


class AnswerPieces:
    """The pieces of one answer, as the engine generates them.

    Args:
        engine: the engine.
        request: the request.
        caller: the client.

    Raises:
        QueueFull: If the engine has as many requests as it may.
    """

    def __init__(self, engine: Engine, request: Request, caller: Caller) -> None:
        self._loop, self._caller = asyncio.get_running_loop(), caller
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._first: str | None = None
        self._pending = engine.submit(request, on_text=self._put)
        self._pending.future.add_done_callback(lambda _: self._put(None))

    async def start(self) -> None:
        """Wait for the first piece, so that an error before it can have its own HTTP status.

        Raises:
            ApiError: If the time is over.
            ClientGone: If the client disconnected.
            UserError: If the engine cannot answer the request.
        """
        self._first = await self._caller.wait(self._pieces.get())
        if self._first is None:
            self.answer()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces. The response watches for the disconnect of the client meanwhile.

        Raises:
            ApiError: If the time is over.
        """
        piece = self._first
        while piece is not None:
            yield piece
            try:
                async with asyncio.timeout_at(self._caller.deadline):
                    piece = await self._pieces.get()
            except TimeoutError:
                raise self._caller.too_late() from None

    def answer(self) -> Answer:
        """Return the answer, after the last piece.

        Raises:
            UserError: If the engine could not complete it.
        """
        answer: Answer = self._pending.result(timeout=0)
        return answer

    def close(self) -> None:
        """Let the engine stop working on the request, if it is not complete."""
        self._pending.cancel()

    def _put(self, piece: str | None) -> None:
        """Pass a piece from the engine's thread to the event loop."""
        with suppress(RuntimeError):  # the loop is closed, because the process ends
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
