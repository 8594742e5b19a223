"""HuBERT over a clip's sound: the states of some layers, their sum, the mean over time. wav2vec 2.0 and WavLM alike.

Letters: S samples of sound, T states over time, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emollama.data.slots import SlotShape
from emollama.encoders import hugging_face
from emollama.encoders.configs import SHORTEST, HubertConfig
from emollama.encoders.encoder import Encoder, EncoderDescription
from emollama.encoders.weights import read_tensors
from emollama.errors import UserError
from emollama.media.audio import read_audio
from emollama.media.source import Source

KINDS = ("hubert", "wav2vec2", "wavlm")
WITHOUT_MASKS = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}  # of training; so no file needs to hold their vector


class Hubert(Encoder):
    """The encoder behind a ``hubert`` block: (D,) of a clip's sound."""

    SLOTS = ("audio",)

    Config = HubertConfig

    cfg: HubertConfig

    def __init__(self, cfg: HubertConfig, *, device: torch.device, key: str) -> None:
        super().__init__(cfg, device=device, key=key)
        config = hugging_face.read_config(cfg.weights, f"{key}.weights", KINDS, **WITHOUT_MASKS)
        _check_layers(cfg, config.num_hidden_layers, key)
        self.processor = hugging_face.sound_processor(cfg.weights, f"{key}.weights")
        if cfg.random_weights:
            self.model = hugging_face.build_random(config, device=device, key=f"{key}.weights")
        else:
            tensors = read_tensors(cfg.weights, f"{key}.weights")
            self.model = hugging_face.build(config, tensors, source=cfg.weights, device=device, key=f"{key}.weights")

    @classmethod
    def describe(cls, cfg: HubertConfig, key: str) -> EncoderDescription:
        """Width and recipe; refuses a folder of another kind of model, and layers that it does not have."""
        config = hugging_face.read_config(cfg.weights, f"{key}.weights", KINDS)
        _check_layers(cfg, config.num_hidden_layers, key)
        processor = hugging_face.sound_processor(cfg.weights, f"{key}.weights")
        recipe: dict[str, Any] = {
            "encoder": config.model_type,
            "layers": sorted(cfg.layers),
            "pooling": "mean over time",
            "rate": processor.sampling_rate,
            "normalized": bool(processor.do_normalize),
            "chunk_seconds": cfg.chunk_seconds,
            "precision": cfg.precision,
        }
        return EncoderDescription(SlotShape(1, config.hidden_size), recipe)

    def load(self, source: Source) -> Tensor:
        """(S,) samples of one second or more, normalised as the folder says; silence after short sound."""
        rate = self.processor.sampling_rate
        sound = read_audio(source.video, rate)
        values: Tensor = self.processor(sound, sampling_rate=rate, return_tensors="pt").input_values[0]
        return torch.nn.functional.pad(values, (0, max(0, SHORTEST * rate - len(values))))

    @torch.inference_mode()
    def encode(self, loaded: Sequence[Tensor]) -> list[np.ndarray]:
        """(D,) float32 of each sound."""
        rate = self.processor.sampling_rate
        features = []
        for sound in loaded:
            pieces = sound.split(piece_lengths(len(sound), round(self.cfg.chunk_seconds * rate), SHORTEST * rate))
            features.append(torch.cat([self._states(piece) for piece in pieces]).mean(0).cpu().numpy())
        return features

    def _states(self, piece: Tensor) -> Tensor:
        """(S,) samples -> (T, D) float32: the sum of the layers."""
        with self.arithmetic():
            given = self.model(piece[None].to(self.device), output_hidden_states=True)
        # The last of the hidden states lacks the final norm, in models whose layers begin with a norm.
        states = (*given.hidden_states[:-1], given.last_hidden_state)
        return torch.stack([states[layer][0].float() for layer in sorted(self.cfg.layers)]).sum(0)


def piece_lengths(samples: int, chunk: int, shortest: int) -> list[int]:
    """Lengths of the pieces of a long sound: ``chunk`` each, then the rest; a rest below ``shortest`` joins the piece before."""
    whole, rest = divmod(samples, chunk)
    if whole and rest < shortest:
        return [chunk] * (whole - 1) + [chunk + rest]
    return [chunk] * whole + [rest]


def _check_layers(cfg: HubertConfig, layers: int, key: str) -> None:
    """Refuse layers beyond those of a model; the first that counts is what goes into its layers."""
    if min(cfg.layers) < -(layers + 1):
        raise UserError(
            f"{key}.layers: the model has {layers} layers, so that {-(layers + 1)} is the first state; got {min(cfg.layers)}"
        )
