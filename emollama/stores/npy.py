"""What stands in .npy files, and the dtypes that features may have."""

from __future__ import annotations

import math
import re
from typing import IO

import numpy as np

FLOAT_TYPES = (np.float16, np.float32, np.float64)  # of features
_READERS = {
    (1, 0): (2, np.lib.format.read_array_header_1_0),  # bytes that say how long the header is
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
_NUMBERS = re.compile(rb"\{'descr': '([<>|][fiub]\d+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n")


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis is the fastest, and dtype; the file then stands at the first value.

    The header of plain numbers is read without Python's parser, which is slower, and which Python 3.11 may break off with a
    SystemError where several threads use it.

    Raises:
        ValueError: no .npy file, or one of a version that numpy writes for named fields only.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"npy version {version}")
    length_bytes, read_any = _READERS[version]
    begin = file.tell()
    header = file.read(int.from_bytes(file.read(length_bytes), "little"))
    if match := _NUMBERS.fullmatch(header):
        shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
        return shape, match[2] == b"True", np.dtype(match[1].decode())
    file.seek(begin)
    shape, fortran, dtype = read_any(file)
    return shape, fortran, dtype


def read_npy(file: IO[bytes]) -> np.ndarray:
    """The array of a file on disk.

    Raises:
        ValueError: pickled objects, or shorter than its header says.
    """
    shape, fortran, dtype = npy_header(file)
    if dtype.hasobject:
        raise ValueError("Object arrays are not read")
    values = np.fromfile(file, dtype, math.prod(shape))
    array: np.ndarray = values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)
    return array
