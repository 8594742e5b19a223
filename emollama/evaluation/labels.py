"""Which label an answer means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emollama.errors import UserError
from emollama.evaluation.spelling import KEYS, KeySpelling
from emollama.listing import abbreviated
from emollama.registry import did_you_mean

AnswerRule = Literal["search", "exact", "last_word"]
SeveralHits = Literal["invalid", "first", "last"]
_ENDS = re.compile(r"^[\W_]+|[\W_]+$")
_LETTER = r"[^\W_]"


@dataclass(frozen=True)
class ExtractedLabel:
    """What was read out of one answer.

    Attributes:
        label: the label; None where the answer is invalid.
        named: all labels that the answer names as whole words, whatever the rule.
    """

    label: str | None
    named: frozenset[str]


class LabelReader:
    """Reads labels out of answers. Case and punctuation at an answer's ends do not count.

    A whole word is one without a letter, digit or hyphenated word on either side: neither "unhappy" nor "happy-go-lucky" names
    happy. A label or alias may be several words; where one stands inside another's words, only the longest counts. Negation is
    not understood: "not happy" names happy.

    Args:
        labels: that answers may have; may be none, where nothing is read at all.
        aliases: word or words -> the label that they stand for.
        rule: ``exact``: the whole answer is a label or an alias. ``search``: it names one. ``last_word``: what follows its last
            space is a label, letter for letter. So the evaluation published with Emotion-LLaMA (eval_emotion.py) reads, but
            it counts every other answer as neutral; here such an answer is invalid.
        several: what ``search`` makes of an answer that names several labels: nothing, or the first or last of them.
        spelling: how messages name the keys ``labels`` and ``aliases``.

    Raises:
        UserError: a label or an alias without a letter, two labels that are one but for their case, an alias of something that is
            no label, or one that stands for two.
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
        self._meaning = _meanings(labels, aliases, spelling)
        self._spelled = {spelling: self._meaning[_plain(spelling)] for spelling in (*labels, *aliases)}
        self._whole_words = _whole_words(self._meaning)

    def read(self, answer: str) -> ExtractedLabel:
        """Read one answer."""
        hits = [self._meaning[_plain(hit.group())] for hit in self._whole_words.finditer(answer.casefold())]
        if self._rule == "exact":
            label = self._meaning.get(_plain(answer))
        elif self._rule == "last_word":
            label = self._spelled.get(answer.strip().split(" ")[-1])
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
    """Plain form of a label or an alias -> the label."""
    meaning: dict[str, str] = {}
    labels_key, aliases_key = spelling.name("labels"), spelling.name("aliases")
    for label in labels:
        plain = _plain(label)
        if not plain or plain in meaning:
            other = f"is '{meaning[plain]}' but for case and punctuation" if plain else "has no letter"
            raise UserError(f"{labels_key}: '{label}' {other}. Remove or rename it.")
        meaning[plain] = label
    targets = dict(meaning)
    for alias, target in aliases.items():
        plain, meant = _plain(alias), targets.get(_plain(target))
        if meant is None:
            known = f"{abbreviated(labels)}.{did_you_mean(target, labels)}"
            raise UserError(f"{aliases_key}: '{alias}' stands for '{target}', which is none of {known}")
        if not plain:
            raise UserError(f"{aliases_key}: '{alias}' has no letter. Remove it.")
        if meaning.setdefault(plain, meant) != meant:
            other = f"stands for '{meaning[plain]}' already"
            raise UserError(f"{aliases_key}: '{alias}' is to stand for '{meant}', but {other}. Keep one.")
    return meaning


def _whole_words(phrases: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    spelled = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in longest_first) or "(?!)"
    return re.compile(rf"(?<!{_LETTER})(?<!{_LETTER}-)(?:{spelled})(?!-?{_LETTER})")
