"""Questions to a language model, each asked once in the life of the cache, and what asking took."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from emollama.evaluation.judges.cache import Reply, ReplyCache
from emollama.evaluation.judges.endpoint import Endpoint, NoReply
from emollama.evaluation.judges.prompts import PROMPT_VERSION, Messages
from emollama.evaluation.judges.replies import Unreadable

T = TypeVar("T")


@dataclass(frozen=True)
class JudgeAnswer(Generic[T]):
    """What came of one question.

    Attributes:
        value: what was read in the reply; None where nothing could be.
        failure: why there is none.
        text: the reply; "" where none came.
    """

    value: T | None
    failure: str | None
    text: str


class JudgeClient:
    """Asks an endpoint what the cache does not know.

    Args:
        endpoint: who is asked.
        cache: where replies are kept, readable or not.
        ask_again: ask anew where an earlier reply cannot be read, once in the life of this object.
    """

    def __init__(self, endpoint: Endpoint, cache: ReplyCache, *, ask_again: bool) -> None:
        self._endpoint, self._cache, self._ask_again = endpoint, cache, ask_again
        self._replies: dict[str, Reply] = {}  # that came to this object
        self._unanswered = self._cached = self._failed = 0

    def answers(self, questions: Sequence[Messages], read: Callable[[str], T]) -> list[JudgeAnswer[T]]:
        """The answers, in the order of the questions.

        Args:
            questions: may repeat; each is asked once.
            read: what to read in a reply; raises Unreadable where it is not there.

        Raises:
            JudgeUnreachable: see :meth:`Endpoint.ask`. Replies that came before are kept.
            UserError: the cache cannot be read or written.
        """
        keys = [self._key(question) for question in questions]
        known: dict[str, Reply | NoReply] = {
            key: reply
            for key, reply in self._cache.recall(dict.fromkeys(keys)).items()
            if not self._is_to_ask_again(key, reply, read)
        }
        missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
        places = list(missing)

        def store(place: int, reply: Reply) -> None:
            self._cache.store(places[place], self._endpoint.model, reply)
            self._replies[places[place]] = reply

        if missing:
            outcomes = self._endpoint.ask(list(missing.values()), store, known=len(known))
            self._unanswered += sum(isinstance(outcome, NoReply) for outcome in outcomes)
            known |= dict(zip(places, outcomes, strict=True))
        answers = [_answer(known[key], read) for key in keys]
        self._cached += len(keys) - len(missing)
        self._failed += sum(answer.failure is not None for answer in answers)
        return answers

    def usage(self) -> dict[str, Any]:
        """Questions sent (calls) and answers known from before (cached), tokens of the replies to the former, failed answers.

        Tokens are None where a reply did not say how many there were.
        """
        return {
            "prompt_version": PROMPT_VERSION,
            "calls": len(self._replies) + self._unanswered,
            "cached": self._cached,
            "prompt_tokens": _total([reply.prompt_tokens for reply in self._replies.values()]),
            "completion_tokens": _total([reply.completion_tokens for reply in self._replies.values()]),
            "failed": self._failed,
        }

    def _key(self, question: Messages) -> str:
        """Everything that the reply rests on. The length limit is not part of it: a reply that it cut off is unreadable."""
        endpoint = self._endpoint
        temperature = None if endpoint.temperature is None else float(endpoint.temperature)
        what = [endpoint.model, endpoint.url, PROMPT_VERSION, question, temperature]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _is_to_ask_again(self, key: str, reply: Reply, read: Callable[[str], T]) -> bool:
        return self._ask_again and key not in self._replies and _answer(reply, read).failure is not None


def _answer(outcome: Reply | NoReply, read: Callable[[str], T]) -> JudgeAnswer[T]:
    if isinstance(outcome, NoReply):
        return JudgeAnswer(None, outcome.reason, "")
    try:
        return JudgeAnswer(_value(outcome, read), None, outcome.text)
    except Unreadable as error:
        return JudgeAnswer(None, f"{error} (ask_again: true asks anew)", outcome.text)


def _value(reply: Reply, read: Callable[[str], T]) -> T:
    if reply.finish == "length":
        raise Unreadable("the reply was cut off: raise max_tokens")
    if not reply.text.strip():
        raise Unreadable(f"the reply is empty (finish_reason '{reply.finish}')")
    return read(reply.text)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
