"""Comparisons of a small random copy with plain transformers in which several sequences share the beginning of one.

As in :mod:`emollama.models.packing_comparisons`, each returns a text about the difference, or "" if there is none.

Shape letters: T = tokens of all samples, V = size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emollama.models import attention
from emollama.models.packing_comparisons import difference, in_precision, packed_logits, packed_prefill
from emollama.models.padded import decode_answers
from emollama.models.random_copy import RandomCopy, plain_logits

ANSWER = 4  # tokens of a candidate answer


def shared_logits(llm: Any, samples: Sequence[Tensor]) -> Tensor:
    """Return the logits (T, V) of two samples in one row with a third one, which is the second again and shares most of it.

    The last logits of the second sample are those of the third, whose own tokens are at the end of the row.
    """
    last, shared = samples[-1], len(samples[-1]) - ANSWER
    logits = packed_logits(llm, [*samples, last[shared:]], [0, 0, shared])
    return torch.cat([logits[: -2 * ANSWER], logits[-ANSWER:]])


def shared_prompts(copy: RandomCopy, device: torch.device, dtype: torch.dtype) -> str:
    """Compare two packed samples, whose last tokens are computed as in another sample that shares the tokens before.

    Args:
        copy: the copy.
        device: device of the run; on a GPU, the logits are also compared there.
        dtype: dtype of frozen weights and of autocast.
    """
    logits = shared_logits(copy.build(attention.NAME), copy.samples)
    problem = difference(logits, torch.cat(copy.expected), "with a shared prompt, the log-probability of a token")
    return problem or (in_precision(copy, attention.NAME, shared_logits, device, dtype) if device.type == "cuda" else "")


def joint_answers(copy: RandomCopy) -> str:
    """Compare two candidate answers that one forward pass computes after each of two packed prompts."""
    model = copy.build(attention.NAME)
    prompts = [ids[:-ANSWER] for ids in copy.samples]
    answers = [copy.samples[0][-ANSWER:], copy.samples[1][1 - ANSWER :]]
    results = decode_answers(model, [ids.tolist() for ids in answers], packed_prefill(model, prompts))
    for logits, answer in zip(results, answers, strict=True):
        for own, prompt in zip(logits, prompts, strict=True):
            plain = plain_logits(copy.llm, torch.cat([prompt, answer]))[-len(answer) : -1].float().log_softmax(-1)
            if problem := difference(own, plain, "in the scores of candidate answers, the log-probability of a token"):
                return problem
    return ""
