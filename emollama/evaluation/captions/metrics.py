"""Metrics of captions: BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE.

BLEU and METEOR add up their counts over the clips before they divide: they are no means of the clips' figures, and are computed
anew of the counts of whatever clips are taken. The others are means over clips. All are what pycocoevalcap gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from emollama.evaluation.captions.metric_inputs import (
    LONGEST,
    Alignments,
    CaptionNumbers,
    Consensus,
    NGrams,
    Propositions,
    Subsequences,
)
from emollama.evaluation.metrics import Metric

TINY, SMALL = 1e-15, 1e-9  # by which pycocoevalcap keeps BLEU from dividing by 0
# METEOR 1.5 for English: weight of recall, exponent and share of the penalty, weight of content words, weights of the stages
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGES = np.array([1.0, 0.6, 0.8, 0.6])


def _bleu(longest: int) -> Callable[[NGrams], float | None]:
    """The geometric mean of the shares of n-grams up to a length, less where the answers are shorter than the references."""

    def value(found: NGrams) -> float | None:
        if not found.names:
            return None
        totals = found.values.sum(0)
        shared, given = totals[:longest], totals[LONGEST : LONGEST + longest]
        precision = math.pow(float(np.prod((shared + TINY) / (given + SMALL))), 1 / longest)
        ratio = (float(totals[-2]) + TINY) / (float(totals[-1]) + SMALL)
        return precision * math.exp(min(0.0, 1 - 1 / ratio))

    return value


def _mean(found: CaptionNumbers) -> float | None:
    return float(found.values.mean()) if found.names else None


def _meteor(found: Alignments) -> float | None:
    """The weighted mean of precision and recall, less the more chunks the matched words fall into."""
    if not found.names:
        return None
    totals = found.values.sum(0)
    words, function_words, chunks = totals[:2], totals[2:4], float(totals[20])
    stages = totals[4:20].reshape(4, 2, 2)  # (stages, content and function words, answer and reference)
    matched = STAGES @ (DELTA * stages[:, 0] + (1 - DELTA) * stages[:, 1])
    if not matched.all():
        return 0.0
    precision, recall = matched / (DELTA * (words - function_words) + (1 - DELTA) * function_words)
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    return float(mean * (1 - GAMMA * (2 * chunks / totals[21:].sum()) ** BETA))


BLEU_1, BLEU_2, BLEU_3, BLEU_4 = (Metric(f"BLEU-{words}", NGrams, _bleu(words)) for words in range(1, LONGEST + 1))
ROUGE_L = Metric("ROUGE-L", Subsequences, _mean)
CIDER_D = Metric("CIDEr-D", Consensus, _mean, top=None)
METEOR = Metric("METEOR", Alignments, _meteor)
SPICE = Metric("SPICE", Propositions, _mean)
