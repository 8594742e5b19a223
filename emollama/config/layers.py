"""Layers of a configuration before they have types: plain trees, each with the name that messages call it by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from emollama.config.user_modules import check_imports
from emollama.errors import UserError

TOP_LEVEL = ("imports", "paths", "model", "encoders", "datasets", "evaluation_datasets", "extraction", "run")
GROUPS = ("encoders", "datasets", "evaluation_datasets")  # of labelled blocks


@dataclass(frozen=True)
class Layer:
    """One source of keys: the YAML file, a preset, the command line.

    Attributes:
        name: what messages call it.
        tree: its keys, in our names.
        written: our dotted key -> the key as it is written within its block, where that is another one.
    """

    name: str
    tree: dict[str, Any]
    written: dict[str, str] = field(default_factory=dict)

    def source(self, key: str) -> str:
        """Where the value of a key of ours came from: the layer, and the key's other name."""
        return f"{self.name} (as {self.written[key]})" if key in self.written else self.name


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a plain tree; a list and an empty block are leaves."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def drop_removed(layers: list[Layer]) -> None:
    """Take out the labelled blocks that a later layer sets to null: ``evaluation_datasets.x=null``, or ``=null`` for all."""
    for number, layer in enumerate(layers):
        for group in GROUPS:
            earlier = [given for other in layers[:number] if isinstance(given := other.tree.get(group), dict)]
            blocks = layer.tree.get(group, {})
            if blocks is None:
                for given in earlier:
                    given.clear()
            elif isinstance(blocks, dict):
                known = {label for given in earlier for label in given}
                for label in [label for label, keys in blocks.items() if keys is None and label in known]:
                    for given in [*earlier, blocks]:
                        given.pop(label, None)


def check_top_level(layer: Layer, hint: Callable[[str], str]) -> None:
    """Refuse unknown blocks, values that are no blocks, and labels that cannot name files; an empty block becomes {}.

    Args:
        layer: in our names.
        hint: gives the sentence for an unknown key, with a leading space.
    """
    for key, value in layer.tree.items():
        if key not in TOP_LEVEL:
            raise UserError(f"{layer.name}: unknown key '{key}'.{hint(str(key))} Known: {', '.join(TOP_LEVEL)}")
        if value is None:
            layer.tree[key] = [] if key == "imports" else {}
        elif key == "imports":
            check_imports(layer.name, value)
        elif not isinstance(value, dict):
            raise UserError(f"{layer.name}: '{key}' is a mapping, not {value!r}")
    for group in GROUPS:
        for label, value in layer.tree.get(group, {}).items():
            if not isinstance(value, dict):
                raise UserError(f"{layer.name}: '{group}.{label}' is a block of keys, not {value!r}")
            if not re.fullmatch(r"[\w+-]+", str(label)):
                raise UserError(
                    f"{layer.name}: the label '{label}' under '{group}' names files: letters, digits, _, + and - only"
                )


def merged_plain(layers: list[Layer], name: str) -> Any:
    """``imports`` (the last layer's) or ``paths`` (all layers', the last one's values first)."""
    merged: Any = [] if name == "imports" else {}
    for layer in layers:
        if name in layer.tree:
            merged = layer.tree[name] if name == "imports" else {**merged, **layer.tree[name]}
    return merged


def selected(layers: list[Layer], keys: list[str], default: str | None) -> str | None:
    """The value that the last layer gives to a key which chooses a component or a preset."""
    chosen = default
    for layer in layers:
        node: Any = layer.tree
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        chosen = chosen if node is None else str(node)
    return chosen
