"""What figures rest on beside the checkpoint, told from contents: the same files at another place are the same."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from emollama.config import RunConfig
from emollama.config.layers import leaves
from emollama.encoders.weights import digest
from emollama.logs.logger import get_logger
from emollama.paths import sha256
from emollama.reporting.checkpoint_table import CheckpointRow, Fingerprint
from emollama.runners import provenance
from emollama.runners.evaluation import EvaluationSet, build_blocks
from emollama.runners.resume import RESUMABLE_OVERRIDES

OF_RUN = ("runner", "task", "amp", "amp_dtype")  # keys of ``run`` that figures rest on, beside the seed
NOT_ASKED = ("model.ensemble", "model.preset", "model.lora_dropout")  # say nothing of one model that answers
OF_SCORING = ("openset_path", "synonyms_path", "wheel_folder")  # keys of a block: what answers are compared with, seen from here
PLACES = ("data_root", "annotation_file", *OF_SCORING)  # where a block's files lie, as do all *_path


def fingerprint_of(config: RunConfig, seed: int) -> Fingerprint:
    """Block ("" for all of them) -> what its figures rest on -> a digest. No weights are loaded; a large file is hashed once.

    Images and arrays of features are known by their place and by how they were made, not by their values.

    Args:
        config: of the evaluation.
        seed: that training began with.

    Raises:
        UserError: data, files or weights that an evaluation could not use.
    """
    tree = config.resolved()
    with _quiet():  # the evaluation says it all again
        prompt = config.classes["model"].prompt(config.model, config.run.loss_average)
        blocks = build_blocks(config, check=False)
        features = provenance.provenance_of_run(config, [block.dataset for block in blocks.values()])
    told = {
        "the configuration": [compared(tree["model"]), {key: tree["run"][key] for key in OF_RUN}, seed],
        "the language model": digest(config.model.llama_model),
        "the model's prompts": prompt.digest(),
        **{f"the way {slot} features are made": facts for slot, facts in features.items()},
    }
    group = tree.get("evaluation_datasets") or tree["datasets"]
    every = {"": told} | {label: _of_block(label, group[label], block) for label, block in blocks.items()}
    return {label: {what: _digest(content) for what, content in parts.items()} for label, parts in every.items()}


def compared(model: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of a ``model`` block, without places of files and what else may differ from training."""
    free = (*RESUMABLE_OVERRIDES, *NOT_ASKED)
    return {key: value for key, value in leaves({"model": model}) if not any(fnmatchcase(key, glob) for glob in free)}


def changes(then: CheckpointRow, now: CheckpointRow) -> dict[str, list[str]]:
    """Block -> why it has to be answered again; the block "" stands for all."""
    found = {"": ["the checkpoint changed"]} if then.sha256 != now.sha256 else {}
    for label, parts in now.basis.items():
        known = then.basis.get(label)
        if known is None:
            found[label] = [f"block {label} is new"]
        elif changed := [f"{what} changed" for what in sorted({*known, *parts}) if known.get(what) != parts.get(what)]:
            found.setdefault(label, []).extend(changed)
    return found


def _of_block(label: str, tree: Mapping[str, Any], block: EvaluationSet) -> dict[str, Any]:
    placed = {key for key in tree if (key.endswith("_path") and key != "peak_index_path") or key in PLACES}
    return {
        f"the captions or lists of block {label}": block.dataset.digest(),
        f"the place of images or features of block {label}": [
            os.path.realpath(source.path) for source in getattr(block.dataset, "features", ())
        ],
        f"what answers of block {label} are compared with": [_contents(tree[key]) for key in OF_SCORING if tree.get(key)],
        f"the configuration of block {label}": {key: value for key, value in tree.items() if key not in placed},
    }


def _contents(path: str) -> list[str]:
    """The SHA-256 of a file, or of all files of a folder by their names."""
    place = Path(path)
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    return [f"{file.name} {sha256(file)}" for file in files]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    logger = get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
