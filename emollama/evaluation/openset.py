"""Open-vocabulary emotion words: readers for files of words, and the set metrics of MER2024-OV.

Source: the scorer published for that track (MERTools, MER2024/main-ov.py). The words of a sample's reference and prediction are
replaced by the names of their groups of synonyms, which gives two sets G and P. Precision is |G and P| / |P|, recall
|G and P| / |G|; an empty P scores 0 for both. The score is the mean of the two means over samples. In the published scorer, a
language model groups the words of each sample separately; :mod:`emollama.evaluation.synonyms` reads these groups, or one grouping
for all samples. With groups for each sample, lists in brackets are read as that scorer reads them
(:func:`~emollama.evaluation.word_lists.published_words`), groups are compared as they are written, and a sample without words on
both sides scores 0. Otherwise, case and white space are ignored, and such a sample is left out. A sample that has no reference
words but a prediction is always left out, because the published formula would divide by zero, and so are samples without
groups, if others have some.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from emollama.data.annotations import NAME_COLUMNS, read_json
from emollama.data.csv_files import read_csv, require_column
from emollama.errors import UserError
from emollama.evaluation.judges.judge import Judge
from emollama.evaluation.metrics import Metric, MetricInput
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.resources import ScoringResources
from emollama.evaluation.submission import read_submission
from emollama.evaluation.synonyms import Synonyms
from emollama.evaluation.word_lists import is_list, normalized_words, parse_words, published_words
from emollama.listing import listing
from emollama.paths import extension, require_file
from emollama.registry import JUDGES

Words = tuple[str, ...]


class WordSets(MetricInput):
    """Base class of metric inputs of emotion words. The judge extracts the words of descriptions."""

    content = "emotion words"
    uses_judge = True

    @classmethod
    def missing(cls, resources: ScoringResources, task: str) -> str | None:
        """Return what is missing: reference words."""
        key = resources.spelling.name("openset_path")
        return f"{key}, the true emotion words of the samples" if resources.openset is None else None


@dataclass(frozen=True)
class OpenSets(WordSets):
    """Groups of synonyms in the reference and in the prediction of each sample.

    Attributes:
        references: groups of the reference.
        predicted: groups of the prediction.
        score_empty: whether a sample without words on both sides scores 0, instead of being left out.
    """

    references: tuple[frozenset[str], ...]
    predicted: tuple[frozenset[str], ...]
    score_empty: bool = False

    @classmethod
    def of(
        cls, names: Sequence[str], reference_words: Sequence[Sequence[str]], predicted_words: Sequence[Sequence[str]],
        synonyms: Synonyms,
    ) -> Self:  # fmt: skip
        """Build the sets from words; a word without a group is a group of its own.

        Args:
            names: names of the samples.
            reference_words: reference words of each sample.
            predicted_words: predicted words of each sample.
            synonyms: the groups. If each sample has its own, words are compared as they are, and samples without groups are
                left out; otherwise, case and white space are ignored.
        """
        own_groups = synonyms.by_sample is not None
        words_of = tuple if own_groups else normalized_words
        samples = [
            (name, *(frozenset(groups.get(word, word) for word in words_of(words)) for words in both))
            for name, *both in zip(names, reference_words, predicted_words, strict=True)
            if (groups := synonyms.of(name)) is not None
        ]
        columns = zip(*samples, strict=True) if samples else ((), (), ())
        scored_names, references, predicted = map(tuple, columns)
        return cls(scored_names, references, predicted, own_groups)

    @classmethod
    def compute(cls, predictions: Sequence[Prediction], resources: ScoringResources) -> Self:
        """Extract the words of the predictions for samples that have reference words."""
        names, references, predicted = word_sets(predictions, resources)
        if ungrouped := [name for name in names if resources.synonyms.of(name) is None]:
            key = resources.spelling.name("synonyms_path")
            text = f"ov leaves out {listing(ungrouped, 'sample')}, because {key} has groups for other samples only"
            logging.getLogger("emollama").warning("%s", resources.spelling.in_block(text))
        if resources.published_openset is not None:
            references = [resources.published_openset[name] for name in names]
            texts = {prediction.name: prediction.text.strip() for prediction in predictions}
            predicted = [
                published_words(text) if (text := texts[name]).startswith("[") and is_list(text) else words
                for name, words in zip(names, predicted, strict=True)
            ]
        return cls.of(names, references, predicted, resources.synonyms)

    def scored(self) -> Self:
        """Return the samples that have reference words, and with ``score_empty`` those without any words."""
        both = enumerate(zip(self.references, self.predicted, strict=True))
        return self.take([index for index, (words, predicted) in both if words or (self.score_empty and not predicted)])


def _mean(share: Callable[[frozenset[str], frozenset[str]], float], sets: OpenSets) -> float | None:
    scored = sets.scored()
    shares = [share(reference, predicted) for reference, predicted in zip(scored.references, scored.predicted, strict=True)]
    return sum(shares) / len(shares) if shares else None


def _precision(sets: OpenSets) -> float | None:
    return _mean(lambda reference, predicted: len(reference & predicted) / len(predicted) if predicted else 0.0, sets)


def _recall(sets: OpenSets) -> float | None:
    return _mean(lambda reference, predicted: len(reference & predicted) / len(reference) if reference else 0.0, sets)


def _score(sets: OpenSets) -> float | None:
    precision, recall = _precision(sets), _recall(sets)
    return None if precision is None or recall is None else (precision + recall) / 2


OV_PRECISION = Metric("precision of open-vocabulary words", "open_sets", _precision)
OV_RECALL = Metric("recall of open-vocabulary words", "open_sets", _recall)
OV = Metric("open-vocabulary score (mean of precision and recall)", "open_sets", _score)


def read_openset(path: str, key: str = "openset_path", *, published: bool = False) -> dict[str, Words]:
    """Read the emotion words of each sample, in lower case.

    Args:
        path: a CSV ``name,openset`` (a list in the cell), a JSON object of lists as the importers write it, or an ``.npz``
            submission (:func:`~emollama.evaluation.submission.read_submission`).
        key: the configuration key, for messages.
        published: whether to read a list in brackets in a CSV with the rules of the published scorer
            (:func:`~emollama.evaluation.word_lists.published_words`).

    Raises:
        UserError: If the file does not exist or has other columns, a cell is not a list of words, or a sample has no name or two
            rows. The message names the line.
    """
    require_file(path, key)
    if extension(path) == ".npz":
        return read_submission(path)
    return _from_json(path) if extension(path) == ".json" else _from_csv(path, key, published)


def _from_csv(path: str, key: str, published: bool) -> dict[str, Words]:
    header, rows = read_csv(path, key)
    name_column, column = require_column(path, header, NAME_COLUMNS), require_column(path, header, ["openset"])
    words: dict[str, Words] = {}
    for line, row in rows:
        name, cell = row[name_column], row[column]
        if not name or name in words:
            problem = f"'{name}' already has a row. Remove one of the two." if name else "the row has no name"
            raise UserError(f"{path}, line {line}: {problem}")
        try:
            words[name] = parse_words(cell)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        if published and cell.startswith("["):
            words[name] = published_words(cell)
    return words


def _from_json(path: str) -> dict[str, Words]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise UserError(f"{path}: expected one object keyed by sample name, each value a list of words")
    for name, words in table.items():
        if not _is_list_of_words(words):
            raise UserError(f'{path}, \'{name}\': expected a list of words such as ["happy", "sad"]')
    return {name: normalized_words(words) for name, words in table.items()}


def _is_list_of_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def extract_words(texts: Mapping[str, str], judge: Judge) -> dict[str, Words | None]:
    """Return the emotion words of predictions, which are lists of words or descriptions.

    Args:
        texts: sample name -> text. A list in brackets is parsed and an empty text has no words; the judge extracts the
            words of all other texts.
        judge: called once with all of these texts, or not at all if there are none.

    Returns:
        Sample name -> words in order; None if the judge failed.
    """
    words_by_name: dict[str, Words | None] = {name: _parse_list(text) for name, text in texts.items()}
    described = [name for name, words in words_by_name.items() if words is None]
    if described:
        extractions = judge.emotion_words([texts[name] for name in described])
        words_by_name |= {name: extraction.words for name, extraction in zip(described, extractions, strict=True)}
    return words_by_name


def word_sets(
    predictions: Sequence[Prediction], resources: ScoringResources
) -> tuple[list[str], list[Sequence[str]], list[Sequence[str]]]:
    """Return three lists (names, reference words, predicted words), without samples whose words could not be extracted."""
    assert resources.openset is not None
    predicted_texts = {
        prediction.name: prediction.as_word_list for prediction in predictions if prediction.name in resources.openset
    }
    predicted = extract_words(predicted_texts, resources.judge or JUDGES.built({"type": "lexical"}, "judge"))
    if failed := [name for name, words in predicted.items() if words is None]:
        text = f"ov and ew leave out {listing(failed, 'sample')}, because the judge found no emotion words"
        logging.getLogger("emollama").warning("%s", resources.spelling.in_block(text))
    names = [name for name, words in predicted.items() if words is not None]
    return names, [resources.openset[name] for name in names], [predicted[name] or () for name in names]


def _parse_list(text: str) -> Words | None:
    text = text.strip()
    if text and not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        return parse_words(text)
    except ValueError:
        return None
