"""Samples about one clip that share the beginning of their prompts (``run.tasks_per_clip``)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from emollama.data.batch import IGNORED, Record, Sample
from emollama.data.dataset import ReadsOnce, SampleDataset


def records_of(
    dataset: SampleDataset, index: int, questions: Sequence[tuple[str, str]], rng: np.random.Generator
) -> list[Record]:
    """Return the record of a dataset's sample ``index`` for each (task, instruction), all with the same augmentation."""
    if len(questions) == 1:
        return [dataset.record(index, *questions[0], rng)]
    if isinstance(dataset, ReadsOnce) and _owner(dataset, "records") is _owner(dataset, "record"):
        return dataset.records(index, questions, rng)
    # A subclass that only overrides record() changes records in a way of its own.
    return [dataset.record(index, task, instruction, copy.deepcopy(rng)) for task, instruction in questions]


def _owner(instance: object, method: str) -> type | None:
    """Return the class of an object that defines a method."""
    return next((cls for cls in type(instance).__mro__ if method in vars(cls)), None)


def share_prompts(samples: Sequence[Sample]) -> list[Sample]:
    """Remove from samples the tokens at their beginning that are those of the last complete sample before, and their features.

    A sample stays complete if the tokens of its features are not all among them. The token before its first answer is never
    removed, because its logits are those of the answer's first token.

    Args:
        samples: samples with the same features.
    """
    complete, shared = samples[0], [samples[0]]
    for sample in samples[1:]:
        shared.append(_without_shared_tokens(sample, complete))
        complete = complete if shared[-1].shared_tokens else sample
    return shared


def _without_shared_tokens(sample: Sample, complete: Sample) -> Sample:
    ids, answer = sample.input_ids, (sample.labels != IGNORED).nonzero()
    limit = min(int(answer[0]) if len(answer) else len(ids), len(complete.input_ids) + 1) - 1
    different = (ids[:limit] != complete.input_ids[:limit]).nonzero()
    shared = int(different[0]) if len(different) else limit
    if shared == 0 or bool((ids[shared:] < 0).any()):
        return sample
    return dataclasses.replace(
        sample,
        input_ids=ids[shared:],
        labels=sample.labels[shared:],
        loss_weights=sample.loss_weights[shared:],
        slots={slot: vectors[:0] for slot, vectors in sample.slots.items()},
        shared_tokens=shared,
    )
