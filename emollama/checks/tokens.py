"""How long answers and prompts are in tokens, and which of them would be cut."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from emollama.checks.findings import Finding, LengthSummary
from emollama.config import RunConfig
from emollama.data.prompts.prompt_style import PromptLayout
from emollama.data.validation_cache import ValidationCache
from emollama.errors import UserError
from emollama.logs.console import Progress
from emollama.planning import CHARACTERS_PER_TOKEN

CHUNK = 2000  # texts that are tokenized between two steps of the progress bar
Measure = Callable[[Sequence[str]], list[int]]


class Ruler:
    """Lengths of texts in tokens; without a usable language model they are estimated from characters.

    Lengths that the tokenizer gave are remembered, as long as its folder's files, the model's keys and the texts stay as they
    are; where all are, it is not loaded.

    Attributes:
        why_estimated: why lengths had to be estimated; None where they were not.
    """

    def __init__(self, config: RunConfig) -> None:
        self.why_estimated: str | None = None
        self._limits = {key: int(getattr(config.model, key)) for key in ("max_txt_len", "max_context_len")}
        self._model, self._class = config.model, config.classes["model"]
        path = self._model.llama_model
        self._seen = ValidationCache.load(
            "lengths", os.path.abspath(path), _files(path), self._class.__qualname__, repr(self._model)
        )

    @cached_property
    def _prompt(self) -> Any | None:
        """The renderer; None where the language model cannot be read."""
        try:
            return self._class.prompt(self._model)
        except UserError as error:
            self.why_estimated = str(error)
            return None

    def answers(self, block: str, task: str, answers: Mapping[str, str]) -> tuple[LengthSummary, list[Finding]]:
        """Figures of a task's answers by clip (at least one), and those that are cut."""
        tokens = self._measured(f"{block}, {task}", list(answers.values()), lambda prompt: prompt.answer_lengths)
        return self._summarized(block, f"answers of {task}", dict(zip(answers, tokens, strict=True)), "max_txt_len")

    def prompts(self, block: str, words: Mapping[str, str], layout: PromptLayout) -> tuple[LengthSummary, list[Finding]]:
        """Figures of the text of prompts by clip (at least one), and those that are cut; ``words`` are the user's."""
        tokens = self._measured(f"{block}, prompts, {layout}", list(words.values()), _of_prompts(layout))
        return self._summarized(block, "prompts", dict(zip(words, tokens, strict=True)), "max_context_len")

    def longest(self, block: str, words: Sequence[str], layout: PromptLayout) -> int:
        """The number of the user's words that make the longest prompt."""
        return int(np.argmax(self._measured(f"{block}, instructions, {layout}", words, _of_prompts(layout))))

    def save(self) -> None:
        """Remember what was measured."""
        self._seen.save()

    def _measured(self, name: str, texts: Sequence[str], measure_of: Callable[[Any], Measure]) -> list[int]:
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
        stamp = (len(texts), int(digest[:15], 16))
        known = self._seen.recall(name, stamp)
        if known is not None:
            return [int(length) for length in known.split()]
        measure = measure_of(self._prompt) if self._prompt else _estimate
        lengths: list[int] = []
        with Progress(len(texts), f"{name}: tokens") as bar:
            for first in range(0, len(texts), CHUNK):
                lengths += measure(texts[first : first + CHUNK])
                bar.update(len(lengths) - first)
        if self._prompt:
            self._seen.add(name, stamp, " ".join(map(str, lengths)))
        return lengths

    def _summarized(self, block: str, what: str, tokens: Mapping[str, int], key: str) -> tuple[LengthSummary, list[Finding]]:
        limit, values = self._limits[key], np.array(list(tokens.values()))
        cut = {name: length for name, length in tokens.items() if length > limit}
        lengths = LengthSummary(
            what=what,
            exact=self.why_estimated is None,
            texts=len(values),
            minimum=int(values.min()),
            median=float(np.median(values)),
            percentile_95=float(np.percentile(values, 95)),
            maximum=int(values.max()),
            limit=limit,
            cut=len(cut),
        )
        if not cut:
            return lengths, []
        level, seem = ("problem", "are") if lengths.exact else ("note", "seem to be")
        text = f"{what} that {seem} longer than model.{key} ({limit} tokens) and cut. Raise it, or shorten them"
        details = tuple(f"{name} ({length} tokens)" for name, length in cut.items())
        return lengths, [Finding(level, f"{what.split()[0]} cut", text, block, tuple(cut), details)]  # type: ignore[arg-type]


def _estimate(texts: Sequence[str]) -> list[int]:
    return [len(text) // CHARACTERS_PER_TOKEN + 1 for text in texts]


def _of_prompts(layout: PromptLayout) -> Callable[[Any], Measure]:
    return lambda prompt: lambda words: list(prompt.prompt_lengths(words, layout))


def _files(folder: str) -> str:
    """Names, sizes and times of a folder's files; "" where there is no such folder."""
    try:
        stamps = [(entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file()]
    except OSError:
        return ""
    return str(sorted((name, status.st_size, status.st_mtime_ns) for name, status in stamps))
