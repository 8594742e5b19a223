"""Open-vocabulary emotion words: files of them, and the set metrics of MER2024-OV.

Source: the scorer published for that track (MERTools, MER2024/main-ov.py). The words of a clip's truth and prediction are
replaced by the groups of synonyms that they belong to, which gives two sets G and P. Precision is |G and P| / |P|, recall
|G and P| / |G|; an empty P scores 0 and 0. The score is the mean of the two means over clips. There a language model groups each
clip's words anew; here the groups are given, the same for all clips. A clip without true words, by whose number the published
formula would divide, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from emollama.data.annotations import NAME_COLUMNS, column_of, read_json, read_rows
from emollama.errors import UserError
from emollama.evaluation.judges.judge import Judge
from emollama.evaluation.metrics import Metric
from emollama.evaluation.submission import read_submission
from emollama.evaluation.word_lists import parse_words, plain_words
from emollama.paths import require_file

Words = tuple[str, ...]


@dataclass(frozen=True)
class OpenSets:
    """Groups of synonyms of each clip's truth and prediction."""

    names: tuple[str, ...]
    truth: tuple[frozenset[str], ...]
    predicted: tuple[frozenset[str], ...]

    @classmethod
    def of(
        cls, names: Sequence[str], true_words: Sequence[Sequence[str]], predicted_words: Sequence[Sequence[str]],
        synonyms: Mapping[str, str],
    ) -> Self:  # fmt: skip
        """From words of the clips; one that no group has is a group of its own."""
        truth, predicted = (
            tuple(frozenset(synonyms.get(word, word) for word in plain_words(words)) for words in side)
            for side in (true_words, predicted_words)
        )
        return cls(tuple(names), truth, predicted)

    def take(self, places: Sequence[int]) -> Self:
        """The same about the clips at these places."""
        names = tuple(self.names[i] for i in places)
        return type(self)(names, tuple(self.truth[i] for i in places), tuple(self.predicted[i] for i in places))


def _mean(share: Callable[[frozenset[str], frozenset[str]], float], sets: OpenSets) -> float | None:
    shares = [share(true, predicted) for true, predicted in zip(sets.truth, sets.predicted, strict=True) if true]
    return sum(shares) / len(shares) if shares else None


def _precision(sets: OpenSets) -> float | None:
    return _mean(lambda true, predicted: len(true & predicted) / len(predicted) if predicted else 0.0, sets)


def _recall(sets: OpenSets) -> float | None:
    return _mean(lambda true, predicted: len(true & predicted) / len(true), sets)


def _score(sets: OpenSets) -> float | None:
    precision, recall = _precision(sets), _recall(sets)
    return None if precision is None or recall is None else (precision + recall) / 2


OV_PRECISION = Metric("precision of open-vocabulary words", OpenSets, _precision)
OV_RECALL = Metric("recall of open-vocabulary words", OpenSets, _recall)
OV = Metric("open-vocabulary score (mean of precision and recall)", OpenSets, _score)


def read_openset(path: str, key: str = "openset_path") -> dict[str, Words]:
    """Each clip's emotion words, in lower case.

    Args:
        path: a CSV ``name,openset`` (a list in the cell), a JSON object of lists as imports write it, or an ``.npz`` of
            predictions (:func:`~emollama.evaluation.submission.read_submission`).
        key: the configuration key, for messages.

    Raises:
        UserError: no such file, other columns, a cell that is no list (with its line), a clip twice or without a name.
    """
    require_file(path, key)
    if path.endswith(".npz"):
        return read_submission(path)
    return _from_json(path) if path.endswith(".json") else _from_csv(path, key)


def _from_csv(path: str, key: str) -> dict[str, Words]:
    header, rows = read_rows(path, key)
    name_column, column = column_of(path, header, NAME_COLUMNS), column_of(path, header, ["openset"])
    words: dict[str, Words] = {}
    for line, row in rows:
        name = row[name_column]
        if not name or name in words:
            fault = f"a second row for '{name}'. Keep one." if name else "the row has no name"
            raise UserError(f"{path}, line {line}: {fault}")
        try:
            words[name] = parse_words(row[column])
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
    return words


def _from_json(path: str) -> dict[str, Words]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise UserError(f"{path}: expected one object keyed by clip name, each value a list of words")
    for name, words in table.items():
        if not _is_list_of_words(words):
            raise UserError(f'{path}, \'{name}\': expected a list of words such as ["happy", "sad"]')
    return {name: plain_words(words) for name, words in table.items()}


def _is_list_of_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def read_synonyms(path: str, key: str = "synonyms_path") -> dict[str, str]:
    """Groups of synonyms: word -> the group's name, which is one of its words.

    Args:
        path: JSON: a list of groups, each a list of words and called by the first of them; or an object ``{group: [word, ...]}``
            or ``{word: group}``, where the group's name counts as a word of it.
        key: the configuration key, for messages.

    Raises:
        UserError: anything else, or a word in two groups.
    """
    table = read_json(require_file(path, key))
    groups = table
    if isinstance(table, dict) and all(map(_is_list_of_words, table.values())):
        groups = [[group, *words] for group, words in table.items()]
    elif isinstance(table, dict) and all(isinstance(group, str | int) for group in table.values()):
        named: dict[str, list[str]] = {}
        for word, group in table.items():
            named.setdefault(str(group), []).append(word)
        groups = [[group, *words] for group, words in named.items()]
    if not isinstance(groups, list) or not all(map(_is_list_of_words, groups)):
        forms = '[["happy", "glad"], ["sad"]], or an object of one kind: {"happy": ["glad"]} or {"glad": "happy"}'
        raise UserError(f"{path}: expected a list of groups of words, {forms}")
    synonyms: dict[str, str] = {}
    for group in map(plain_words, groups):
        for word in group:
            if synonyms.setdefault(word, group[0]) != group[0]:
                raise UserError(f"{path}: '{word}' stands in the groups of '{synonyms[word]}' and of '{group[0]}'. Keep one.")
    return synonyms


def listed_words(predictions: Mapping[str, str], judge: Judge) -> dict[str, Words | None]:
    """Emotion words of predictions, which are lists of words or descriptions.

    Args:
        predictions: clip -> text. A list in brackets is taken apart, an empty text has no words, the judge reads the others.
        judge: asked once for all of these, and not at all where there are none.

    Returns:
        Clip -> words, in order; None where the judge failed.
    """
    found: dict[str, Words | None] = {name: _listed(text) for name, text in predictions.items()}
    described = [name for name, words in found.items() if words is None]
    if described:
        extractions = judge.emotion_words([predictions[name] for name in described])
        found |= {name: extraction.words for name, extraction in zip(described, extractions, strict=True)}
    return found


def _listed(text: str) -> Words | None:
    text = text.strip()
    if text and not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        return parse_words(text)
    except ValueError:
        return None
