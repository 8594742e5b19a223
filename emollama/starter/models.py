"""Fill in the model and the encoders of a starter configuration: language model, checkpoints, dimensions, image size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.registry import MODELS
from emollama.starter.defaults import defaults
from emollama.starter.draft import ROOT, Draft

ENCODERS = {  # block -> model_type of its Hugging Face folder, usual path
    "mae": ("vit_mae", f"{ROOT}/checkpoints/mae_large"),
    "videomae": ("videomae", f"{ROOT}/checkpoints/videomae_large"),
    "hubert": ("hubert", f"{ROOT}/checkpoints/chinese-hubert-large"),
}


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that a configuration refers to.

    Attributes:
        key: dotted path of its key in the model block.
        patterns: glob patterns of its usual names, best first.
        remedy: where to get the file, for messages.
    """

    key: str
    patterns: tuple[str, ...]
    remedy: str


def fill(draft: Draft, files: Sequence[WeightFile], preferred: str = "llama") -> None:
    """Fill in the model block.

    Args:
        draft: the configuration, with its dataset blocks already filled in.
        files: checkpoints and encoders that this kind of configuration needs.
        preferred: part of the folder name of the language model to choose if there are several.
    """
    _language_model(draft, preferred)
    for file in files:
        if file.key in draft.text:
            _weights(draft, file)
    if draft.features:
        _feature_dimensions(draft)


def _language_model(draft: Draft, preferred: str) -> None:
    key, configured = "model.llama_model", draft.configured_path("model.llama_model")
    folders = draft.survey.language_models()
    chosen = configured
    if chosen not in folders:
        chosen = min(folders, key=lambda folder: preferred not in folder.name.lower(), default=None)
    if chosen is None:
        draft.mark_missing(key, "no language model", "download a Hugging Face folder with config.json, weights and tokenizer")
        return
    others = [folder.name for folder in folders if folder != chosen]
    also = f"; also found: {', '.join(others[:3])}" if others else ""
    draft.set_found(key, draft.config_path(chosen), f"{draft.survey.models[chosen]}{also}")


def _weights(draft: Draft, file: WeightFile) -> None:
    path = find_weights(draft, file)
    if path is None:
        draft.mark_missing(file.key, "no such file", file.remedy)
    else:
        set_weights(draft, file, path)


def find_weights(draft: Draft, file: WeightFile, suits: Callable[[Path], bool] = lambda path: True) -> Path | None:
    """Find a file of weights.

    Args:
        draft: the configuration.
        file: its key and usual names.
        suits: which files of the data folder to consider.

    Returns:
        The file that the configuration names, if it exists; otherwise the file of the data folder whose name matches best;
        None if no name matches.
    """
    configured = draft.configured_path(file.key)
    if configured is not None and configured.is_file():
        return configured
    paths = [path for path in draft.survey.files_with_extension(".pth", ".pt", ".safetensors") if suits(path)]
    # Reversed, because paths are in natural order and the last of several checkpoints is the newest epoch.
    return next((path for pattern in file.patterns for path in reversed(paths) if path.match(pattern)), None)


def set_weights(draft: Draft, file: WeightFile, path: Path) -> None:
    """Set the key of a file of weights to a path that :func:`find_weights` returned."""
    by_name = "" if path == draft.configured_path(file.key) else "; chosen by its name: check that it is the right file"
    draft.set_found(file.key, draft.config_path(path), f"{path.stat().st_size / 2**20:,.0f} MiB{by_name}")


def _feature_dimensions(draft: Draft) -> None:
    """Set ``slots`` and ``image_size`` from the shapes of the arrays."""
    model = _defaults(draft)
    published = {slot: {"dim": keys["dim"]} for slot, keys in model["slots"].items()}
    slots = published | {slot: folder.slot_keys for slot, folder in draft.features.items()}
    note = "dimensions of the arrays"
    if assumed := [slot for slot in slots if slot not in draft.features]:
        note += f"; defaults for {', '.join(assumed)}"
    draft.set_found("model.slots", slots, note)
    image = draft.features.get("image")
    if image is None:
        return
    if image.image_size is None:
        text = f"{image.path.name} has arrays of shape {image.shape}, not of 1 + (image_size / 14)^2 rows"
        draft.mark_missing("model.image_size", text, "extract the features again", model["image_size"])
    else:
        draft.set_found("model.image_size", image.image_size, f"{image.shape[0] - 1} patches and the class token")


def _defaults(draft: Draft) -> dict[str, Any]:
    return defaults(MODELS, draft.text.get("model.arch"))


def fill_encoders(draft: Draft) -> None:
    """Fill in the encoders of an extraction with weights from the data folder, at the published sizes."""
    weights = next(
        (path for path in draft.survey.files_with_extension(".pth", ".safetensors") if "eva" in path.name.lower()), None
    )
    eva = f"{ROOT}/checkpoints/eva_vit_g.pth" if weights is None else draft.config_path(weights)
    size = _defaults(draft)["image_size"]
    _encoder(draft, "eva", {"weights": eva, "image_size": size, "frame_selection": "middle"}, weights)
    for label, (required_type, usual) in ENCODERS.items():
        folder = next((folder for folder, model_type in draft.survey.models.items() if model_type == required_type), None)
        _encoder(draft, label, {"weights": usual if folder is None else draft.config_path(folder)}, folder)


def _encoder(draft: Draft, label: str, keys: dict[str, object], weights: Path | None) -> None:
    if weights is None:
        remedy = f"put the weights there, or remove this block and set the datasets' paths of {label} features to null"
        draft.mark_missing(f"encoders.{label}", "no such weights", remedy, keys)
    else:
        draft.set_found(f"encoders.{label}", keys, "found")
