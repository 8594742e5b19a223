"""Where a configuration key that is not a key of its block belongs."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping

from emollama import predecessors
from emollama.blocks import Block
from emollama.layers import TOP_LEVEL
from emollama.registry import DATASETS, EXTRACTORS, MODELS, RUNNERS, TASKS, did_you_mean

NEAR = 0.6  # least similarity of a suggested key, as difflib measures it


def key_hint(key: str, block: Block, blocks: Iterable[Block]) -> str:
    """A sentence (with a leading space) with the key that was probably meant, or "".

    The same key in another block comes first, then a similar key of the block itself, then a similar key of another block.

    Args:
        key: as it is written, without the path of its block.
        block: the block that does not have it.
        blocks: all blocks of the configuration.
    """
    others = [(path, name) for path, name in _keys(blocks) if path != block.path]
    if exact := [path for path, name in others if name == key]:
        return f" Did you mean '{_nearest_path(block.path, exact)}.{key}'?"
    if old := _old_key(key, block.kind, {path.partition(".")[0]: path for path, _ in reversed(others)}):
        return old
    if own := did_you_mean(key, [*map(str, block.node), *predecessors.old_names(block.kind)]):
        return own
    return _similar(key, others)


def top_level_hint(key: str) -> str:
    """A sentence (with a leading space) with what a key outside any block was probably meant to be, or ""."""
    known = list(_keys([]))
    if exact := [path for path, name in known if name == key]:
        return f" Did you mean '{exact[0]}.{key}'?"
    return did_you_mean(key, TOP_LEVEL) or _old_key(key, "", {}) or _similar(key, known)


def _similar(key: str, known: list[tuple[str, str]]) -> str:
    near = difflib.get_close_matches(key, [name for _, name in known], n=1, cutoff=NEAR)
    paths = [path for path, name in known if near and name == near[0]]
    return f" Did you mean '{paths[0]}.{near[0]}'?" if near else ""


def _nearest_path(path: str, others: list[str]) -> str:
    """Of several blocks with the key, one of the same group if there is one."""
    group = path.partition(".")[0]
    return next((other for other in others if other.partition(".")[0] == group), others[0])


def _old_key(key: str, kind: str, paths: Mapping[str, str]) -> str:
    """What another kind of block makes of a key of the predecessors; ``paths`` are kind -> path of the first such block."""
    for other in ("model", "run", "datasets", "evaluation_datasets"):
        path = paths.get(other, f"{other}.LABEL" if other in ("datasets", "evaluation_datasets") else other)
        if other != kind and (new := predecessors.RENAMED[other].get(key)):
            return f" Did you mean '{path}.{new}'?"
        if other != kind and (reason := predecessors.WITHOUT_EFFECT[other].get(key)):
            return f" '{path}.{key}' would have no effect either: {reason}."
    return ""


def _keys(blocks: Iterable[Block]) -> Iterator[tuple[str, str]]:
    """(path of a block, key) of the blocks, then of each kind that none of them is of."""
    kinds = set()
    for block in blocks:
        kinds.add(block.kind)
        names = (item.name for config in block.configs for item in dataclasses.fields(config))
        yield from ((block.path, name) for name in [*block.selectors, *names])
    task = "image_text_pretrain"
    usual = {
        "model": [MODELS.config("minigpt_v2"), MODELS.config("minigpt4")],
        "run": [RUNNERS.config("runner_base")],
        "datasets": [DATASETS.config("feature_face_caption")],
        "evaluation_datasets": [TASKS.config(task), TASKS.attribute(task, "scoring").Config],
        "extraction": [EXTRACTORS.config("videos")],
    }
    for kind in (kind for kind in usual if kind not in kinds):
        path = f"{kind}.LABEL" if kind in ("datasets", "evaluation_datasets") else kind
        yield from ((path, item.name) for config in usual[kind] for item in dataclasses.fields(config))
