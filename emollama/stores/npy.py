"""Reading of .npy files, and the dtypes of features."""

from __future__ import annotations

import math
import re
from typing import IO

import numpy as np

FLOAT_TYPES = (np.float16, np.float32, np.float64)  # dtypes of features
_READERS = {
    (1, 0): (2, np.lib.format.read_array_header_1_0),  # number of bytes of the header's length
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
_NUMBERS = re.compile(rb"\{'descr': '([<>|][fiub]\d+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n")


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, whether the array is in Fortran order, and dtype. The file is then positioned at the first value.

    Raises:
        ValueError: If the file is not a .npy file, or has version 3, which numpy writes only for named fields.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"npy version {version}")
    length_bytes, read_any = _READERS[version]
    begin = file.tell()
    header = file.read(int.from_bytes(file.read(length_bytes), "little"))
    # numpy evaluates the header with Python's parser. That is slower, and in Python 3.11 it may raise a SystemError if several
    # threads use it, so the usual header is read with a regular expression.
    if match := _NUMBERS.fullmatch(header):
        shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
        return shape, match[2] == b"True", np.dtype(match[1].decode())
    file.seek(begin)
    shape, fortran, dtype = read_any(file)
    return shape, fortran, dtype


def read_npy(file: IO[bytes]) -> np.ndarray:
    """Read the array of an open file on disk.

    Raises:
        ValueError: If the array contains objects, or is shorter than its header says.
    """
    shape, fortran, dtype = npy_header(file)
    if dtype.hasobject:
        # Reading pickled objects could execute code.
        raise ValueError("it contains Python objects, not numbers")
    values = np.fromfile(file, dtype, math.prod(shape))
    array: np.ndarray = values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)
    return array
