"""Rendering of records into token ids. No other file tokenizes.

A prompt is a list of segments, which are texts and feature tokens. One helper appends ids and labels together, so that they
always agree. A placeholder id is an id outside the LLM's embedding table; there is one for each feature token, which replaces it
in the model. Text from user files stays text: nothing in a transcript or an answer becomes part of the structure.

Layouts (as in the published Emotion-LLaMA training and evaluation code):

* ``train``: one BOS, ``[INST] <video>`` | image tokens | ``</video> <feature>`` | face, video, audio, class tokens |
  ``</feature> ... [/INST]``, each text segment tokenized separately; then the answer and the end symbol.
* ``upstream_eval``: two BOS, all feature tokens between ``<video>`` and ``</video>``, and ``<FeatureHere>`` as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from emollama.data.batch import IGNORED, Record, Sample
from emollama.data.prompts.prompt_style import LossAverage, PromptLayout, PromptStyle
from emollama.errors import UserError

HEAD = "<video><VideoHere></video> <feature><FeatureHere></feature> "


@dataclass(frozen=True)
class FeatureTokenLayout:
    """The outputs of a fusion module, and the placeholder ids of their feature tokens.

    Attributes:
        outputs: name of an output, which a prompt format places in a prompt -> names of its parts, in order. The placeholder id
            of a part is ``first_id`` plus its index among the parts of all outputs.
        first_id: the first placeholder id, which is the size of the LLM's embedding table.
        num_feature_tokens: function from the number of feature vectors by slot to the number of feature tokens by part.
    """

    outputs: Mapping[str, tuple[str, ...]]
    first_id: int
    num_feature_tokens: Callable[[Mapping[str, int]], dict[str, int]]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of all outputs, in the order of their placeholder ids."""
        return tuple(part for parts in self.outputs.values() for part in parts)

    def id_of(self, part: str) -> int:
        """Return the placeholder id of the feature tokens of a part."""
        return self.first_id + self.parts.index(part)


class TurnParts(NamedTuple):
    """The parts of a user turn, before they are tokenized.

    Attributes:
        segments: texts, and tuples of parts of the fusion module's outputs, in the order of the prompt.
        prefix: the text between the segments and the user text.
        user_text: the only text that is shortened if the prompt is too long.
    """

    segments: list[str | tuple[str, ...]]
    prefix: str
    user_text: str


class _TokenizedSample:
    """Token ids and labels of one sample, which are appended together."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.answer_lengths: list[int] = []  # for the loss weights

    def append_prompt(self, ids: list[int]) -> None:
        self.ids += ids
        self.labels += [IGNORED] * len(ids)

    def append_answer(self, ids: list[int]) -> None:
        self.ids += ids
        self.labels += ids
        self.answer_lengths.append(len(ids))


class PromptFormat:
    """A prompt format: turns records into tokenized samples, and generated ids into text.

    Args:
        tokenizer: a Hugging Face tokenizer.
        style: the model's template, end symbol and length limits.
        feature_tokens: the layout of the fusion module's feature tokens.
        loss_average: ``sample`` gives each of the n answer tokens of a sample the weight 1 / n, ``token`` the weight 1.
    """

    def __init__(
        self, tokenizer: Any, style: PromptStyle, feature_tokens: FeatureTokenLayout, loss_average: LossAverage = "sample"
    ) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self.feature_tokens = feature_tokens
        self.loss_average = loss_average
        special = [re.escape(text) for text in tokenizer.get_added_vocab() if text.strip()]
        # `is_finished` looks for the text of the end symbol in the last tokens, since a tokenizer may split it in any way.
        self._end_tokens = 1 if self.ends_with_eos else len(style.end_sym) + 1
        self._special = re.compile("|".join(sorted(special, key=len, reverse=True))) if special else None

    def body(self, record: Record) -> str:
        """Return the text of the first turn with tags at the positions of features, as shown next to a prediction."""
        return HEAD + record.turns[0][0]

    def digest(self) -> str | None:
        """Return a hash of the model's own prompts, which a resumed run compares; None if the format has none."""
        return None

    def apply_instruction(self, user_text: str, rng: np.random.Generator | None) -> str:
        """Return the user text of the first turn. Subclasses may change it; ``rng`` is for random choices in training."""
        return user_text

    def tokenize(
        self,
        record: Record,
        *,
        layout: PromptLayout = "train",
        for_generation: bool = False,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """Tokenize a record.

        Args:
            record: the texts and features of the sample.
            layout: the positions of the feature tokens (see the module docstring).
            for_generation: leave out the last turn's answer.
            rng: the sample's generator in training; None in evaluation.

        Raises:
            UserError: If the fusion module cannot process this number of feature vectors, or the instruction exceeds
                ``max_context_len``. The message names the sample.
        """
        try:
            counts = self.feature_tokens.num_feature_tokens({slot: len(vectors) for slot, vectors in record.features.items()})
        except ValueError as error:
            raise UserError(f"sample '{record.name}': {error}") from None
        tokens = _TokenizedSample()
        if self.tokenizer.bos_token_id is not None:
            tokens.append_prompt([self.tokenizer.bos_token_id])
        cut = 0
        for turn, (user_text, answer) in enumerate(record.turns):
            if turn == 0:
                parts = self.first_turn(self.apply_instruction(user_text, rng), layout)
            else:
                parts = TurnParts([], self.style.opening, user_text)
            cut += self._append_prompt(tokens, parts, counts, record.name)
            if answer is not None and not (for_generation and turn == len(record.turns) - 1):
                cut += self._append_answer(tokens, answer)
        labels = torch.tensor(tokens.labels)
        total = sum(tokens.answer_lengths) if self.loss_average == "sample" else 1
        weights = (labels != IGNORED).float() / max(total, 1)
        ids = torch.tensor(tokens.ids)
        return Sample(record.name, record.task, ids, labels, weights, record.features, cut, record.cache_key)

    @property
    def ends_with_eos(self) -> bool:
        """Whether the end symbol is exactly the tokenizer's EOS token."""
        return bool(self._ids(self.style.end_sym) == [self.tokenizer.eos_token_id])

    def is_finished(self, ids: list[int]) -> bool:
        """Return whether a generated answer ends with the tokenizer's EOS token or with the text of the end symbol."""
        if ids[-1] == self.tokenizer.eos_token_id:
            return True
        if self._end_tokens == 1:
            return False
        return self.style.end_sym in self.tokenizer.decode(ids[-self._end_tokens :])

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer with its end symbol, as in training."""
        return self._ids(self._as_text(answer) + self.style.end_sym)

    def answer_text(self, ids: list[int]) -> str:
        """Decode generated ids up to the end symbol, without special tokens, and after the last closing of the template."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        text = text.split(self.style.end_sym)[0]
        closing = self.style.closing.strip()
        return (text.split(closing)[-1] if closing else text).strip()

    def answer_lengths(self, answers: Sequence[str]) -> list[int]:
        """Return the number of tokens of each answer with its end symbol, before it is cut to ``max_txt_len``."""
        return self._lengths([self._as_text(answer) + self.style.end_sym for answer in answers])

    def prompt_lengths(self, user_texts: Sequence[str], layout: PromptLayout = "train") -> list[int]:
        """Return the number of text tokens of a first turn with each user text, before it is cut to ``max_context_len``."""
        turns = [self.first_turn(self.apply_instruction(text, None), layout) for text in user_texts]
        texts = [[segment for segment in turn.segments if isinstance(segment, str)] for turn in turns]
        # The texts before the user text are the same for most turns, so each is tokenized once.
        lengths = {segment: len(self._ids(segment)) for segment in {segment for segments in texts for segment in segments}}
        tails = self._lengths([turn.prefix + self._as_text(turn.user_text) + self.style.closing for turn in turns])
        return [sum(lengths[segment] for segment in segments) + tail for segments, tail in zip(texts, tails, strict=True)]

    def first_turn(self, user_text: str, layout: PromptLayout) -> TurnParts:
        """Return the parts of a first turn."""
        video, feature = self.feature_tokens.outputs["video"], self.feature_tokens.outputs["feature"]
        opening = self.style.opening
        if layout == "train":
            return TurnParts([f"{opening}<video>", video, "</video> <feature>", feature], "</feature> ", user_text)
        segments: list[str | tuple[str, ...]] = [f"{self.tokenizer.bos_token or ''}{opening}<video>", video + feature]
        return TurnParts(segments, "</video> <feature><FeatureHere></feature> ", user_text)

    def _append_prompt(self, tokens: _TokenizedSample, parts: TurnParts, counts: Mapping[str, int], name: str) -> int:
        """Append a turn without its answer. Return the number of tokens that were cut from the user text."""
        pieces = [self._ids(part) if isinstance(part, str) else part for part in parts.segments]
        tail = self._ids(parts.prefix + self._as_text(parts.user_text) + self.style.closing)
        excess = len(tail) + sum(len(part) for part in pieces if isinstance(part, list)) - self.style.max_context_len
        if excess > 0:
            fixed = len(self._ids(parts.prefix))
            if excess >= len(tail) - fixed - len(self._ids(self.style.closing)):
                limit = self.style.max_context_len
                raise UserError(
                    f"sample '{name}': model.max_context_len {limit} leaves no room for the instruction. Increase it."
                )
            tail = tail[:fixed] + tail[fixed + excess :]
        for part in pieces:
            if isinstance(part, list):
                tokens.append_prompt(part)
            else:
                for part_name in part:
                    tokens.append_prompt([self.feature_tokens.id_of(part_name)] * counts[part_name])
        tokens.append_prompt(tail)
        return max(excess, 0)

    def _append_answer(self, tokens: _TokenizedSample, answer: str) -> int:
        ids = self.answer_ids(answer)
        excess = len(ids) - self.style.max_txt_len
        if excess > 0:
            end = self._ids(self.style.end_sym)
            ids = ids[: self.style.max_txt_len - len(end)] + end
        tokens.append_answer(ids)
        return max(excess, 0)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []

    def _as_text(self, text: str) -> str:
        """Insert a space into every spelling of a special token, so that the tokenizer treats it as text."""
        if self._special is None:
            return text
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
