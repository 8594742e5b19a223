"""Registrations of a test end with it, so that no test depends on the components of another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from emollama import registry
from emollama.registration import Registry

REGISTRIES = [value for value in vars(registry).values() if isinstance(value, Registry)]


@contextmanager
def restored_registries() -> Iterator[None]:
    """Remove the components that the block registers, and the modules that it imports and that registered them.

    A module that stayed imported would not register its components again when the next test imports it.
    """
    tables = [(one, one._entries, dict(one._entries), one._locations, dict(one._locations)) for one in REGISTRIES]
    modules = set(sys.modules)
    try:
        yield
    finally:
        files = set()
        for one, entries, entries_before, locations, locations_before in tables:
            files |= {place.rpartition(", line ")[0] for name, place in locations.items() if name not in locations_before}
            one._entries, one._locations = entries, locations
            for table, before in ((entries, entries_before), (locations, locations_before)):
                if table != before:
                    table.clear()
                    table.update(before)
        for name in sys.modules.keys() - modules if files else ():
            if getattr(sys.modules[name], "__file__", None) in files:
                del sys.modules[name]
