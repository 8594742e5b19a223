"""What metrics of captions are computed from: numbers a clip, which are added up or averaged over any choice of clips.

pycocoevalcap computes them, over the whole set of clips at once: CIDEr-D weighs words by how few clips' references have them, so
a clip's figure holds for that set, and keeps its value when clips are taken out of it.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from emollama.evaluation.answers import Answer
from emollama.evaluation.captions.java import JavaFailed, folder_of, run_java
from emollama.evaluation.captions.tokenizers import Tokenizer

Numbers = NDArray[np.float64]
LONGEST = 4  # words of the n-grams
METEOR_STATISTICS = 23  # that the program gives for a clip


@dataclass(frozen=True)
class Captions:
    """Tokenized captions, an entry a clip: words with single spaces between; each clip has a reference at least."""

    names: tuple[str, ...]
    predicted: list[str]
    references: list[list[str]]
    tokenizer: str

    @classmethod
    def of(cls, answers: Sequence[Answer], tokenizer: Tokenizer) -> Self:
        """The answers that have references.

        Raises:
            JavaFailed: the tokenizer did not run.
        """
        known = [answer for answer in answers if answer.captions]
        texts = [text for answer in known for text in (answer.prediction, *answer.captions)]
        words = iter(tokenizer.words(texts))
        rows = [[next(words) for _ in range(1 + len(answer.captions))] for answer in known]
        names = tuple(answer.name for answer in known)
        return cls(names, [row[0] for row in rows], [row[1:] for row in rows], tokenizer.name)


@dataclass(frozen=True, eq=False)
class CaptionNumbers:
    """Numbers about clips.

    Attributes:
        names: the clips.
        values: (clips, columns), what a column is depends on the class.
        tokenizer: that split the captions.
    """

    names: tuple[str, ...]
    values: Numbers
    tokenizer: str

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Of tokenized captions."""
        raise NotImplementedError

    def take(self, places: Sequence[int]) -> Self:
        """The numbers at these places."""
        return type(self)(tuple(self.names[i] for i in places), self.values[np.asarray(places, np.int64)], self.tokenizer)


class NGrams(CaptionNumbers):
    """Columns: n-grams of 1 to 4 words shared with the references, all of the answer, its words, the closest reference's."""

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Counted as BLEU counts: a reference's n-gram can be shared as often as it occurs there."""
        from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

        rows = []
        for predicted, references in zip(captions.predicted, captions.references, strict=True):
            found = cook_test(predicted, cook_refs(references, n=LONGEST), eff="closest", n=LONGEST)
            rows.append([*found["correct"], *found["guess"], found["testlen"], found["reflen"]])
        return cls(captions.names, _table(rows, 2 * LONGEST + 2), captions.tokenizer)


class Subsequences(CaptionNumbers):
    """One column: ROUGE-L, the F (beta 1.2) of the best precision and the best recall of common subsequences; 0 if empty."""

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Each clip against its references."""
        from pycocoevalcap.rouge.rouge import Rouge

        pairs = zip(captions.predicted, captions.references, strict=True)
        score = Rouge().calc_score
        rows = [[float(score([predicted], references)) if predicted else 0.0] for predicted, references in pairs]
        return cls(captions.names, _table(rows, 1), captions.tokenizer)


class Consensus(CaptionNumbers):
    """One column: CIDEr-D (n-grams of 1 to 4 words, sigma 6, times 10), by the weights of the whole set."""

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """All clips at once. In a set of one clip every word is in all clips' references, and weighs 0."""
        from pycocoevalcap.cider.cider_scorer import CiderScorer

        scorer = CiderScorer(n=LONGEST, sigma=6.0)
        for pair in zip(captions.predicted, captions.references, strict=True):
            scorer += pair
        scorer.compute_doc_freq()
        rows = [[float(score)] for score in scorer.compute_cider()] if captions.names else []
        return cls(captions.names, _table(rows, 1), captions.tokenizer)


class Alignments(CaptionNumbers):
    """Columns: METEOR 1.5's statistics, which it adds up over clips.

    Words, and function words, of answer and reference; by stage (exact, stem, synonym, paraphrase) matched content words of
    both and function words of both; chunks; matched words of both. Of clips that match word by word no chunk is counted.
    """

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Each clip with the reference that suits it best, as the program chooses.

        Raises:
            JavaFailed: METEOR did not run.
        """
        clips = zip(captions.predicted, captions.references, strict=True)
        lines = [" ||| ".join(["SCORE", *(text.replace("|||", " ") for text in [*true, said])]) for said, true in clips]
        arguments = ("-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")
        asked = "".join(f"{line}\n" for line in lines)
        told = run_java("METEOR", arguments, folder_of("meteor"), asked).splitlines() if lines else []
        rows = [[float(number) for number in line.split()] for line in told]
        if len(rows) != len(lines) or any(len(row) != METEOR_STATISTICS for row in rows):
            raise JavaFailed(f"METEOR gave {len(rows)} lines for {len(lines)} clips: {' '.join(told)[:200]}")
        found = cls(captions.names, _table(rows, METEOR_STATISTICS), captions.tokenizer)
        matched = found.values[:, 4:20].reshape(-1, 4, 2, 2).sum((1, 2))  # (clips, answer and reference)
        same = (matched == found.values[:, :2]).all(1) & (found.values[:, 20] == 1)
        found.values[same, 20] = 0
        return found


class Propositions(CaptionNumbers):
    """One column: SPICE, the F of the objects, attributes and relations that answer and references name; 0 if undefined."""

    @classmethod
    def of(cls, captions: Captions) -> Self:
        """Parsed by Stanford's CoreNLP 3.6.0, whose files lie in pycocoevalcap's folder spice/lib.

        Raises:
            JavaFailed: SPICE did not run.
        """
        clips = zip(captions.predicted, captions.references, strict=True)
        asked = [{"image_id": place, "test": said, "refs": true} for place, (said, true) in enumerate(clips)]
        with tempfile.TemporaryDirectory() as folder:
            given, written = Path(folder) / "captions.json", Path(folder) / "scores.json"
            given.write_text(json.dumps(asked), encoding="utf-8")
            arguments = ("-Xmx8G", "-jar", "spice-1.0.jar", str(given), "-out", str(written), "-subset", "-silent")
            if asked:
                run_java("SPICE", arguments, folder_of("spice"))
            results = json.loads(written.read_text(encoding="utf-8")) if asked else []
        return cls(captions.names, _table(spice_scores(results, len(asked)), 1), captions.tokenizer)


CAPTION_METRIC_INPUTS = (NGrams, Subsequences, Consensus, Alignments, Propositions)


def spice_scores(results: Sequence[Any], clips: int) -> list[list[float]]:
    """A row a clip, of SPICE's file: a list of ``{image_id, scores: {All: {f}}}``, in any order; f may be null or NaN."""
    found = {row["image_id"]: row["scores"]["All"]["f"] for row in results}
    if sorted(found) != list(range(clips)):
        raise JavaFailed(f"SPICE gave scores of {len(found)} clips, not of {clips}")
    known = (found[place] for place in range(clips))
    return [[float(score) if isinstance(score, int | float) and math.isfinite(score) else 0.0] for score in known]


def _table(rows: Sequence[Sequence[float]], columns: int) -> Numbers:
    return np.array(rows, np.float64).reshape(-1, columns)
