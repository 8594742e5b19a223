"""The settings in which runs differ, as their configurations have them, unresolved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

from emollama.reporting.json_io import mapping

Setting = tuple[str, dict[str, Any]]  # dotted key, run -> its value, without runs that lack the key
Configs = Mapping[str, Mapping[str, Any]]  # run -> keys

NAMES_THE_FOLDER = ("job_id", "output_dir")  # keys of ``run`` which runs always differ in
OF_EVERY_RUN = ("runner", "task", "seed", "device", "amp", "amp_dtype")  # keys of ``run`` that are not about training alone
LISTED = 12  # most keys that are listed of a block which a run does not have


def settings_that_differ(configs: Configs, trained: Collection[str]) -> Iterator[Setting]:
    """(dotted key, run -> value) wherever configurations differ.

    Args:
        configs: run -> its configuration.
        trained: runs that did. What only matters for training is compared among these.
    """
    yield from _differing({name: _of_every_run(tree) for name, tree in configs.items()})
    yield from _evaluation({name: mapping(tree.get("evaluation_datasets")) for name, tree in configs.items()})
    yield from _differing({name: _of_training(tree) for name, tree in configs.items() if name in trained})


def _of_every_run(tree: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in tree.items() if key not in ("datasets", "evaluation_datasets")}
    run = {key: value for key, value in mapping(tree.get("run")).items() if key in OF_EVERY_RUN}
    return rest | {"run": run}


def _of_training(tree: Mapping[str, Any]) -> dict[str, Any]:
    own = (*NAMES_THE_FOLDER, *OF_EVERY_RUN)
    run = {key: value for key, value in mapping(tree.get("run")).items() if key not in own}
    return {"datasets": mapping(tree.get("datasets")), "run": run}


def _differing(blocks: Configs, prefix: str = "") -> Iterator[Setting]:
    """Wherever blocks of keys differ; a key that not every run has is not taken apart."""
    for key in dict.fromkeys(chain(*blocks.values())):
        values = {name: block[key] for name, block in blocks.items() if key in block}
        everywhere = len(values) == len(blocks)
        if everywhere and all(isinstance(value, dict) for value in values.values()):
            yield from _differing(values, f"{prefix}{key}.")
        elif not everywhere or len({repr(value) for value in values.values()}) > 1:
            yield f"{prefix}{key}", values


def _evaluation(runs: Configs) -> Iterator[Setting]:
    """The same of evaluation blocks. Of one that a run does not have, the keys that tell it from all other blocks are listed."""
    leaves = [dict(_leaves(mapping(block))) for blocks in runs.values() for block in blocks.values()]
    for label in dict.fromkeys(chain(*runs.values())):
        values = {name: blocks[label] for name, blocks in runs.items() if label in blocks}
        path = f"evaluation_datasets.{label}"
        if len(values) == len(runs):
            yield from _differing({name: {label: value} for name, value in values.items()}, "evaluation_datasets.")
            continue
        own = {name: dict(_leaves(mapping(value))) for name, value in values.items()}
        keys = list(dict.fromkeys(chain(*own.values())))
        telling = [key for key in keys if len({repr(found.get(key)) for found in leaves}) > 1] or keys
        if not 0 < len(telling) <= LISTED:
            yield path, values
            continue
        for key in telling:
            yield f"{path}.{key}", {name: found[key] for name, found in own.items() if key in found}


def _leaves(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a block's values."""
    for key, value in block.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
