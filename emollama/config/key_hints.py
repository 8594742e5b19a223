"""Suggestions for unknown configuration keys: the block that the key belongs to, or the key that was probably meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from emollama.config import aliases, compat
from emollama.config.blocks import ConfigBlock
from emollama.config.layers import GROUPS, TOP_LEVEL
from emollama.config.other_libraries import EQUIVALENTS
from emollama.config.sections import sections
from emollama.suggestions import did_you_mean, nearest

LABEL = "LABEL"  # stands for the label of a block that the configuration does not have


@dataclass(frozen=True)
class KeyLocation:
    """A block that has a key.

    Attributes:
        path: dotted name of the block.
        name: the key.
        choices: selectors of the components that have the key, such as ``type: dfew``; empty if all components of the kind
            have it.
    """

    path: str
    name: str
    choices: tuple[str, ...] = ()

    def suggestion(self) -> str:
        """Return a sentence that suggests the key, with a leading space."""
        return f" Did you mean '{self.path}.{self.name}'{f' ({self.components()})' if self.choices else ''}?"

    def components(self) -> str:
        """Return the components that have the key, such as ``type: dfew or emer``."""
        selector = self.choices[0].partition(": ")[0]
        return f"{selector}: {' or '.join(choice.partition(': ')[2] for choice in self.choices)}"


def key_hint(key: str, block: ConfigBlock, blocks: Iterable[ConfigBlock]) -> str:
    """Return a sentence (with a leading space) that suggests the key that was probably meant, or "".

    The first match counts: the same key in another block of the configuration, the same key of another component, an old key, a
    key that has this name in another library, a similar key of the same block, a similar key of another block.

    Args:
        key: the unknown key as written in the file, without the path of its block.
        block: the block that does not have the key.
        blocks: all blocks of the configuration.
    """
    blocks = list(blocks)
    others = [location for location in _of_configured(blocks) if location.path != block.path]
    if exact := [location for location in others if location.name == key]:
        return _nearest(block.path, exact).suggestion()
    paths = {location.path.partition(".")[0]: location.path for location in reversed(others)}
    possible = list(_of_registered(block.kind))
    if same := [location for location in possible if location.name == key]:
        location = _nearest(block.path, same)
        own = location.choices and location.path.partition(".")[0] == block.kind and "." not in location.path.partition(".")[2]
        return f" It is a key of {location.components()}." if own else location.suggestion()
    if hint := _old_key(key, block.kind, paths) or _equivalent(key, paths | {block.kind: block.path}):
        return hint
    names = [*map(str, block.node), *compat.old_names(block.kind), *aliases.alias_names([*map(str, block.node)])]
    if own_key := did_you_mean(key, names):
        return own_key
    return _similar(key, [*others, *possible])


def top_level_hint(key: str) -> str:
    """Return a sentence (with a leading space) that suggests what an unknown top-level key was meant to be, or ""."""
    possible = list(_of_registered(""))
    if exact := [location for location in possible if location.name == key]:
        return exact[0].suggestion()
    return _equivalent(key, {}) or did_you_mean(key, TOP_LEVEL) or _old_key(key, "", {}) or _similar(key, possible)


def _similar(key: str, locations: list[KeyLocation]) -> str:
    """Return a sentence that suggests the most similar key of the locations, or ""."""
    near = nearest(key, [location.name for location in locations])
    return next((location.suggestion() for location in locations if location.name == near), "")


def _nearest(path: str, locations: list[KeyLocation]) -> KeyLocation:
    """Return the first location in the same group of blocks as ``path``, or else the first location."""
    group = path.partition(".")[0]
    return next((location for location in locations if location.path.partition(".")[0] == group), locations[0])


def _equivalent(key: str, paths: Mapping[str, str]) -> str:
    """Return a sentence with the name that a key of another library has here, or "".

    Args:
        key: the unknown key.
        paths: kind -> path of the first such block in the configuration.
    """
    kind, _, name = EQUIVALENTS.get(key, "").partition(".")
    path = paths.get(kind, f"{kind}.{LABEL}" if kind in GROUPS else kind)
    return f" Its name here is '{path}.{name}'." if name else ""


def _old_key(key: str, kind: str, paths: Mapping[str, str]) -> str:
    """Return a sentence about an old key that belongs to another kind of block, or "".

    Args:
        key: the unknown key.
        kind: kind of the block that contains it.
        paths: kind -> path of the first such block in the configuration.
    """
    for other in ("model", "run", "datasets", "evaluation_datasets"):
        path = paths.get(other, f"{other}.{LABEL}" if other in GROUPS else other)
        if other != kind and (new := compat.RENAMED[other].get(key)):
            return f" Did you mean '{path}.{new}'?"
        if other != kind and (reason := compat.WITHOUT_EFFECT[other].get(key)):
            return f" It is a key of '{path}' in Emotion-LLaMA or MiniGPT-4, but has no effect here: {reason}."
    return ""


def _of_configured(blocks: Iterable[ConfigBlock]) -> Iterator[KeyLocation]:
    """Yield the keys of the blocks of a configuration."""
    for block in blocks:
        names = (item.name for config in block.configs for item in dataclasses.fields(config))
        yield from (KeyLocation(block.path, name) for name in [*block.selectors, *names])


def _of_registered(kind: str) -> Iterator[KeyLocation]:
    """Yield the keys of all registered components.

    Args:
        kind: kind of the block with the unknown key. An evaluation block also has the keys of its dataset.
    """
    choices: dict[tuple[str, str], list[str]] = {}
    components = {}
    for section in sections():
        block = kind if section.block == "datasets" and kind == "evaluation_datasets" else section.block
        path = ".".join(filter(None, [block, LABEL if block in GROUPS else "", section.inner]))
        for item in dataclasses.fields(section.config):
            choices.setdefault((path, item.name), []).append(section.choice)
            components[path, item.name] = section.registry.names()
    for (path, name), having in choices.items():
        yield KeyLocation(path, name, () if len(having) == len(components[path, name]) else tuple(having))
