"""What the encoders from Hugging Face folders share: config.json, the model with all of its weights, the processor."""

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
    """The model's config.json.

    Args:
        path: the folder.
        key: the configuration key that named it, for messages.
        kinds: values of ``model_type`` that will do.
        changes: entries to set in place of the stored ones.

    Raises:
        UserError: no such folder, no config.json in it, or a model of another kind.
    """
    wanted = " or ".join(kinds)
    text = f"Download a {wanted} model of Hugging Face ({CONFIG}, {PROCESSOR}, weights) and name its folder."
    require_folder(path, key, text)
    file = Path(path, CONFIG)
    if not file.is_file():
        raise UserError(f"{key}: no {CONFIG} in the folder '{path}'. Name the folder of a {wanted} model of Hugging Face.")
    content = read_json(str(file))
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in kinds:
        raise UserError(f"{key}: '{path}' holds a model of the kind {kind!r}, not {wanted}. Name the folder of such a model.")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, **changes)
    except Exception as error:  # transformers meets wrong values with errors of many kinds
        raise UserError(f"{key}: {file} cannot be used: {_first_line(error)}. Download it again.") from None


def new_config(kind: str, **settings: Any) -> Any:
    """The configuration of a model without a folder."""
    return AutoConfig.for_model(kind, **settings)


def build(config: Any, tensors: Mapping[str, Tensor], *, source: str, device: torch.device, key: str) -> nn.Module:
    """The bare model (without a head or a decoder) with its weights, float32, in eval mode.

    Args:
        config: of the model.
        tensors: name -> value; those of heads and decoders are left out.
        source: where they come from, for messages.
        device: where it computes; on the meta device nothing but names and shapes is looked at.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: a tensor is missing, or of another shape: names all of them.
    """
    from transformers import MODEL_MAPPING

    architecture: Any = MODEL_MAPPING[type(config)]
    with _quietly():
        try:
            model, report = architecture.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are told below
                output_loading_info=True,
                device_map="meta" if device.type == "meta" else None,
            )
        except Exception as error:  # a config.json that contradicts itself
            raise UserError(f"{key}: cannot build the model of '{source}': {_first_line(error)}. Download it again.") from error
    shapes = [f"{name} {tuple(found)} where {CONFIG} says {tuple(wanted)}" for name, found, wanted in report["mismatched_keys"]]
    missing = sorted(report["missing_keys"])
    if missing or shapes:
        what = f"lack tensors, {listing(missing)}" if missing else f"have tensors of another shape, {listing(sorted(shapes))}"
        raise UserError(f"{key}: the weights in '{source}' {what}. Download them again, with their {CONFIG}.")
    frozen: nn.Module = model.requires_grad_(False).eval().to(device)
    return frozen


def build_random(config: Any, *, device: torch.device, key: str) -> nn.Module:
    """The bare model with random weights, the same each time; says so."""
    from transformers import AutoModel

    with random_weights(key), _quietly():
        model: nn.Module = AutoModel.from_config(config, dtype=torch.float32)
    return model.requires_grad_(False).eval().to(device)


def sound_processor(path: str, key: str) -> Any:
    """The folder's feature extractor: sampling rate, and whether sound is normalised.

    Raises:
        UserError: the folder has none.
    """
    from transformers import AutoFeatureExtractor

    return _processor(AutoFeatureExtractor, path, key)


def image_processor(path: str, key: str, **changes: Any) -> Any:
    """The folder's image processor: how images are resized, cropped and normalised.

    Args:
        path: the folder.
        key: the configuration key that named it, for messages.
        changes: settings in place of the stored ones.

    Raises:
        UserError: the folder has none.
    """
    from transformers import AutoImageProcessor

    return _processor(AutoImageProcessor, path, key, **changes)


def default_image_processor(kind: str, **settings: Any) -> Any:
    """The image processor of a kind of model, where no folder has one."""
    from transformers import VideoMAEImageProcessor, ViTImageProcessor

    return {"vit_mae": ViTImageProcessor, "videomae": VideoMAEImageProcessor}[kind](**settings)


def processor_file(path: str, key: str) -> Path:
    """The folder's preprocessor_config.json.

    Raises:
        UserError: there is none.
    """
    file = Path(path, PROCESSOR)
    if not file.is_file():
        raise UserError(f"{key}: no {PROCESSOR} in the folder '{path}'. Download it too, from where the weights are.")
    return file


def _processor(auto: Any, path: str, key: str, **changes: Any) -> Any:
    file = processor_file(path, key)
    try:
        with _quietly():
            return auto.from_pretrained(path, local_files_only=True, **changes)
    except Exception as error:  # transformers meets wrong values with errors of many kinds
        raise UserError(f"{key}: {file} cannot be used: {_first_line(error)}. Download it again.") from None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars and reports; what matters of them is told here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return f"{error}".strip().partition("\n")[0].rstrip(". ") or type(error).__name__
