"""The model's and the encoders' keys of a starter configuration: language model, checkpoints, widths, image size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.registry import MODELS
from emollama.starter.defaults import defaults
from emollama.starter.draft import ROOT, Draft

ENCODERS = {  # block -> model_type of its Hugging Face folder, usual place
    "mae": ("vit_mae", f"{ROOT}/checkpoints/mae_large"),
    "videomae": ("videomae", f"{ROOT}/checkpoints/videomae_large"),
    "hubert": ("hubert", f"{ROOT}/checkpoints/chinese-hubert-large"),
}


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that a configuration names.

    Attributes:
        key: of the model block.
        patterns: its usual names, the best first.
        remedy: where it comes from.
    """

    key: str
    patterns: tuple[str, ...]
    remedy: str


def fill(draft: Draft, files: Sequence[WeightFile], preferred: str = "llama") -> None:
    """Fill in the model block.

    Args:
        draft: its blocks of data are filled in already.
        files: checkpoints and encoders of this kind of run.
        preferred: a part of the language model's name.
    """
    _language_model(draft, preferred)
    for file in files:
        if file.key in draft.text:
            _weights(draft, file)
    if draft.features:
        _widths(draft)


def _language_model(draft: Draft, preferred: str) -> None:
    key, place = "model.llama_model", draft.expected("model.llama_model")
    folders = draft.survey.language_models()
    if place not in folders:
        place = min(folders, key=lambda folder: preferred not in folder.name.lower(), default=None)
    if place is None:
        draft.lack(key, "no language model", "download a Hugging Face folder with config.json, weights and tokenizer")
        return
    others = [folder.name for folder in folders if folder != place]
    also = f"; also found: {', '.join(others[:3])}" if others else ""
    draft.have(key, draft.written(place), f"{draft.survey.models[place]}{also}")


def _weights(draft: Draft, file: WeightFile) -> None:
    place = find(draft, file)
    if place is None:
        draft.lack(file.key, "no such file", file.remedy)
    else:
        have_weights(draft, file, place)


def find(draft: Draft, file: WeightFile, suits: Callable[[Path], bool] = lambda path: True) -> Path | None:
    """The file at its place; else the best one below the data folder by its name, if it suits; None if there is none."""
    place = draft.expected(file.key)
    if place is not None and place.is_file():
        return place
    files = [path for path in draft.survey.ending(".pth", ".pt", ".safetensors") if suits(path)]
    return next((path for pattern in file.patterns for path in reversed(files) if path.match(pattern)), None)


def have_weights(draft: Draft, file: WeightFile, place: Path) -> None:
    """Name a file of weights that :func:`find` returned."""
    by_name = "" if place == draft.expected(file.key) else "; chosen by its name: check that it is the right file"
    draft.have(file.key, draft.written(place), f"{place.stat().st_size / 2**20:,.0f} MiB{by_name}")


def _widths(draft: Draft) -> None:
    """``slot_dims`` and ``image_size`` as the arrays have them."""
    model = _defaults(draft)
    widths = model["slot_dims"] | {slot: folder.width for slot, folder in draft.features.items()}
    note = "widths of the arrays"
    if assumed := [slot for slot in widths if slot not in draft.features]:
        note += f"; {', '.join(assumed)} assumed"
    draft.have("model.slot_dims", widths, note)
    image = draft.features.get("image")
    if image is None:
        return
    if image.image_size is None:
        text = f"{image.path.name} has arrays of {image.shape}, which are not a class row and (image_size / 14)^2 others"
        draft.lack("model.image_size", text, "extract them anew", model["image_size"])
    else:
        draft.have("model.image_size", image.image_size, f"{image.shape[0] - 1} image rows and the class row")


def _defaults(draft: Draft) -> dict[str, Any]:
    return defaults(MODELS, draft.text.get("model.arch"))


def fill_encoders(draft: Draft) -> None:
    """The encoders of an extraction: weights below the data folder, at the published size."""
    weights = next((path for path in draft.survey.ending(".pth", ".safetensors") if "eva" in path.name.lower()), None)
    eva = f"{ROOT}/checkpoints/eva_vit_g.pth" if weights is None else draft.written(weights)
    size = _defaults(draft)["image_size"]
    _encoder(draft, "eva", {"weights": eva, "image_size": size, "frame_selection": "middle"}, weights)
    for label, (kind, usual) in ENCODERS.items():
        place = next((folder for folder, found in draft.survey.models.items() if found == kind), None)
        _encoder(draft, label, {"weights": usual if place is None else draft.written(place)}, place)


def _encoder(draft: Draft, label: str, keys: dict[str, object], place: Path | None) -> None:
    if place is None:
        remedy = f"put the weights there, or take the block out and set the datasets' paths of {label} to null"
        draft.lack(f"encoders.{label}", "no such weights", remedy, keys)
    else:
        draft.have(f"encoders.{label}", keys, "found")
