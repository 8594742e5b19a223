"""The index of packed shards of version 1: ``index.bin``, a hash table, the end of each name, and the names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from emollama.stores.index import Location

INDEX = "index.bin"
# The key is derived from the name. An empty entry has an empty key.
_ENTRY = np.dtype([("key", "S44"), ("kind", "<u4"), ("shard", "<u4"), ("offset", "<u8"), ("check", "<u4")])


def read(path: Path, table_bytes: int, count: int) -> Iterator[tuple[str, Location]]:
    """Yield name and location of each array.

    Args:
        path: the index file.
        table_bytes: size of the hash table.
        count: number of arrays.

    Raises:
        ValueError, TypeError: If the file does not have this content.
    """
    raw = np.fromfile(path, np.uint8)
    table = raw[:table_bytes].view(_ENTRY)
    ends = np.frombuffer(raw, np.uint64, count, table_bytes)
    text = raw[table_bytes + ends.nbytes :].tobytes()
    entries = table[table["key"] != b""]
    if not count or len(entries) != count or ends[-1] != len(text) or (ends[1:] < ends[:-1]).any():
        raise ValueError(f"the index is not a table of {count} arrays")
    # Arrays were written in the order of their names, so no name has to be searched in the table.
    entries = entries[np.lexsort((entries["offset"], entries["shard"]))]
    columns = (entries[field].tolist() for field in ("shard", "offset", "kind", "check"))
    for (begin, end), *location in zip(pairwise([0, *ends.tolist()]), *columns, strict=True):
        yield text[begin:end].decode("utf-8", "surrogateescape"), Location(*location)
