"""Plan the work of an extraction for each encoder, and check it before anything is written."""

from __future__ import annotations

import dataclasses
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
from emollama.data.slots import SlotShape
from emollama.datasets.clip_config import ClipConfig
from emollama.encoders.configs import FACE_KEYS
from emollama.encoders.encoder import EncoderDescription
from emollama.encoders.weights import recorded_weights
from emollama.errors import UserError
from emollama.extraction.arrays import ArrayWriter
from emollama.extraction.clips import Clips
from emollama.media.source import Source
from emollama.stores.manifest import Manifest

PACKAGES = ("transformers", "timm", "av", "decord")  # their versions are stored in manifests


@dataclass(frozen=True)
class Job:
    """The work of one encoder.

    Attributes:
        label: label of its block.
        cfg: its Config.
        slot: the first slot that its arrays fill.
        shape: shape of an array; None stands for any size of at least 1.
        manifest: settings of its arrays.
        arrays: writes its arrays.
        todo: the clips to encode, largest video first.
        absent: names of clips that have no video and no array.
        before: number of clips that earlier extractions encoded.
    """

    label: str
    cfg: Any
    slot: str
    shape: tuple[int | None, ...]
    manifest: Manifest
    arrays: ArrayWriter
    todo: list[Source]
    absent: list[str]
    before: int

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape is as described."""
        sizes = zip(shape, self.shape, strict=False)
        return len(shape) == len(self.shape) and all(size == expected or (expected is None and size) for size, expected in sizes)

    @property
    def shape_of_zeros(self) -> tuple[int, ...]:
        """Shape of the zeros that replace an array."""
        return tuple(1 if size is None else size for size in self.shape)


def describe_encoders(config: RunConfig) -> dict[str, EncoderDescription]:
    """Return label -> description of the features of each encoder.

    Raises:
        UserError: If there are no encoders, two encoders have the same folder or slot, weights are missing or have another
            architecture, or features have other sizes than the model of the configuration expects.
    """
    if not config.encoders:
        raise UserError("encoders: contains no encoder. Add one: {mae: {weights: ...}}, or eva, videomae, hubert.")
    classes = {label: config.encoder_class(f"encoders.{label}") for label in config.encoders}
    for label, cfg in config.encoders.items():
        _require_folder_name(cfg.folder, f"encoders.{label}.folder")
    _require_distinct({label: cfg.folder for label, cfg in config.encoders.items()}, "write into the same folder")
    _require_distinct({label: cls.SLOTS[0] for label, cls in classes.items()}, "fill the same slot")
    descriptions = {label: cls.describe(config.encoders[label], f"encoders.{label}") for label, cls in classes.items()}
    if config.model is not None:
        shapes = _shapes_before_pooling(config)
        for label, description in descriptions.items():
            _require_model_shape(label, description, classes[label].SLOTS[0], shapes)
    return descriptions


def require_weights(config: RunConfig) -> None:
    """Check names and shapes of the tensors of all encoders, without reading values.

    All encoders are checked before the first one starts, because each of them may take hours.

    Raises:
        UserError: If a file is missing or truncated, or lacks a tensor.
    """
    for label, cfg in config.encoders.items():
        if not cfg.random_weights:
            config.encoder_class(f"encoders.{label}")(cfg, device=torch.device("meta"), key=f"encoders.{label}")


def plan_jobs(
    config: RunConfig, descriptions: dict[str, EncoderDescription], clips: Clips, failed: set[tuple[str, str]]
) -> list[Job]:
    """Return a job for each encoder. Write nothing.

    Args:
        config: a configuration with ``encoders`` and ``extraction``.
        descriptions: the result of :func:`describe_encoders`.
        clips: the clips to extract.
        failed: (folder, clip name) of earlier failures, which are tried again.

    Raises:
        UserError: If existing arrays have other settings.
    """
    cfg = config.extraction
    sizes = {name: _size(source.video) for name, source in clips.sources.items()}
    # Largest first, so that no process is still busy with a large video after all others have finished.
    order = sorted(clips.sources, key=lambda name: (-sizes[name], name))
    jobs = []
    for label, description in descriptions.items():
        encoder, block = config.encoder_class(f"encoders.{label}"), config.encoders[label]
        arrays = ArrayWriter(Path(cfg.output), block.folder, packed=cfg.stored_as == "packed")
        manifest = _manifest(encoder.SLOTS, block, description, faces=cfg.face_path is not None)
        arrays.require_compatible(manifest)
        done = {name for name in arrays.stores() if (block.folder, name) not in failed}
        todo = [clips.sources[name] for name in order if name not in done]
        absent = [name for name in clips.absent if name not in done]
        before = len(clips.sources) + len(clips.absent) - len(todo) - len(absent)
        shape = _array_shape(encoder.SLOTS, description)
        jobs.append(Job(label, block, encoder.SLOTS[0], shape, manifest, arrays, todo, absent, before))
    return jobs


def _require_folder_name(folder: str, key: str) -> None:
    try:
        safe_name(folder)
    except ValueError:
        folder = "/"
    if "/" in folder or "{" in folder or folder.startswith("."):
        raise UserError(
            f"{key}: must be the name of a folder in extraction.output, without '/' or '{{' and without a leading dot."
        )


def _require_distinct(values: dict[str, str], what: str) -> None:
    for label, value in values.items():
        if others := [f"encoders.{other}" for other in values if values[other] == value and other != label]:
            text = f"encoders.{label} and {', '.join(others)} {what}, '{value}'."
            raise UserError(f"{text} Set different values, or extract them separately with one configuration each.")


def _shapes_before_pooling(config: RunConfig) -> dict[str, SlotShape]:
    """Return the slots of the model; those whose features a dataset averages have any number of vectors."""
    blocks = [*config.datasets.values(), *(block.dataset for block in config.evaluation_datasets.values())]
    features = [entry for cfg in blocks if isinstance(cfg, ClipConfig) for entry in cfg.feature_configs().items()]
    pooled = {slot for slot, feature in features if feature is not None and feature.pooling is not None}
    return {
        slot: dataclasses.replace(shape, num_vectors=None) if slot in pooled else shape
        for slot, shape in config.model_class.slot_shapes(config.model).items()
    }


def _require_model_shape(label: str, description: EncoderDescription, slot: str, shapes: dict[str, Any]) -> None:
    if slot not in shapes:
        return
    num_vectors, dim, key = description.shape.num_vectors, description.shape.dim, f"encoders.{label}"
    if dim != shapes[slot].dim:
        text = f"{key}.weights: features of slot '{slot}' have dimension {dim}; model.slots expects {shapes[slot].dim}."
        raise UserError(f"{text} Specify the weights that the model was trained with, or set model.slots.{slot}.dim: {dim}.")
    if shapes[slot].num_vectors not in (None, num_vectors):
        counts = f"{num_vectors or 'any number of'} feature vectors in slot '{slot}', but the model expects"
        own, other = ("image_size", "model.image_size") if slot == "image" else ("type", f"model.slots.{slot}.length")
        raise UserError(f"{key}.{own}: a clip has {counts} {shapes[slot].num_vectors} ({other}). Set both to the same size.")


def _array_shape(slots: tuple[str, ...], description: EncoderDescription) -> tuple[int | None, ...]:
    num_vectors, dim = description.shape.num_vectors, description.shape.dim
    if len(slots) == 2 and num_vectors is not None:
        return 1 + num_vectors, dim
    return (dim,) if num_vectors == 1 else (num_vectors, dim)


def _manifest(slots: tuple[str, ...], block: Any, description: EncoderDescription, *, faces: bool) -> Manifest:
    # Through JSON, so that it compares equal to a manifest that was read from disk (lists in place of tuples).
    settings = json.loads(json.dumps(description.settings))
    weights = recorded_weights(block)
    inputs = {"faces": "images"} if faces and "face" in settings else {}
    settings = {name: value for name, value in settings.items() if not (inputs and name in FACE_KEYS)}
    shape = description.shape
    return Manifest(slots, shape.num_vectors, shape.dim, settings, weights, block.dtype, _versions(), inputs)


def _versions() -> dict[str, str]:
    versions = {"emollama": emollama.__version__, "torch": torch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
