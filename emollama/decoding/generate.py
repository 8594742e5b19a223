"""Generation of answers for a batch of prompts, with one model or an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from emollama.components import Model
from emollama.data.batch import Batch
from emollama.decoding.running_batch import RunningBatch
from emollama.decoding.sampling_params import SamplingParams, SequenceParams


def generate(
    models: Sequence[Model],
    batch: Batch,
    params: SamplingParams,
    is_finished: Callable[[list[int]], bool],
    seeds: Sequence[int],
) -> list[list[int]]:
    """Generate a continuation of each prompt.

    Args:
        models: one model, or the members of an ensemble.
        batch: B prompts without answers.
        params: parameters of token selection.
        is_finished: returns whether the last of a sequence's new ids ended it.
        seeds: one random seed per sequence, so that a sampled answer does not depend on the other sequences of the batch.

    Returns:
        B lists of new ids, including the end of the answer.
    """
    running = RunningBatch(models, is_finished)
    answers: dict[int, list[int]] = {
        sequence: [] for sequence in running.add(batch, [SequenceParams(params, seed) for seed in seeds])
    }
    while len(running):
        for new in running.step():
            answers[new.sequence].append(new.token)
    return list(answers.values())
