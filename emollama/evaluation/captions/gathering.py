"""Builds the metric inputs of captions from answers, and checks what they need."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from emollama.evaluation.answers import Answer
from emollama.evaluation.captions.java import NEEDS_JAVA, lacks_java, lacks_spice
from emollama.evaluation.captions.metric_inputs import Alignments, CaptionNumbers, Captions, Propositions
from emollama.evaluation.captions.tokenizers import NO_JAVA, CaptionTokenizer, tokenizer
from emollama.evaluation.spelling import KeySpelling
from emollama.listing import listing

CAPTION = "caption"  # the task whose answers are compared with several references each


class CaptionInputs:
    """Builds metric inputs of captions.

    Args:
        choice: the tokenizer.
        spelling: how messages name the block and its keys.

    Raises:
        UserError: If the chosen tokenizer cannot run here.
    """

    def __init__(self, choice: CaptionTokenizer, spelling: KeySpelling) -> None:
        self._spelling = spelling
        self._warned: list[str] = []
        self._tokenizer = tokenizer(choice, spelling)

    def warn(self, *, without_meteor: bool) -> None:
        """Log a warning if the scores differ because Java is not installed."""
        if self._tokenizer.name == NO_JAVA:
            text = "treebank splits captions, because Java is not installed (its scores are close to those of ptb, not equal)"
            need = ", and METEOR is not computed. Both need" if without_meteor else ". ptb needs"
            logging.getLogger("emollama").warning("%s: %s%s %s", self._spelling.path("caption_tokenizer"), text, need, NEEDS_JAVA)

    def missing(self, kind: type) -> str | None:
        """Return what is missing to build a kind of metric input; None if nothing is."""
        if kind is Propositions:
            return lacks_spice()
        return lacks_java() if kind is Alignments else None

    def build(self, kind: type[CaptionNumbers], answers: Sequence[Answer]) -> CaptionNumbers:
        """Build a metric input from the answers that have references, and warn once about the others.

        Raises:
            JavaFailed: If a Java program failed.
        """
        without_reference = [answer.name for answer in answers if not answer.captions]
        if without_reference and without_reference != self._warned:
            text = f"caption metrics leave out samples without a reference caption ({listing(without_reference, 'sample')})"
            logging.getLogger("emollama").warning("%s", self._spelling.in_block(text))
            self._warned = without_reference
        return kind.of(Captions.of(answers, self._tokenizer))
