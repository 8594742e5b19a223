"""An entry of the key ``features``: a path, or a mapping with a path and ``pooling``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emollama.data.slots import POOLING, Pooling
from emollama.field_texts import documented
from emollama.suggestions import did_you_mean


@documented
@dataclass(frozen=True)
class FeatureConfig:
    """The features of one slot."""

    path: str
    """A folder of .npy files or of packed shards, or tar shards."""
    pooling: Pooling | None = None
    """mean: arrays have any number of vectors, and the slot gets their mean. If null, the slot gets all vectors."""

    def __str__(self) -> str:
        return self.path if self.pooling is None else f"{self.path}, pooling: {self.pooling}"

    def plain(self) -> str | dict[str, str]:
        """Return the entry as it is written in a configuration."""
        return self.path if self.pooling is None else {"path": self.path, "pooling": self.pooling}


def parse_features(features: Mapping[str, Any]) -> dict[str, FeatureConfig | None]:
    """Return slot -> its features, None for no such features.

    Raises:
        ValueError: If a key or value is invalid; the message names the key.
    """
    return {slot: None if entry is None else _parse(f"features.{slot}", entry) for slot, entry in features.items()}


def _parse(key: str, entry: Any) -> FeatureConfig:
    if not isinstance(entry, Mapping):
        return FeatureConfig(_path(key, entry))
    for name in entry:
        if name not in ("path", "pooling"):
            raise ValueError(f"{key}: unknown key '{name}'.{did_you_mean(str(name), ['path', 'pooling'])} Keys: path, pooling")
    if "path" not in entry:
        raise ValueError(f"{key}.path is missing. Write both keys, such as {{path: HL-UTT, pooling: mean}}.")
    pooling = entry.get("pooling")
    if pooling not in (None, *POOLING):
        raise ValueError(f"{key}.pooling is {pooling!r}; expected {' or '.join(POOLING)}, or null for no pooling")
    return FeatureConfig(_path(f"{key}.path", entry["path"]), pooling)


def _path(key: str, value: Any) -> str:
    # YAML reads the name of a folder such as 340 as a number.
    path = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{key} is {value!r}; expected a path, or null for no such features")
    return path
