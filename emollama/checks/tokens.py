"""Lengths of answers and prompts in tokens, and which of them are cut."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from emollama.checks.findings import Finding, LengthSummary
from emollama.config import RunConfig
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.validation_cache import ValidationCache, files_of
from emollama.errors import UserError
from emollama.logs.console import Progress
from emollama.planning.samples import CHARACTERS_PER_TOKEN

CHUNK = 2000  # texts that are tokenized between two updates of the progress bar
Measure = Callable[[Sequence[str]], list[int]]


class TokenLengths:
    """Lengths of texts in tokens, estimated from characters if the language model cannot be read.

    Lengths are cached until the tokenizer's files, the keys of the model, the user's modules or the texts change. If all lengths
    are cached, the tokenizer is not loaded.

    Attributes:
        why_estimated: why lengths are estimated; None if they are not.
    """

    def __init__(self, config: RunConfig) -> None:
        self.why_estimated: str | None = None
        self._model, self._class = config.model, config.model_class
        self._limits = {"max_txt_len": self._model.max_txt_len, "max_context_len": self._model.max_context_len}
        path = self._model.llama_model
        components = [self._class.__qualname__, repr(self._model), _sources(config.unresolved().get("imports", []))]
        self._cache = ValidationCache.load("lengths", os.path.abspath(path), files_of(path), *components)

    @cached_property
    def _prompt(self) -> PromptFormat | None:
        """The prompt format; None if the language model cannot be read."""
        try:
            return self._class.prompt_format(self._model)
        except UserError as error:
            self.why_estimated = str(error)
            return None

    def answers(self, block: str, task: str, answers: Mapping[str, str]) -> tuple[LengthSummary, list[Finding]]:
        """Return the lengths of a task's answers by clip (at least one), and a finding about those that are cut."""
        tokens = self._measure(f"{block}, {task}", list(answers.values()), lambda prompt: prompt.answer_lengths)
        return self._summarize(block, f"answers of {task}", dict(zip(answers, tokens, strict=True)), "max_txt_len")

    def prompts(self, block: str, user_texts: Mapping[str, str], layout: str) -> tuple[LengthSummary, list[Finding]]:
        """Return the lengths of prompts with these user texts by clip (at least one), and a finding about those that are cut."""
        tokens = self._measure(f"{block}, prompts, {layout}", list(user_texts.values()), _prompt_measure(layout))
        return self._summarize(block, "prompts", dict(zip(user_texts, tokens, strict=True)), "max_context_len")

    def longest(self, block: str, user_texts: Sequence[str], layout: str) -> int:
        """Return the index of the user text that has the longest prompt."""
        return int(np.argmax(self._measure(f"{block}, instructions, {layout}", user_texts, _prompt_measure(layout))))

    def save(self) -> None:
        """Write the cache."""
        self._cache.save()

    def _measure(self, name: str, texts: Sequence[str], get_measure: Callable[[PromptFormat], Measure]) -> list[int]:
        """Return the lengths of texts from the cache or the tokenizer; ``get_measure`` returns a function of a prompt format."""
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
        stamp = (len(texts), int(digest[:15], 16))
        cached = self._cache.get(name, stamp)
        if cached is not None:
            return [int(length) for length in cached.split()]
        measure = get_measure(self._prompt) if self._prompt else _estimate
        lengths: list[int] = []
        with Progress(len(texts), f"{name}: tokens") as bar:
            for first in range(0, len(texts), CHUNK):
                lengths += measure(texts[first : first + CHUNK])
                bar.update(len(lengths) - first)
        if self._prompt:
            self._cache.add(name, stamp, " ".join(map(str, lengths)))
        return lengths

    def _summarize(self, block: str, what: str, tokens: Mapping[str, int], key: str) -> tuple[LengthSummary, list[Finding]]:
        """Summarize lengths, and compare them with the limit in the key of the model."""
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
        level, verb = ("problem", "are") if lengths.exact else ("note", "are probably")
        text = f"{what} that {verb} longer than model.{key} ({limit} tokens) and are cut. Raise the limit, or shorten the texts"
        details = tuple(f"{name} ({length} tokens)" for name, length in cut.items())
        return lengths, [Finding(level, f"{what.split()[0]} cut", text, block, tuple(cut), details)]  # type: ignore[arg-type]


def _estimate(texts: Sequence[str]) -> list[int]:
    return [len(text) // CHARACTERS_PER_TOKEN + 1 for text in texts]


def _prompt_measure(layout: str) -> Callable[[PromptFormat], Measure]:
    return lambda prompt: lambda user_texts: list(prompt.prompt_lengths(user_texts, layout))


def _sources(imports: Sequence[str]) -> str:
    """Return paths, sizes and times of the user's modules and of the other modules in their packages, as text."""
    packages = {name.partition(".")[0] for name in imports}
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in packages]
    paths = {path for module in modules if (path := getattr(module, "__file__", None)) and os.path.isfile(path)}
    return str([(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in sorted(paths)])
