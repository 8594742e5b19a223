"""``openai``: a judge that asks a language model at any endpoint with OpenAI's chat protocol, including your own server.

Each question is asked once: replies are cached on disk by model, endpoint, prompt version, messages and temperature, whether or
not they can be parsed. The cache contains the texts of the replies, so they are parsed again each time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from emollama.errors import UserError, require_at_least
from emollama.evaluation.judges.cache import ReplyCache
from emollama.evaluation.judges.client import JudgeClient
from emollama.evaluation.judges.endpoint import Endpoint
from emollama.evaluation.judges.judge import Extraction, Verdict
from emollama.evaluation.judges.prompts import Messages, clue_question, label_question, words_question
from emollama.evaluation.judges.replies import read_score, read_words
from emollama.field_texts import documented

OPENAI_URL = "https://api.openai.com/v1"


class OpenAIJudge:
    """Asks a language model, several questions at a time.

    Raises:
        UserError: If the key is missing in the environment, or the endpoint's address or the cache cannot be used.
    """

    @documented
    @dataclass
    class Config:
        """Model, endpoint and limits. The key is never part of a configuration: it stays in the environment."""

        model: str
        """Name of the model at the endpoint."""
        base_url: str | None = None
        """Address of the endpoint, such as http://localhost:8000/v1. If null, the address is $OPENAI_BASE_URL, or OpenAI's
        endpoint if that is not set."""
        key_env: str | None = "OPENAI_API_KEY"
        """Name of the environment variable that contains the key. Set it to null if the server needs no key."""
        concurrency: int = 4
        """Number of concurrent questions."""
        timeout: float = 60.0
        """Seconds without a reply after which an attempt fails. A judge that stops answering is given up after retries + 1
        attempts (twice as many with concurrency 1)."""
        retries: int = 4
        """Retries by OpenAI's client after a timeout, a lost connection, or status 408, 409, 429 or 5xx. The pauses grow from 0.5
        to 8 s unless the server requests others (Retry-After)."""
        temperature: float | None = 0.0
        """Sampling temperature. If null, it is not sent, for models that reject it."""
        max_tokens: int | None = 1024
        """Maximum tokens of a reply; a truncated reply counts as failed. If null, it is not sent, for models that reject it."""
        price_per_million_prompt_tokens: float | None = None
        """Price of a million prompt tokens, in any currency. If null, no cost is reported."""
        price_per_million_completion_tokens: float | None = None
        """Price of a million completion tokens. If null, no cost is reported."""
        cache_path: str | None = None
        """File that caches the replies. If null, this is judge_replies.sqlite3 in the user's cache folder
        ($XDG_CACHE_HOME/emollama)."""
        ask_again: bool = False
        """Ask again if the cached reply cannot be parsed."""

        def __post_init__(self) -> None:
            require_at_least(1, self, "concurrency", "max_tokens")
            require_at_least(0.001, self, "timeout")
            require_at_least(0, self, "retries", "temperature", *(item.name for item in fields(self) if "price" in item.name))
            if not self.model.strip():
                raise ValueError("model: expected the name of a model, got an empty text")
            if self.key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_env):
                raise ValueError(
                    "key_env: expected the name of an environment variable in capitals, such as OPENAI_API_KEY, not the key"
                )

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        names = ("model", "key_env", "concurrency", "timeout", "retries", "temperature", "max_tokens")
        endpoint = Endpoint(url=_address(cfg.base_url), **{name: getattr(cfg, name) for name in names})
        endpoint.key()
        self._url = endpoint.url
        self._client = JudgeClient(endpoint, ReplyCache(cfg.cache_path), ask_again=cfg.ask_again)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.cfg.model

    def clue_overlap(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Ask one question per pair: the model summarises the evidence of both descriptions, then scores the overlap."""
        return self._verdicts([clue_question(*pair) for pair in pairs])

    def emotion_words(self, texts: Sequence[str]) -> list[Extraction]:
        """Ask one question per text."""
        answers = self._client.answers([words_question(text) for text in texts], read_words)
        return [Extraction(answer.value, answer.failure) for answer in answers]

    def label_overlap(self, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Verdict]:
        """Ask one question per pair of lists."""
        return self._verdicts([label_question(*pair) for pair in pairs])

    def usage(self) -> dict[str, Any]:
        """Return the usage so far, see :meth:`JudgeClient.usage`; the cost is None without prices or token counts."""
        used = self._client.usage()
        counts = used["prompt_tokens"], used["completion_tokens"]
        prices = self.cfg.price_per_million_prompt_tokens, self.cfg.price_per_million_completion_tokens
        has_cost = None not in counts and None not in prices
        cost = sum(count * price for count, price in zip(counts, prices, strict=True)) / 1e6 if has_cost else None
        return {"base_url": self._url, **used, "cost": cost}

    def _verdicts(self, questions: list[Messages]) -> list[Verdict]:
        return [Verdict(answer.value, answer.failure, answer.text) for answer in self._client.answers(questions, read_score)]


def _address(base_url: str | None) -> str:
    """Return the checked address of the endpoint. Messages do not contain it, because the faulty part may be a secret."""
    source = "base_url" if base_url is not None else "the environment variable OPENAI_BASE_URL"
    url = (base_url if base_url is not None else os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).strip().rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"{source}: expected an address such as http://localhost:8000/v1")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise UserError(f"{source}: the address must not contain a user, password or query. Set key_env to the key's variable.")
    return url
