"""Writing of tensors with safetensors and Hugging Face classes. No other module calls their writers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions that the umask allows.

    safetensors itself would create the file with mode 0600.

    Args:
        tensors: contiguous tensors by name.
        path: the file to write.
        metadata: text entries for the header of the file.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    _restore_permissions(path)


def save_pretrained(component: Any, folder: Path) -> None:
    """Write a Hugging Face model or tokenizer into a folder, with the permissions that the umask allows."""
    component.save_pretrained(folder)
    _restore_permissions(*(path for path in Path(folder).iterdir() if path.is_file()))


def _restore_permissions(*paths: Path) -> None:
    """Give files the permissions of a file that ``open`` creates in the same folder.

    Some libraries write to a private temporary file (mode 0600) and rename it.
    """
    for folder in {path.parent for path in paths}:
        # A new file shows what the umask and the folder's default access list allow. Reading the umask itself is not thread-safe.
        probe = folder / f".permissions.tmp{os.getpid()}"
        probe.touch()
        mode = probe.stat().st_mode & 0o777
        probe.unlink()
        for path in paths:
            if path.parent == folder:
                path.chmod(mode)
