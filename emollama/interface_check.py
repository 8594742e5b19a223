"""Check that a registered object has the members of the interface of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

_OF_PYTHON = ("builtins", "typing", "abc")  # modules of base classes outside this package
CALLED_BY_PYTHON = ("__call__", "__len__")  # the special methods that interfaces of this package contain


def missing_members(entry: object, interface: type) -> list[str]:
    """Return the members of an interface that an object does not have.

    Only names are compared. A class is only required to have methods and class variables, because its instances may set the
    other attributes; any other object, all members.

    Args:
        entry: a class, a function or another registered object.
        interface: a Protocol, an abstract base class, or a class whose attributes are required.
    """
    abstract: frozenset[str] = getattr(entry, "__abstractmethods__", frozenset())
    names = dict.fromkeys(_members(interface, of_class=isinstance(entry, type)))
    return [name for name in names if name in abstract or not hasattr(entry, name)]


def missing_keys(config_class: type, interface: type) -> list[str]:
    """Return the fields, properties and methods of an interface that a Config class, a dataclass, does not have."""
    bases = [base for base in reversed(interface.__mro__) if base.__module__ not in _OF_PYTHON]
    names = dict.fromkeys(name for base in bases for name in (*vars(base).get("__annotations__", {}), *vars(base)))
    fields = {item.name for item in dataclasses.fields(config_class)}
    return [name for name in names if not (name.startswith("_") or name in fields or hasattr(config_class, name))]


def _members(interface: type, *, of_class: bool) -> Iterator[str]:
    """Yield the required members in the order of their definition. Of an abstract class, only abstract methods are required."""
    abstract: frozenset[str] = getattr(interface, "__abstractmethods__", frozenset())
    for base in reversed(interface.__mro__):
        if base.__module__ in _OF_PYTHON:
            continue
        for name, annotation in vars(base).get("__annotations__", {}).items():
            if not of_class or str(annotation).startswith("ClassVar"):
                yield name
        for name, value in vars(base).items():
            is_public = not name.startswith("_") or name in CALLED_BY_PYTHON
            if is_public and (not of_class or _is_method(value)) and (not abstract or name in abstract):
                yield name


def _is_method(value: Any) -> bool:
    return callable(value) or isinstance(value, staticmethod | classmethod)
