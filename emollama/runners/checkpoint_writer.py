"""Writes checkpoints in the background while training continues, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emollama import checkpoint, checkpoint_parts
from emollama.checkpoint_parts import CheckpointPart, own_values
from emollama.distributed.worker_variables import integer
from emollama.logs.logger import get_logger
from emollama.memory import GIB, machine_memory


class CheckpointWriter:
    """Writes checkpoints in a thread. Hashing and writing release the interpreter lock, so that training continues meanwhile.

    Args:
        in_background: :meth:`start` returns when the tensors are copied. If False, it returns when the file is complete.
        device: the device of the tensors.
    """

    def __init__(self, *, in_background: bool, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="emollama: checkpoint")
        self._writing: Future[CheckpointPart | None] | None = None
        self._copy = _copier(device) if in_background else None
        self._copied = 0  # bytes of the buffers

    def start(self, path: Path, content: dict[str, Any]) -> None:
        """Start to write a checkpoint. The earlier one must be finished.

        The tensors may change when this method returns: the file contains the values of this moment.
        """
        if self._copy and self._has_memory(content):
            self._submit(checkpoint.save, path, self._copy(content))
            return
        # A file that another program reads without a GPU needs weights on the CPU; the optimizer only resumes runs.
        weights = {name: tensor.cpu() for name, tensor in content["model"].items()}
        self._submit(checkpoint.save, path, content | {"model": weights}, waits=True)

    def start_part(self, path: Path, tensors: Mapping[str, Tensor], host: str) -> None:
        """Start to write this process's file of a sharded checkpoint; nothing if it has no values that others do not have.

        Args:
            path: the file.
            tensors: name -> sharded tensor.
            host: name of this machine.
        """
        own, rows = own_values(tensors)
        if not own:
            return
        # Each process of this machine copies its part at the same time.
        in_background = self._copy is not None and self._has_memory(own, integer("LOCAL_WORLD_SIZE", 1))
        values = self._copy(own) if self._copy and in_background else own
        self._submit(checkpoint_parts.write, path, values, rows, host, waits=not in_background)

    def _submit(self, write: Callable[..., CheckpointPart | None], *arguments: Any, waits: bool = False) -> None:
        assert self._writing is None
        self._writing = self._thread.submit(write, *arguments)
        if waits:
            wait([self._writing])

    def is_done(self) -> bool:
        """Return whether :meth:`finish` would not wait."""
        return self._writing is None or self._writing.done()

    def finish(self) -> CheckpointPart | None:
        """Wait until the file is complete. Returns its description if it is a part of a checkpoint.

        Raises:
            UserError: If it could not be written.
        """
        if self._writing is None:
            return None
        wait([self._writing])  # after Ctrl-C in this line, the file is still being written
        writing, self._writing = self._writing, None
        return writing.result()

    def _has_memory(self, content: dict[str, Any], copies: int = 1) -> bool:
        """Return whether this machine has enough free memory for copies of the tensors; warn if it has not."""
        needed, free = copies * sum(tensor.nbytes for tensor in _tensors(content)), machine_memory()[0]
        # A copy of this size was possible before, or the free memory is unknown.
        if needed <= self._copied or not free or needed <= free:
            self._copied = needed
            return True
        text = "run.async_save: a copy of a checkpoint needs %.1f GiB, and %.1f GiB are free, so training waits for its file"
        get_logger().warning(text, needed / GIB, free / GIB)
        self._copy = None
        return False


def _copier(device: torch.device) -> Callable[[dict[str, Any]], Any]:
    """Return a function that copies the tensors of a checkpoint to the CPU, each time into the same buffers."""
    # Importing it takes a second, unless transformers has done it: it is better spent here than at the first save.
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    on_gpu = device.type == "cuda"
    options = StagingOptions(
        use_pinned_memory=on_gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=on_gpu
    )
    stager = DefaultStager(options)

    def copied(content: dict[str, Any]) -> Any:
        nonlocal stager
        try:
            return stager.stage(content)
        except KeyError:
            # PyTorch 2.11 closes a stager when it has been used.
            stager = DefaultStager(options)
            return stager.stage(content)

    return copied


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dictionaries and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
