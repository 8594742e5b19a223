"""HuBERT, wav2vec 2.0 or WavLM on the sound of a clip: sum of the states of some layers, mean over time.

Shape letters: S samples of sound, T states over time, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emollama.data.slots import SlotShape
from emollama.encoders import hugging_face
from emollama.encoders.configs import MIN_SECONDS, HubertConfig
from emollama.encoders.encoder import Encoder, EncoderDescription
from emollama.encoders.weights import read_tensors
from emollama.errors import UserError
from emollama.media.audio import read_audio
from emollama.media.source import Source

KINDS = ("hubert", "wav2vec2", "wavlm")
# Without the masks of training, transformers does not expect their embedding vector in the file.
WITHOUT_MASKS = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}


class Hubert(Encoder):
    """The encoder of a ``hubert`` block: (D,) for the sound of a clip."""

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
        """Describe the features; see :meth:`Encoder.describe`."""
        config = hugging_face.read_config(cfg.weights, f"{key}.weights", KINDS)
        _check_layers(cfg, config.num_hidden_layers, key)
        processor = hugging_face.sound_processor(cfg.weights, f"{key}.weights")
        settings: dict[str, Any] = {
            "encoder": config.model_type,
            "layers": sorted(cfg.layers),
            "pooling": "mean over time",
            "rate": processor.sampling_rate,
            "normalized": bool(processor.do_normalize),
            "chunk_seconds": cfg.chunk_seconds,
            "precision": cfg.precision,
        }
        return EncoderDescription(SlotShape(1, config.hidden_size), settings)

    def load(self, source: Source) -> Tensor:
        """Read the sound as (S,) samples, normalized as the model's preprocessor requires.

        Sound shorter than a second is padded with silence.
        """
        rate = self.processor.sampling_rate
        sound = read_audio(source.audio or source.video, rate, source.limits)
        values: Tensor = self.processor(sound, sampling_rate=rate, return_tensors="pt").input_values[0]
        return torch.nn.functional.pad(values, (0, max(0, MIN_SECONDS * rate - len(values))))

    @torch.inference_mode()
    def encode(self, loaded: Sequence[Tensor]) -> list[np.ndarray]:
        """Return (D,) float32 for each sound."""
        rate = self.processor.sampling_rate
        features = []
        for sound in loaded:
            chunks = sound.split(chunk_lengths(len(sound), round(self.cfg.chunk_seconds * rate), MIN_SECONDS * rate))
            features.append(torch.cat([self._states(chunk) for chunk in chunks]).mean(0).cpu().numpy())
        return features

    def _states(self, chunk: Tensor) -> Tensor:
        """Return the sum of the layers, (T, D) float32, for (S,) samples."""
        with self.arithmetic():
            output = self.model(chunk[None].to(self.device), output_hidden_states=True)
        # In models whose layers start with a norm, the last of hidden_states is taken before the model's final norm.
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        return torch.stack([states[layer][0].float() for layer in sorted(self.cfg.layers)]).sum(0)


def chunk_lengths(samples: int, chunk: int, shortest: int) -> list[int]:
    """Split a number of samples into chunks.

    Args:
        samples: S.
        chunk: samples per chunk.
        shortest: a remainder with fewer samples is appended to the last chunk.

    Returns:
        Number of samples in each chunk.
    """
    whole, rest = divmod(samples, chunk)
    if whole and rest < shortest:
        return [chunk] * (whole - 1) + [chunk + rest]
    return [chunk] * whole + [rest]


def _check_layers(cfg: HubertConfig, layers: int, key: str) -> None:
    # A model with N layers has N + 1 states: the first one is the input of the first layer.
    if min(cfg.layers) < -(layers + 1):
        raise UserError(
            f"{key}.layers: the model has {layers} layers, so the lowest index is {-(layers + 1)} (the input of the first layer);"
            f" got {min(cfg.layers)}"
        )
