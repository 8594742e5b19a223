"""Metric inputs of captions: numbers per sample, which metrics sum or average over any subset of the samples.

pycocoevalcap computes the numbers over all samples at once. CIDEr-D weights words by the number of samples whose references
contain them, so a sample's CIDEr-D depends on the whole set; it is not recomputed when samples are taken out of it.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from emollama.evaluation.captions.java import JavaFailed, folder_of, lacks_java, lacks_spice, run_java
from emollama.evaluation.captions.reader import Captions
from emollama.evaluation.metrics import MetricInput
from emollama.evaluation.predictions import CAPTION, Prediction
from emollama.evaluation.resources import ScoringResources
from emollama.run_folder import CaptionsRecord

Numbers = NDArray[np.float64]
LONGEST = 4  # words of the longest n-grams
METEOR_STATISTICS = 23  # numbers that METEOR prints per sample


@dataclass(frozen=True, eq=False)
class CaptionNumbers(MetricInput):
    """Base class of the metric inputs of captions.

    Attributes:
        values: (samples, columns); the subclass defines the columns.
        tokenizer: name of the tokenizer that split the captions.
    """

    values: Numbers
    tokenizer: str

    @classmethod
    def missing(cls, resources: ScoringResources, task: str) -> str | None:
        """Return what is missing: the task ``caption``, or reference captions."""
        if task != CAPTION:
            return f"the task '{CAPTION}'"
        return None if resources.caption_reader else "samples with reference captions"

    @classmethod
    def warning(cls, resources: ScoringResources) -> str | None:
        """Return how the scores differ if Java is not installed."""
        return resources.caption_reader.warning() if resources.caption_reader else None

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Compute the numbers of tokenized captions."""
        raise NotImplementedError

    @classmethod
    def compute(cls, predictions: Sequence[Prediction], resources: ScoringResources) -> Self:
        """Compute the numbers of the predictions that have references.

        Raises:
            JavaFailed: If a Java program failed.
        """
        assert resources.caption_reader is not None
        return cls.of(resources.caption_reader.read(predictions))

    def take(self, indices: Sequence[int]) -> Self:
        """Return the numbers of the samples at these indices."""
        return type(self)(tuple(self.names[i] for i in indices), self.values[np.asarray(indices, np.int64)], self.tokenizer)

    def details(self, predictions: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, Any]:
        """Return the tokenizer, the samples without a reference, and the metrics of each sample."""
        scored = {*self.names}
        without_reference = [prediction.name for prediction in predictions if prediction.name not in scored]
        captions = CaptionsRecord(self.tokenizer, without_reference)
        return {"captions": asdict(captions), "clip_scores": self.sample_rows(metrics)}


class NGrams(CaptionNumbers):
    """Counts for BLEU.

    Columns: n-grams of 1 to 4 words that the answer shares with the references, all n-grams of 1 to 4 words of the answer, words
    of the answer, words of the reference whose length is closest.
    """

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Count n-grams as BLEU does: an n-gram is shared at most as often as it occurs in one reference."""
        from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

        rows = []
        for predicted, references in zip(captions.predicted, captions.references, strict=True):
            statistics = cook_test(predicted, cook_refs(references, n=LONGEST), eff="closest", n=LONGEST)
            rows.append([*statistics["correct"], *statistics["guess"], statistics["testlen"], statistics["reflen"]])
        return cls(captions.names, _table(rows, 2 * LONGEST + 2), captions.tokenizer)

    def details(self, predictions: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, Any]:
        """Return the details without BLEU of each sample, which says little about a single sentence."""
        return super().details(predictions, ())


class Subsequences(CaptionNumbers):
    """One column: ROUGE-L, the F (beta 1.2) of the best precision and best recall of common subsequences; 0 if empty."""

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Compare each answer with its references."""
        from pycocoevalcap.rouge.rouge import Rouge

        pairs = zip(captions.predicted, captions.references, strict=True)
        score = Rouge().calc_score
        rows = [[float(score([predicted], references)) if predicted else 0.0] for predicted, references in pairs]
        return cls(captions.names, _table(rows, 1), captions.tokenizer)


class Consensus(CaptionNumbers):
    """One column: CIDEr-D (n-grams of 1 to 4 words, sigma 6, times 10), with word weights from the whole set of samples."""

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Compute all samples at once. In a set of one sample, every word is in all references, so its weight is 0."""
        from pycocoevalcap.cider.cider_scorer import CiderScorer

        scorer = CiderScorer(n=LONGEST, sigma=6.0)
        for pair in zip(captions.predicted, captions.references, strict=True):
            scorer += pair
        scorer.compute_doc_freq()
        rows = [[float(score)] for score in scorer.compute_cider()] if captions.names else []
        return cls(captions.names, _table(rows, 1), captions.tokenizer)


class Alignments(CaptionNumbers):
    """Statistics of METEOR 1.5, which METEOR sums over samples.

    Columns: words, and function words, of answer and reference; for each stage (exact, stem, synonym, paraphrase), matched
    content words of both and matched function words of both; chunks; matched words of both. Chunks are 0 for identical texts.
    """

    @classmethod
    def missing(cls, resources: ScoringResources, task: str) -> str | None:
        """Return what is missing: what all captions need, or Java."""
        return super().missing(resources, task) or lacks_java()

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Align each answer with the reference that METEOR selects, the one with the best score.

        Raises:
            JavaFailed: If METEOR failed.
        """
        pairs = zip(captions.predicted, captions.references, strict=True)
        # METEOR reads "|||" as the separator of the fields of a line.
        lines = [
            " ||| ".join(["SCORE", *(text.replace("|||", " ") for text in [*references, predicted])])
            for predicted, references in pairs
        ]
        arguments = ("-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")
        text = "".join(f"{line}\n" for line in lines)
        output = run_java("METEOR", arguments, folder_of("meteor"), text).splitlines() if lines else []
        rows = [[float(number) for number in line.split()] for line in output]
        if len(rows) != len(lines) or any(len(row) != METEOR_STATISTICS for row in rows):
            raise JavaFailed(f"METEOR printed {len(rows)} lines for {len(lines)} samples: {' '.join(output)[:200]}")
        alignments = cls(captions.names, _table(rows, METEOR_STATISTICS), captions.tokenizer)
        matched = alignments.values[:, 4:20].reshape(-1, 4, 2, 2).sum((1, 2))  # (samples, answer and reference)
        identical = (matched == alignments.values[:, :2]).all(1) & (alignments.values[:, 20] == 1)
        alignments.values[identical, 20] = 0
        return alignments


class Propositions(CaptionNumbers):
    """One column: SPICE, the F of the objects, attributes and relations in answer and references; 0 if undefined."""

    @classmethod
    def missing(cls, resources: ScoringResources, task: str) -> str | None:
        """Return what is missing: what all captions need, Java, or SPICE's models."""
        return super().missing(resources, task) or lacks_spice()

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Parse captions with Stanford's CoreNLP 3.6.0, whose files are in pycocoevalcap's folder spice/lib.

        Raises:
            JavaFailed: If SPICE failed.
        """
        pairs = zip(captions.predicted, captions.references, strict=True)
        entries = [
            {"image_id": index, "test": predicted, "refs": references} for index, (predicted, references) in enumerate(pairs)
        ]
        with tempfile.TemporaryDirectory() as folder:
            input_file, output_file = Path(folder) / "captions.json", Path(folder) / "scores.json"
            input_file.write_text(json.dumps(entries), encoding="utf-8")
            arguments = ("-Xmx8G", "-jar", "spice-1.0.jar", str(input_file), "-out", str(output_file), "-subset", "-silent")
            if entries:
                run_java("SPICE", arguments, folder_of("spice"))
            results = json.loads(output_file.read_text(encoding="utf-8")) if entries else []
        return cls(captions.names, _table(spice_scores(results, len(entries)), 1), captions.tokenizer)


def spice_scores(results: Sequence[Any], samples: int) -> list[list[float]]:
    """Return one row per sample from the content of SPICE's output file.

    Args:
        results: objects ``{image_id, scores: {All: {f}}}`` in any order; f may be null or NaN, which counts as 0.
        samples: number of samples.

    Raises:
        JavaFailed: If samples are missing.
    """
    by_index = {row["image_id"]: row["scores"]["All"]["f"] for row in results}
    if sorted(by_index) != list(range(samples)):
        raise JavaFailed(f"SPICE returned scores of {len(by_index)} samples, expected {samples}")
    scores = (by_index[index] for index in range(samples))
    return [[float(score) if isinstance(score, int | float) and math.isfinite(score) else 0.0] for score in scores]


def _table(rows: Sequence[Sequence[float]], columns: int) -> Numbers:
    return np.array(rows, np.float64).reshape(-1, columns)
