"""Writing of tensors with safetensors and Hugging Face classes. No other module calls their writers."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


class Writable(Protocol):
    """A file to which bytes are appended."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Append bytes; returns their number."""
        ...


def write_tensors(tensors: Mapping[str, Tensor], file: Writable, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file from its beginning to its end, with one tensor at a time on the CPU.

    safetensors itself would need all of them on the CPU, and could not hash the file meanwhile.

    Args:
        tensors: tensors by name, on any device.
        file: where to write.
        metadata: text entries for the header of the file.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of their size
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().flatten()
        values: Any = flat.view(torch.uint8).numpy()
        file.write(memoryview(values))


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
