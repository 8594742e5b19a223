"""Tokenized predictions and references of captions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from emollama.evaluation.captions.java import NEEDS_JAVA
from emollama.evaluation.captions.tokenizers import NO_JAVA, CaptionTokenizer, Tokenizer, tokenizer
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.spelling import KeySpelling
from emollama.listing import listing


@dataclass(frozen=True)
class Captions:
    """Tokenized captions, one entry per sample: words joined with single spaces. Each sample has at least one reference."""

    names: tuple[str, ...]
    predicted: list[str]
    references: list[list[str]]
    tokenizer: str

    @classmethod
    def of(cls, predictions: Sequence[Prediction], tokenizer: Tokenizer) -> Self:
        """Tokenize the answers that have references, and their references.

        Raises:
            JavaFailed: If the tokenizer failed.
        """
        captioned = [prediction for prediction in predictions if prediction.captions]
        texts = [text for prediction in captioned for text in (prediction.text, *prediction.captions)]
        tokenized = iter(tokenizer.words(texts))
        samples = [[next(tokenized) for _ in range(1 + len(prediction.captions))] for prediction in captioned]
        names = tuple(prediction.name for prediction in captioned)
        return cls(names, [sample[0] for sample in samples], [sample[1:] for sample in samples], tokenizer.name)


class CaptionReader:
    """Tokenizes the predictions and references of captions.

    Args:
        choice: the tokenizer.
        spelling: how messages name the block and its keys.
        every_metric: whether the block computes all caption metrics that can be computed.

    Raises:
        UserError: If the chosen tokenizer cannot run here.
    """

    def __init__(self, choice: CaptionTokenizer, spelling: KeySpelling, *, every_metric: bool) -> None:
        self._spelling = spelling
        self._every_metric = every_metric
        self._warned: list[str] = []
        self._tokenizer = tokenizer(choice, spelling)

    def warning(self) -> str | None:
        """Return how the scores differ because Java is not installed; None if they do not."""
        if self._tokenizer.name != NO_JAVA:
            return None
        text = "treebank splits captions, because Java is not installed (its scores are close to those of ptb, not equal)"
        need = ", and METEOR is not computed. Both need" if self._every_metric else ". ptb needs"
        return f"{self._spelling.path('caption_tokenizer')}: {text}{need} {NEEDS_JAVA}"

    def read(self, predictions: Sequence[Prediction]) -> Captions:
        """Tokenize the predictions that have references, and warn once about the others.

        Raises:
            JavaFailed: If the tokenizer failed.
        """
        without_reference = [prediction.name for prediction in predictions if not prediction.captions]
        if without_reference and without_reference != self._warned:
            text = f"caption metrics leave out samples without a reference caption ({listing(without_reference, 'sample')})"
            logging.getLogger("emollama").warning("%s", self._spelling.in_block(text))
            self._warned = without_reference
        return Captions.of(predictions, self._tokenizer)
