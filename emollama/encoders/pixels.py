"""Prepare images for vision transformers with the preprocessor of the weights and the settings of a block.

Shape letters: F images or frames, H and W height and width of an image, S height and width of the model's input, in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Resampling
from torch import Tensor

from emollama.data.annotations import read_json
from emollama.encoders import hugging_face
from emollama.encoders.configs import PixelConfig
from emollama.errors import UserError

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


class Pixels:
    """Resizes and normalizes images.

    Args:
        cfg: the Config of the block. If its weights are a folder, the folder contains the preprocessor.
        kind: ``model_type`` of the model.
        side: S.
        key: dotted name of the block, for messages.

    Raises:
        UserError: If the folder has no preprocessor, or one for another image size than the model's.
    """

    def __init__(self, cfg: PixelConfig, kind: str, side: int, key: str) -> None:
        sizes = {"size": {"height": side, "width": side}}
        if kind == "videomae":  # its processor keeps the aspect ratio and crops the centre
            sizes = {"size": {"shortest_edge": side}, "crop_size": sizes["size"]}
        changes: dict[str, Any] = {}
        if cfg.image_mean is not None:
            changes = {"image_mean": cfg.image_mean, "image_std": cfg.image_std, "do_normalize": True}
        if Path(cfg.weights).is_dir():
            settings = read_json(str(hugging_face.processor_file(cfg.weights, f"{key}.weights")))
            missing = {name: value for name, value in sizes.items() if name not in settings}
            self.processor = hugging_face.image_processor(cfg.weights, f"{key}.weights", **missing, **changes)
        else:
            self.processor = hugging_face.default_image_processor(kind, **sizes, **{**IMAGENET, **changes})
        # An image that is not square shows whether the processor crops to the size of the model.
        height, width = self([np.zeros((side, side + 8, 3), np.uint8)]).shape[-2:]
        if (height, width) != (side, side):
            text = f"{key}.weights: {hugging_face.PROCESSOR} in '{cfg.weights}' produces images of {height} x {width} pixels"
            raise UserError(f"{text}, but the model expects {side} x {side}. Correct that file.")

    def __call__(self, images: Iterable[np.ndarray]) -> Tensor:
        """Prepare images.

        Args:
            images: (H, W, 3) uint8 RGB each; sizes may differ.

        Returns:
            (F, 3, S, S) float32.
        """
        # The processor would take a very small dimension for that of the channels.
        pixels: Tensor = self.processor(list(images), input_data_format="channels_last", return_tensors="pt").pixel_values
        return pixels.reshape(-1, *pixels.shape[-3:])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the processor as part of an encoder's settings."""
        settings = self.processor.to_dict()
        cut = f", cut to {_size_text(settings['crop_size'])}" if settings.get("do_center_crop") else ""
        return {
            "resize": f"{Resampling(settings['resample']).name.lower()} to {_size_text(settings['size'])}{cut}",
            "image_mean": list(settings["image_mean"]) if settings["do_normalize"] else None,
            "image_std": list(settings["image_std"]) if settings["do_normalize"] else None,
        }


def _size_text(size: dict[str, int]) -> str:
    shortest = size.get("shortest_edge")
    return f"{shortest} on the shorter side" if shortest else f"{size['height']} x {size['width']}"
