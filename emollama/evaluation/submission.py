"""The submission file of the challenges: an ``.npz`` with two arrays of texts, ``filenames`` and ``fileitems``.

Source: the challenge MER2025, track 2, and the files that MERTools writes and reads. An item is a list of words as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emollama.errors import UserError
from emollama.evaluation.word_lists import parse_words, split_words
from emollama.paths import PATHS, atomic_write, require_file
from emollama.text_encoding import encodable

ARRAYS = ("filenames", "fileitems")


def write_submission(path: str, names: Sequence[str], words: Sequence[Sequence[str]]) -> None:
    """Write the emotion words of samples in the format of the challenges.

    Args:
        path: output file; an existing file is replaced.
        names: names of the samples.
        words: emotion words of each sample.
    """
    items = [str(list(sample_words)) for sample_words in words]
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, filenames=np.array(names, dtype=str), fileitems=np.array(items, dtype=str))


def read_submission(path: str) -> dict[str, tuple[str, ...]]:
    """Read a submission of any program. Items that are not lists are split at commas and quotes, as by the published scorer.

    Returns:
        Sample name -> words in lower case.

    Raises:
        UserError: If the file does not exist, has other arrays or arrays of Python objects (pickles are never loaded), or
            contains a sample twice.
    """
    words: dict[str, tuple[str, ...]] = {}
    for name, item in read_items(path).items():
        try:
            words[name] = parse_words(item)
        except ValueError:
            words[name] = split_words(item)
    return words


def read_items(path: str) -> dict[str, str]:
    """Read the items, as texts, by sample name.

    Raises:
        UserError: As in :func:`read_submission`.
    """
    filenames, items = _texts(path)
    if len(filenames) != len(items):
        raise UserError(f"{path}: expected one item per sample, got {len(filenames)} filenames and {len(items)} fileitems")
    items_by_name: dict[str, str] = {}
    for name, item in zip(filenames, items, strict=True):
        if name in items_by_name:
            raise UserError(f"{path}: filenames contains '{name}' twice. Remove one of the two.")
        items_by_name[name] = item
    return items_by_name


def _texts(path: str) -> list[list[str]]:
    require_file(path, "FILE")
    try:
        with PATHS.open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in ARRAYS if name not in archive]
            arrays: list[Any] = [] if missing else [archive[name] for name in ARRAYS]
    except Exception as error:  # numpy and zipfile raise errors of many classes for damaged files
        raise UserError(
            f"{path}: cannot read an .npz of texts ({error}). Arrays of Python objects are pickles, which can run code and are"
            " never loaded. Store texts: np.savez(file, filenames=np.array(names, str), fileitems=np.array(items, str))."
        ) from None
    if missing:
        raise UserError(f"{path}: missing arrays: {', '.join(missing)}. A submission contains the arrays {' and '.join(ARRAYS)}.")
    if any(array.ndim != 1 or (array.size and array.dtype.kind != "U") for array in arrays):
        raise UserError(f"{path}: expected {' and '.join(ARRAYS)} to be one-dimensional arrays of texts")
    return [[encodable(str(text)) for text in array] for array in arrays]
