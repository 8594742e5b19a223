"""The grouping of samples into micro-batches with a maximum number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from emollama.data.batch import Batch, Sample, collate


def num_tokens(lengths: Sequence[int], *, padded: bool) -> int:
    """Return the number of tokens for which a micro-batch needs memory.

    Args:
        lengths: number of tokens of each sample.
        padded: whether the language model pads the samples to the longest one.
    """
    return len(lengths) * max(lengths) if padded else sum(lengths)


def group_by_tokens(lengths: Sequence[int], max_tokens: int, *, padded: bool = False) -> list[list[int]]:
    """Group samples into as few micro-batches as the first-fit decreasing heuristic finds.

    It needs at most 11/9 of the smallest possible number, plus 6/9 (Dósa, 2007). The result depends only on the arguments.

    Args:
        lengths: number of tokens of each sample.
        max_tokens: maximum number of tokens of a micro-batch. A longer sample, whose length was not known at the start of the
            run, gets one of its own.
        padded: whether each sample of a micro-batch has the tokens of the longest one.

    Returns:
        The indices of the samples of each micro-batch, ascending.
    """
    groups: list[list[int]] = []
    space: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        # The first sample of a group is its longest one.
        needed = [lengths[group[0] if padded else index] for group in groups]
        group = next((group for group, free in enumerate(space) if free >= needed[group]), None)
        if group is None:
            groups.append([index])
            space.append(max_tokens - lengths[index])
        else:
            groups[group].append(index)
            space[group] -= needed[group]
    return [sorted(group) for group in groups]


def split_into(batches: Sequence[Batch], number: int, *, tasks_per_clip: int = 1, padded: bool = False) -> list[Batch]:
    """Split micro-batches until there are ``number``: each time the one that needs memory for most tokens and can be split.

    Processes of a run whose samples fit into fewer micro-batches than those of another process split them, so that all
    processes run the same number of forward and backward passes in a step. They would otherwise wait for the others.

    Args:
        batches: micro-batches with samples about at least ``number`` clips.
        number: number of micro-batches.
        tasks_per_clip: number of consecutive samples about a clip, which stay together.
        padded: see :func:`num_tokens`.
    """
    result = list(batches)
    while len(result) < number:
        divisible = [index for index, batch in enumerate(result) if len(batch.names) > tasks_per_clip]
        index = max(divisible, key=lambda index: num_tokens(result[index].lengths, padded=padded))
        samples = _samples(result[index])
        middle = len(samples) // tasks_per_clip // 2 * tasks_per_clip
        halves = [collate(half) for half in (samples[:middle], samples[middle:])]
        is_pinned = result[index].input_ids.is_pinned()
        result[index : index + 1] = [half.pin_memory() for half in halves] if is_pinned else halves
    return result


def _samples(batch: Batch) -> list[Sample]:
    """Return the samples of a micro-batch, the inverse of :func:`~emollama.data.batch.collate`."""
    ids, labels, weights = (values.split(list(batch.lengths)) for values in (batch.input_ids, batch.labels, batch.loss_weights))
    vectors = {slot: packed.split() for slot, packed in batch.slots.items()}
    seeds = [None] * len(ids) if batch.dropout_seeds is None else batch.dropout_seeds.tolist()
    shared = [0] * len(ids) if batch.shared is None else batch.shared.tokens
    samples: list[Sample] = []
    owner = -1  # the last sample without shared tokens, whose features are in the batch
    for index, name in enumerate(batch.names):
        owner += not shared[index]
        samples.append(
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
    return samples
