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


def split_groups(groups: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Split groups until there are this many, so that all processes run the same number of micro-batches.

    Args:
        groups: at most ``count`` groups, with at least ``count`` samples in total.
        count: number of groups to return.

    Returns:
        The groups. Each is a group of the argument or a part of one.
    """
    result = [list(group) for group in groups]
    while len(result) < count:
        largest = max(range(len(result)), key=lambda index: (len(result[index]), -index))
        whole = result[largest]
        assert len(whole) > 1, "there are fewer samples than groups"
        result[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return result
