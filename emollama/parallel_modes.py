"""The values of ``run.parallel``."""

from __future__ import annotations

from typing import Literal, get_args

# ddp: all weights in each process; fsdp: divided among all processes; hsdp: divided among the processes of a group.
ParallelMode = Literal["ddp", "fsdp", "hsdp"]
PARALLEL_MODES: tuple[ParallelMode, ...] = get_args(ParallelMode)
