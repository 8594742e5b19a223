"""Image files: how they are found by name, and their pixels, which equal those in the published code."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from emollama.disk import unreadable
from emollama.errors import UserError
from emollama.media.source import UnusableMedia
from emollama.paths import require_local

ImageSource = str | os.PathLike[str] | bytes
EXTENSIONS = (".jpg", ".jpeg", ".png")
_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # the end of a complete file
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, Image.DecompressionBombError)


def read_image(source: ImageSource) -> np.ndarray:
    """Read the pixels of an image, (H, W, 3) uint8 RGB.

    Greyscale and palette images are converted to RGB, transparency is dropped, and of 16 bits the upper 8 are used. EXIF rotation
    is ignored, as in the published code.

    Args:
        source: path of an image file, or its bytes.

    Raises:
        UnusableMedia: If the file is not an image, is cut off, or has 32-bit pixels.
    """
    try:
        with _opened(source) as file, Image.open(file) as image:
            _require_8_or_16_bits(image)
            if image.mode.startswith("I;16"):
                return np.stack([(np.asarray(image) >> 8).astype(np.uint8)] * 3, axis=-1)
            return np.array(image.convert("RGB"))
    except UnusableMedia:
        raise
    except _BROKEN as error:
        raise UnusableMedia(_reason(source, error)) from None


def probe_image(source: ImageSource) -> None:
    """Check the header and the last bytes of an image. The image is decoded only if the last bytes are unusual.

    Args:
        source: path of an image file, or its bytes.

    Raises:
        UnusableMedia: As for :func:`read_image`.
    """
    try:
        with _opened(source) as file, Image.open(file) as image:
            _require_8_or_16_bits(image)
            last = _LAST_BYTES.get(image.format or "")
            if last:
                file.seek(-len(last), os.SEEK_END)
            complete = last is not None and file.read() == last
    except UnusableMedia:
        raise
    except _BROKEN as error:
        raise UnusableMedia(_reason(source, error)) from None
    if not complete:
        read_image(source)


def _opened(source: ImageSource) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _require_8_or_16_bits(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        raise UnusableMedia("its pixels are 32-bit numbers, which cannot be converted to colours")


def _reason(source: ImageSource, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if not source or (not isinstance(source, bytes) and os.path.isfile(source) and os.path.getsize(source) == 0):
        return "the file is empty"
    if isinstance(error, PermissionError):
        return "it cannot be read (permission denied)"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"it is cut off or damaged ({reason})"


def image_files(folder: str, names: Iterable[str], key: str) -> dict[str, str]:
    """Find the files of images by name.

    Args:
        folder: the folder of the images.
        names: names of the images, which may contain folders and extensions. A name without an extension matches the first of
            :data:`EXTENSIONS` that exists, in lower or upper case.
        key: the configuration key or option that named the folder, for messages.

    Returns:
        Name -> path below the folder, of the existing images.

    Raises:
        UserError: If the folder does not exist, is remote, or cannot be read.
    """
    require_local(folder, key, "folder")
    try:
        listed = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise unreadable(folder, key, error) from None
        raise UserError(f"{key}: no folder '{folder}' (current directory: {os.getcwd()}). Correct the path.") from None
    files = ((name, next((file for file in _candidates(name) if _exists(folder, file, listed)), None)) for name in names)
    return {name: file for name, file in files if file is not None}


def _candidates(name: str) -> list[str]:
    if name.lower().endswith(EXTENSIONS):
        return [name]
    return [name + extension for lower_case in EXTENSIONS for extension in (lower_case, lower_case.upper())]


def _exists(folder: str, file: str, listed: set[str]) -> bool:
    # The folder has been listed once, so only files in subfolders need a look-up of their own.
    return Path(folder, file).is_file() if "/" in file else file in listed
