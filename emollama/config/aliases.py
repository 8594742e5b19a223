"""Keys with a second name: ``audio_feature_path`` sets ``features.audio``, and ``slot_dims.audio`` sets ``slots.audio.dim``.

Unlike the keys in :mod:`emollama.config.compat`, they depend on the component of a block: a component whose Config has a field
with such a name uses it as any other key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from emollama.config.layers import Layer
from emollama.errors import UserError

FEATURES, PATH_SUFFIX = "features", "_feature_path"
SLOTS, DIMS = "slots", "slot_dims"
PACKING = "packing"


def with_current_keys(layer: Layer, path: str, fields: Collection[str]) -> Layer:
    """Return the layer of one block with the current names of its keys.

    Args:
        layer: the keys of the block.
        path: dotted path of the block, for messages.
        fields: keys of the block's component.

    Raises:
        UserError: If a key occurs under both of its names.
    """
    tree, old_keys = dict(layer.tree), dict(layer.old_keys)
    if path == "model" and tree.get(PACKING) is False:
        # YAML reads the word off as False.
        tree[PACKING] = "off"
    dims = {} if DIMS in fields else tree.get(DIMS, {})
    if SLOTS in fields and not (isinstance(dims, dict) and all(_is_number(dim) for dim in dims.values())):
        raise UserError(f"{layer.name}: '{path}.{DIMS}': expected a mapping to whole numbers, got {dims!r}.")
    for key, (group, entries) in _aliases(layer.tree, fields).items():
        current = tree.get(group, {})
        if not isinstance(current, dict):
            raise UserError(f"{layer.name}: '{path}.{group}': expected a mapping from slots, got {current!r}.")
        merged = dict(current)
        for name, value in entries.items():
            if name in merged:
                raise UserError(f"{layer.name}: '{path}.{key}' and '{path}.{group}.{name}' set the same slot. Keep one of them.")
            merged[name] = value
            old_keys.update(_renamed(f"{path}.{group}.{name}", value, key))
        del tree[key]
        tree[group] = merged
    return Layer(layer.name, tree, old_keys, layer.texts)


def alias_names(fields: Collection[str]) -> list[str]:
    """Return the usual second names of a component's keys, as candidates for the suggestion after a misspelled key."""
    names = [f"{slot}{PATH_SUFFIX}" for slot in ("image", "face", "video", "audio")] if FEATURES in fields else []
    return names + ([DIMS] if SLOTS in fields else [])


def current_name(key: str) -> str:
    """Return the current name of a dotted key: ``features`` for ``audio_feature_path``; other keys are returned unchanged."""
    block, dot, name = key.rpartition(".")
    current = FEATURES if name.endswith(PATH_SUFFIX) and name != PATH_SUFFIX else SLOTS if name == DIMS else name
    return f"{block}{dot}{current}"


def _aliases(keys: dict[str, Any], fields: Collection[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return key -> (current key, its entries) for each key of the block that is a second name."""
    aliases: dict[str, tuple[str, dict[str, Any]]] = {}
    for key, value in keys.items():
        if key in fields:
            continue
        slot = str(key).removesuffix(PATH_SUFFIX)
        if FEATURES in fields and slot and slot != key:
            aliases[key] = (FEATURES, {slot: value})
        elif SLOTS in fields and key == DIMS and isinstance(value, dict):
            aliases[key] = (SLOTS, {str(slot): {"dim": dim} for slot, dim in value.items()})
    return aliases


def _is_number(value: Any) -> bool:
    """Return whether a value is a whole number, or an interpolation that may become one."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and "${" in value)


def _renamed(path: str, value: Any, old_key: str) -> Iterator[tuple[str, str]]:
    """Yield (current dotted key, old key) for an entry and its keys."""
    yield path, old_key
    for key in value if isinstance(value, dict) else ():
        yield f"{path}.{key}", f"{old_key}.{path.rpartition('.')[2]}"
