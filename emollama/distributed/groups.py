"""The groups of processes among which weights are divided. A launcher checks them too, so this module does not import torch."""

from __future__ import annotations

from collections import Counter

from emollama.distributed.nodes import ONE_NODE, Nodes
from emollama.distributed.worker_variables import integer
from emollama.errors import UserError
from emollama.parallel_modes import ParallelMode


def group_size(mode: ParallelMode, shard_size: int | None, processes: int, nodes: Nodes = ONE_NODE) -> int:
    """Return the number of processes among which each weight is divided; 1 if weights are whole in every process.

    Args:
        mode: the value of ``run.parallel``.
        shard_size: the value of ``run.shard_size``.
        processes: number of processes of the run.
        nodes: where they are.

    Raises:
        UserError: If the processes cannot be divided into groups of this size, or nodes have different numbers of them.
    """
    if mode != "hsdp":
        return processes if mode == "fsdp" else 1
    counts = list(Counter(nodes.of_ranks).values())
    if shard_size is None and len(set(counts)) > 1:
        raise UserError(
            f"run.parallel: hsdp shards each weight among the processes of a node by default, but the nodes have"
            f" {', '.join(map(str, counts))} processes. Start the same number on each node, or set run.shard_size."
        )
    size = shard_size or integer("LOCAL_WORLD_SIZE", processes)
    if processes % size:
        divisors = [str(number) for number in range(1, processes + 1) if processes % number == 0]
        source = "" if shard_size else " (the processes of this machine)"
        raise UserError(
            f"run.shard_size is {size}{source}, which does not divide the {processes} processes of this run into equal groups."
            f" Set it to one of {', '.join(divisors)}, or start another number of processes."
        )
    return size
