"""Where a configuration key that is not a key of its block belongs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from emollama.config import compat
from emollama.config.blocks import ConfigBlock
from emollama.config.layers import GROUPS, TOP_LEVEL
from emollama.config.sections import sections
from emollama.registry import did_you_mean, nearest

LABEL = "LABEL"  # stands for the label of a block that the configuration does not have


@dataclass(frozen=True)
class KeyLocation:
    """Where a key is known.

    Attributes:
        path: of the block.
        name: of the key.
        choices: what chooses the components that have it, ``type: dfew``; empty if all components of the kind have it.
    """

    path: str
    name: str
    choices: tuple[str, ...] = ()

    def suggestion(self) -> str:
        """A sentence (with a leading space)."""
        return f" Did you mean '{self.path}.{self.name}'{f' ({self.components()})' if self.choices else ''}?"

    def components(self) -> str:
        """``type: dfew or emer``."""
        selector = self.choices[0].partition(": ")[0]
        return f"{selector}: {' or '.join(choice.partition(': ')[2] for choice in self.choices)}"


def key_hint(key: str, block: ConfigBlock, blocks: Iterable[ConfigBlock]) -> str:
    """A sentence (with a leading space) with the key that was probably meant, or "".

    The same key in another block comes first, then in another component, then a similar key of the block itself, then a
    similar key of another block.

    Args:
        key: as it is written, without the path of its block.
        block: the block that does not have it.
        blocks: all blocks of the configuration.
    """
    blocks = list(blocks)
    others = [place for place in _of_configured(blocks) if place.path != block.path]
    if exact := [place for place in others if place.name == key]:
        return _nearest(block.path, exact).suggestion()
    paths = {place.path.partition(".")[0]: place.path for place in reversed(others)}
    possible = list(_of_registered(block.kind))
    if same := [place for place in possible if place.name == key]:
        place = _nearest(block.path, same)
        own = place.choices and place.path.partition(".")[0] == block.kind and "." not in place.path.partition(".")[2]
        return f" It is a key of {place.components()}." if own else place.suggestion()
    if old := _old_key(key, block.kind, paths):
        return old
    if own_key := did_you_mean(key, [*map(str, block.node), *compat.old_names(block.kind)]):
        return own_key
    return _similar(key, [*others, *possible])


def top_level_hint(key: str) -> str:
    """A sentence (with a leading space) with what a key outside any block was probably meant to be, or ""."""
    possible = list(_of_registered(""))
    if exact := [place for place in possible if place.name == key]:
        return exact[0].suggestion()
    return did_you_mean(key, TOP_LEVEL) or _old_key(key, "", {}) or _similar(key, possible)


def _similar(key: str, places: list[KeyLocation]) -> str:
    near = nearest(key, [place.name for place in places])
    return next((place.suggestion() for place in places if place.name == near), "")


def _nearest(path: str, places: list[KeyLocation]) -> KeyLocation:
    """Of several places, one in the same group of blocks if there is one."""
    group = path.partition(".")[0]
    return next((place for place in places if place.path.partition(".")[0] == group), places[0])


def _old_key(key: str, kind: str, paths: Mapping[str, str]) -> str:
    """What another kind of block makes of a key of the predecessors; ``paths`` are kind -> path of the first such block."""
    for other in ("model", "run", "datasets", "evaluation_datasets"):
        path = paths.get(other, f"{other}.{LABEL}" if other in GROUPS else other)
        if other != kind and (new := compat.RENAMED[other].get(key)):
            return f" Did you mean '{path}.{new}'?"
        if other != kind and (reason := compat.WITHOUT_EFFECT[other].get(key)):
            return f" '{path}.{key}' would have no effect either: {reason}."
    return ""


def _of_configured(blocks: Iterable[ConfigBlock]) -> Iterator[KeyLocation]:
    """The keys of the configuration's blocks."""
    for block in blocks:
        names = (item.name for config in block.configs for item in dataclasses.fields(config))
        yield from (KeyLocation(block.path, name) for name in [*block.selectors, *names])


def _of_registered(kind: str) -> Iterator[KeyLocation]:
    """The keys of all registered components.

    Args:
        kind: of the block with the unknown key; an evaluation block has the keys of its dataset too.
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
