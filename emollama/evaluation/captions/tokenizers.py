"""Tokenizers for captions: lower-case words without punctuation, as in COCO's evaluation (Java) or close to it (without Java).

``ptb`` is Stanford's PTB tokenizer (CoreNLP 3.4.1, part of pycocoevalcap), with which published scores are computed.
``treebank`` is NLTK's Treebank tokenizer, applied to each sentence. Both follow the Penn Treebank and split plain captions into
the same words; they differ in single quotes, abbreviations at the end of a caption, currency signs, asterisks and addresses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from emollama.errors import UserError
from emollama.evaluation.captions.java import JavaFailed, folder_of, java, lacks_java, run_java
from emollama.evaluation.spelling import KEYS, KeySpelling

CaptionTokenizer = Literal["auto", "ptb", "treebank"]
NO_JAVA = "treebank (no Java)"
# COCO's list. Lower-case brackets ("-lrb-") are not on it, so they remain words, as in COCO's evaluation.
PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
# A full stop after two lower-case letters, which excludes "Mr." and "U.S."
SENTENCE_END = re.compile(r"(?<=[^\W\d_A-Z]{2}\.) ")
# NLTK's tokenizer only recognizes the ASCII forms of these characters.
ASCII_FORMS = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "--", "—": "--", "…": "..."})
JAR = "stanford-corenlp-3.4.1.jar"
OPTIONS = ("-preserveLines", "-lowerCase", "-encoding", "UTF-8")


class Tokenizer:
    """A tokenizer with a cache: each distinct caption is split only once.

    Args:
        name: name of the tokenizer in files and tables.
        split: function from captions to their words, joined with spaces.
    """

    def __init__(self, name: str, split: Callable[[Sequence[str]], list[str]]) -> None:
        self.name = name
        self._split = split
        self._cache: dict[str, str] = {}

    def words(self, captions: Sequence[str]) -> list[str]:
        """Return the words of each caption, joined with single spaces; "" for a caption without words.

        Raises:
            JavaFailed: If a tokenizer in Java failed.
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._cache]
        self._cache.update(zip(new, self._split(new), strict=True))
        return [self._cache[caption] for caption in captions]


def tokenizer(choice: CaptionTokenizer, spelling: KeySpelling = KEYS) -> Tokenizer:
    """Return the chosen tokenizer; ``auto`` is ptb if Java is installed.

    Args:
        choice: name of the tokenizer.
        spelling: how messages name the key ``caption_tokenizer``.

    Raises:
        UserError: If ptb is chosen, but Java is missing.
    """
    missing = lacks_java()
    if choice == "ptb" and missing:
        key, other = spelling.path("caption_tokenizer"), spelling.setting("caption_tokenizer", "treebank")
        raise UserError(f"{key}: ptb needs {missing}. Or set {other}.")
    if choice == "treebank" or not java():
        return Tokenizer("treebank" if choice == "treebank" else NO_JAVA, treebank)
    return Tokenizer("ptb", ptb)


def ptb(captions: Sequence[str]) -> list[str]:
    """Split captions with Stanford's tokenizer.

    Raises:
        JavaFailed: If the tokenizer failed.
    """
    lines = [" ".join(caption.split()) for caption in captions]
    not_empty = [line for line in lines if line]
    arguments = ("-cp", JAR, "edu.stanford.nlp.process.PTBTokenizer", *OPTIONS)
    text = "".join(f"{line}\n" for line in not_empty)
    output = run_java("the PTB tokenizer", arguments, folder_of("tokenizer"), text).split("\n")[:-1] if not_empty else []
    if len(output) != len(not_empty):
        raise JavaFailed(f"the PTB tokenizer printed {len(output)} lines for {len(not_empty)} captions")
    tokenized = iter(output)
    return [_joined(next(tokenized).split(" ")) if line else "" for line in lines]


def treebank(captions: Sequence[str]) -> list[str]:
    """Split captions with NLTK's tokenizer; brackets get the names that Stanford's tokenizer uses."""
    from nltk.tokenize import TreebankWordTokenizer

    split = TreebankWordTokenizer().tokenize
    sentences = [SENTENCE_END.split(" ".join(caption.translate(ASCII_FORMS).split())) for caption in captions]
    return [_joined([word.lower() for part in parts for word in split(part, convert_parentheses=True)]) for parts in sentences]


def _joined(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word and word not in PUNCTUATION)
