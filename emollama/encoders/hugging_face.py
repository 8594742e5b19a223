"""Load encoders from Hugging Face folders: config.json, the model with checked weights, and the preprocessor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from emollama.data.annotations import read_json
from emollama.encoders.weights import CONFIG, random_weights
from emollama.errors import UserError
from emollama.listing import listing
from emollama.paths import require_folder

PROCESSOR = "preprocessor_config.json"


def read_config(path: str, key: str, kinds: tuple[str, ...], **changes: Any) -> Any:
    """Read the config.json of a model.

    Args:
        path: the folder of the model.
        key: the configuration key that contains the path, for messages.
        kinds: allowed values of ``model_type``.
        changes: entries that replace those of the file.

    Returns:
        The configuration of transformers.

    Raises:
        UserError: If the folder does not exist, or has no config.json, or the model is of a different type.
    """
    expected = " or ".join(kinds)
    text = f"Download a {expected} model from Hugging Face ({CONFIG}, {PROCESSOR}, weights) and name its folder."
    require_folder(path, key, text)
    file = Path(path, CONFIG)
    if not file.is_file():
        raise UserError(f"{key}: no {CONFIG} in the folder '{path}'. Specify the folder of a {expected} model from Hugging Face.")
    content = read_json(str(file))
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in kinds:
        text = f"{key}: the model in '{path}' has model_type {kind!r}, expected {expected}."
        raise UserError(f"{text} Specify the folder of such a model.")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, **changes)
    except Exception as error:  # transformers raises errors of many classes for wrong values
        raise UserError(f"{key}: {file} cannot be used: {_first_line(error)}. Download it again.") from None


def new_config(kind: str, **settings: Any) -> Any:
    """Return the configuration of a model that has no folder.

    Args:
        kind: its ``model_type``.
        settings: entries that replace the defaults.
    """
    return AutoConfig.for_model(kind, **settings)


def build(config: Any, tensors: Mapping[str, Tensor], *, source: str, device: torch.device, key: str) -> nn.Module:
    """Build a model without head and decoder, with its weights in float32, frozen and in eval mode.

    Args:
        config: configuration of the model.
        tensors: name -> tensor; those of heads and decoders are ignored.
        source: path of the weights, for messages.
        device: device of the model; on the meta device, only names and shapes are checked.
        key: the configuration key that contains the path, for messages.

    Raises:
        UserError: If tensors are missing or have other shapes. The message lists all of them.
    """
    from transformers import MODEL_MAPPING

    architecture: Any = MODEL_MAPPING[type(config)]
    with _without_messages():
        try:
            model, report = architecture.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported below, all at once
                output_loading_info=True,
                device_map="meta" if device.type == "meta" else None,
            )
        except Exception as error:  # for example, the entries of config.json contradict each other
            raise UserError(f"{key}: cannot build the model of '{source}': {_first_line(error)}. Download it again.") from error
    shapes = [f"{name} {tuple(stored)}, expected {tuple(expected)}" for name, stored, expected in report["mismatched_keys"]]
    missing = sorted(report["missing_keys"])
    if missing or shapes:
        what = (
            f"lack {listing(missing, 'tensor')}"
            if missing
            else f"have other shapes than in {CONFIG} ({listing(sorted(shapes), 'tensor')})"
        )
        raise UserError(f"{key}: the weights in '{source}' {what}. Download them again, with their {CONFIG}.")
    frozen: nn.Module = model.requires_grad_(False).eval().to(device)
    return frozen


def build_random(config: Any, *, device: torch.device, key: str) -> nn.Module:
    """Build a model without head and decoder with random weights, which are the same each time, and log a warning."""
    from transformers import AutoModel

    with random_weights(key), _without_messages():
        model: nn.Module = AutoModel.from_config(config, dtype=torch.float32)
    return model.requires_grad_(False).eval().to(device)


def sound_processor(path: str, key: str) -> Any:
    """Load the feature extractor of a folder: sampling rate and normalization of sound.

    Raises:
        UserError: If the folder has no usable preprocessor_config.json.
    """
    from transformers import AutoFeatureExtractor

    return _processor(AutoFeatureExtractor, path, key)


def image_processor(path: str, key: str, **changes: Any) -> Any:
    """Load the image processor of a folder, which resizes, crops and normalizes images.

    Args:
        path: the folder.
        key: the configuration key that contains the path, for messages.
        changes: settings that replace those of the file.

    Raises:
        UserError: If the folder has no usable preprocessor_config.json.
    """
    from transformers import AutoImageProcessor

    return _processor(AutoImageProcessor, path, key, **changes)


def default_image_processor(kind: str, **settings: Any) -> Any:
    """Return the default image processor of a model type, for weights without preprocessor_config.json."""
    from transformers import VideoMAEImageProcessor, ViTImageProcessor

    return {"vit_mae": ViTImageProcessor, "videomae": VideoMAEImageProcessor}[kind](**settings)


def processor_file(path: str, key: str) -> Path:
    """Return the path of preprocessor_config.json in a folder.

    Raises:
        UserError: If the file does not exist.
    """
    file = Path(path, PROCESSOR)
    if not file.is_file():
        raise UserError(f"{key}: no {PROCESSOR} in the folder '{path}'. Download it, too, from the page of the weights.")
    return file


def _processor(auto: Any, path: str, key: str, **changes: Any) -> Any:
    file = processor_file(path, key)
    try:
        with _without_messages():
            return auto.from_pretrained(path, local_files_only=True, **changes)
    except Exception as error:  # transformers raises errors of many classes for wrong values
        raise UserError(f"{key}: {file} cannot be used: {_first_line(error)}. Download it again.") from None


@contextmanager
def _without_messages() -> Iterator[None]:
    """Suppress progress bars and load reports of transformers. This module reports missing and mismatched tensors itself."""
    before = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return f"{error}".strip().partition("\n")[0].rstrip(". ") or type(error).__name__
