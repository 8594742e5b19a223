"""Labels of emotions: the vocabulary, synonyms, and the labels of public datasets.

Lists, imports and scores map labels with the same class, :class:`LabelMap`. Sources of the maps: the descriptions that the
datasets are published with; for MAFW and MER, also the order of the classes in their published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

LABELS = ("happy", "sad", "neutral", "angry", "worried", "surprise", "fear", "contempt", "doubt")
SKIP = "skip"  # in a map of an import, in place of a label: leave the clip out
# Forms of the same label. A label whose group has exactly one word of the vocabulary stands for this word.
SYNONYMS = (
    ("happy", "happiness", "joy", "joyful"),
    ("sad", "sadness"),
    ("angry", "anger"),
    ("surprise", "surprised"),
    ("worried", "worry"),
    ("fear", "fearful"),
    ("disgust", "disgusted"),
    ("contempt", "contemptuous"),
    ("doubt", "doubtful"),
    ("excited", "excitement"),
    ("frustrated", "frustration"),
    ("anxiety", "anxious"),
    ("helplessness", "helpless"),
    ("disappointment", "disappointed"),
)
_MER = ("neutral", "angry", "happy", "sad", "worried", "surprise", "fear", "contempt", "doubt")
_MAFW = (
    "angry", "disgust", "fear", "happy", "neutral", "sad", "surprise", "contempt", "anxiety", "helplessness", "disappointment",
)  # fmt: skip
_RAVDESS = ("neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise")
LabelSource = Literal["crema-d", "dfew", "iemocap", "mafw", "meld", "mer", "ravdess"]
DATASET_LABELS: dict[str, dict[str, str]] = {  # dataset -> label or code in its files -> label
    "crema-d": {"ANG": "angry", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"},
    "dfew": {"1": "happy", "2": "sad", "3": "neutral", "4": "angry", "5": "surprise", "6": "disgust", "7": "fear"},
    "iemocap": {
        "ang": "angry", "hap": "happy", "exc": "excited", "sad": "sad", "fru": "frustrated", "fea": "fear", "sur": "surprise",
        "dis": "disgust", "neu": "neutral", "oth": "other", "xxx": "undecided",
    },
    "mafw": {
        "anger": "angry", "happiness": "happy", "sadness": "sad",
        **{label: label for label in _MAFW if label not in ("angry", "happy", "sad")},
        **{str(number): label for number, label in enumerate(_MAFW, 1)},
    },
    "meld": {
        "anger": "angry", "disgust": "disgust", "fear": "fear", "joy": "happy", "neutral": "neutral", "sadness": "sad",
        "surprise": "surprise",
    },
    "mer": {**{label: label for label in _MER}, **{str(number): label for number, label in enumerate(_MER)}},
    "ravdess": {code: label for number, label in enumerate(_RAVDESS, 1) for code in (f"{number:02}", str(number))},
}  # fmt: skip


class LabelMap:
    """Maps labels to labels of the vocabulary. Case and surrounding white space are ignored.

    A label is replaced by the maps, one after another. The result is a label of the vocabulary, or a synonym of exactly one.

    Args:
        labels: the vocabulary.
        maps: raw label -> label.
    """

    def __init__(self, labels: Sequence[str], maps: Sequence[Mapping[str, str]] = ()) -> None:
        self.labels = tuple(labels)
        self._by_word = {_word(label): label for label in reversed(labels)}
        self._maps = [{_word(raw): label for raw, label in table.items()} for table in maps]

    def mapped(self, raw: str) -> str:
        """Apply the maps to a label, one after another."""
        for table in self._maps:
            raw = table.get(_word(raw), raw)
        return raw

    def resolve(self, raw: str) -> str | None:
        """Return the label of the vocabulary, or ``skip``; None if neither the maps nor the synonyms lead to the vocabulary."""
        mapped = self.mapped(raw)
        # "skip" has its special meaning only as a value of a map, not as a label of the source.
        return SKIP if mapped == SKIP != raw else self.label_or_synonym(mapped)

    def label_or_synonym(self, raw: str) -> str | None:
        """Return the label that equals a word or is its synonym, without applying maps; None if there is none or several."""
        if raw in self.labels:
            return raw  # the vocabulary may have labels that differ only in case
        word = _word(raw)
        if word in self._by_word:
            return self._by_word[word]
        synonyms = {other for group in SYNONYMS if word in group for other in group if other in self._by_word}
        return self._by_word[synonyms.pop()] if len(synonyms) == 1 else None


def _word(text: str) -> str:
    return " ".join(text.split()).casefold()


def require_unambiguous(table: Mapping[str, str], key: str) -> None:
    """Check that no two labels of a map differ only in case or white space and stand for different labels.

    Raises:
        ValueError: If there are such labels.
    """
    first: dict[str, str] = {}
    for raw, label in table.items():
        other = first.setdefault(_word(raw), raw)
        if table[other] != label:
            raise ValueError(f"{key}: '{other}' and '{raw}' stand for different labels, but case is ignored. Keep one of them.")


def answer_aliases(table: Mapping[str, str], labels: Sequence[str]) -> dict[str, str]:
    """Return the words of a built-in map that may stand for one of ``labels`` inside an answer: word -> label.

    Codes that are numbers are left out, because a number in a sentence is not a code.
    """
    vocabulary = LabelMap(labels)
    pairs = ((word, vocabulary.label_or_synonym(label)) for word, label in table.items() if not word.isdecimal())
    return {word: label for word, label in pairs if label is not None}
