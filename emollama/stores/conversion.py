"""Feature files of other kinds, such as .npz and .pt, and the commands that convert them to .npy files."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from emollama.errors import UserError
from emollama.listing import listing

_EXPRESSIONS = {  # extension of files that numpy or torch read -> Python expression of the array in the file f
    "npz": "np.load(f)[np.load(f).files[0]]",
    "pt": "torch.load(f).float().numpy()",
    "pth": "torch.load(f).float().numpy()",
}
EXTENSIONS = (*_EXPRESSIONS, "safetensors", "h5", "hdf5", "mat", "pkl")


def conversion_command(folder: str, extension: str, expression: str) -> str:
    """Return a shell command that writes a folder ``<folder>_npy`` with a .npy file for each file of a folder.

    Args:
        folder: the folder.
        extension: extension of its files, without a dot.
        expression: Python expression of the array in the file ``f``.
    """
    source, target = (json.dumps(f"{folder.rstrip('/')}{end}", ensure_ascii=False) for end in ("", "_npy"))
    code = (
        f"import numpy as np, pathlib{', torch' if 'torch' in expression else ''}; out = pathlib.Path({target}); out.mkdir();"
        f' [np.save(out / f.stem, {expression}) for f in pathlib.Path({source}).glob("*.{extension}")]'
    )
    return f"python -c {shlex.quote(code)}"


def require_npy(folder: str, key: str) -> None:
    """Raise an error about a folder that contains feature files of another kind, but no .npy files.

    Raises:
        UserError: If there are such files. The message contains the command that converts them.
    """
    names = sorted(name for name in os.listdir(folder) if _extension(name) in EXTENSIONS)
    if names and next(Path(folder).rglob("*.npy"), None) is None:
        extension = _extension(names[0])
        others = listing(names, f".{extension} file")
        raise UserError(f"{key}: '{folder}' contains no .npy files, but {others}. {_remedy(folder, extension)}")


def other_file(folder: str, name: str) -> str:
    """Return a sentence (with a leading space) about a clip's feature file of another kind; "" if there is none."""
    for extension in EXTENSIONS:
        path = f"{folder}/{name}.{extension}"
        if os.path.isfile(path):
            return f" '{path}' is not read. {_remedy(folder, extension)}"
    return ""


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].removeprefix(".").lower()


def _remedy(folder: str, extension: str) -> str:
    if extension not in _EXPRESSIONS:
        return "Write one .npy file per clip with numpy.save."
    contents = "tensor" if "torch" in _EXPRESSIONS[extension] else "array"
    command = conversion_command(folder, extension, _EXPRESSIONS[extension])
    return f"If each file contains one {contents}, convert them: {command}"
