"""Writing of tensors with safetensors and Hugging Face classes. No other module calls their writers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from emollama.paths import restore_permissions


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
    restore_permissions(path)


def save_pretrained(component: Any, folder: Path) -> None:
    """Write a Hugging Face model or tokenizer into a folder, with the permissions that the umask allows."""
    component.save_pretrained(folder)
    restore_permissions(*(path for path in Path(folder).iterdir() if path.is_file()))
