"""Images as vision transformers take them: the processor that belongs to the weights, and what a block changes about it.

Letters: F images or frames, S side in pixels.
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
    """Images of any size -> (F, 3, S, S) float32.

    Args:
        cfg: the block; beside its weights lies the processor, unless they are a single file.
        kind: ``model_type`` of the model.
        side: S that it takes.
        key: the block's dotted name, for messages.

    Raises:
        UserError: no processor beside the weights, or one for images of another size than the model's.
    """

    def __init__(self, cfg: PixelConfig, kind: str, side: int, key: str) -> None:
        sizes = {"size": {"height": side, "width": side}}
        if kind == "videomae":  # the aspect is kept, and the centre cut out
            sizes = {"size": {"shortest_edge": side}, "crop_size": sizes["size"]}
        changed = (
            {} if cfg.image_mean is None else {"image_mean": cfg.image_mean, "image_std": cfg.image_std, "do_normalize": True}
        )
        if Path(cfg.weights).is_dir():
            told = read_json(str(hugging_face.processor_file(cfg.weights, f"{key}.weights")))
            missing = {name: value for name, value in sizes.items() if name not in told}
            self.processor = hugging_face.image_processor(cfg.weights, f"{key}.weights", **missing, **changed)
        else:
            self.processor = hugging_face.default_image_processor(kind, **sizes, **{**IMAGENET, **changed})
        made = tuple(self([np.zeros((side, side + 8, 3), np.uint8)]).shape[-2:])
        if made != (side, side):
            text = f"{key}.weights: {hugging_face.PROCESSOR} in '{cfg.weights}' makes images of {made[0]} x {made[1]} pixels"
            raise UserError(f"{text}, and the model takes {side} x {side}. Correct that file.")

    def __call__(self, images: Iterable[np.ndarray]) -> Tensor:
        """(H, W, 3) uint8 RGB each -> (F, 3, S, S)."""
        pixels: Tensor = self.processor(list(images), return_tensors="pt").pixel_values
        return pixels.reshape(-1, *pixels.shape[-3:])

    @property
    def recipe(self) -> dict[str, Any]:
        """What it does, as plain values."""
        told = self.processor.to_dict()
        cut = f", cut to {_words(told['crop_size'])}" if told.get("do_center_crop") else ""
        return {
            "resize": f"{Resampling(told['resample']).name.lower()} to {_words(told['size'])}{cut}",
            "image_mean": list(told["image_mean"]) if told["do_normalize"] else None,
            "image_std": list(told["image_std"]) if told["do_normalize"] else None,
        }


def _words(size: dict[str, int]) -> str:
    shortest = size.get("shortest_edge")
    return f"{shortest} on the shorter side" if shortest else f"{size['height']} x {size['width']}"
