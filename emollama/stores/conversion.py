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
    "pt": "torch.load(f, weights_only=True).float().numpy()",
    "pth": "torch.load(f, weights_only=True).float().numpy()",
}
EXTENSIONS = (*_EXPRESSIONS, "safetensors", "h5", "hdf5", "mat", "pkl")


def conversion_command(folder: str, extension: str, expression: str) -> str:
    """Return a shell command that writes a folder ``<folder>_npy`` with a .npy file for each file of a folder and its subfolders.

    Args:
        folder: the folder.
        extension: extension of its files in lower case, without a dot; files whose extension is in upper case are converted, too.
        expression: Python expression of the array in the file ``f``.
    """
    source, target = (json.dumps(f"{folder.rstrip('/')}{end}", ensure_ascii=False) for end in ("", "_npy"))
    code = (
        f"import numpy as np, pathlib{', torch' if 'torch' in expression else ''};"
        f" files, out = pathlib.Path({source}), pathlib.Path({target}); out.mkdir();"
        f" [(t.parent.mkdir(parents=True, exist_ok=True), np.save(t, {expression}))"
        f' for f in files.rglob("*") if f.suffix.lower() == ".{extension}" and f.name[0] != "."'
        ' for t in [out / f.relative_to(files).with_suffix(".npy")]]'
    )
    return f"python -c {shlex.quote(code)}"


def reject_other_formats(folder: str, key: str) -> None:
    """Raise an error about a folder that contains feature files of another kind, but no .npy files.

    Raises:
        UserError: If there are such files. The message contains the command that converts them.
    """
    if next(Path(folder).rglob("*.npy"), None) is not None:
        return
    files = (path for path in Path(folder).rglob("*") if _extension(path.name) in EXTENSIONS)
    if names := sorted(path.relative_to(folder).as_posix() for path in files):
        extension = _extension(names[0])
        others = listing(names, f".{extension} file")
        raise UserError(f"{key}: '{folder}' contains no .npy files, but {others}. {_remedy(folder, extension)}")


def other_file(folder: str, name: str) -> str:
    """Return a sentence (with a leading space) about a clip's feature file of another kind; "" if there is none."""
    for extension in EXTENSIONS:
        for path in (f"{folder}/{name}.{spelling}" for spelling in (extension, extension.upper())):
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
