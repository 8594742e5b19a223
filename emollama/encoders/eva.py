"""EVA-CLIP ViT-g/14 on one frame of a clip: class token and patch tokens.

Shape letters: P patches of the frame, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emollama.data.slots import PATCH, SlotShape
from emollama.encoders.configs import EvaConfig
from emollama.encoders.encoder import Encoder, EncoderDescription, in_batches
from emollama.encoders.eva_vit import EvaFiles, EvaVit, read_eva, read_ln_vision
from emollama.encoders.shapes import IDENTITY, EvaShape
from emollama.encoders.weights import random_weights
from emollama.media.frame_selection import choose_frame
from emollama.media.frames import read_frames
from emollama.media.image_transforms import blip2_image
from emollama.media.source import Source


class Eva(Encoder):
    """The encoder of an ``eva`` block: (1 + P, D) for one frame of a clip. Row 0 is the class token."""

    SLOTS = ("image", "cls")

    Config = EvaConfig

    cfg: EvaConfig

    def __init__(self, cfg: EvaConfig, *, device: torch.device, key: str) -> None:
        super().__init__(cfg, device=device, key=key)
        if cfg.random_weights:
            with random_weights(f"{key}.weights"):
                vit = EvaVit(_random_shape(cfg), image_size=cfg.image_size, precision=cfg.precision, device=torch.device("cpu"))
            self.vit = vit.to(device)
        else:
            files = EvaFiles(cfg.weights, cfg.image_size, cfg.precision, cfg.depth, cfg.ln_vision)
            self.vit = EvaVit.load(files, device=device, key=f"{key}.weights")

    @classmethod
    def describe(cls, cfg: EvaConfig, key: str) -> EncoderDescription:
        """Describe the features; see :meth:`Encoder.describe`."""
        shape = _random_shape(cfg) if cfg.random_weights else read_eva(cfg.weights, f"{key}.weights", cfg.depth)[0]
        norm = torch.stack(read_ln_vision(cfg.ln_vision, shape.width, f"{key}.ln_vision"))
        settings: dict[str, Any] = {
            "encoder": "eva",
            "depth": shape.depth,
            "image_size": cfg.image_size,
            "resize": "bicubic, aspect not kept",
            "frame_selection": cfg.frame_selection,
            "ln_vision": IDENTITY if cfg.ln_vision == IDENTITY else hashlib.sha256(norm.numpy().data).hexdigest()[:16],
            "pooling": "none",
            "precision": cfg.precision,
        }
        return EncoderDescription(SlotShape((cfg.image_size // PATCH) ** 2, shape.width), settings)

    def load(self, source: Source) -> Tensor:
        """Read one frame as normalized pixels of shape (3, image_size, image_size)."""
        (frame,) = read_frames(source.video, lambda count: [choose_frame(self.cfg.frame_selection, count, source)], source.limits)
        return blip2_image(frame, self.cfg.image_size)

    @torch.inference_mode()
    def encode(self, loaded: Sequence[Tensor]) -> list[np.ndarray]:
        """Return (1 + P, D) float32 for each frame."""
        images = torch.stack(list(loaded))
        tokens = in_batches(lambda batch: self.vit(batch.to(self.device)).cpu(), images, self.cfg.batch_size)
        return list(tokens.numpy())


def _random_shape(cfg: EvaConfig) -> EvaShape:
    published = EvaShape()
    return EvaShape(cfg.width, cfg.depth, round(published.inner / published.width * cfg.width))
