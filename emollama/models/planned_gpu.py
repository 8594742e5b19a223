"""Whether tensors without data stand for tensors on a GPU, when ``emollama plan`` counts the memory of a step.

Such tensors are those of PyTorch's FakeTensorMode on the CPU, so that a machine without a GPU can plan for one. Code that chooses
between the operations of a GPU and of a CPU asks :func:`is_on_gpu`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class _PlannedGpu:
    """Whether a GPU is planned for."""

    planned = False


# Not a thread-local variable, because the backward pass recomputes activations in another thread.
_STATE = _PlannedGpu()


@contextmanager
def planned_gpu(planned: bool) -> Iterator[None]:
    """Inside ``with``, all tensors count as those of a GPU if ``planned`` is true."""
    before, _STATE.planned = _STATE.planned, planned
    try:
        yield
    finally:
        _STATE.planned = before


def is_planned() -> bool:
    """Return whether a GPU is planned for, which has the compute capability of recent ones."""
    return _STATE.planned


def is_on_gpu(tensor: Tensor) -> bool:
    """Return whether a tensor is on a GPU, or stands for one that is."""
    return _STATE.planned or tensor.is_cuda
