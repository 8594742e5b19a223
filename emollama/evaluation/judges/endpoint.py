"""Questions to an OpenAI-compatible endpoint: the only file that imports the ``openai`` package.

The key is read from the environment when questions are asked, lives in the client for as long as that takes, and is taken out of
every text that comes back: a reply, or an error in which a server repeats what it was sent.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from emollama.errors import UserError
from emollama.evaluation.judges.cache import Reply
from emollama.evaluation.judges.judge import JudgeUnreachable
from emollama.evaluation.judges.prompts import Messages, encodable
from emollama.evaluation.judges.replies import excerpt
from emollama.logs.console import track

GIVE_UP_AFTER = 16  # failed questions in a row, each with its retries; a timed-out one counts for several
CONNECT_SECONDS = 10.0
LONGEST_PAUSE = 60.0  # seconds; where a server asks for a longer one, the usual pause is made
SECRET = 6  # characters; what is shorter is a stand-in such as "none" or "x", and may be a part of any text
_TOO_LATE = (408, 504, 524)  # a server or proxy on the way tells of a timeout
_NO_MONEY = "insufficient_quota"  # the code of a 429 that no waiting helps
_NO_CONNECTION = ("ConnectError", "ConnectTimeout")  # of httpx: refused, unknown host, bad certificate; nobody there


@dataclass(frozen=True)
class NoReply:
    """A question that stayed without a reply.

    Attributes:
        reason: why, without the key.
        hopeless: whether other questions will fare no better.
        forbidden: whether they may not either, unless others were answered: the key has no access, or this text is not wanted.
        timed_out: whether it had to be waited for.
    """

    reason: str
    hopeless: bool = False
    forbidden: bool = False
    timed_out: bool = False


@dataclass(frozen=True)
class Endpoint:
    """Where and how questions are asked; the fields are those of the judge's Config."""

    url: str
    model: str
    key_env: str | None
    concurrency: int
    timeout: float
    retries: int
    temperature: float | None
    max_tokens: int | None

    def key(self) -> str | None:
        """The key in the environment, now; None where the server wants none.

        Raises:
            UserError: the variable is not set, or holds what cannot be a key. The message names the variable alone.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise UserError(f"the environment variable {self.key_env} is not set. Set it to the judge's key, or key_env to null.")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(f"the environment variable {self.key_env} holds characters that no key has. Set it anew.")
        return key

    def ask(self, questions: Sequence[Messages], keep: Callable[[int, Reply], None], known: int) -> list[Reply | NoReply]:
        """Ask several questions at once.

        Args:
            questions: each the messages of one request.
            keep: called with a question's place and its reply as soon as it comes, in the thread that asked.
            known: how many others of the same batch were answered before.

        Returns:
            What came, in the order of the questions.

        Raises:
            JudgeUnreachable: nobody answers, the key or the model is refused, no question of the batch was answered,
                GIVE_UP_AFTER in a row were not, or as many timed out in a row as are under way at a time (2 at least). Questions
                that were not sent by then are not sent. It comes 3 timeouts after the last reply at the latest where all is
                silence (5 with a concurrency of 1), and a second: a question timed out twice, and another was under way.
        """
        import openai

        key = self.key()
        limits = openai.Timeout(self.timeout, connect=min(self.timeout, CONNECT_SECONDS))
        client = openai.OpenAI(api_key=key or "none", base_url=self.url, timeout=limits, max_retries=0)
        hidden, stopped = _hiding(key), threading.Event()

        def asked(place: int) -> Reply | NoReply:
            outcome = self._ask_one(client, questions[place], hidden, stopped)
            if isinstance(outcome, Reply):
                keep(place, outcome)
            return outcome

        pool = ThreadPoolExecutor(self.concurrency)
        with client:
            try:
                futures = [pool.submit(asked, place) for place in range(len(questions))]
                self._watch(futures, known)
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]

    def _watch(self, futures: list[Future[Reply | NoReply]], known: int) -> None:
        """See the outcomes come, and stop where going on is of no use."""
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
            if outcome.hopeless or in_a_row >= GIVE_UP_AFTER or (in_vain and not answered + known):
                raise JudgeUnreachable(
                    f"the judge '{self.model}' at {self.url} does not answer: {outcome.reason}. The replies that came before "
                    f"({answered + known} of {len(futures) + known} of this step) are kept."
                )

    def _ask_one(
        self, client: Any, messages: Messages, hidden: Callable[[str], str], stopped: threading.Event
    ) -> Reply | NoReply:
        """What comes of one question, with its further attempts: at most one after a timeout."""
        import openai

        optional = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        given = {name: value for name, value in optional.items() if value is not None}
        attempt = 0
        while True:
            try:
                response = client.chat.completions.with_raw_response.create(model=self.model, messages=messages, **given)
                return _reply(response.text, hidden)
            except openai.OpenAIError as error:
                outcome, pause = self._no_reply(error, hidden), _pause(error, attempt)
                retries = 1 if outcome.timed_out else self.retries if _may_pass(error) else 0
            if attempt >= min(retries, self.retries) or stopped.wait(pause):
                return outcome
            attempt += 1

    def _no_reply(self, error: Exception, hidden: Callable[[str], str]) -> NoReply:
        import openai

        if isinstance(error, openai.APITimeoutError):
            return NoReply(f"no reply within {self.timeout:g} s", _nobody_there(error), timed_out=True)
        if isinstance(error, openai.APIConnectionError):
            return NoReply(f"no connection ({hidden(str(error.__cause__ or error))})", _nobody_there(error))
        if isinstance(error, openai.APIStatusError):
            status, reason = error.status_code, f"{excerpt(hidden(str(error.message)), 200)}{self._remedy(error.status_code)}"
            return NoReply(reason, status in (401, 404) or error.code == _NO_MONEY, status == 403, status in _TOO_LATE)
        return NoReply(hidden(str(error)))

    def _remedy(self, status: int) -> str:
        """What to look at when a server refuses."""
        key = f" (see the key in {self.key_env})" if self.key_env else " (the server wants a key: see key_env)"
        return {401: key, 403: key, 404: " (see model and base_url)"}.get(status, "")


def _hiding(key: str | None) -> Callable[[str], str]:
    """What takes the key out of a text: a short one only where it stands as a key."""
    if key is None:
        return encodable
    secret = re.compile(re.escape(key) if len(key) >= SECRET else f"(?<=[Bb]earer ){re.escape(key)}")
    return lambda text: encodable(secret.sub("[key]", text))


def _may_pass(error: Exception) -> bool:
    """Whether the same question may fare better later."""
    import openai

    status = getattr(error, "status_code", 0)
    return isinstance(error, openai.APIConnectionError) or status in (409, 429) or status >= 500


def _pause(error: Exception, attempt: int) -> float:
    """Seconds until the next attempt: what the server asks for, or ever more, not the same for all threads."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(ValueError):
            if 0 < (seconds := float(headers.get(name, "")) * unit) <= LONGEST_PAUSE:
                return seconds
    return 0.5 * 2.0 ** min(attempt, 4) * random.uniform(0.75, 1.0)


def _nobody_there(error: Exception) -> bool:
    return type(error.__cause__).__name__ in _NO_CONNECTION


def _reply(body: str, hidden: Callable[[str], str]) -> Reply | NoReply:
    """A reply out of a response's body, which any server may have written."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, RecursionError, LookupError, TypeError):
        return NoReply(f"the server's response is no chat completion: {excerpt(hidden(body))}")
    counts = answer.get("usage")
    counts = counts if isinstance(counts, dict) else {}
    prompt, completion = (_count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(hidden(text), hidden(str(choice.get("finish_reason") or "")), prompt, completion)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**62 else None
