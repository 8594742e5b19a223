"""Reads from a run's configuration what affects its scores. References in the file are not resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from emollama.json_io import mapping, text, texts
from emollama.run_folder import CONFIG, RESULT

# Key of an evaluation block -> its default, and the title of other values in a report.
DEFAULTS: dict[str, tuple[Any, str]] = {
    "mask_slots": ([], "slots masked"),
    "prompt_layout": ("train", "prompt layout"),
    "instruction": ("first", "instruction"),
    "num_beams": (1, "beams"),
    "temperature": (0.0, "temperature"),
    "missing_features": ("error", "samples without features"),
}
# The same for keys that only affect the task emotion.
LABEL_DEFAULTS: dict[str, tuple[Any, str]] = {
    "answer_by": ("generate", "answered by"),
    "answer_rule": ("search", "labels extracted by"),
    "several_hits": ("invalid", "answers with several labels"),
    "aliases": ({}, "aliases"),
}


def parse_config(raw: str) -> dict[str, Any] | None:
    """Parse a configuration; an empty mapping if the YAML is not a mapping, None if the text is not YAML."""
    import yaml

    try:
        return mapping(yaml.safe_load(raw))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def evaluated_with(configs: Mapping[str, str], epoch: int | None) -> dict[str, Any]:
    """Return the configuration with which results were computed; an empty one if it is unknown.

    Args:
        configs: file -> its text.
        epoch: epoch of the validation with these results; None for results of the evaluation script.
    """
    script_config = f"{RESULT}/{CONFIG}"
    return parse_config(configs.get(script_config if epoch is None and script_config in configs else CONFIG, "")) or {}


def evaluated_blocks(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of each evaluated block by its label, in order."""
    # Without evaluation blocks, the held-out samples of ``datasets`` are evaluated.
    return mapping(tree.get("evaluation_datasets")) or mapping(tree.get("datasets"))


def changed_settings(keys: Mapping[str, Any], task: str) -> Iterator[str]:
    """Yield settings that differ from their defaults and affect a task's scores, such as "slots masked: audio, face"."""
    for key, (default, title) in (DEFAULTS | (LABEL_DEFAULTS if task == "emotion" else {})).items():
        value = keys.get(key)
        if value is not None and value != default:
            yield f"{title}: {_as_text(value)}"


def ensemble_note(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if several checkpoints answered together."""
    model = mapping(tree.get("model"))
    checkpoints = model.get("ckpt")
    if isinstance(checkpoints, list) and len(checkpoints) > 1:
        mean = "the mean of their weights" if model.get("ensemble") == "weights" else "the mean of their predictions"
        yield f"{len(checkpoints)} checkpoints: {mean}"


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{word} → {text(label)}" for word, label in value.items())
    return ", ".join(texts(value)) if isinstance(value, list) else text(value)
