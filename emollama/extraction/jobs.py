"""What an extraction has to do, encoder by encoder, checked before anything is written."""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import emollama
from emollama.config import RunConfig
from emollama.data.annotations import safe_name
from emollama.encoders.configs import FACE_KEYS
from emollama.encoders.encoder import EncoderDescription
from emollama.encoders.weights import digest
from emollama.errors import UserError
from emollama.extraction.arrays import ArrayWriter
from emollama.extraction.clips import Clips
from emollama.media.source import Source
from emollama.stores.manifest import Manifest

PACKAGES = ("transformers", "timm", "av", "decord")  # whose versions a manifest tells


@dataclass(frozen=True)
class Job:
    """What is to be done with one encoder.

    Attributes:
        label: of its block.
        cfg: its keys.
        slot: the first that its arrays fill.
        shape: of an array.
        manifest: how its arrays are made.
        arrays: where they go.
        todo: the clips to do, largest first.
        absent: clips to do that have no video.
        before: number of clips that an earlier run did.
    """

    label: str
    cfg: Any
    slot: str
    shape: tuple[int, ...]
    manifest: Manifest
    arrays: ArrayWriter
    todo: list[Source]
    absent: list[str]
    before: int


def describe_job(config: RunConfig) -> dict[str, EncoderDescription]:
    """label -> what each encoder makes.

    Raises:
        UserError: no encoder; two with one folder or slot; weights that are missing or do not fit; features that do not fit
            the configuration's model.
    """
    if not config.encoders:
        raise UserError("'encoders' has no block. Add one: {mae: {weights: ...}}, or eva, videomae, hubert.")
    classes = {label: config.classes[f"encoders.{label}"] for label in config.encoders}
    for label, cfg in config.encoders.items():
        _require_plain(cfg.folder, f"encoders.{label}.folder")
    _refuse_twins({label: cfg.folder for label, cfg in config.encoders.items()}, "write into the same folder")
    _refuse_twins({label: cls.SLOTS[0] for label, cls in classes.items()}, "fill the same slot")
    found = {label: cls.describe(config.encoders[label], f"encoders.{label}") for label, cls in classes.items()}
    if config.model is not None:
        shapes = config.classes["model"].slot_shapes(config.model)
        for label, description in found.items():
            _require_same(label, description, classes[label].SLOTS[0], shapes)
    return found


def require_weights(config: RunConfig) -> None:
    """Look at the weights of all encoders before the first one begins its hours: names and shapes of tensors, no values.

    Raises:
        UserError: files that are missing, truncated, or lack a tensor.
    """
    for label, cfg in config.encoders.items():
        if not cfg.random_weights:
            config.classes[f"encoders.{label}"](cfg, device=torch.device("meta"), key=f"encoders.{label}")


def planned(
    config: RunConfig, descriptions: dict[str, EncoderDescription], clips: Clips, failed: set[tuple[str, str]]
) -> list[Job]:
    """A job for each encoder; nothing is written.

    Args:
        config: with ``encoders`` and ``extraction``.
        descriptions: label -> what each encoder makes.
        clips: to be extracted.
        failed: (folder, clip) of earlier failures, which are tried again.

    Raises:
        UserError: arrays that are there already were made otherwise.
    """
    cfg = config.extraction
    sizes = {name: _size(source.video) for name, source in clips.sources.items()}
    order = sorted(clips.sources, key=lambda name: (-sizes[name], name))
    jobs = []
    for label, description in descriptions.items():
        encoder, block = config.classes[f"encoders.{label}"], config.encoders[label]
        arrays = ArrayWriter(Path(cfg.output), block.folder, packed=cfg.stored_as == "packed")
        manifest = _manifest(encoder.SLOTS, block, description, faces=cfg.face_path is not None)
        arrays.require_fit(manifest)
        done = {name for name in arrays.stores() if (block.folder, name) not in failed}
        todo = [clips.sources[name] for name in order if name not in done]
        absent = [name for name in clips.absent if name not in done]
        before = len(clips.sources) + len(clips.absent) - len(todo) - len(absent)
        shape = _array_shape(encoder.SLOTS, description)
        jobs.append(Job(label, block, encoder.SLOTS[0], shape, manifest, arrays, todo, absent, before))
    return jobs


def _require_plain(folder: str, key: str) -> None:
    try:
        safe_name(folder)
    except ValueError:
        folder = "/"
    if "/" in folder or "{" in folder or folder.startswith("."):
        raise UserError(f"{key}: not the name of a folder below extraction.output. Write one without '/', '{{' or a leading dot.")


def _refuse_twins(values: dict[str, str], what: str) -> None:
    for label, value in values.items():
        if twins := [f"encoders.{other}" for other in values if values[other] == value and other != label]:
            text = f"encoders.{label} and {', '.join(twins)} {what}, '{value}'."
            raise UserError(f"{text} Give each its own, or extract one after another with a configuration each.")


def _require_same(label: str, description: EncoderDescription, slot: str, shapes: dict[str, Any]) -> None:
    if slot not in shapes:
        return
    (rows, width), key = description.shape, f"encoders.{label}"
    if width != shapes[slot].dim:
        text = f"{key}.weights: features of slot '{slot}' are {width} wide, and model.slot_dims expects {shapes[slot].dim}."
        raise UserError(f"{text} Name the weights that the model is meant for, or set model.slot_dims: {{{slot}: {width}}}.")
    if rows != shapes[slot].num_tokens:
        text = f"{key}.image_size: a clip has {rows} rows of slot '{slot}', and model.image_size makes {shapes[slot].num_tokens}."
        raise UserError(f"{text} Set both to the same size.")


def _array_shape(slots: tuple[str, ...], description: EncoderDescription) -> tuple[int, ...]:
    rows, width = description.shape
    if "cls" in slots:
        return 1 + rows, width
    return (width,) if rows == 1 else (rows, width)


def _manifest(slots: tuple[str, ...], block: Any, description: EncoderDescription, *, faces: bool) -> Manifest:
    recipe = json.loads(json.dumps(description.recipe))  # as it is read back
    weights = "random" if block.random_weights else digest(block.weights)
    inputs = {"faces": "images"} if faces and "face" in recipe else {}
    recipe = {name: value for name, value in recipe.items() if not (inputs and name in FACE_KEYS)}
    return Manifest(slots, *description.shape, recipe, weights, block.dtype, _versions(), inputs)


def _versions() -> dict[str, str]:
    found = {"emollama": emollama.__version__, "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
