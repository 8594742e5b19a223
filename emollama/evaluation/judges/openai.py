"""``openai``: a language model judges, at any endpoint that speaks OpenAI's chat protocol, theirs or a server of one's own.

Every question is asked once: replies are cached on disk by model, endpoint, prompt version, messages and temperature, readable or
not. The text of a reply is what is cached, so that what can be read in it is decided anew each time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

from emollama.errors import UserError, require_at_least
from emollama.evaluation.judges.asking import JudgeClient
from emollama.evaluation.judges.cache import ReplyCache
from emollama.evaluation.judges.endpoint import Endpoint
from emollama.evaluation.judges.judge import Extraction, Verdict
from emollama.evaluation.judges.prompts import Messages, clue_question, label_question, words_question
from emollama.evaluation.judges.replies import read_score, read_words

OFFICIAL = "https://api.openai.com/v1"


class OpenAIJudge:
    """Asks a language model, several questions at a time.

    Raises:
        UserError: the key is missing in the environment, the endpoint's address or the cache cannot be used.
    """

    @dataclass
    class Config:
        """Which model, where, and what it may take. The key itself is never a value here: it stays in the environment."""

        model: str
        """The model's name, as the endpoint knows it."""
        base_url: str | None = None
        """The endpoint, such as http://localhost:8000/v1. Null: $OPENAI_BASE_URL, else OpenAI's own."""
        key_env: str | None = "OPENAI_API_KEY"
        """Name of the environment variable that holds the key. Null: the server wants none."""
        concurrency: int = 4
        """Questions under way at a time."""
        timeout: float = 60.0
        """Seconds of silence after which an attempt is given up. A judge that falls silent is given up after 3 times as long
        (5 times with concurrency 1)."""
        retries: int = 4
        """Further attempts after 429, 5xx or a lost connection, each after a longer pause (0.5 to 8 s, or what the server asks
        for, up to 60 s); after a timeout at most one."""
        temperature: float | None = 0.0
        """Sampling temperature. Null: not sent, for models that refuse it."""
        max_tokens: int | None = 1024
        """Longest reply; one that is cut off counts as failed. Null: not sent, for models that refuse it."""
        price_per_million_prompt_tokens: float | None = None
        """Price of a million tokens of questions, in any currency. Null: no cost is reported."""
        price_per_million_completion_tokens: float | None = None
        """Price of a million tokens of replies. Null: no cost is reported."""
        cache_path: str | None = None
        """File of the replies. Null: judge_replies.sqlite3 in the user's cache folder ($XDG_CACHE_HOME/emollama)."""
        ask_again: bool = False
        """Ask anew where the earlier reply could not be read."""

        def __post_init__(self) -> None:
            for name, hint in get_type_hints(type(self)).items():
                kinds, given = get_args(hint) or (hint,), type(getattr(self, name))
                if given not in kinds and not (given is int and float in kinds):
                    known = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
                    raise ValueError(f"{name}: {known} is expected, not {given.__name__}")
            require_at_least(1, self, "concurrency", "max_tokens")
            require_at_least(0.001, self, "timeout")
            require_at_least(0, self, "retries", "temperature", *(item.name for item in fields(self) if "price" in item.name))
            if not self.model.strip():
                raise ValueError("model is empty; name the judging model")
            if self.key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_env):
                raise ValueError(
                    "key_env is the name of an environment variable in capitals, such as OPENAI_API_KEY; not the key"
                )

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        names = ("model", "key_env", "concurrency", "timeout", "retries", "temperature", "max_tokens")
        endpoint = Endpoint(url=_address(cfg.base_url), **{name: getattr(cfg, name) for name in names})
        endpoint.key()
        self._url = endpoint.url
        self._asking = JudgeClient(endpoint, ReplyCache(cfg.cache_path), ask_again=cfg.ask_again)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.cfg.model

    def clue_overlap(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """One question a pair: both descriptions' evidence is summarised, then its overlap scored."""
        return self._verdicts([clue_question(*pair) for pair in pairs])

    def emotion_words(self, texts: Sequence[str]) -> list[Extraction]:
        """One question a text."""
        answers = self._asking.answers([words_question(text) for text in texts], read_words)
        return [Extraction(answer.value, answer.failure) for answer in answers]

    def label_overlap(self, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Verdict]:
        """One question a pair of lists."""
        return self._verdicts([label_question(*pair) for pair in pairs])

    def usage(self) -> dict[str, Any]:
        """What judging took so far: see :meth:`JudgeClient.usage`; the cost is None without prices or counts of tokens."""
        used = self._asking.usage()
        counts = used["prompt_tokens"], used["completion_tokens"]
        prices = self.cfg.price_per_million_prompt_tokens, self.cfg.price_per_million_completion_tokens
        is_known = None not in counts and None not in prices
        cost = sum(count * price for count, price in zip(counts, prices, strict=True)) / 1e6 if is_known else None
        return {"base_url": self._url, **used, "cost": cost}

    def _verdicts(self, questions: list[Messages]) -> list[Verdict]:
        return [Verdict(answer.value, answer.failure, answer.text) for answer in self._asking.answers(questions, read_score)]


def _address(base_url: str | None) -> str:
    """The endpoint's address, checked. Messages do not repeat it: what is wrong may be a secret in it."""
    source = "base_url" if base_url is not None else "the environment variable OPENAI_BASE_URL"
    url = (base_url if base_url is not None else os.environ.get("OPENAI_BASE_URL") or OFFICIAL).strip().rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"{source} is no address such as http://localhost:8000/v1")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise UserError(f"{source}: no user, password or query belongs into the address. Name the key's variable in key_env.")
    return url
