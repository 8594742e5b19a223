"""Sharded checkpoints as ordinary files."""

from __future__ import annotations

import os
from collections.abc import Callable
from mmap import MAP_SHARED
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emollama import checkpoint
from emollama.checkpoint_parts import ENTRY, parts_of
from emollama.errors import UserError
from emollama.paths import require_new_file, sha256
from emollama.replaced_file import put_in_place, temporary_file


def consolidate(source: str, output: str) -> None:
    """Write a sharded checkpoint as an ordinary one: a single file with all weights and the state to resume a run.

    The values are copied into the mapped file, one piece of a tensor at a time, so that memory does not depend on the size.

    Args:
        source: the checkpoint.
        output: the file to write.

    Raises:
        UserError: If the source is not sharded, a part is missing or damaged, or the output exists or cannot be written.
    """
    path = require_new_file(output)
    content = checkpoint.read(source, "consolidate", values=False)
    parts = parts_of(content, source)
    if parts is None:
        raise UserError(f"{source} is not sharded: it is a single file already. Use it as it is.")
    parts.require_intact("consolidate")
    del content[ENTRY]
    with temporary_file(path) as temporary:
        _reserve(temporary, content)
        with torch.serialization.set_default_mmap_options(MAP_SHARED):
            mapped = torch.load(temporary, weights_only=True, mmap=True)
        parts.fill(content, mapped)
        _copy_others(content, mapped)
        del mapped
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        put_in_place(path, temporary, sha256(temporary))


def _reserve(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint without the values of its tensors, but with space for them on the disk."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        described = _replaced(content, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(described, path)
    # Writing to a mapped file on a full disk would end the process without a message.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _replaced(value: Any, replacement: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return replacement(value)
    if isinstance(value, dict):
        return {key: _replaced(inner, replacement) for key, inner in value.items()}
    return type(value)(_replaced(inner, replacement) for inner in value) if isinstance(value, list | tuple) else value


def _copy_others(content: Any, mapped: Any) -> None:
    """Copy the values of tensors that are in the checkpoint itself."""
    if isinstance(content, Tensor):
        if not content.is_meta:
            mapped.copy_(content)
    elif isinstance(content, dict | list | tuple):
        for key, inner in content.items() if isinstance(content, dict) else enumerate(content):
            _copy_others(inner, mapped[key])
