"""Reading of .npy files, and the dtypes of features."""

from __future__ import annotations

import io
import math
import os
import re
import reprlib
import sys
from typing import IO, Any

import numpy as np

FLOAT_TYPES = (np.float16, np.float32, np.float64)  # dtypes of features, in either byte order
MAX_HEADER_BYTES = 10_000  # limit of numpy, too; a damaged file may claim a header of several GiB
MAX_DIMENSIONS = 64  # of numpy
_MAGIC, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_READERS = {
    b"\x01\x00": (2, np.lib.format.read_array_header_1_0),  # number of bytes of the header's length
    b"\x02\x00": (4, np.lib.format.read_array_header_2_0),
}
_NUMBERS = re.compile(rb"\{'descr': '([<>|][fiub]\d+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n")


def is_float(dtype: np.dtype) -> bool:
    """Return whether values of a dtype can be features: float16, float32 or float64, in either byte order."""
    return dtype in FLOAT_TYPES or dtype.newbyteorder("=") in FLOAT_TYPES


def largest_magnitude(values: np.ndarray) -> float:
    """Return the largest absolute value of a nonempty array of float16 or float32; inf or NaN if a value is not finite.

    Without their sign bit, floating-point numbers have the order of the integers with the same bits, and NaN follows inf. As a
    signed integer, the largest value is the largest positive number, and as an unsigned one the largest negative number. Finding
    them takes no copy, and for float16 a twentieth of the time of a conversion to float32.
    """
    size = values.dtype.itemsize
    largest = max(int(values.view(f"{kind}{size}").max()) & ((1 << (8 * size - 1)) - 1) for kind in "iu")
    return float(np.array(largest, f"u{size}").view(values.dtype))


def npy_header(file: IO[bytes], end: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, whether the array is in Fortran order, and dtype. The file is then positioned at the first value.

    Args:
        file: a file that is positioned at the first byte of a .npy file.
        end: position after the last byte of the .npy file. Its values must end there, so a size in a damaged header never makes a
            reader allocate more memory than the file has bytes.

    Raises:
        ValueError: If the file is not a .npy file, has version 3, which numpy writes only for named fields, contains Python
            objects, has an impossible dtype or shape, or is shorter or longer than its header says.
    """
    begin = file.read(len(_MAGIC) + 2)
    magic, version = begin[:-2], begin[-2:]
    if begin.startswith(_ZIP):
        raise ValueError("it is a zip archive, as np.savez and torch.save write it, not a .npy file")
    if magic != _MAGIC:
        raise ValueError("it does not begin with the magic bytes of a .npy file")
    if version not in _READERS:
        raise ValueError(f"npy version {tuple(version)}")
    length_bytes, _ = _READERS[version]
    length = file.read(length_bytes)
    header_bytes = int.from_bytes(length, "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header claims to have {header_bytes:,} bytes")
    shape, fortran, dtype = _parse(version, length, file.read(header_bytes))
    if dtype.hasobject:
        # Reading pickled objects could execute code.
        raise ValueError("it contains Python objects, not numbers")
    if len(shape) > MAX_DIMENSIONS or any(type(size) is not int or not 0 <= size <= sys.maxsize for size in shape):
        raise ValueError(f"its header has the impossible shape {reprlib.repr(shape)}")
    missing_bytes = file.tell() + math.prod(shape) * dtype.itemsize - end
    if missing_bytes:
        raise ValueError(
            f"{abs(missing_bytes)} bytes {'are missing' if missing_bytes > 0 else 'too many'} at its end;"
            f" its header says shape {shape}, dtype {dtype}"
        )
    return shape, fortran, dtype


def read_npy(file: IO[bytes]) -> np.ndarray:
    """Read the array of an open file on disk.

    Raises:
        ValueError: As for :func:`npy_header`.
    """
    shape, fortran, dtype = npy_header(file, os.fstat(file.fileno()).st_size)
    values = np.fromfile(file, dtype, math.prod(shape))
    array: np.ndarray = values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)
    return array


def _parse(version: bytes, length: bytes, header: bytes) -> tuple[tuple[Any, ...], bool, np.dtype]:
    """Return shape, whether the array is in Fortran order, and dtype; the sizes in the shape may be anything."""
    try:
        # numpy evaluates the header with Python's parser. That is slower, and in Python 3.11 it may raise a SystemError if
        # several threads use it, so the usual header is read with a regular expression.
        if match := _NUMBERS.fullmatch(header):
            shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
            return shape, match[2] == b"True", np.dtype(match[1].decode())
        _, read_any = _READERS[version]
        parsed: tuple[tuple[Any, ...], bool, np.dtype] = read_any(io.BytesIO(length + header))
        return parsed
    except Exception as error:  # Python's parser and numpy raise errors of many classes for a damaged header
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"its header is damaged, or has an unknown dtype: {reason}") from None
