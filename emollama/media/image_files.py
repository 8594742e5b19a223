"""Image files: which one is an image's, and its pixels as the predecessors read them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from emollama.errors import UserError
from emollama.media.source import UnusableMedia

ENDINGS = (".jpg", ".jpeg", ".png")
_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of a file that is whole
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, Image.DecompressionBombError)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file's pixels, (H, W, 3) uint8 RGB.

    Grey values and palettes become colours, transparency is dropped, 16 bits become the upper 8. Pixels stand as they are stored:
    an orientation in the EXIF tags is not followed, as the predecessors do not.

    Raises:
        UnusableMedia: no image, one that is cut off, or one of 32 bits.
    """
    try:
        with Image.open(path) as image:
            _require_colours(image)
            if image.mode.startswith("I;16"):
                return np.stack([(np.asarray(image) >> 8).astype(np.uint8)] * 3, axis=-1)
            return np.array(image.convert("RGB"))
    except UnusableMedia:
        raise
    except _BROKEN as error:
        raise UnusableMedia(_reason(path, error)) from None


def probe_image(path: str | os.PathLike[str]) -> None:
    """Check that a file holds an image, by its header; one that does not end as such files do is decoded to see.

    Raises:
        UnusableMedia: see :func:`read_image`.
    """
    try:
        with Image.open(path) as image, open(path, "rb") as file:
            _require_colours(image)
            last = _LAST_BYTES.get(image.format or "")
            if last:
                file.seek(-len(last), os.SEEK_END)
            whole = last is not None and file.read() == last
    except UnusableMedia:
        raise
    except _BROKEN as error:
        raise UnusableMedia(_reason(path, error)) from None
    if not whole:
        read_image(path)


def _require_colours(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        raise UnusableMedia("its pixels are numbers of 32 bits, which are no colours")


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"it is cut off or damaged ({reason})"


def image_files(folder: str, names: Iterable[str], key: str) -> dict[str, str]:
    """Name -> its file below a folder, of the images that are there.

    Args:
        folder: of the images.
        names: may hold folders. Of several files the one whose ending comes first in :data:`ENDINGS` is taken; endings may be in
            capitals, and a name that has one already is the file's.
        key: the configuration key or option that named the folder, for messages.

    Raises:
        UserError: no such folder, or one that cannot be read.
    """
    try:
        listed = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        reason = "no folder" if isinstance(error, FileNotFoundError | NotADirectoryError) else f"{error.strerror}:"
        raise UserError(f"{key}: {reason} '{folder}' (working folder: {os.getcwd()}). Correct the path.") from None
    found = ((name, next((file for file in _candidates(name) if _is_there(folder, file, listed)), None)) for name in names)
    return {name: file for name, file in found if file is not None}


def _candidates(name: str) -> list[str]:
    if name.lower().endswith(ENDINGS):
        return [name]
    return [name + written for ending in ENDINGS for written in (ending, ending.upper())]


def _is_there(folder: str, file: str, listed: set[str]) -> bool:
    return Path(folder, file).is_file() if "/" in file else file in listed
