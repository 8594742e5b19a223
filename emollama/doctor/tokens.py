"""How long answers and prompts are in tokens, and which of them would be cut."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from emollama.config import RunConfig
from emollama.data.prompt import PromptLayout
from emollama.data.seen import Seen
from emollama.doctor.findings import Finding, Lengths
from emollama.errors import UserError
from emollama.logging import progress
from emollama.planning import CHARACTERS_PER_TOKEN

CHUNK = 2000  # texts that are tokenized between two steps of the progress bar
Measure = Callable[[Sequence[str]], list[int]]


class Ruler:
    """Lengths of texts in tokens; without a usable language model they are estimated from characters.

    Lengths that the tokenizer gave are remembered, as long as its folder's files and the texts stay as they are.

    Attributes:
        why_estimated: why there is no tokenizer; None where there is one.
    """

    def __init__(self, config: RunConfig) -> None:
        self.why_estimated: str | None = None
        self._limits = {key: int(getattr(config.model, key)) for key in ("max_txt_len", "max_context_len")}
        path = config.model.llama_model
        try:
            self._prompt = config.classes["model"].prompt(config.model)
        except UserError as error:
            self._prompt, self.why_estimated = None, str(error)
            return
        files = sorted((entry.name, *_stamp(entry)) for entry in os.scandir(path) if entry.is_file())
        self._seen = Seen.load("lengths", os.path.abspath(path), str(files), str(self._prompt.style))

    def answers(self, block: str, task: str, answers: Mapping[str, str]) -> tuple[Lengths, list[Finding]]:
        """Figures of a task's answers by clip (at least one), and those that are cut."""
        measure = self._prompt.answer_lengths if self._prompt else _estimate
        tokens = self._measured(f"{block}, {task}", list(answers.values()), measure)
        return self._told(block, f"answers of {task}", dict(zip(answers, tokens, strict=True)), "max_txt_len")

    def prompts(self, block: str, words: Mapping[str, str], layout: PromptLayout) -> tuple[Lengths, list[Finding]]:
        """Figures of the text of prompts by clip (at least one), and those that are cut; ``words`` are the user's."""
        tokens = self._measured(f"{block}, prompts, {layout}", list(words.values()), self._of_prompts(layout))
        return self._told(block, "prompts", dict(zip(words, tokens, strict=True)), "max_context_len")

    def longest(self, words: Sequence[str], layout: PromptLayout) -> int:
        """The number of the user's words that make the longest prompt."""
        return int(np.argmax(self._of_prompts(layout)(words)))

    def save(self) -> None:
        """Remember what was measured."""
        if self._prompt:
            self._seen.save()

    def _of_prompts(self, layout: PromptLayout) -> Measure:
        prompt = self._prompt
        return (lambda words: prompt.prompt_lengths(words, layout)) if prompt else _estimate

    def _measured(self, name: str, texts: Sequence[str], measure: Measure) -> list[int]:
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
        stamp = (len(texts), int(digest[:15], 16))
        known = self._seen.recall(name, stamp) if self._prompt else None
        if known is not None:
            return [int(length) for length in known.split()]
        lengths: list[int] = []
        with progress(len(texts), f"{name}: tokens", enabled=True) as bar:
            for first in range(0, len(texts), CHUNK):
                lengths += measure(texts[first : first + CHUNK])
                bar.update(len(lengths) - first)
        if self._prompt:
            self._seen.add(name, stamp, " ".join(map(str, lengths)))
        return lengths

    def _told(self, block: str, what: str, tokens: Mapping[str, int], key: str) -> tuple[Lengths, list[Finding]]:
        limit, values = self._limits[key], np.array(list(tokens.values()))
        cut = {name: length for name, length in tokens.items() if length > limit}
        lengths = Lengths(
            what=what,
            exact=self._prompt is not None,
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


def _stamp(entry: os.DirEntry[Any]) -> tuple[int, int]:
    status = entry.stat()
    return status.st_size, status.st_mtime_ns
