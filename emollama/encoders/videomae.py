"""VideoMAE on frames of a clip: mean over all tokens.

Shape letters: N clips, F frames, S height and width in pixels, D width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emollama.data.slots import SlotShape
from emollama.encoders import hugging_face
from emollama.encoders.configs import VideoMaeConfig
from emollama.encoders.encoder import Encoder, EncoderDescription, in_batches
from emollama.encoders.originals import read_videomae
from emollama.encoders.pixels import Pixels
from emollama.encoders.weights import read_tensors
from emollama.media.faces import face_images
from emollama.media.frame_selection import segment_middles, segment_pairs
from emollama.media.frames import read_frames
from emollama.media.source import Source

KIND = "videomae"


class VideoMae(Encoder):
    """The encoder of a ``videomae`` block: (D,) for the frames of a clip."""

    SLOTS = ("video",)

    Config = VideoMaeConfig

    cfg: VideoMaeConfig

    def __init__(self, cfg: VideoMaeConfig, *, device: torch.device, key: str) -> None:
        super().__init__(cfg, device=device, key=key)
        self.config, tensors = _read(cfg, f"{key}.weights")
        self.pixels = Pixels(cfg, KIND, self.config.image_size, key)
        if cfg.random_weights:
            self.model = hugging_face.build_random(self.config, device=device, key=f"{key}.weights")
        else:
            stored = _complete_biases(tensors or read_tensors(cfg.weights, f"{key}.weights"))
            self.model = hugging_face.build(self.config, stored, source=cfg.weights, device=device, key=f"{key}.weights")

    @classmethod
    def describe(cls, cfg: VideoMaeConfig, key: str) -> EncoderDescription:
        """Describe the features; see :meth:`Encoder.describe`."""
        config, _ = _read(cfg, f"{key}.weights")
        settings: dict[str, Any] = {
            "encoder": "videomae",
            "pooling": "mean over tokens",
            "final_norm": not config.use_mean_pooling,
            "frames": config.num_frames,
            "images": cfg.images,
            "sampling": cfg.sampling,
            **(cfg.face_settings if cfg.images == "faces" else {}),
            **Pixels(cfg, KIND, config.image_size, key).settings,
            "precision": cfg.precision,
        }
        return EncoderDescription(SlotShape(1, config.hidden_size), settings)

    def load(self, source: Source) -> Tensor:
        """Read the selected frames of a clip, (F, 3, S, S)."""
        choose = segment_middles if self.cfg.sampling == "middles" else segment_pairs
        if self.cfg.images == "frames":
            return self.pixels(read_frames(source.video, lambda count: choose(count, self.config.num_frames), source.limits))
        faces = face_images(source, self.cfg.face, self.cfg.max_frames)
        return self.pixels([faces[index] for index in choose(len(faces), self.config.num_frames)])

    @torch.inference_mode()
    def encode(self, loaded: Sequence[Tensor]) -> list[np.ndarray]:
        """Return (D,) float32 for each clip."""
        return list(in_batches(self._vectors, torch.stack(list(loaded)), self.cfg.batch_size).numpy())

    def _vectors(self, frames: Tensor) -> Tensor:
        """Return (N, D) float32 for frames of shape (N, F, 3, S, S)."""
        with self.arithmetic():
            tokens: Tensor = self.model(frames.to(self.device)).last_hidden_state
        return tokens.float().mean(1).cpu()


def _read(cfg: VideoMaeConfig, key: str) -> tuple[Any, dict[str, Tensor]]:
    """Return the configuration of the model, and its tensors if they were read to infer it (otherwise an empty dict)."""
    if os.path.isfile(cfg.weights) and not cfg.random_weights:
        return read_videomae(cfg.weights, cfg.final_norm, key)
    changes = {} if cfg.final_norm is None else {"use_mean_pooling": not cfg.final_norm}
    return hugging_face.read_config(cfg.weights, key, (KIND,), **changes), {}


def _complete_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with biases that every version of transformers reads.

    Published weights contain q_bias and v_bias, which some versions ignore, and no biases of keys, which some versions require.
    The added biases of keys are zero.
    """
    renamed = {name.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias"): value for name, value in tensors.items()}
    queries = {name: value for name, value in renamed.items() if name.endswith(".query.bias")}
    return {name.replace(".query.", ".key."): torch.zeros_like(value) for name, value in queries.items()} | renamed
