"""Caption metrics: BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE. All values equal those of pycocoevalcap.

BLEU and METEOR sum counts over samples before they divide, so they are not means of per-sample values and are recomputed from the
counts for every subset of samples. The others are means over samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from emollama.evaluation.captions.metric_inputs import LONGEST, Alignments, CaptionNumbers, NGrams
from emollama.evaluation.metrics import Metric

TINY, SMALL = 1e-15, 1e-9  # constants with which pycocoevalcap avoids divisions by 0 in BLEU
# METEOR 1.5 for English: weight of recall, exponent and weight of the penalty, weight of content words, weights of the stages
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGES = np.array([1.0, 0.6, 0.8, 0.6])


def _bleu(longest: int) -> Callable[[NGrams], float | None]:
    """Return BLEU up to n-grams of this length: the geometric mean of their precisions, with a penalty for short answers."""

    def compute(ngrams: NGrams) -> float | None:
        if not ngrams.names:
            return None
        totals = ngrams.values.sum(0)
        shared, predicted = totals[:longest], totals[LONGEST : LONGEST + longest]
        precision = math.pow(float(np.prod((shared + TINY) / (predicted + SMALL))), 1 / longest)
        ratio = (float(totals[-2]) + TINY) / (float(totals[-1]) + SMALL)
        return precision * math.exp(min(0.0, 1 - 1 / ratio))

    return compute


def _mean(numbers: CaptionNumbers) -> float | None:
    return float(numbers.values.mean()) if numbers.names else None


def _meteor(alignments: Alignments) -> float | None:
    """Compute METEOR: the weighted harmonic mean of precision and recall, less a penalty for fragmented matches."""
    if not alignments.names:
        return None
    totals = alignments.values.sum(0)
    words, function_words, chunks = totals[:2], totals[2:4], float(totals[20])
    stages = totals[4:20].reshape(4, 2, 2)  # (stages, content and function words, answer and reference)
    matched = STAGES @ (DELTA * stages[:, 0] + (1 - DELTA) * stages[:, 1])
    if not matched.all():
        return 0.0
    precision, recall = matched / (DELTA * (words - function_words) + (1 - DELTA) * function_words)
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    return float(mean * (1 - GAMMA * (2 * chunks / totals[21:].sum()) ** BETA))


BLEU_1, BLEU_2, BLEU_3, BLEU_4 = (Metric(f"BLEU-{length}", "ngrams", _bleu(length)) for length in range(1, LONGEST + 1))
ROUGE_L = Metric("ROUGE-L", "subsequences", _mean)
CIDER_D = Metric("CIDEr-D", "consensus", _mean, max_value=None)
METEOR = Metric("METEOR", "alignments", _meteor)
SPICE = Metric("SPICE", "propositions", _mean)
