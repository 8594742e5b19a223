"""Settings in which the configurations of runs differ. References in the files are not resolved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

from emollama.json_io import mapping

Setting = tuple[str, dict[str, Any]]  # dotted key, run -> value, without runs that lack the key
Configs = Mapping[str, Mapping[str, Any]]  # run -> keys

FOLDER_KEYS = ("job_id", "output_dir")  # keys of ``run`` in which runs always differ
COMMON_KEYS = ("runner", "task", "seed", "device", "amp", "amp_dtype")  # keys of ``run`` that also matter without training
MAX_LISTED = 12  # keys listed of a block that some runs lack


def settings_that_differ(configs: Configs, trained: Collection[str]) -> Iterator[Setting]:
    """Yield (dotted key, run -> value) for each key in which configurations differ.

    Args:
        configs: run -> its configuration.
        trained: runs with training; keys that only affect training are compared among these.
    """
    yield from _differing({name: _common_keys(tree) for name, tree in configs.items()})
    yield from _evaluation({name: mapping(tree.get("evaluation_datasets")) for name, tree in configs.items()})
    yield from _differing({name: _training_keys(tree) for name, tree in configs.items() if name in trained})


def _common_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in tree.items() if key not in ("datasets", "evaluation_datasets")}
    run = {key: value for key, value in mapping(tree.get("run")).items() if key in COMMON_KEYS}
    return rest | {"run": run}


def _training_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    excluded = (*FOLDER_KEYS, *COMMON_KEYS)
    run = {key: value for key, value in mapping(tree.get("run")).items() if key not in excluded}
    return {"datasets": mapping(tree.get("datasets")), "run": run}


def _differing(blocks: Configs, prefix: str = "") -> Iterator[Setting]:
    """Yield the differences of blocks of keys; a key that some runs lack is compared as a whole."""
    for key in dict.fromkeys(chain(*blocks.values())):
        values = {name: block[key] for name, block in blocks.items() if key in block}
        in_all_runs = len(values) == len(blocks)
        if in_all_runs and all(isinstance(value, dict) for value in values.values()):
            yield from _differing(values, f"{prefix}{key}.")
        elif not in_all_runs or len({repr(value) for value in values.values()}) > 1:
            yield f"{prefix}{key}", values


def _evaluation(runs: Configs) -> Iterator[Setting]:
    """Yield the differences of evaluation blocks. Of a block that some runs lack, list the keys that vary between blocks."""
    leaves = [dict(_leaves(mapping(block))) for blocks in runs.values() for block in blocks.values()]
    for label in dict.fromkeys(chain(*runs.values())):
        values = {name: blocks[label] for name, blocks in runs.items() if label in blocks}
        path = f"evaluation_datasets.{label}"
        if len(values) == len(runs):
            yield from _differing({name: {label: value} for name, value in values.items()}, "evaluation_datasets.")
            continue
        own = {name: dict(_leaves(mapping(value))) for name, value in values.items()}
        keys = list(dict.fromkeys(chain(*own.values())))
        varying = [key for key in keys if len({repr(block.get(key)) for block in leaves}) > 1] or keys
        if not 0 < len(varying) <= MAX_LISTED:
            yield path, values
            continue
        for key in varying:
            yield f"{path}.{key}", {name: block[key] for name, block in own.items() if key in block}


def _leaves(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a block's values."""
    for key, value in block.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
