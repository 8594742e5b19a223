"""Questions to an OpenAI-compatible endpoint: the only file that imports the ``openai`` package.

The key is read from the environment when questions are asked, lives in the client for as long as that takes, and is taken out of
every text that comes back: a reply, or an error in which a server repeats what it was sent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from emollama.errors import UserError
from emollama.evaluation.judges.cache import Reply
from emollama.evaluation.judges.judge import JudgeUnreachable
from emollama.evaluation.judges.prompts import Messages, encodable
from emollama.evaluation.judges.replies import excerpt

GIVE_UP_AFTER = 16  # failed questions in a row, each with its retries
CONNECT_SECONDS = 10.0
SECRET = 12  # characters; what is shorter is a stand-in such as "none" or "x", and may be a part of any text
_NO_MONEY = "insufficient_quota"  # the code of a 429 that no waiting helps
_NO_CONNECTION = ("ConnectError", "ConnectTimeout")  # of httpx: refused, unknown host, bad certificate; nobody there


@dataclass(frozen=True)
class NoReply:
    """A question that stayed without a reply.

    Attributes:
        reason: why, without the key.
        hopeless: whether other questions will fare no better.
        forbidden: whether they may not either, unless others were answered: the key has no access, or this text is not wanted.
    """

    reason: str
    hopeless: bool = False
    forbidden: bool = False


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
            raise UserError(f"the environment variable {self.key_env} is not set. Set it to the judge's key, or key_env: null")
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
            JudgeUnreachable: nobody answers, the key or the model is refused, no question of the batch was answered, or
                GIVE_UP_AFTER in a row were not. Questions that were not sent by then are not sent.
        """
        import openai

        key = self.key()
        limits = openai.Timeout(self.timeout, connect=min(self.timeout, CONNECT_SECONDS))
        client = openai.OpenAI(api_key=key or "none", base_url=self.url, timeout=limits, max_retries=self.retries)

        def hidden(text: str) -> str:
            return encodable(text.replace(key, "[key]") if key and len(key) >= SECRET else text)

        def asked(place: int) -> Reply | NoReply:
            outcome = self._ask_one(client, questions[place], hidden)
            if isinstance(outcome, Reply):
                keep(place, outcome)
            return outcome

        pool = ThreadPoolExecutor(self.concurrency)
        with client:
            try:
                futures = [pool.submit(asked, place) for place in range(len(questions))]
                self._watch(futures, known)
            finally:
                pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]

    def _watch(self, futures: list[Future[Reply | NoReply]], known: int) -> None:
        """See the outcomes come, and stop where going on is of no use."""
        answered = missed = in_a_row = 0
        for future in as_completed(futures):
            outcome = future.result()
            if isinstance(outcome, Reply):
                answered, in_a_row = answered + 1, 0
                continue
            missed, in_a_row = missed + 1, in_a_row + 1
            in_vain = outcome.forbidden or missed == len(futures)
            if outcome.hopeless or in_a_row == GIVE_UP_AFTER or (in_vain and not answered + known):
                raise JudgeUnreachable(
                    f"the judge '{self.model}' at {self.url} does not answer: {outcome.reason}. The replies that came before "
                    f"({answered + known} of {len(futures) + known} of this step) are kept: run the same command again to go on."
                )

    def _ask_one(self, client: Any, messages: Messages, hidden: Callable[[str], str]) -> Reply | NoReply:
        import openai

        optional = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        given = {name: value for name, value in optional.items() if value is not None}
        try:
            response = client.chat.completions.with_raw_response.create(model=self.model, messages=messages, **given)
        except openai.APITimeoutError as error:
            return NoReply(f"no reply within {self.timeout:g} s", _nobody_there(error))
        except openai.APIConnectionError as error:
            return NoReply(f"no connection ({hidden(str(error.__cause__ or error))})", _nobody_there(error))
        except openai.APIStatusError as error:
            reason = f"{excerpt(hidden(str(error.message)), 200)}{self._remedy(error.status_code)}"
            return NoReply(reason, error.status_code in (401, 404) or error.code == _NO_MONEY, error.status_code == 403)
        except openai.OpenAIError as error:
            return NoReply(hidden(str(error)))
        return _reply(response.text, hidden)

    def _remedy(self, status: int) -> str:
        """What to look at when a server refuses."""
        key = f" (see the key in {self.key_env})" if self.key_env else " (the server wants a key: see key_env)"
        return {401: key, 403: key, 404: " (see model and base_url)"}.get(status, "")


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
