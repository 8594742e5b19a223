"""What a run's configuration says about its scores, as far as the file can be read; nothing in it is resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from emollama.reporting.json_io import mapping, text, texts

CONFIG, RESULT = "config.yaml", "result"
USUAL: dict[str, tuple[Any, str]] = {  # key of an evaluation block -> its default, and how another value is told
    "mask_slots": ([], "slots masked"),
    "prompt_layout": ("train", "prompt layout"),
    "instruction": ("first", "instruction"),
    "num_beams": (1, "beams"),
    "temperature": (0.0, "temperature"),
    "missing_features": ("error", "clips without features"),
}
USUAL_OF_LABELS: dict[str, tuple[Any, str]] = {  # the same of keys that only the task emotion has a use for
    "answer_by": ("generate", "answered by"),
    "answer_rule": ("search", "labels read by"),
    "several_hits": ("invalid", "answers with several labels"),
    "aliases": ({}, "aliases"),
}


def parsed(raw: str) -> dict[str, Any] | None:
    """The mapping that a configuration's text holds, an empty one where it holds something else; None where it is not YAML."""
    import yaml

    try:
        return mapping(yaml.safe_load(raw))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def evaluated_with(configs: Mapping[str, str], epoch: int | None) -> dict[str, Any]:
    """The configuration that results come from; an empty one where that cannot be told.

    Args:
        configs: file -> its text.
        epoch: of the validation that the results are of; None for the evaluation script's.
    """
    scripts = f"{RESULT}/{CONFIG}"
    return parsed(configs.get(scripts if epoch is None and scripts in configs else CONFIG, "")) or {}


def blocks_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Label -> keys of the blocks that are evaluated, in their order: where there are none, ``datasets`` hold clips out."""
    return mapping(tree.get("evaluation_datasets")) or mapping(tree.get("datasets"))


def unusual_of(keys: Mapping[str, Any], task: str) -> Iterator[str]:
    """What a block's keys change about the meaning of a task's scores, such as "slots masked: audio, face"."""
    for key, (usual, title) in (USUAL | (USUAL_OF_LABELS if task == "emotion" else {})).items():
        value = keys.get(key)
        if value is not None and value != usual:
            yield f"{title}: {_as_text(value)}"


def ensemble_of(tree: Mapping[str, Any]) -> Iterator[str]:
    """How several checkpoints answered; nothing where a single one did."""
    model = mapping(tree.get("model"))
    checkpoints = model.get("ckpt")
    if isinstance(checkpoints, list) and len(checkpoints) > 1:
        mean = "the mean of their weights" if model.get("ensemble") == "weights" else "the mean of their predictions"
        yield f"{len(checkpoints)} checkpoints: {mean}"


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{word} → {text(label)}" for word, label in value.items())
    return ", ".join(texts(value)) if isinstance(value, list) else text(value)
