"""Builds the metric inputs of captions from answers, and checks what they need."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from emollama.evaluation.captions.java import NEEDS_JAVA, lacks_java, lacks_spice
from emollama.evaluation.captions.metric_inputs import Alignments, CaptionNumbers, Captions, Propositions
from emollama.evaluation.captions.tokenizers import NO_JAVA, CaptionTokenizer, tokenizer
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.spelling import KeySpelling
from emollama.listing import listing


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

    def missing(self, input_type: type) -> str | None:
        """Return what is missing to build a metric input; None if nothing is."""
        if input_type is Propositions:
            return lacks_spice()
        return lacks_java() if input_type is Alignments else None

    def build(self, input_type: type[CaptionNumbers], predictions: Sequence[Prediction]) -> CaptionNumbers:
        """Build a metric input from the predictions that have references, and warn once about the others.

        Raises:
            JavaFailed: If a Java program failed.
        """
        without_reference = [prediction.name for prediction in predictions if not prediction.captions]
        if without_reference and without_reference != self._warned:
            text = f"caption metrics leave out samples without a reference caption ({listing(without_reference, 'sample')})"
            logging.getLogger("emollama").warning("%s", self._spelling.in_block(text))
            self._warned = without_reference
        return input_type.of(Captions.of(predictions, self._tokenizer))
