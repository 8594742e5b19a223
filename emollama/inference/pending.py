"""A request on its way through the engine, and the text that it has produced so far."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from emollama.data.prompts.prompt import PromptFormat
from emollama.errors import UserError
from emollama.inference.requests import Answer, Request
from emollama.memory import first_line, is_out_of_memory
from emollama.runners import out_of_memory

REPLACEMENT = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


class PendingAnswer:
    """An answer that the engine is computing.

    Attributes:
        request: the request.
        future: becomes the answer. ``asyncio.wrap_future`` makes it awaitable.
    """

    def __init__(self, request: Request, on_text: Callable[[str], None] | None) -> None:
        self.request = request
        self.future: Future[Answer] = Future()
        self.on_text = on_text
        self.submitted = time.perf_counter()

    def result(self, timeout: float | None = None) -> Answer:
        """Wait for the answer.

        Args:
            timeout: seconds after which a :class:`TimeoutError` is raised; None waits as long as needed.

        Raises:
            UserError: If the request cannot be answered.
            TimeoutError: If there is no answer in time. The request continues; :meth:`cancel` ends it.
            concurrent.futures.CancelledError: If the request was cancelled.
        """
        return self.future.result(timeout)

    def cancel(self) -> None:
        """End the request if it has no answer yet, and free its place."""
        self.future.cancel()

    @property
    def is_over(self) -> bool:
        """Whether the request has an answer, failed, or was cancelled."""
        return self.future.done()

    def succeed(self, answer: Answer) -> None:
        """Set the answer, unless the request was cancelled."""
        with suppress(InvalidStateError):
            self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Set the error, unless the request was cancelled."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class AnswerStream:
    """Pieces of the text of an answer, as they are generated. Together, they are the text of the answer.

    There is one exception: if the model writes the closing of its prompt template, such as [/INST], the answer is only what
    follows, but the text before it has been passed on.

    Args:
        submit: starts the request with a function that receives each piece.
    """

    def __init__(self, submit: Callable[[Callable[[str], None]], PendingAnswer]) -> None:
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._pending = submit(self._pieces.put)
        self._pending.future.add_done_callback(lambda _: self._pieces.put(None))

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces.

        Raises:
            UserError: If the request cannot be answered.
        """
        while (piece := self._pieces.get()) is not None:
            yield piece
        # A later iteration ends at once.
        self._pieces.put(None)
        if not self._pending.future.cancelled():
            self._pending.result()

    @property
    def answer(self) -> Answer:
        """The answer; waits for its end."""
        return self._pending.result()

    def close(self) -> None:
        """End the request if it has no answer yet."""
        self._pending.cancel()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class StreamedText:
    """Cuts the text of a growing answer into pieces.

    A piece is held back while a later token can change it: white space at the end, which the answer may end with, single bytes,
    and a possible beginning of the end symbol.

    Args:
        prompt_format: the prompt format, which decodes ids.
        end_symbol: text that ends an answer.
        emit: receives each piece.
    """

    def __init__(self, prompt_format: PromptFormat, end_symbol: str, emit: Callable[[str], None]) -> None:
        self._prompt_format, self._end_symbol, self._emit = prompt_format, end_symbol, emit
        self._emitted = ""

    def update(self, ids: Sequence[int]) -> None:
        """Emit what a later token cannot change."""
        tokens = self._prompt_format.tokenizer.convert_ids_to_tokens(list(ids))
        # Bytes in a row are decoded together: an invalid one changes those before it.
        stable = len(tokens) - next((count for count, token in enumerate(reversed(tokens)) if not _is_byte(token)), len(tokens))
        text = self._prompt_format.answer_text(list(ids[:stable])).rstrip(REPLACEMENT).rstrip()
        partial = (length for length in range(len(self._end_symbol) - 1, 0, -1) if text.endswith(self._end_symbol[:length]))
        self._emit_up_to(text[: len(text) - next(partial, 0)].rstrip())

    def finish(self, text: str) -> None:
        """Emit the rest of the answer."""
        self._emit_up_to(text)

    def _emit_up_to(self, text: str) -> None:
        if len(text) > len(self._emitted) and text.startswith(self._emitted):
            piece, self._emitted = text[len(self._emitted) :], text
            self._emit(piece)


def _is_byte(token: str) -> bool:
    """Return whether a token of a SentencePiece model is a single byte, such as <0x2B>."""
    return len(token) == 6 and token.startswith("<0x")


def without_tensors(error: BaseException) -> BaseException:
    """Return the error; if memory is exhausted, one that does not refer to the tensors of the batch, and free their memory."""
    if not is_out_of_memory(error):
        return error
    reason = first_line(error)
    error.with_traceback(None)
    out_of_memory.free_unused()
    return UserError(f"out of memory ({reason}). Lower max_batch_size, the number of answers that are generated at a time.")
