"""Pictures as the image encoders of BLIP-2 expect them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def blip2_image(image: np.ndarray, size: int) -> Tensor:
    """(H, W, 3) uint8 RGB -> (3, size, size) float32: resized (bicubic, aspect not kept), to [0, 1], normalised as for CLIP.

    This is ``blip2_image_train`` and ``blip2_image_eval`` of the predecessors, which are the same.
    """
    resized = np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
