"""Rendering: the only file that tokenizes.

A prompt is a list of segments, text and placeholders in turn; ids, labels and placeholders are appended by one helper, so
that they cannot disagree. A placeholder is an id outside the LLM's embedding table, one for each row that the fusion module
will put in its place. Text of the user's files is text: nothing in a transcript or an answer becomes structure.

Layouts (source: the published Emotion-LLaMA training and evaluation code):

* ``train``: one BOS, ``[INST] <video>`` | image rows | ``</video> <feature>`` | face, video, audio, class rows |
  ``</feature> ... [/INST]``, each text segment tokenized alone; then the answer and the end symbol.
* ``upstream_eval``: two BOS, every row between ``<video>`` and ``</video>``, the words ``<FeatureHere>`` left in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from emollama.data.batch import IGNORED, Record, Sample
from emollama.data.prompts.prompt_style import LossAverage, PromptLayout, PromptStyle
from emollama.errors import UserError

Parts = list[str | tuple[str, ...]]  # texts, and names of placeholders, in the order in which they stand
HEAD = "<video><VideoHere></video> <feature><FeatureHere></feature> "


@dataclass(frozen=True)
class Placeholders:
    """The rows that a fusion module emits, and the ids that stand for them.

    Attributes:
        video: names of those between ``<video>`` and ``</video>``, in order.
        feature: names of those between ``<feature>`` and ``</feature>``, in order.
        first_id: id of the first name; the row count of the LLM's embedding table.
        num_tokens: number of feature vectors by slot -> number of feature tokens by placeholder.
    """

    video: tuple[str, ...]
    feature: tuple[str, ...]
    first_id: int
    num_tokens: Callable[[Mapping[str, int]], dict[str, int]]

    def id_of(self, name: str) -> int:
        """The id that stands for one row of this placeholder."""
        return self.first_id + (self.video + self.feature).index(name)


class _Rendering:
    """Ids, labels and weights of one sample, appended together."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.answers: list[int] = []  # length of each answer, for the loss weights

    def prompt(self, ids: list[int]) -> None:
        self.ids += ids
        self.labels += [IGNORED] * len(ids)

    def answer(self, ids: list[int]) -> None:
        self.ids += ids
        self.labels += ids
        self.answers.append(len(ids))


class Prompt:
    """Turns records into samples, and generated ids into text.

    Args:
        tokenizer: a Hugging Face tokenizer.
        style: the model's template, end symbol and length limits.
        placeholders: what the fusion module emits.
        loss_average: ``sample`` gives each sample's tokens the weights 1 / n, ``token`` gives each token the weight 1.
    """

    def __init__(
        self, tokenizer: Any, style: PromptStyle, placeholders: Placeholders, loss_average: LossAverage = "sample"
    ) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self.placeholders = placeholders
        self.loss_average = loss_average
        special = [re.escape(text) for text in tokenizer.get_added_vocab() if text.strip()]
        # Tokens within which the end symbol's text must show; only one where the tokenizer ends sequences with it anyway.
        self._end_tokens = 1 if self.ends_with_eos else len(style.end_sym) + 1
        self._special = re.compile("|".join(sorted(special, key=len, reverse=True))) if special else None

    def body(self, record: Record) -> str:
        """The text of the first turn, with marks where rows go; reported beside a prediction."""
        return HEAD + record.turns[0][0]

    def digest(self) -> str | None:
        """Of what this renderer may say by itself, which a resumed run must find again; None where it says nothing."""
        return None

    def apply_instruction(self, words: str, rng: np.random.Generator | None) -> str:
        """What the user says in the first turn, where the record says ``words``; ``rng`` is for what is random in training."""
        return words

    def sample(
        self,
        record: Record,
        *,
        layout: PromptLayout = "train",
        to_generate: bool = False,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """Render a record.

        Args:
            record: its turns and features.
            layout: where the rows go (see the module's text).
            to_generate: stop before the last turn's answer.
            rng: of the draw in training; None in evaluation.

        Raises:
            UserError: a feature whose number of rows the fusion module cannot take; names the clip.
        """
        try:
            counts = self.placeholders.num_tokens({slot: len(rows) for slot, rows in record.features.items()})
        except ValueError as error:
            raise UserError(f"clip '{record.name}': {error}") from None
        rendering = _Rendering()
        if self.tokenizer.bos_token_id is not None:
            rendering.prompt([self.tokenizer.bos_token_id])
        cut = 0
        for turn, (words, answer) in enumerate(record.turns):
            if turn == 0:
                parts, last, words = self.first_turn(self.apply_instruction(words, rng), layout)
            else:
                parts, last = [], self.style.opening
            cut += self._append_prompt(rendering, parts, (last, words), counts, record.name)
            if answer is not None and not (to_generate and turn == len(record.turns) - 1):
                cut += self._append_answer(rendering, answer)
        labels = torch.tensor(rendering.labels)
        total = sum(rendering.answers) if self.loss_average == "sample" else 1
        weights = (labels != IGNORED).float() / max(total, 1)
        ids = torch.tensor(rendering.ids)
        return Sample(record.name, record.task, ids, labels, weights, record.features, cut, record.cache_key)

    @property
    def ends_with_eos(self) -> bool:
        """Whether the end symbol is the tokenizer's own end of a sequence, one token."""
        return bool(self._ids(self.style.end_sym) == [self.tokenizer.eos_token_id])

    def is_finished(self, ids: list[int]) -> bool:
        """Whether a generated answer ends here: with the tokenizer's end of a sequence, or with the end symbol's text."""
        if ids[-1] == self.tokenizer.eos_token_id:
            return True
        if self._end_tokens == 1:
            return False
        return self.style.end_sym in self.tokenizer.decode(ids[-self._end_tokens :])

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer with its end, as training has them."""
        return self._ids(self._as_text(answer) + self.style.end_sym)

    def answer_text(self, ids: list[int]) -> str:
        """Generated ids as an answer: up to the end symbol, special tokens dropped, after the last closing of the template."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        text = text.split(self.style.end_sym)[0]
        closing = self.style.closing.strip()
        return (text.split(closing)[-1] if closing else text).strip()

    def answer_lengths(self, answers: Sequence[str]) -> list[int]:
        """Tokens of each answer with its end symbol, as they would be without ``max_txt_len``."""
        return self._lengths([self._as_text(answer) + self.style.end_sym for answer in answers])

    def prompt_lengths(self, words: Sequence[str], layout: PromptLayout = "train") -> list[int]:
        """Tokens of the text of a first turn with each of these user's words, as they would be without ``max_context_len``."""
        turns = [self.first_turn(self.apply_instruction(text, None), layout) for text in words]
        texts = [[part for part in parts if isinstance(part, str)] for parts, _, _ in turns]
        known = {part: len(self._ids(part)) for part in {part for own in texts for part in own}}
        tails = self._lengths([last + self._as_text(rest) + self.style.closing for _, last, rest in turns])
        return [sum(known[part] for part in own) + tail for own, tail in zip(texts, tails, strict=True)]

    def first_turn(self, words: str, layout: PromptLayout) -> tuple[Parts, str, str]:
        """A first turn in three: what stands before the user's words, the text right before them, and the words."""
        video, feature = self.placeholders.video, self.placeholders.feature
        opening = self.style.opening
        head: Parts
        if layout == "train":
            head, last = [f"{opening}<video>", video, "</video> <feature>", feature], "</feature> "
        else:
            head = [f"{self.tokenizer.bos_token or ''}{opening}<video>", video + feature]
            last = "</video> <feature><FeatureHere></feature> "
        return head, last, words

    def _append_prompt(
        self, rendering: _Rendering, parts: Parts, end: tuple[str, str], counts: Mapping[str, int], name: str
    ) -> int:
        """Append one turn without its answer: its parts, then ``end``, a text and the user's words. Returns the tokens cut."""
        last, words = end
        pieces = [self._ids(part) if isinstance(part, str) else part for part in parts]
        tail = self._ids(last + self._as_text(words) + self.style.closing)
        excess = len(tail) + sum(len(part) for part in pieces if isinstance(part, list)) - self.style.max_context_len
        if excess > 0:
            kept = len(self._ids(last))
            if excess >= len(tail) - kept - len(self._ids(self.style.closing)):
                limit = self.style.max_context_len
                raise UserError(f"clip '{name}': model.max_context_len {limit} leaves no room for the instruction. Raise it.")
            tail = tail[:kept] + tail[kept + excess :]
        for part in pieces:
            if isinstance(part, list):
                rendering.prompt(part)
            else:
                for placeholder in part:
                    rendering.prompt([self.placeholders.id_of(placeholder)] * counts[placeholder])
        rendering.prompt(tail)
        return max(excess, 0)

    def _append_answer(self, rendering: _Rendering, answer: str) -> int:
        ids = self.answer_ids(answer)
        excess = len(ids) - self.style.max_txt_len
        if excess > 0:
            end = self._ids(self.style.end_sym)
            ids = ids[: self.style.max_txt_len - len(end)] + end
        rendering.answer(ids)
        return max(excess, 0)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []

    def _as_text(self, text: str) -> str:
        """The text with a space inside every spelling of a special token, so that the tokenizer reads it as text."""
        if self._special is None:
            return text
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
