"""Finds the operations for which a process would have to wait for a GPU, also on a machine without one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Methods that read values of a tensor, and operators whose result has a shape that depends on values.
METHODS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
OPERATORS |= {"equal", "is_nonzero", "histc"}

STEPS = ["run.iters_per_epoch=3", "run.max_epoch=1"]
# Options whose training steps compute differently, for the tests on CPUs and on GPUs.
SETTINGS = {
    "clipping": ["run.max_grad_norm=1.0"],
    "recomputation": ["run.amp=True", "model.use_grad_checkpoint=True"],
    "fp16": ["run.amp=True", "run.amp_dtype=fp16", "run.max_grad_norm=1.0"],
    "dropout": ["model.lora_dropout=0.2", "model.dropout=0.1"],
    "several questions about a clip": [
        "run.tasks_per_clip=2",
        "run.max_tokens=240",
        "datasets.golden.batch_size=4",
        "datasets.golden.task_pool=[emotion,reason]",
    ],
}


class _Methods(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        self._found = found

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in METHODS and args and isinstance(args[0], Tensor):
            self._found.append(f"Tensor.{function.__name__} {_caller()}")
        return function(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        # Without the size of its result, the operator reads the numbers of repetitions.
        unsized = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in OPERATORS or by_mask or unsized:
            self._found.append(f"aten.{name} {_caller()}")
        return function(*args, **(kwargs or {}))


def train_with_steps_in(runner: Any, context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Train, and run each optimizer step in a context. Samples are loaded outside of it."""
    step = runner._step

    def in_context(number: int, micro_batches: Any) -> Any:
        with context():
            return step(number, micro_batches)

    runner._step = in_context
    runner.train()


def _caller() -> str:
    """Return the last lines of source outside of torch and of this file that are being executed."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename and frame.filename != __file__]
    return " <- ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames[-2:]))


@contextmanager
def host_syncs() -> Iterator[list[str]]:
    """Yield a list of the operations in this context that wait for a GPU, each with the lines that called it.

    All tensors count as tensors on a GPU.
    """
    found: list[str] = []
    with _Methods(found), _Operators(found):
        yield found
