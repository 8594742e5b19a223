"""Very small random encoders of the real classes, saved like pretrained ones, and invented clips for them."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn

from emollama.media.source import Source

CPU = torch.device("cpu")
RATE = 16000
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 96}
IMAGE = {"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
DECODER = {
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 1,
    "decoder_intermediate_size": 64,
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Randomize every parameter, also norms and biases, so that a test notices when one is not loaded."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(noise * spread + (1 if parameter.ndim == 1 else 0))
    return model.eval()


def save(model, folder: Path, preprocessor: dict) -> Path:
    """Save the model as a Hugging Face folder and return its path."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return folder


def save_hubert(folder: Path, *, stable: bool = True, normalize: bool = True, kind: str = "Hubert") -> Path:
    """Save a HuBERT like the large models (stable: layers begin with a norm) or like the base model."""
    config = getattr(transformers, f"{kind}Config")(
        **SIZES,
        do_stable_layer_norm=stable,
        feat_extract_norm="layer" if stable else "group",
        conv_bias=stable,
        conv_dim=(32, 32, 32),
        conv_kernel=(10, 8, 8),
        conv_stride=(8, 8, 5),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    processor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": normalize, "sampling_rate": RATE}
    return save(shaken(getattr(transformers, f"{kind}Model")(config)), folder, processor)


def save_mae(folder: Path) -> Path:
    """Save an MAE as it is published: with its decoder and an older form of preprocessor_config.json."""
    processor = {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2, "image_mean": MEAN, "image_std": STD}
    return save(
        shaken(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES, **IMAGE, **DECODER))), folder, processor
    )


def save_videomae(folder: Path, *, kind: str = "PreTraining", mean_pooling: bool = False) -> Path:
    """Save a VideoMAE as it is published: with its decoder or a head."""
    config = transformers.VideoMAEConfig(
        **SIZES, **IMAGE, **DECODER, num_frames=16, tubelet_size=2, use_mean_pooling=mean_pooling
    )
    processor = {"image_processor_type": "VideoMAEImageProcessor", "image_mean": MEAN, "image_std": STD}
    processor |= {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return save(shaken(getattr(transformers, f"VideoMAEFor{kind}")(config)), folder, processor)


def sound_clip(folder: Path, name: str, seconds: float, rate: int = RATE) -> Source:
    """A clip with 16-bit sound and no video, so that reading it returns exactly the samples of :func:`sound_of`."""
    path = folder / f"{name}.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(
            np.random.default_rng(len(name)).integers(-20000, 20000, round(seconds * rate), dtype=np.int16).tobytes()
        )
    return Source(name, path)


def sound_of(source: Source) -> np.ndarray:
    """The samples of a sound clip in [-1, 1], read without the package."""
    with wave.open(str(source.video)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 2**15


def face_clip(folder: Path, name: str, count: int) -> Source:
    """A clip with different face images, in the layout that OpenFace writes."""
    faces = folder / "faces"
    (faces / name).mkdir(parents=True)
    for number, image in enumerate(faces_of(name, count)):
        Image.fromarray(image).save(faces / name / f"frame_det_00_{number:06d}.bmp")
    return Source(name, folder / f"{name}.mp4", faces=faces)


def faces_of(name: str, count: int) -> list[np.ndarray]:
    """The images of :func:`face_clip`."""
    generator = np.random.default_rng(len(name))
    return [generator.integers(0, 256, (48, 48, 3), dtype=np.uint8) for _ in range(count)]
