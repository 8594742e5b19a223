"""Prompt formats that are described by templates: the registered ones, and those of ``type: template``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from emollama.data.batch import Record, Sample
from emollama.data.prompts.configs import TRAIN, EmotionLlamaFormatConfig, MiniGPT4FormatConfig, TemplateFormatConfig
from emollama.data.prompts.end_symbol import eos_after, require_recognizable
from emollama.data.prompts.image_tag import IMAGE_TAG
from emollama.data.prompts.prompt import FeatureTokenLayout, TokenizedTurns
from emollama.data.prompts.prompt_style import LossAverage, PromptStyle
from emollama.data.prompts.segments import Segment, SegmentTokenizer, join_fragments
from emollama.data.prompts.template import Fragment
from emollama.data.prompts.tokenizer_check import REMEDY, outside
from emollama.errors import UserError


class TemplateFormat:
    """A prompt format that is described by its Config.

    Args:
        cfg: the ``prompt_format`` block.
        tokenizer: a Hugging Face tokenizer.
        style: the model's template of a turn, end symbol and length limits.
        feature_tokens: the outputs of the fusion module and their placeholder ids.
        loss_average: ``sample`` gives each of the n answer tokens of a sample the weight 1 / n, ``token`` the weight 1.

    Attributes:
        bos_id: id of the BOS token; None if there is none.
        bos_text: text of the BOS token; "" if there is none.

    Raises:
        UserError: If the templates do not fit the outputs or the tokenizer, or the tokenizer lacks a required token. The message
            starts with the key.
    """

    Config = TemplateFormatConfig

    def __init__(
        self,
        cfg: TemplateFormatConfig,
        *,
        tokenizer: Any,
        style: PromptStyle,
        feature_tokens: FeatureTokenLayout,
        loss_average: LossAverage = "sample",
    ) -> None:
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.style = style
        self.feature_tokens = feature_tokens
        self.loss_average = loss_average
        self._check_outputs()
        rows, is_whole = feature_tokens.embedding_rows, cfg.tokenize == "whole"
        self._texts = SegmentTokenizer(tokenizer, feature_tokens.outputs, rows=rows, whole=is_whole)
        self.bos_id, self.bos_text = self._bos()
        self._eos_ids = self._eos()
        self._check_openings()
        # `is_finished` looks for the text of the end symbol in the last tokens, since a tokenizer may split it in any way, at
        # most into the bytes of its characters.
        self._end_tokens = 1 if self.ends_with_eos else len(style.end_sym.encode()) + 1

    def _check_outputs(self) -> None:
        outputs, tagged = self.feature_tokens.outputs, self.cfg.tagged_output
        if tagged is not None and tagged not in outputs:
            raise UserError(f"tagged_output: the fusion module has no output '{tagged}', but {', '.join(outputs)}")
        for name, layout in self.cfg.parsed_layouts.items():
            key = "template" if name == TRAIN else f"layouts.{name}.template"
            try:
                layout.template.check_outputs(outputs, key, () if tagged is None else (tagged,))
            except ValueError as error:
                own = key.partition(".")[0] in self.cfg.changed()
                remedy = "" if own else " To write your own, set model.prompt_format: {type: template, template: ...}."
                raise UserError(f"{error}{remedy}") from None

    def _bos(self) -> tuple[int | None, str]:
        """Return the id of the BOS token (None without one) and its text."""
        text = self.cfg.bos_token
        if text is None:
            token, text = self.tokenizer.bos_token_id, self.tokenizer.bos_token or ""
        elif text not in self.tokenizer.get_vocab():
            raise UserError(f"bos_token: {text!r} is not a token of the language model. Use a token of its tokenizer, or null.")
        else:
            token = int(self.tokenizer.convert_tokens_to_ids(text))
        if token is not None and self.cfg.bos != "never":
            self._require_row(text, token, "bos")
        return token, text

    def _eos(self) -> list[int]:
        """Return the ids that follow the end symbol in training."""
        if self.tokenizer.eos_token_id is not None:
            self._require_row(self.tokenizer.eos_token, self.tokenizer.eos_token_id, "eos")
        if self.cfg.eos:
            return eos_after(self.style.end_sym, self._texts, self.tokenizer)
        require_recognizable(self.style.end_sym, self._texts, self.tokenizer)
        return []

    def _require_row(self, text: str, token: int, key: str) -> None:
        """Check that a special token is in the embedding table."""
        rows = self.feature_tokens.embedding_rows
        if token >= rows:
            raise UserError(f"{key}: {outside(text, token, rows)}. {REMEDY}.")

    def _check_openings(self) -> None:
        """Check the ids of every text of a first turn: all are in the embedding table, and the BOS token is not repeated."""
        for name, layout in self.cfg.parsed_layouts.items():
            key = "template" if name == TRAIN else f"layouts.{name}.template"
            adds_bos = self.cfg.bos == "always" or (self.cfg.bos == "training" and name == TRAIN)
            # With and without the optional sections.
            for counts in ({}, dict.fromkeys(self.feature_tokens.outputs, 0)):
                segments = TemplateFormat.first_turn(self, "", name, counts)
                try:
                    self._texts.tokenize(segments)
                    opening = self._texts.ids(segments[0].whole.lstrip())
                except UserError as error:
                    raise UserError(f"{key}, or model.prompt_template: {error}") from None
                repeated = next((index for index, token in enumerate(opening) if token != self.bos_id), len(opening))
                if adds_bos and repeated > layout.second_bos:
                    raise UserError(
                        f"bos: the sequence gets a BOS token, and the prompt of the layout '{name}' starts with its text"
                        f" {self.bos_text!r}, too. Remove it from model.prompt_template or {key}, or set"
                        " model.prompt_format.bos: never."
                    )

    def digest(self) -> str | None:
        """Return a hash of the format's own prompts and of the keys that differ from their defaults; None if there are none."""
        changed = self.cfg.changed()
        described = [*self.cfg.prompts, *([json.dumps(changed, sort_keys=True)] if changed else [])]
        return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16] if described else None

    def body(self, record: Record) -> str:
        """Return the text of the first turn with tags such as ``<VideoHere>`` at the positions of outputs."""
        user_text = self.apply_instruction(record.turns[0][0], None)
        counts = {name: len(ids) for name, ids in self.feature_tokens.placeholder_ids(record).items()}
        texts = []
        for fragment in self.cfg.parsed_layouts[TRAIN].template.fragments(counts):
            text = tag(fragment.value) if fragment.kind == "output" else fragment.value
            texts.append(user_text if fragment.kind == "user_text" else text)
        return "".join(texts)

    def apply_instruction(self, user_text: str, rng: np.random.Generator | None) -> str:
        """Return the user text of the first turn: one of the format's own prompts if it is empty, with ``<ImageHere>`` if needed.

        Args:
            user_text: the text of the record.
            rng: for random choices in training; None in evaluation.
        """
        prompts = self.cfg.prompts
        if prompts and not user_text.strip():
            user_text = prompts[0 if rng is None else int(rng.integers(len(prompts)))]
        if self.cfg.tagged_output is None or IMAGE_TAG in user_text:
            return user_text
        return self.cfg.tag_prefix + user_text

    def tokenize(
        self, record: Record, *, layout: str = TRAIN, for_generation: bool = False, rng: np.random.Generator | None = None
    ) -> Sample:
        """Tokenize a record; see :class:`~emollama.data.prompts.prompt.PromptFormat`.

        Raises:
            UserError: If the fusion module cannot process this number of feature vectors, or the instruction exceeds
                ``max_context_len``. The message names the sample.
        """
        placeholders = self.feature_tokens.placeholder_ids(record)
        tokens = TokenizedTurns()
        if self.bos_id is not None and (self.cfg.bos == "always" or (self.cfg.bos == "training" and not for_generation)):
            tokens.append_prompt([self.bos_id])
        cut = 0
        for turn, (user_text, answer) in enumerate(record.turns):
            if turn == 0:
                counts = {name: len(ids) for name, ids in placeholders.items()}
                segments = self.first_turn(self.apply_instruction(user_text, rng), layout, counts)
            else:
                segments = [Segment(self.style.opening, self._texts.as_text(user_text), self.style.closing)]
            cut += self._append_prompt(tokens, segments, placeholders, record.name)
            if answer is not None and not (for_generation and turn == len(record.turns) - 1):
                cut += self._append_answer(tokens, answer, None if for_generation else self.style.max_txt_len)
        return tokens.sample(record, self.loss_average, cut)

    @property
    def ends_with_eos(self) -> bool:
        """Whether the end symbol is exactly the tokenizer's EOS token."""
        return bool(self._texts.ids(self.style.end_sym) == [self.tokenizer.eos_token_id])

    def is_finished(self, ids: list[int]) -> bool:
        """Return whether a generated answer ends with the tokenizer's EOS token or with the text of the end symbol."""
        if ids[-1] == self.tokenizer.eos_token_id:
            return True
        if self._end_tokens == 1:
            return False
        return self.style.end_sym in self.tokenizer.decode(ids[-self._end_tokens :])

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer with its end symbol, as in training."""
        return self._texts.ids(self._texts.as_text(answer) + self.style.end_sym) + self._eos_ids

    def answer_text(self, ids: list[int]) -> str:
        """Decode generated ids up to the end symbol, without special tokens, and after the last closing of the template."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        text = text.split(self.style.end_sym)[0]
        closing = self.style.closing.strip()
        return (text.split(closing)[-1] if closing else text).strip()

    def answer_lengths(self, answers: Sequence[str]) -> list[int]:
        """Return the number of tokens of each answer with its end symbol, before it is cut to ``max_txt_len``."""
        texts = [self._texts.as_text(answer) + self.style.end_sym for answer in answers]
        return [length + len(self._eos_ids) for length in self._texts.lengths(texts)]

    def prompt_lengths(self, user_texts: Sequence[str], layout: str = TRAIN) -> list[int]:
        """Return the number of text tokens of a first turn with each user text and with all optional sections."""
        return self._texts.count([self.first_turn(self.apply_instruction(text, None), layout, {}) for text in user_texts])

    def first_turn(self, user_text: str, layout: str, counts: Mapping[str, int]) -> list[Segment]:
        """Return the segments of a first turn.

        Args:
            user_text: the user text, with ``<ImageHere>`` if the format inserts an output there.
            layout: name of the layout.
            counts: output -> number of its feature tokens; optional sections whose outputs are empty are left out.
        """
        selected = self.cfg.parsed_layouts[layout]
        opening = (self.bos_text if selected.second_bos else "") + self.style.opening
        body = self._inserted(selected.template.fragments(counts), user_text)
        return join_fragments([Fragment("text", opening), *body, Fragment("text", self.style.closing)])

    def _inserted(self, fragments: Iterable[Fragment], user_text: str) -> Iterator[Fragment]:
        """Yield the fragments with the user text inserted, which is split at ``<ImageHere>`` if an output belongs there."""
        tagged = self.cfg.tagged_output
        for fragment in fragments:
            if fragment.kind != "user_text":
                yield fragment
                continue
            before, _, after = user_text.partition(IMAGE_TAG) if tagged is not None else ("", "", user_text)
            if tagged is not None:
                yield Fragment("text", self._texts.as_text(before))
                yield Fragment("output", tagged)
            yield Fragment("user_text", self._texts.as_text(after))

    def _append_prompt(
        self, tokens: TokenizedTurns, segments: Sequence[Segment], placeholders: Mapping[str, Sequence[int]], name: str
    ) -> int:
        """Append a turn without its answer. Return the number of tokens that were cut from the user text."""
        pieces = self._texts.tokenize(segments)
        excess = sum(len(piece) for piece in pieces) - self.style.max_context_len
        if excess > 0:
            index = next(index for index, segment in enumerate(segments) if segment.user_text is not None)
            before = self._texts.tokenize([*segments[:index], Segment(segments[index].text)])
            piece, fixed = pieces[index], len(before[index])
            if excess >= len(piece) - fixed - len(self._texts.ids(segments[index].after)):
                limit = self.style.max_context_len
                raise UserError(
                    f"sample '{name}': model.max_context_len {limit} leaves no room for the instruction. Increase it."
                )
            pieces[index] = piece[:fixed] + piece[fixed + excess :]
        for segment, piece in zip(segments, pieces, strict=True):
            tokens.append_prompt(piece if segment.output is None else placeholders[segment.output])
        return max(excess, 0)

    def _append_answer(self, tokens: TokenizedTurns, answer: str, limit: int | None) -> int:
        """Append an answer. Return the number of tokens that were cut from it; without a limit, it is never cut."""
        ids = self.answer_ids(answer)
        excess = 0 if limit is None else len(ids) - limit
        if limit is not None and excess > 0:
            end = self._texts.ids(self.style.end_sym) + self._eos_ids
            ids = ids[: limit - len(end)] + end
        tokens.append_answer(ids)
        return max(excess, 0)


class EmotionLlamaFormat(TemplateFormat):
    """The prompt format of the published MiniGPT-v2 and Emotion-LLaMA training code."""

    Config = EmotionLlamaFormatConfig


class MiniGPT4Format(TemplateFormat):
    """The prompt format of the published MiniGPT-4 training code."""

    Config = MiniGPT4FormatConfig


def tag(output: str) -> str:
    """Return the text that is shown at the position of an output, such as ``<VideoHere>`` for ``video``."""
    return f"<{''.join(word.capitalize() for word in output.split('_'))}Here>"
