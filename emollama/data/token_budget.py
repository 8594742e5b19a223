"""The grouping of samples into micro-batches with a maximum number of tokens."""

from __future__ import annotations

from collections.abc import Sequence


def group_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group samples into as few micro-batches as the first-fit decreasing heuristic finds.

    It needs at most 11/9 of the smallest possible number, plus 6/9 (Dósa, 2007). The result depends only on the arguments.

    Args:
        lengths: number of tokens of each sample.
        max_tokens: maximum number of tokens of a micro-batch. A longer sample gets one of its own.

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
