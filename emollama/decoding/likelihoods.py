"""Probabilities of candidate answers, with one model or an ensemble.

Shape letters: B = prompts, L = candidate answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emollama.components import Model
from emollama.data.batch import Batch


@torch.inference_mode()
def candidate_probabilities(models: Sequence[Model], batch: Batch, answers: Sequence[list[int]]) -> Tensor:
    """Compute the probability of each of L candidate answers, normalized over the candidates and averaged over the models.

    Args:
        models: one model, or the members of an ensemble.
        batch: B prompts without answers.
        answers: token ids of each candidate, including its end.

    Returns:
        (B, L) float64; each row adds up to 1.
    """
    return torch.stack([_log_likelihoods(model, batch, answers).softmax(-1) for model in models]).mean(0)


def _log_likelihoods(model: Model, batch: Batch, answers: Sequence[list[int]]) -> Tensor:
    """Return the log-probability of each answer after each prompt, (B, L) float64."""
    logits, state = model.prefill(batch)
    first = logits.double().log_softmax(-1)
    longer = [answer for answer in answers if len(answer) > 1]
    following = iter(model.decode_answers(longer, state) if longer else [])
    columns = []
    for answer in answers:
        column = first[:, answer[0]]
        if len(answer) > 1:
            ids = torch.tensor(answer[1:], device=first.device).expand(len(first), -1)
            column = column + next(following).double().log_softmax(-1).gather(2, ids[:, :, None]).sum((1, 2))
        columns.append(column)
    return torch.stack(columns, 1)
