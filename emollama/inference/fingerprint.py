"""Fingerprint of everything that determines metrics besides the checkpoint: configuration, data, weights and prompts.

Fingerprints are computed from contents, so that moving files does not change them, except for images and feature arrays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from emollama.config import RunConfig
from emollama.config.layers import leaves
from emollama.encoders.weights import digest
from emollama.evaluation import wheel_files
from emollama.logs.logger import get_logger
from emollama.paths import PATHS, join, sha256
from emollama.remote.manager import is_remote
from emollama.reporting.checkpoint_table import CheckpointRow, Fingerprint
from emollama.runners import provenance
from emollama.runners.evaluation import EvaluationSet, build_blocks
from emollama.runners.resume import RESUMABLE_OVERRIDES

RUN_KEYS = ("runner", "task", "amp", "amp_dtype")  # keys of ``run`` that affect metrics, besides the seed
IGNORED_MODEL_KEYS = ("model.ensemble", "model.preset", "model.lora_dropout")  # do not affect the answers of a single model
SCORING_KEYS = ("openset_path", "synonyms_path", "wheel_folder")  # keys of a block with the files for scoring
PATH_KEYS = ("data_root", "annotation_file", *SCORING_KEYS)  # keys of a block with paths, in addition to all *_path


def fingerprint_of(config: RunConfig, seed: int) -> Fingerprint:
    """Return block label ("" for all blocks) -> what determines its metrics -> digest.

    Loads no weights. Large files are hashed once. Images and feature arrays are identified by their path and provenance, not by
    their values.

    Args:
        config: the configuration of the evaluation.
        seed: ``run.seed`` of the training.

    Raises:
        UserError: If data, files or weights cannot be used for an evaluation.
    """
    tree = config.resolved()
    # The evaluation repeats all warnings.
    with _quiet():
        prompt = config.model_class.prompt_format(config.model, config.run.loss_average)
        blocks = build_blocks(config, check=False)
        features = provenance.provenance_of_run(config, [block.dataset for block in blocks.values()])
    # These names are stored in records. Renaming one would make every stored record outdated.
    common = {
        "the configuration": [compared(tree["model"]), {key: tree["run"][key] for key in RUN_KEYS}, seed],
        "the language model": digest(config.model.llama_model),
        "the model's prompts": prompt.digest(),
        **{f"the way {slot} features are made": slot_provenance for slot, slot_provenance in features.items()},
    }
    group = tree.get("evaluation_datasets") or tree["datasets"]
    contents = {"": common} | {label: _of_block(label, group[label], block) for label, block in blocks.items()}
    return {label: {name: _digest(content) for name, content in parts.items()} for label, parts in contents.items()}


def compared(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value of a ``model`` block, without paths and other keys that may differ from training."""
    ignored = (*RESUMABLE_OVERRIDES, *IGNORED_MODEL_KEYS)
    return {key: value for key, value in leaves({"model": model}) if not any(fnmatchcase(key, glob) for glob in ignored)}


def changes(recorded: CheckpointRow, current: CheckpointRow) -> dict[str, list[str]]:
    """Return block label -> the reasons to evaluate it again. The label "" stands for all blocks."""
    reasons = {"": ["the checkpoint changed"]} if recorded.sha256 != current.sha256 else {}
    for label, parts in current.basis.items():
        earlier = recorded.basis.get(label)
        if earlier is None:
            reasons[label] = [f"block {label} is new"]
        elif changed := [f"{name} changed" for name in sorted({*earlier, *parts}) if earlier.get(name) != parts.get(name)]:
            reasons.setdefault(label, []).extend(changed)
    return reasons


def _of_block(label: str, tree: Mapping[str, Any], block: EvaluationSet) -> dict[str, Any]:
    """Return what determines the metrics of one block, by name; the names are stored in records, too."""
    path_keys = {key for key in tree if (key.endswith("_path") and key != "peak_index_path") or key in PATH_KEYS}
    return {
        f"the captions or lists of block {label}": block.dataset.digest(),
        f"the place of images or features of block {label}": [_place(source.path) for source in block.dataset.features],
        f"what answers of block {label} are compared with": [_contents(tree[key]) for key in SCORING_KEYS if tree.get(key)],
        f"the configuration of block {label}": {key: value for key, value in tree.items() if key not in path_keys},
    }


def _place(path: str) -> str:
    return path if is_remote(path) else os.path.realpath(path)


def _contents(path: str) -> list[str]:
    """Return the names and SHA-256 digests of a file or of all files in a folder; those of the wheels, if the folder is a URL."""
    if is_remote(path):
        urls = [path] if PATHS.isfile(path) else [join(path, name) for name in sorted(wheel_files.FILES)]
        return [f"{PurePosixPath(urlsplit(url).path).name} {sha256(url)}" for url in urls]
    root = Path(path)
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    return [f"{file.name} {sha256(file)}" for file in files]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress log messages below the level ERROR."""
    logger = get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
