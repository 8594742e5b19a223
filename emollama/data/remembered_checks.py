"""Results of checks of a whole store, remembered until one of its files changes.

Shards are few files with many arrays. Looking up each array again would take longer, the more clips there are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from emollama.data.text_columns import Names
from emollama.data.validation_cache import Stamp, ValidationCache, code_stamps
from emollama.stores.store import ArrayStore, StampedStore


class RememberedChecks(NamedTuple):
    """Results about one store.

    Attributes:
        settings: everything that the results depend on besides the files and the names of the clips, which includes the code.
        stamp: changes if any file of the store may have changed; empty if nothing can be remembered.
    """

    settings: tuple[str, ...]
    stamp: Stamp

    @classmethod
    def of(cls, store: ArrayStore, *settings: str) -> RememberedChecks:
        """Return the results about a store."""
        return cls((*settings, code_stamps("data", "stores")), store.files_stamp() if isinstance(store, StampedStore) else ())

    def get(self, what: str, names: Sequence[str]) -> Any:
        """Return a result about some clips; None if there is none."""
        result = self._cache().get(_key(what, names), self.stamp) if self.stamp else None
        return None if result is None else json.loads(result)

    def add(self, what: str, names: Sequence[str], result: Any) -> None:
        """Remember a result, which is a value of JSON."""
        if self.stamp:
            cache = self._cache()
            cache.add(_key(what, names), self.stamp, json.dumps(result))
            cache.save()

    def once(self, what: str, names: Sequence[str], compute: Callable[[], Any]) -> Any:
        """Return a remembered result, or compute and remember it."""
        if (result := self.get(what, names)) is None:
            self.add(what, names, result := compute())
        return result

    def shard_ids(self, store: ArrayStore, names: Sequence[str]) -> np.ndarray | None:
        """Return the (n,) int64 shard of each clip, as the store returns it."""
        if (stored := self.get("shards", names)) is not None:
            return np.frombuffer(zlib.decompress(base64.b64decode(stored)), "<i4").astype(np.int64)
        ids = store.shard_ids(names)
        if ids is not None:
            self.add("shards", names, base64.b64encode(zlib.compress(ids.astype("<i4").tobytes(), 1)).decode())
        return ids

    def _cache(self) -> ValidationCache:
        return ValidationCache.load("stores", *self.settings)


def names_digest(names: Sequence[str]) -> str:
    """Return a hash of names in their order."""
    if isinstance(names, Names):
        return names.digest()
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def _key(what: str, names: Sequence[str]) -> str:
    return f"{what} {names_digest(names)}"
