"""Layers of a configuration as plain, untyped trees, each with a name for messages."""

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
    """One source of keys: the YAML file, a preset, or the command line.

    Attributes:
        name: name in messages.
        tree: the keys and values.
        old_keys: current dotted key -> the old key that the layer uses instead, without the path of its block.
        texts: dotted key as written -> its text, where YAML reads something else, such as 7 for ``007``; only of ``--options``.
    """

    name: str
    tree: dict[str, Any]
    old_keys: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def source(self, key: str) -> str:
        """Return the source of a key's value: the name of the layer, with the old key if the layer uses one."""
        return f"{self.name} (as {self.old_keys[key]})" if key in self.old_keys else self.name


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf of a plain tree. Lists and empty blocks are leaves."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def is_plain(node: Any) -> bool:
    """Return whether a tree has only text keys, lists and scalars, and no text that OmegaConf interprets."""
    if isinstance(node, dict):
        return all(type(key) is str and is_plain(value) for key, value in node.items())
    if isinstance(node, list):
        return all(map(is_plain, node))
    return node is None or type(node) in (bool, int, float) or (type(node) is str and "${" not in node and node != "???")


def copied(node: Any) -> Any:
    """Return a copy of a plain tree, in a fraction of the time of ``copy.deepcopy``."""
    if isinstance(node, dict):
        return {key: copied(value) for key, value in node.items()}
    return [copied(value) for value in node] if isinstance(node, list) else node


def drop_removed(layers: list[Layer]) -> None:
    """Remove the labelled blocks that a later layer sets to null, as in ``evaluation_datasets.x=null``.

    ``evaluation_datasets=null`` removes all blocks of the group.
    """
    for index, layer in enumerate(layers):
        for group in GROUPS:
            earlier = [value for other in layers[:index] if isinstance(value := other.tree.get(group), dict)]
            blocks = layer.tree.get(group, {})
            if blocks is None:
                for earlier_blocks in earlier:
                    earlier_blocks.clear()
            elif isinstance(blocks, dict):
                block_names = {block_name for earlier_blocks in earlier for block_name in earlier_blocks}
                for block_name in [
                    block_name for block_name, keys in blocks.items() if keys is None and block_name in block_names
                ]:
                    for labelled_blocks in [*earlier, blocks]:
                        labelled_blocks.pop(block_name, None)


def check_top_level(layer: Layer, hint: Callable[[str], str]) -> None:
    """Check that all top-level keys exist and contain blocks, and that labels can be file names; replace empty blocks by {}.

    Args:
        layer: a layer with translated keys.
        hint: returns a sentence about an unknown key, with a leading space.
    """
    for key, value in layer.tree.items():
        if key not in TOP_LEVEL:
            raise UserError(f"{layer.name}: unknown key '{key}'.{hint(str(key))} Top-level keys: {', '.join(TOP_LEVEL)}")
        if value is None:
            layer.tree[key] = [] if key == "imports" else {}
        elif key == "imports":
            check_imports(layer.name, value)
        elif not isinstance(value, dict):
            raise UserError(f"{layer.name}: '{key}' must be a mapping, not {value!r}")
    for group in GROUPS:
        for block_name, value in layer.tree.get(group, {}).items():
            if not isinstance(value, dict):
                raise UserError(f"{layer.name}: '{group}.{block_name}' must be a block of keys, not {value!r}")
            if not re.fullmatch(r"[\w+-]+", str(block_name)):
                raise UserError(
                    f"{layer.name}: the block name '{block_name}' under '{group}' becomes part of file names."
                    " Use letters, digits, _, + and - only."
                )


def merged_plain(layers: list[Layer], name: str) -> Any:
    """Return ``imports`` of the last layer that has it, or ``paths`` of all layers merged, where later layers take precedence."""
    merged: Any = [] if name == "imports" else {}
    for layer in layers:
        if name in layer.tree:
            merged = layer.tree[name] if name == "imports" else {**merged, **layer.tree[name]}
    return merged


def selected(layers: list[Layer], keys: list[str], default: str | None) -> str | None:
    """Return the value of a key that selects a component or a preset, from the last layer that sets it."""
    chosen = default
    for layer in layers:
        node: Any = layer.tree
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        chosen = chosen if node is None else str(node)
    return chosen
