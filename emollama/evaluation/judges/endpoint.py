"""A client for OpenAI-compatible endpoints: the only module that imports the ``openai`` package.

The API key is read from the environment when questions are asked and is only held by the client meanwhile. It is removed from
every text that the server returns, both from replies and from errors that repeat the request.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from emollama.errors import UserError
from emollama.evaluation.judges.cache import Reply
from emollama.evaluation.judges.judge import JudgeUnreachable
from emollama.evaluation.judges.prompts import Messages
from emollama.evaluation.judges.replies import excerpt
from emollama.logs.console import track
from emollama.text_encoding import encodable

GIVE_UP_AFTER = 16  # consecutive failed questions, each after its retries; one that timed out counts as several
CONNECT_SECONDS = 10.0
MIN_SECRET_LENGTH = 6  # characters; a shorter key is a stand-in such as "none" or "x" and may be part of any text
_TIMEOUT_STATUS = (408, 504, 524)  # timeouts reported by the server or a proxy
_NO_MONEY = "insufficient_quota"  # code of a 429 that does not go away with waiting
_NO_CONNECTION = ("ConnectError", "ConnectTimeout")  # httpx: refused, unknown host, bad certificate, no response


@dataclass(frozen=True)
class NoReply:
    """The outcome of a question without a reply.

    Attributes:
        reason: reason, without the key.
        hopeless: whether all other questions will fail, too.
        forbidden: whether the server refused access: either the key has none, so that all questions fail, or the server rejected
            this text. Answers to other questions show which it is.
        timed_out: whether the question timed out.
    """

    reason: str
    hopeless: bool = False
    forbidden: bool = False
    timed_out: bool = False


@dataclass(frozen=True)
class Endpoint:
    """Address and request settings of an endpoint; the fields are those of the judge's Config."""

    url: str
    model: str
    key_env: str | None
    concurrency: int
    timeout: float
    retries: int
    temperature: float | None
    max_tokens: int | None

    def key(self) -> str | None:
        """Return the key in the environment; None if the server needs none.

        Raises:
            UserError: If the variable is not set, or its value cannot be a key. The message only contains the variable's name.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise UserError(f"the environment variable {self.key_env} is not set. Set it to the judge's key, or key_env to null.")
        if not key.isascii() or not key.isprintable() or " " in key:
            problem = "contains spaces or characters that are not printable ASCII"
            raise UserError(f"the environment variable {self.key_env} {problem}. Set it to the judge's key.")
        return key

    def ask(
        self, questions: Sequence[Messages], store: Callable[[int, Reply], None], answered_before: int
    ) -> list[Reply | NoReply]:
        """Ask several questions concurrently. The client retries each of them up to ``retries`` times.

        It raises JudgeUnreachable when the endpoint cannot be reached, the key or the model is rejected, no question of the batch
        was answered, GIVE_UP_AFTER consecutive questions failed, or as many consecutive questions timed out as run at a time (at
        least 2). Remaining questions are then not sent.

        Args:
            questions: the messages of each request.
            store: called with the index of a question and its reply as soon as the reply arrives, in the requesting thread.
            answered_before: number of other questions of the same batch that are already answered.

        Returns:
            The outcomes, in the order of the questions.

        Raises:
            JudgeUnreachable: If more questions would be useless; see above.
        """
        import openai

        key = self.key()
        limits = openai.Timeout(self.timeout, connect=min(self.timeout, CONNECT_SECONDS))
        client = openai.OpenAI(api_key=key or "none", base_url=self.url, timeout=limits, max_retries=self.retries)
        redact = _redaction(key)

        def ask_and_store(index: int) -> Reply | NoReply:
            outcome = self._ask_one(client, questions[index], redact)
            if isinstance(outcome, Reply):
                store(index, outcome)
            return outcome

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            futures = [pool.submit(ask_and_store, index) for index in range(len(questions))]
            self._watch(futures, answered_before)
        finally:
            # A closed client sends nothing, so questions that still wait for a retry end.
            client.close()
            pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]

    def _watch(self, futures: list[Future[Reply | NoReply]], answered_before: int) -> None:
        """Wait for the outcomes, and stop when more questions would be useless."""
        answered = missed = in_a_row = 0
        label = f"asking {self.model}"
        for future in track(as_completed(futures), len(futures), label, unit="questions"):
            outcome = future.result()
            if isinstance(outcome, Reply):
                answered, in_a_row = answered + 1, 0
                continue
            missed += 1
            in_a_row += math.ceil(GIVE_UP_AFTER / max(2, self.concurrency)) if outcome.timed_out else 1
            in_vain = outcome.forbidden or missed == len(futures)
            if outcome.hopeless or in_a_row >= GIVE_UP_AFTER or (in_vain and not answered + answered_before):
                raise JudgeUnreachable(
                    f"the judge '{self.model}' at {self.url} does not answer: {outcome.reason}. The replies that arrived before "
                    f"({answered + answered_before} of {len(futures) + answered_before} of this step) are cached."
                )

    def _ask_one(self, client: Any, messages: Messages, redact: Callable[[str], str]) -> Reply | NoReply:
        import openai

        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        optional = {name: value for name, value in settings.items() if value is not None}
        try:
            response = client.chat.completions.with_raw_response.create(model=self.model, messages=messages, **optional)
            return _parse_response(response.text, redact)
        except openai.OpenAIError as error:
            return self._no_reply(error, redact)

    def _no_reply(self, error: Exception, redact: Callable[[str], str]) -> NoReply:
        import openai

        if isinstance(error, openai.APITimeoutError):
            return NoReply(f"no reply within {self.timeout:g} s", _cannot_connect(error), timed_out=True)
        if isinstance(error, openai.APIConnectionError):
            return NoReply(f"no connection ({redact(str(error.__cause__ or error))})", _cannot_connect(error))
        if isinstance(error, openai.APIStatusError):
            status, reason = error.status_code, f"{excerpt(redact(str(error.message)), 200)}{self._remedy(error.status_code)}"
            return NoReply(reason, status in (401, 404) or error.code == _NO_MONEY, status == 403, status in _TIMEOUT_STATUS)
        return NoReply(redact(str(error)))

    def _remedy(self, status: int) -> str:
        """Return what to check when the server rejects a request."""
        key = f" (check the key in {self.key_env})" if self.key_env else " (the server needs a key: set key_env)"
        return {401: key, 403: key, 404: " (check model and base_url)"}.get(status, "")


def _redaction(key: str | None) -> Callable[[str], str]:
    """Return a function that removes the key from a text; a short key is only removed after "Bearer"."""
    if key is None:
        return encodable
    secret = re.compile(re.escape(key) if len(key) >= MIN_SECRET_LENGTH else f"(?<=[Bb]earer ){re.escape(key)}")
    return lambda text: encodable(secret.sub("[key]", text))


def _cannot_connect(error: Exception) -> bool:
    return type(error.__cause__).__name__ in _NO_CONNECTION


def _parse_response(body: str, redact: Callable[[str], str]) -> Reply | NoReply:
    """Parse the body of a response. Any server may have written it, so nothing in it is taken for granted."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, RecursionError, LookupError, TypeError):
        return NoReply(f"the server's response is not a chat completion: {excerpt(redact(body))}")
    counts = answer.get("usage")
    counts = counts if isinstance(counts, dict) else {}
    prompt, completion = (_count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(redact(text), redact(str(choice.get("finish_reason") or "")), prompt, completion)


def _count(value: Any) -> int | None:
    # SQLite stores integers of up to 64 bits.
    return value if isinstance(value, int) and 0 <= value < 2**62 else None
