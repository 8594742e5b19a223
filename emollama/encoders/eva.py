"""EVA-CLIP ViT-g/14 over one frame of a clip: the class row and the patches' rows."""

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
    """The encoder behind an ``eva`` block: arrays (1 + P, D) of one frame, row 0 the class token."""

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
        """Rows and width; refuses weights that are no EVA transformer's."""
        shape = _random_shape(cfg) if cfg.random_weights else read_eva(cfg.weights, f"{key}.weights", cfg.depth)[0]
        norm = torch.stack(read_ln_vision(cfg.ln_vision, shape.width, f"{key}.ln_vision"))
        recipe: dict[str, Any] = {
            "encoder": "eva",
            "depth": shape.depth,
            "image_size": cfg.image_size,
            "resize": "bicubic, aspect not kept",
            "frame_selection": cfg.frame_selection,
            "ln_vision": IDENTITY if cfg.ln_vision == IDENTITY else hashlib.sha256(norm.numpy().data).hexdigest()[:16],
            "pooling": "none",
            "precision": cfg.precision,
        }
        return EncoderDescription(SlotShape((cfg.image_size // PATCH) ** 2, shape.width), recipe)

    def load(self, source: Source) -> Tensor:
        """One frame, (3, side, side) normalised."""
        (frame,) = read_frames(source.video, lambda count: [choose_frame(self.cfg.frame_selection, count, source)])
        return blip2_image(frame, self.cfg.image_size)

    @torch.inference_mode()
    def encode(self, loaded: Sequence[Tensor]) -> list[np.ndarray]:
        """(1 + P, D) float32 of each frame."""
        images = torch.stack(list(loaded))
        rows = in_batches(lambda part: self.vit(part.to(self.device)).cpu(), images, self.cfg.batch_size)
        return list(rows.numpy())


def _random_shape(cfg: EvaConfig) -> EvaShape:
    published = EvaShape()
    return EvaShape(cfg.width, cfg.depth, round(published.inner / published.width * cfg.width))
