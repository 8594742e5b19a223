"""Segments of a user turn, which are texts and outputs of the fusion module, and their tokenization.

Text from user files stays text: a template is parsed before any user text is inserted, and :meth:`SegmentTokenizer.as_text`
separates special tokens.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from emollama.data.prompts.template import Fragment
from emollama.data.prompts.tokenizer_check import outside
from emollama.errors import UserError
from emollama.text_encoding import LONE_SURROGATE, escaped, is_encodable

MAX_CACHED_TEXTS = 256
MAX_SHOWN = 200  # characters of a text in a message
MARKER = "<|emollama:{}|>"  # special token in place of an output while a turn is tokenized at once


class Segment(NamedTuple):
    """The text between two outputs, or an output.

    Attributes:
        text: the text before the user text, or the whole text of a segment without user text.
        user_text: the only text that is shortened if the prompt is too long; None if it is not in this segment.
        after: the text after the user text.
        output: name of the output; None for text.
    """

    text: str = ""
    user_text: str | None = None
    after: str = ""
    output: str | None = None

    @property
    def whole(self) -> str:
        """The whole text of the segment."""
        return self.text + (self.user_text or "") + self.after


def join_fragments(fragments: Iterable[Fragment]) -> list[Segment]:
    """Join consecutive texts to segments. Texts, which may be empty, and outputs alternate."""
    segments = [Segment()]
    for fragment in fragments:
        last = segments[-1]
        if fragment.kind == "output":
            segments += [Segment(output=fragment.value), Segment()]
        elif fragment.kind == "user_text":
            segments[-1] = last._replace(user_text=fragment.value)
        elif last.user_text is None:
            segments[-1] = last._replace(text=last.text + fragment.value)
        else:
            segments[-1] = last._replace(after=last.after + fragment.value)
    return segments


class SegmentTokenizer:
    """Tokenizes the texts of a turn: each segment by itself, or the whole turn at once with a special token at each output.

    Args:
        tokenizer: a Hugging Face tokenizer, which is not changed.
        outputs: names of the outputs.
        rows: number of rows of the embedding table. Texts must not contain larger ids.
        whole: whether a turn is tokenized at once.
    """

    def __init__(self, tokenizer: Any, outputs: Collection[str], *, rows: int, whole: bool) -> None:
        self._tokenizer = tokenizer
        self._rows = rows
        self._has_larger_ids = max(tokenizer.get_vocab().values(), default=0) >= rows
        self._cached_ids: dict[str, list[int]] = {}
        self._markers: set[int] = set()
        if whole:
            self._tokenizer = copy.deepcopy(tokenizer)
            texts = [MARKER.format(name) for name in outputs]
            self._tokenizer.add_tokens(texts, special_tokens=True)
            self._markers = set(self._tokenizer.convert_tokens_to_ids(texts))
        special = [re.escape(text) for text in self._tokenizer.get_added_vocab() if text.strip()]
        self._special = re.compile("|".join(sorted(special, key=len, reverse=True))) if special else None

    def as_text(self, text: str) -> str:
        """Insert a space into every spelling of a special token, so that the tokenizer treats it as text."""
        if self._special is None:
            return text
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, without a BOS token.

        Raises:
            UserError: If the text contains a token that has no row in the embedding table.
        """
        ids: list[int] = list(self._call_tokenizer(text))
        if self._has_larger_ids:
            self._require_rows(ids, text)
        return ids

    def _require_rows(self, ids: list[int], text: str) -> None:
        token = next((token for token in ids if token >= self._rows and token not in self._markers), None)
        if token is not None:
            name = self._tokenizer.convert_ids_to_tokens(token)
            shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
            raise UserError(f"the text {shown!r} cannot be used: {outside(name, token, self._rows)}. Change the text.")

    def tokenize(self, segments: Sequence[Segment]) -> list[list[int]]:
        """Return the token ids of each segment; those of an output are empty."""
        if not self._markers:
            return [
                self._ids_of_template(segment.text) if segment.user_text is None else self.ids(segment.whole)
                for segment in segments
            ]
        pieces: list[list[int]] = [[]]
        for token in self.ids(_marked(segments)):
            if token in self._markers:
                pieces += [[], []]
            else:
                pieces[-1].append(token)
        return pieces

    def _ids_of_template(self, text: str) -> list[int]:
        """Return the token ids of a text without user text. They are cached, because most samples have the same few texts."""
        if text in self._cached_ids:
            return self._cached_ids[text]
        ids = self.ids(text) if text else []
        if len(self._cached_ids) < MAX_CACHED_TEXTS:
            self._cached_ids[text] = ids
        return ids

    def count(self, turns: Sequence[Sequence[Segment]]) -> list[int]:
        """Return the number of text tokens of each turn."""
        if self._markers:
            outputs = [sum(segment.output is not None for segment in segments) for segments in turns]
            lengths = self.lengths([_marked(segments) for segments in turns])
            return [length - markers for length, markers in zip(lengths, outputs, strict=True)]
        # Most turns share their texts except the one with the user text, so each is tokenized once.
        texts = list({segment.whole: None for segments in turns for segment in segments})
        length_of = dict(zip(texts, self.lengths(texts), strict=True))
        return [sum(length_of[segment.whole] for segment in segments) for segments in turns]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        return [len(ids) for ids in self._call_tokenizer(list(texts))] if texts else []

    def _call_tokenizer(self, texts: str | list[str]) -> Any:
        """Return the token ids of one or several texts.

        Raises:
            UserError: If a text of a user's dataset class contains a lone surrogate.
        """
        try:
            return self._tokenizer(texts, add_special_tokens=False).input_ids
        except (TypeError, UnicodeEncodeError):
            invalid = next((text for text in [texts, *texts] if isinstance(text, str) and not is_encodable(text)), None)
            if invalid is None:
                raise
            raise UserError(f"the text '{escaped(invalid)[:MAX_SHOWN]}' contains {LONE_SURROGATE}.") from None


def _marked(segments: Sequence[Segment]) -> str:
    """Return the text of a turn with a marker in place of each output."""
    return "".join(segment.whole if segment.output is None else MARKER.format(segment.output) for segment in segments)
