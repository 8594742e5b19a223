"""Tensors of which each process has a part (:class:`torch.distributed.tensor.DTensor`), and ordinary tensors, used alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each process has only a part of a tensor."""
    # The class is not imported for it, because that takes a second.
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor on the same device. Every rank that has a part must call it."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    full: Tensor = sharded.full_tensor()
    return full


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor."""
    sharded: Any = tensor
    own: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    return own


def part_like(full: Tensor, tensor: Tensor) -> Tensor:
    """Return this process's part of a whole tensor as another tensor of the same shape is sharded, without communication."""
    if not is_sharded(tensor):
        return full
    from torch.distributed.tensor import distribute_tensor

    like: Any = tensor
    # Every rank has read the tensor itself.
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def first_row(tensor: Tensor) -> int | None:
    """Return the number of the first row that this process has of a sharded tensor; None if another process has the same rows.

    FSDP divides tensors along their first dimension, and the last parts can have fewer rows, or none.
    """
    sharded: Any = tensor
    mesh = sharded.device_mesh
    *replicas, index = mesh.get_coordinate()
    return None if any(replicas) else index * -(-len(tensor) // mesh.size(-1))
