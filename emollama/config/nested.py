"""Conversion of the values in a nested block, such as ``judge: {type: ..., timeout: 5}``, to the types of a Config's fields.

The block around it contains a nested block as one value, which has no types until its component is looked up.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
import warnings
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emollama.config.omegaconf_errors import first_line, hints_of, value_problem


def converted(config_class: Any, values: Mapping[str, Any], *, shows_values: bool) -> dict[str, Any]:
    """Return values converted to the types of the fields of a Config class, as those of other blocks are.

    Args:
        config_class: a dataclass.
        values: field -> its value, with interpolations resolved.
        shows_values: whether messages contain the values.

    Raises:
        ValueError: If a value has the wrong type. The message starts with the key.
    """
    hints = hints_of(config_class)
    return {name: _converted(name, hints[name], value, shows_values) for name, value in values.items()}


def _converted(name: str, hint: Any, value: Any, shows_value: bool) -> Any:
    try:
        node = OmegaConf.structured(_block_class(hint))
    except OmegaConfBaseException as error:
        raise ValueError(f"{name}: the field's type is not one that a configuration can have: {first_line(error)}") from None
    try:
        with warnings.catch_warnings():
            # OmegaConf warns about a value that is converted when it is assigned. Merging would not warn, but it accepts a
            # list as an element of list[str].
            warnings.simplefilter("ignore", FutureWarning)
            node.value = _escaped(value)
        return typing.cast("dict[str, Any]", OmegaConf.to_container(node, resolve=True))["value"]
    except (OmegaConfBaseException, TypeError) as error:
        raise ValueError(f"{name}: {value_problem(hint, value, error, shows_value=shows_value)}") from None


@functools.lru_cache(maxsize=256)
def _block_class(hint: Any) -> type:
    """Return a dataclass with one field of a type. It has no default, whose keys a mapping would be merged into."""
    return dataclasses.make_dataclass("Block", [("value", hint)])


def _escaped(value: Any) -> Any:
    """Escape ``${`` in the texts of a value, because interpolations are already resolved."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
