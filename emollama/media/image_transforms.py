"""Preprocessing of images for the encoders of BLIP-2."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def blip2_image(image: np.ndarray, size: int) -> Tensor:
    """Resize an image (bicubic, without keeping the aspect ratio), scale it to [0, 1] and normalise it as for CLIP.

    This equals both ``blip2_image_train`` and ``blip2_image_eval`` of the published code.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: height and width of the result, in pixels.

    Returns:
        (3, size, size) float32.
    """
    resized = np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
