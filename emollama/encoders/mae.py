"""MAE's vision transformer on the faces of a clip: one vector per image, mean over the images.

Shape letters: F images, P patches of an image, S height and width in pixels, D width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emollama.data.slots import SlotShape
from emollama.encoders import hugging_face
from emollama.encoders.configs import MaeConfig
from emollama.encoders.encoder import Encoder, EncoderDescription, in_batches
from emollama.encoders.originals import build_mae, read_mae
from emollama.encoders.pixels import Pixels
from emollama.encoders.weights import read_tensors
from emollama.media.faces import face_images
from emollama.media.source import Source

KIND = "vit_mae"
Tokens = Callable[[Tensor], Tensor]  # (F, 3, S, S) -> (F, 1 + P, D) after the final norm; row 0 is the class token


class Mae(Encoder):
    """The encoder of a ``mae`` block: (D,) for the faces of a clip."""

    SLOTS = ("face",)

    Config = MaeConfig

    cfg: MaeConfig

    def __init__(self, cfg: MaeConfig, *, device: torch.device, key: str) -> None:
        super().__init__(cfg, device=device, key=key)
        self.pixels = Pixels(cfg, KIND, _sizes(cfg, key)[1], key)
        self.tokens = _load_file(cfg, key, device) if _is_file(cfg) else _load_folder(cfg, key, device)

    @classmethod
    def describe(cls, cfg: MaeConfig, key: str) -> EncoderDescription:
        """Describe the features; see :meth:`Encoder.describe`."""
        width, side = _sizes(cfg, key)
        settings: dict[str, Any] = {
            "encoder": "mae",
            "pooling": f"{cfg.pooling}, mean over images",
            **cfg.face_settings,
            **Pixels(cfg, KIND, side, key).settings,
            "precision": cfg.precision,
        }
        return EncoderDescription(SlotShape(1, width), settings)

    def load(self, source: Source) -> Tensor:
        """Read the faces of a clip, (F, 3, S, S)."""
        return self.pixels(face_images(source, self.cfg.face, self.cfg.max_frames))

    @torch.inference_mode()
    def encode(self, loaded: Sequence[Tensor]) -> list[np.ndarray]:
        """Return (D,) float32 for each clip."""
        vectors = in_batches(self._vectors, torch.cat(list(loaded)), self.cfg.batch_size)
        return [part.mean(0).numpy() for part in vectors.split([len(images) for images in loaded])]

    def _vectors(self, images: Tensor) -> Tensor:
        """Return (F, D) float32 for images of shape (F, 3, S, S)."""
        with self.arithmetic():
            tokens = self.tokens(images.to(self.device)).float()
        return (tokens[:, 0] if self.cfg.pooling == "cls" else tokens[:, 1:].mean(1)).cpu()


def _is_file(cfg: MaeConfig) -> bool:
    return os.path.isfile(cfg.weights) and not cfg.random_weights


def _sizes(cfg: MaeConfig, key: str) -> tuple[int, int]:
    """Return D and S of the weights."""
    if _is_file(cfg):
        vit, side, _ = read_mae(cfg.weights, f"{key}.weights")
        return vit.width, side
    config = hugging_face.read_config(cfg.weights, f"{key}.weights", (KIND,))
    return config.hidden_size, config.image_size


def _load_file(cfg: MaeConfig, key: str, device: torch.device) -> Tokens:
    vit: Any = build_mae(cfg.weights, f"{key}.weights").to(device)
    return lambda images: vit.forward_features(images)


def _load_folder(cfg: MaeConfig, key: str, device: torch.device) -> Tokens:
    key, path = f"{key}.weights", cfg.weights
    config = hugging_face.read_config(path, key, (KIND,), mask_ratio=0.0)
    if cfg.random_weights:
        model = hugging_face.build_random(config, device=device, key=key)
    else:
        model = hugging_face.build(config, read_tensors(path, key), source=path, device=device, key=key)
    # transformers' MAE masks patches and sorts them by noise. With mask_ratio 0 and increasing noise, it keeps all in order.
    order = torch.arange((config.image_size // config.patch_size) ** 2, device=device)
    return lambda images: model(images, noise=order.expand(len(images), -1)).last_hidden_state
