"""Defaults of the registered components, which apply if a configuration sets no file, folder or dimension."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from emollama.config import MISSING
from emollama.registration import Registry
from emollama.registry import ENCODERS


def defaults(registry: Registry[object], name: str) -> dict[str, Any]:
    """Return key -> default value of a component's Config. Keys without a default are left out."""
    values = {}
    for item in dataclasses.fields(registry.config(name)):
        if item.default_factory is not dataclasses.MISSING:
            values[item.name] = item.default_factory()
        elif item.default not in (dataclasses.MISSING, MISSING):
            values[item.name] = item.default
    return values


@functools.cache
def feature_folders() -> list[str]:
    """Return the names of the folders that the encoders write."""
    return [str(defaults(ENCODERS, name)["folder"]) for name in ENCODERS.in_order()]
