"""Extraction of a label from an answer's text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emollama.data.label_map import LabelMap
from emollama.errors import UserError
from emollama.evaluation.spelling import KEYS, KeySpelling
from emollama.listing import abbreviated
from emollama.suggestions import did_you_mean

AnswerRule = Literal["search", "exact", "last_word"]
SeveralHits = Literal["invalid", "first", "last"]
_ENDS = re.compile(r"^[\W_]+|[\W_]+$")
_LETTER = r"[^\W_]"


@dataclass(frozen=True)
class ExtractedLabel:
    """The labels in one answer.

    Attributes:
        label: the extracted label; None if the answer is invalid.
        mentioned: all labels that occur in the answer as whole words, regardless of the rule.
    """

    label: str | None
    mentioned: frozenset[str]


class LabelReader:
    """Extracts labels from answers. It ignores case, and punctuation at both ends of an answer.

    A whole word has no letter, digit or hyphenated word on either side: neither "unhappy" nor "happy-go-lucky" contains the label
    happy. A label or alias may consist of several words; if one is part of another, only the longest match counts. Negation is
    not interpreted: "not happy" contains the label happy.

    Args:
        labels: the allowed labels; if empty, no label is ever extracted.
        aliases: word or words -> the label that they stand for.
        rule: ``exact``: the whole answer is a label, an alias, or another form of a label (happiness for happy), as in annotation
            files. ``search``: the answer contains a label or an alias; other forms of a label do not count, neither as the whole
            answer nor in a sentence. ``last_word``: the text
            after its last space is a label, with the same spelling and case. The evaluation published with Emotion-LLaMA
            (eval_emotion.py) extracts labels this way, but counts every other answer as neutral; here such an answer is invalid.
        several: result of ``search`` for an answer with several labels: invalid, or the first or last of them.
        spelling: how messages name the keys ``labels`` and ``aliases``.

    Raises:
        UserError: If a label or an alias has no letter, two labels differ only in case, an alias stands for an unknown label, or
            an alias stands for two labels.
    """

    def __init__(
        self,
        labels: Sequence[str],
        aliases: Mapping[str, str],
        rule: AnswerRule = "search",
        several: SeveralHits = "invalid",
        *,
        spelling: KeySpelling = KEYS,
    ) -> None:
        self.labels = tuple(labels)
        self._rule = rule
        self._several = several
        self._vocabulary = LabelMap(labels)
        self._meaning = _meanings(labels, aliases, spelling)
        self._by_exact_spelling = {name: self._meaning[_plain(name)] for name in (*labels, *aliases)}
        self._whole_words = _whole_words_pattern(self._meaning)

    def read(self, answer: str) -> ExtractedLabel:
        """Extract the label of one answer."""
        hits = [self._meaning[_plain(hit.group())] for hit in self._whole_words.finditer(answer.casefold())]
        synonym = self._vocabulary.label_or_synonym(_plain(answer)) if self._rule == "exact" else None
        if not hits and synonym is not None:
            hits = [synonym]
        if self._rule == "exact":
            label = self._meaning.get(_plain(answer), synonym)
        elif self._rule == "last_word":
            label = self._by_exact_spelling.get(answer.strip().split(" ")[-1])
        else:
            label = self._chosen(hits)
        return ExtractedLabel(label, frozenset(hits))

    def _chosen(self, hits: list[str]) -> str | None:
        if not hits or (self._several == "invalid" and len(set(hits)) > 1):
            return None
        return hits[-1] if self._several == "last" else hits[0]


def _plain(text: str) -> str:
    return " ".join(_ENDS.sub("", text.casefold()).split())


def _meanings(labels: Sequence[str], aliases: Mapping[str, str], spelling: KeySpelling) -> dict[str, str]:
    """Map the plain form of each label and alias to the label."""
    meaning: dict[str, str] = {}
    labels_key, aliases_key = spelling.name("labels"), spelling.name("aliases")
    for label in labels:
        plain = _plain(label)
        if not plain or plain in meaning:
            problem = f"differs from '{meaning[plain]}' only in case or punctuation" if plain else "has no letter"
            raise UserError(f"{labels_key}: '{label}' {problem}. Remove or rename it.")
        meaning[plain] = label
    targets = dict(meaning)
    for alias, target in aliases.items():
        plain, meant = _plain(alias), targets.get(_plain(target))
        if meant is None:
            expected = f"Expected one of the labels {abbreviated(labels)}.{did_you_mean(target, labels)}"
            raise UserError(f"{aliases_key}: '{alias}' stands for '{target}', which is not a label. {expected}")
        if not plain:
            raise UserError(f"{aliases_key}: '{alias}' has no letter. Remove it.")
        if meaning.setdefault(plain, meant) != meant:
            both = f"both '{meaning[plain]}' and '{meant}'"
            raise UserError(f"{aliases_key}: '{alias}' stands for {both}. Keep one of them.")
    return meaning


def _whole_words_pattern(phrases: Iterable[str]) -> re.Pattern[str]:
    # A regular expression takes the first alternative that matches, so longer phrases come first.
    longest_first = sorted(phrases, key=len, reverse=True)
    alternatives = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in longest_first) or "(?!)"
    return re.compile(rf"(?<!{_LETTER})(?<!{_LETTER}-)(?:{alternatives})(?!-?{_LETTER})")
