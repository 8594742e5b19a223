"""The file in which emotion words are handed in: an ``.npz`` with two arrays of texts, ``filenames`` and ``fileitems``.

Source: the challenge MER2025, track 2; the files that MERTools writes and reads. An item is a list of words as text.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from emollama.errors import UserError
from emollama.evaluation.word_lists import parse_words, split_words
from emollama.paths import PATHS, atomic_write, require_file

ARRAYS = ("filenames", "fileitems")
UNREADABLE = (
    ValueError, TypeError, AttributeError, LookupError, EOFError, OSError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def write_submission(path: str, names: Sequence[str], words: Sequence[Sequence[str]]) -> None:
    """Write words of clips as the challenges take them: an ``.npz`` with the texts ``filenames`` and ``fileitems``, a list each.

    Args:
        path: the file, replaced if it is there.
        names: the clips.
        words: those of each clip.
    """
    items = [str(list(one)) for one in words]
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, filenames=np.array(names, dtype=str), fileitems=np.array(items, dtype=str))


def read_submission(path: str) -> dict[str, tuple[str, ...]]:
    """Read such a file, whoever wrote it; a text that is no list is cut at commas and quotes, as the published scorer does.

    Returns:
        Clip -> its words, in lower case.

    Raises:
        UserError: no such file, other arrays, arrays of Python objects (pickles, which are not opened), or a clip twice.
    """
    words: dict[str, tuple[str, ...]] = {}
    for name, item in read_items(path).items():
        try:
            words[name] = parse_words(item)
        except ValueError:
            words[name] = split_words(item)
    return words


def read_items(path: str) -> dict[str, str]:
    """Clip -> its words as the file writes them.

    Raises:
        UserError: as :func:`read_submission`.
    """
    filenames, items = _texts(path)
    if len(filenames) != len(items):
        raise UserError(f"{path}: {len(filenames)} filenames, but {len(items)} fileitems. It needs one item a clip.")
    found: dict[str, str] = {}
    for name, item in zip(filenames, items, strict=True):
        if name in found:
            raise UserError(f"{path}: clip '{name}' stands in filenames twice. Keep one.")
        found[name] = item
    return found


def _texts(path: str) -> list[list[str]]:
    require_file(path, "FILE")
    try:
        with PATHS.open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in ARRAYS if name not in archive]
            arrays: list[Any] = [] if missing else [archive[name] for name in ARRAYS]
    except UNREADABLE as error:
        raise UserError(
            f"{path}: cannot be read as an .npz of texts ({error}). Python objects in it are pickles, which may run code and are"
            " not opened; store texts: np.savez(file, filenames=np.array(names, str), fileitems=np.array(items, str))."
        ) from None
    if missing:
        raise UserError(f"{path}: it lacks {' and '.join(missing)}. A submission holds {' and '.join(ARRAYS)}.")
    if any(array.ndim != 1 or (array.size and array.dtype.kind != "U") for array in arrays):
        raise UserError(f"{path}: {' and '.join(ARRAYS)} are not one text a clip")
    return [[str(text) for text in array] for array in arrays]
