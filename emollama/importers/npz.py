"""Read dictionaries from .npz files without executing code in their pickles.

numpy stores a dictionary as an array of objects, which is a pickle, and unpickling calls any function that the file names. This
reader accepts five names: the four with which numpy describes arrays and scalars of plain types, and the one that describes
bytes in old pickles. Even these five functions are not called. Small replacements build lists and numbers instead. Any other
name is rejected before it is looked up, so that no code of the file is imported or executed.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from typing import Any

import numpy as np

from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.paths import PATHS, require_file

PLAIN_TYPE = re.compile(r"[biufUS]\d+|O8?")


class _Refused(Exception):
    """The pickle contains a name that is not allowed."""


class _Type:
    """Replaces numpy.dtype: a plain type with its byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not PLAIN_TYPE.fullmatch(code):
            raise _Refused(f"numpy.dtype({code!r})")
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]
        if self.order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _Refused("a numpy.dtype with fields")

    def values(self, raw: bytes) -> list[Any]:
        """Convert bytes to numbers or strings of this type."""
        if self.code.startswith("O"):
            raise _Refused("objects in place of bytes")
        values: list[Any] = np.frombuffer(raw, np.dtype(self.order + self.code)).tolist()
        return values


class _Array:
    """Replaces numpy.ndarray: a flat list of values."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, _, kind, _, values = state
        self.values = list(values) if kind.code.startswith("O") else kind.values(values)


def _array(*_: Any) -> _Array:
    return _Array()


def _scalar(kind: _Type, raw: bytes) -> Any:
    return kind.values(raw)[0]


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode(..., {encoding!r})")
    return text.encode("latin1")


_REPLACEMENTS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): "numpy.ndarray",  # an argument of _reconstruct, never called
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed numpy.core to numpy._core, and files contain the name of the numpy that wrote them.
        qualified_name = module.replace("numpy._core", "numpy.core"), name
        if qualified_name not in _REPLACEMENTS:
            raise _Refused(f"{module}.{name}")
        return _REPLACEMENTS[qualified_name]


def read_dictionaries(path: str, keys: list[str]) -> dict[str, dict[Any, Any]]:
    """Read the dictionaries under these keys of an .npz file. Other entries are not opened.

    Raises:
        UserError: If the file is not an .npz file, a key is absent, or an entry is not a dictionary of plain values or refers to
            code, which is not executed.
    """
    local = PATHS.get_local_path(require_file(path, "FILE"))
    if not zipfile.is_zipfile(local):
        raise UserError(
            f"{path}: not an .npz file, or an incomplete one. Specify the label file that MERTools writes with numpy's savez."
        )
    return {key: _read(path, local, key) for key in keys}


def _read(path: str, local: str, key: str) -> dict[Any, Any]:
    try:
        with zipfile.ZipFile(local) as archive:
            present = [name.removesuffix(".npy") for name in archive.namelist()]
            dictionary = _dictionary(archive, f"{key}.npy") if key in present else None
    except _Refused as refused:
        raise UserError(
            f"{path}, '{key}': refused, because it refers to {refused}, which a table of labels does not need. No code of the"
            " file was executed. Do not open this file with numpy's allow_pickle=True, and check where it comes from."
        ) from None
    except Exception as error:  # numpy, pickle and zipfile raise errors of many classes for damaged files
        raise UserError(f"{path}, '{key}': cannot be read as a dictionary of labels ({error or type(error).__name__})") from None
    if dictionary is None:
        raise UserError(f"{path}: contains no '{key}'. Its entries: {abbreviated(present)}.")
    return dictionary


def _dictionary(archive: zipfile.ZipFile, name: str) -> dict[Any, Any]:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if not dtype.hasobject or shape != ():
            raise ValueError(f"it is an array of {dtype}, shape {shape}")
        array = _Unpickler(file).load()
    if not isinstance(array, _Array) or len(array.values) != 1 or not isinstance(array.values[0], dict):
        raise ValueError("it is not a single dictionary")
    return dict(array.values[0])
