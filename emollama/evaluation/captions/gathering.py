"""From answers to the numbers that metrics of captions need, and what is lacking here for that."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from emollama.evaluation.answers import Answer
from emollama.evaluation.captions.java import NEEDS_JAVA, lacks_java, lacks_spice
from emollama.evaluation.captions.metric_inputs import Alignments, CaptionNumbers, Captions, Propositions
from emollama.evaluation.captions.tokenizers import NO_JAVA, TokenizerChoice, tokenizer
from emollama.evaluation.spelling import KeySpelling
from emollama.listing import listing

CAPTION = "caption"  # the task whose answers are compared with several references


class CaptionInputs:
    """Gathers numbers about captions.

    Args:
        choice: how captions are split into words.
        spelling: how messages name the block and its keys.

    Raises:
        UserError: the chosen tokenizer cannot run here.
    """

    def __init__(self, choice: TokenizerChoice, spelling: KeySpelling) -> None:
        self._spelling = spelling
        self._told: list[str] = []
        self._tokenizer = tokenizer(choice, spelling)

    def warn(self, *, without_meteor: bool) -> None:
        """Tell what the lack of Java changes, where it changes anything."""
        if self._tokenizer.name == NO_JAVA:
            text = "treebank splits captions, for there is no Java (its figures are near ptb's, not equal)"
            need = ", and METEOR is left out. For both there must be" if without_meteor else ". For ptb there must be"
            logging.getLogger("emollama").warning("%s: %s%s %s", self._spelling.path("caption_tokenizer"), text, need, NEEDS_JAVA)

    def lacking(self, kind: type) -> str | None:
        """What a kind of evidence would need; None where nothing is lacking."""
        if kind is Propositions:
            return lacks_spice()
        return lacks_java() if kind is Alignments else None

    def gather(self, kind: type[CaptionNumbers], answers: Sequence[Answer]) -> CaptionNumbers:
        """The numbers of the answers that have references; of the others is told, once.

        Raises:
            JavaFailed: a program did not run.
        """
        bare = [answer.name for answer in answers if not answer.captions]
        if bare and bare != self._told:
            text = f"no true caption is known of, and metrics of captions leave out, clips {listing(bare)}"
            logging.getLogger("emollama").warning("%s", self._spelling.in_block(text))
            self._told = bare
        return kind.of(Captions.of(answers, self._tokenizer))
