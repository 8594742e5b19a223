"""Captions into lower-case words without punctuation, as COCO's evaluation does it through Java, or nearly so without.

``ptb`` is Stanford's PTB tokenizer (CoreNLP 3.4.1, with pycocoevalcap), whose figures are the published kind. ``treebank`` is
NLTK's Treebank tokenizer, sentence by sentence. Both follow the Penn Treebank, and give plain captions the same words; they
differ in single quotes, abbreviations at a caption's end, signs of currency, asterisks and addresses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from emollama.errors import UserError
from emollama.evaluation.captions.java import JavaFailed, folder_of, java, lacks_java, run_java
from emollama.evaluation.spelling import KEYS, KeySpelling

TokenizerChoice = Literal["auto", "ptb", "treebank"]
NO_JAVA = "treebank (no Java)"
# COCO's list. Lower-cased brackets ("-lrb-") are not on it and stay words, there as here.
PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
SENTENCE_END = re.compile(r"(?<=[^\W\d_A-Z]{2}\.) ")  # a full stop after two small letters: not that of "Mr." or "U.S."
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "--", "—": "--", "…": "..."})  # signs that NLTK does not know
JAR = "stanford-corenlp-3.4.1.jar"
OPTIONS = ("-preserveLines", "-lowerCase", "-encoding", "UTF-8")


class Tokenizer:
    """A way to split captions. A caption is split once, however often it is asked for.

    Args:
        name: as files and tables tell it.
        split: captions -> their words.
    """

    def __init__(self, name: str, split: Callable[[Sequence[str]], list[str]]) -> None:
        self.name = name
        self._split = split
        self._known: dict[str, str] = {}

    def words(self, captions: Sequence[str]) -> list[str]:
        """Each caption's words with single spaces between; "" where it has none.

        Raises:
            JavaFailed: a tokenizer in Java did not run.
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        self._known.update(zip(new, self._split(new), strict=True))
        return [self._known[caption] for caption in captions]


def tokenizer(choice: TokenizerChoice, spelling: KeySpelling = KEYS) -> Tokenizer:
    """The chosen tokenizer; ``auto`` takes ptb where Java is.

    Args:
        choice: its name.
        spelling: how messages name the key ``caption_tokenizer``.

    Raises:
        UserError: ptb without Java.
    """
    lacking = lacks_java()
    if choice == "ptb" and lacking:
        key, other = spelling.path("caption_tokenizer"), spelling.setting("caption_tokenizer", "treebank")
        raise UserError(f"{key}: ptb needs {lacking}. Or set {other}.")
    if choice == "treebank" or not java():
        return Tokenizer("treebank" if choice == "treebank" else NO_JAVA, treebank)
    return Tokenizer("ptb", ptb)


def ptb(captions: Sequence[str]) -> list[str]:
    """Words as Stanford's tokenizer splits them.

    Raises:
        JavaFailed: it did not run through.
    """
    lines = [" ".join(caption.split()) for caption in captions]
    asked = [line for line in lines if line]
    arguments = ("-cp", JAR, "edu.stanford.nlp.process.PTBTokenizer", *OPTIONS)
    given = "".join(f"{line}\n" for line in asked)
    answered = run_java("the PTB tokenizer", arguments, folder_of("tokenizer"), given).split("\n")[:-1] if asked else []
    if len(answered) != len(asked):
        raise JavaFailed(f"the PTB tokenizer gave {len(answered)} lines for {len(asked)} captions")
    found = iter(answered)
    return [_joined(next(found).split(" ")) if line else "" for line in lines]


def treebank(captions: Sequence[str]) -> list[str]:
    """Words as NLTK's tokenizer splits them; brackets are named as Stanford's names them."""
    from nltk.tokenize import TreebankWordTokenizer

    split = TreebankWordTokenizer().tokenize
    sentences = [SENTENCE_END.split(" ".join(caption.translate(PLAIN).split())) for caption in captions]
    return [_joined([word.lower() for part in parts for word in split(part, convert_parentheses=True)]) for parts in sentences]


def _joined(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word and word not in PUNCTUATION)
