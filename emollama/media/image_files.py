"""Image files: how they are found by name, and their pixels, which equal those in the published code."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from emollama.disk import unreadable
from emollama.errors import UserError
from emollama.media.source import MAX_PIXELS, UnusableMedia
from emollama.paths import require_local

ImageSource = str | os.PathLike[str] | bytes
EXTENSIONS = (".jpg", ".jpeg", ".png")
_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # the end of a complete file
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # the only plugins of Pillow that are used
# The first bytes of each of these formats. Those of WebP contain its length.
_FIRST_BYTES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")

# Pillow only warns about images between one and two times its limit.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def is_image(path: str | os.PathLike[str]) -> bool:
    """Return whether a file exists and starts like an image of one of :data:`FORMATS`."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            first = file.read(12)
    except OSError:
        return False
    return first.startswith(_FIRST_BYTES) or (first[:4] == b"RIFF" and first[8:] == b"WEBP")


@contextmanager
def open_image(file: IO[bytes] | str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image of one of :data:`FORMATS` whose header has been read but no pixel.

    Raises:
        UnusableMedia: If it has more than ``max_pixels`` pixels.
        OSError: If it cannot be read, or other errors of Pillow.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            require_pixels(image.width, image.height, max_pixels)
            yield image
    except _BOMB:
        raise UnusableMedia(f"it has more than {max_pixels:,} pixels") from None


def require_pixels(width: int, height: int, max_pixels: int) -> None:
    """Check the size of an image or a frame.

    Raises:
        UnusableMedia: If width times height is above the limit.
    """
    if width * height > max_pixels:
        raise UnusableMedia(f"its pictures have {width} x {height} pixels, more than {max_pixels:,}")


def read_image(source: ImageSource, max_pixels: int = MAX_PIXELS, upright: bool = False) -> np.ndarray:
    """Read the pixels of an image, (H, W, 3) uint8 RGB.

    Greyscale and palette images are converted to RGB, transparency is dropped, and of 16 bits the upper 8 are used.

    Args:
        source: path of an image file, or its bytes. Its format is one of :data:`FORMATS`.
        max_pixels: largest width times height.
        upright: apply EXIF rotation. By default, it is ignored, as in the published code.

    Raises:
        UnusableMedia: If the file is not an image, is cut off, has too many pixels, or has 32-bit pixels.
    """
    try:
        with _opened(source) as file, open_image(file, max_pixels) as image:
            _require_8_or_16_bits(image)
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
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
        with _opened(source) as file, open_image(file) as image:
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
