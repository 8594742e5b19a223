"""A client that asks a language model each question once, caches the replies, and counts usage."""

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
    """The result of one question.

    Attributes:
        value: value extracted from the reply; None on failure.
        failure: reason of the failure; None if there is a value.
        text: the reply; "" if there is none.
    """

    value: T | None
    failure: str | None
    text: str


class JudgeClient:
    """Asks an endpoint the questions that have no cached reply.

    Args:
        endpoint: the endpoint of the language model.
        cache: cache of all replies, including those that cannot be parsed.
        ask_again: ask a question again, once per client, if its cached reply cannot be parsed.
    """

    def __init__(self, endpoint: Endpoint, cache: ReplyCache, *, ask_again: bool) -> None:
        self._endpoint, self._cache, self._ask_again = endpoint, cache, ask_again
        self._replies: dict[str, Reply] = {}  # new replies since this client was created
        self._unanswered = self._cached = self._failed = 0

    def answers(self, questions: Sequence[Messages], read: Callable[[str], T]) -> list[JudgeAnswer[T]]:
        """Return the answers in the order of the questions.

        Args:
            questions: questions; a repeated question is asked once.
            read: function that extracts the value from a reply; it raises Unreadable if the reply contains none.

        Raises:
            JudgeUnreachable: As in :meth:`Endpoint.ask`. Replies that arrived before are cached.
            UserError: If the cache cannot be read or written.
        """
        keys = [self._key(question) for question in questions]
        outcomes: dict[str, Reply | NoReply] = {
            key: reply
            for key, reply in self._cache.get(dict.fromkeys(keys)).items()
            if not self._is_to_ask_again(key, reply, read)
        }
        missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in outcomes}
        missing_keys = list(missing)

        def store(index: int, reply: Reply) -> None:
            self._cache.store(missing_keys[index], self._endpoint.model, reply)
            self._replies[missing_keys[index]] = reply

        if missing:
            new = self._endpoint.ask(list(missing.values()), store, answered_before=len(outcomes))
            self._unanswered += sum(isinstance(outcome, NoReply) for outcome in new)
            outcomes |= dict(zip(missing_keys, new, strict=True))
        answers = [_answer(outcomes[key], read) for key in keys]
        self._cached += len(keys) - len(missing)
        self._failed += sum(answer.failure is not None for answer in answers)
        return answers

    def usage(self) -> dict[str, Any]:
        """Return numbers of questions sent (calls), cached answers, failed answers and tokens.

        Token counts are None if a reply did not state them.
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
        """Return a hash of everything that determines the reply."""
        # The length limit is not part of the key: it changes nothing but replies that it truncates, and these are failures.
        endpoint = self._endpoint
        temperature = None if endpoint.temperature is None else float(endpoint.temperature)
        parts = [endpoint.model, endpoint.url, PROMPT_VERSION, question, temperature]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _is_to_ask_again(self, key: str, reply: Reply, read: Callable[[str], T]) -> bool:
        return self._ask_again and key not in self._replies and _answer(reply, read).failure is not None


def _answer(outcome: Reply | NoReply, read: Callable[[str], T]) -> JudgeAnswer[T]:
    if isinstance(outcome, NoReply):
        return JudgeAnswer(None, outcome.reason, "")
    try:
        return JudgeAnswer(_value(outcome, read), None, outcome.text)
    except Unreadable as error:
        return JudgeAnswer(None, f"{error} (set ask_again: true to ask again)", outcome.text)


def _value(reply: Reply, read: Callable[[str], T]) -> T:
    if reply.finish == "length":
        raise Unreadable("the reply was truncated: increase max_tokens")
    if not reply.text.strip():
        raise Unreadable(f"the reply is empty (finish_reason '{reply.finish}')")
    return read(reply.text)


def _total(counts: Sequence[int | None]) -> int | None:
    stated = [count for count in counts if count is not None]
    return sum(stated) if len(stated) == len(counts) else None
