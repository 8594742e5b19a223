"""The grouping of samples into micro-batches with a maximum number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from emollama.data.batch import Batch, Sample, collate


def group_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group samples into as few micro-batches as the first-fit decreasing heuristic finds.

    It needs at most 11/9 of the smallest possible number, plus 6/9 (Dósa, 2007). The result depends only on the arguments.

    Args:
        lengths: number of tokens of each sample.
        max_tokens: maximum number of tokens of a micro-batch. A longer sample, whose length was not known at the start of the
            run, gets one of its own.

    Returns:
        The indices of the samples of each micro-batch, ascending.
    """
    groups: list[list[int]] = []
    space: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        group = next((group for group, free in enumerate(space) if free >= lengths[index]), None)
        if group is None:
            groups.append([index])
            space.append(max_tokens - lengths[index])
        else:
            groups[group].append(index)
            space[group] -= lengths[index]
    return [sorted(group) for group in groups]


def split_into(batches: Sequence[Batch], number: int) -> list[Batch]:
    """Split micro-batches until there are ``number``: each time the one with the most tokens that can be split.

    Samples that share the beginning of a prompt stay together.

    Processes of a run whose samples fit into fewer micro-batches than those of another process split them, so that all
    processes run the same number of forward and backward passes in a step. They would otherwise wait for the others.

    Args:
        batches: micro-batches with at least ``number`` samples without shared tokens.
        number: number of micro-batches.
    """
    result = list(batches)
    while len(result) < number:
        _, negative_index = max((len(batch.input_ids), -index) for index, batch in enumerate(result) if len(batch.cache_key) > 1)
        index = -negative_index
        groups = _groups(result[index])
        middle = len(groups) // 2
        halves = [collate(list(chain.from_iterable(half))) for half in (groups[:middle], groups[middle:])]
        is_pinned = result[index].input_ids.is_pinned()
        result[index : index + 1] = [half.pin_memory() for half in halves] if is_pinned else halves
    return result


def _groups(batch: Batch) -> list[list[Sample]]:
    """Return the samples of a micro-batch, the inverse of :func:`~emollama.data.batch.collate`.

    Samples with shared tokens are in the list of the sample that has the tokens.
    """
    ids, labels, weights = (values.split(list(batch.lengths)) for values in (batch.input_ids, batch.labels, batch.loss_weights))
    vectors = {slot: packed.split() for slot, packed in batch.slots.items()}
    seeds = [None] * len(ids) if batch.dropout_seeds is None else batch.dropout_seeds.tolist()
    shared = [0] * len(ids) if batch.shared is None else batch.shared.tokens
    groups: list[list[Sample]] = []
    for index, name in enumerate(batch.names):
        if not shared[index]:
            groups.append([])
        owner = len(groups) - 1
        groups[-1].append(
            Sample(
                name=name,
                task=batch.tasks[index],
                input_ids=ids[index],
                labels=labels[index],
                loss_weights=weights[index],
                slots={slot: parts[owner][:0] if shared[index] else parts[owner] for slot, parts in vectors.items()},
                # A batch has the sum of all samples, and so have its parts.
                tokens_cut=0 if index else batch.tokens_cut,
                cache_key=batch.cache_key[owner],
                dropout_seed=seeds[index],
                shared_tokens=shared[index],
            )
        )
    return groups
