"""Tiny encoders of the real classes with random weights, in the file formats of pretrained ones. They are not trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import HubertConfig, HubertModel, VideoMAEConfig, VideoMAEModel, ViTMAEConfig, ViTMAEModel
from transformers.utils import logging as transformers_logging

from emollama.tensor_files import save_pretrained, save_tensors

WIDTH = 64  # width of the face, video and audio encoders
EVA_WIDTH, EVA_HEADS, EVA_BLOCKS, EVA_PATCHES = 176, 2, 2, 16  # width, heads of width 88, blocks, 4 x 4 patches of 14 pixels
EVA_INNER = 768  # width of the feed-forward layers


def make_tiny_encoders(folder: Path, *, seed: int) -> None:
    """Write the Hugging Face folders ``hubert/``, ``mae/``, ``videomae/``, and ``eva_vit.safetensors`` with original names.

    The same seed gives the same weights. The state of torch's global generator does not change.

    Args:
        folder: the folder to write to.
        seed: seed of the weights.
    """
    transformers_logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _save_hubert(folder / "hubert")
        sizes: dict[str, Any] = {
            "image_size": 32,
            "patch_size": 16,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 2 * WIDTH,
        }
        save_pretrained(ViTMAEModel(ViTMAEConfig(**sizes)), folder / "mae")
        save_pretrained(VideoMAEModel(VideoMAEConfig(**sizes, num_frames=16, tubelet_size=2)), folder / "videomae")
        save_tensors(_eva_tensors(), folder / "eva_vit.safetensors")
    for name in ("mae", "videomae"):
        content = {"do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        _write_json(folder / name, content)


def _save_hubert(folder: Path) -> None:
    config = HubertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        conv_dim=(32,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    save_pretrained(HubertModel(config), folder)
    _write_json(folder, {"do_normalize": True, "sampling_rate": 16000, "return_attention_mask": True})


def _write_json(folder: Path, content: dict[str, object]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _eva_tensors() -> dict[str, Tensor]:
    """Return random tensors with the names of the published ``eva_vit_g.pth``."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, EVA_WIDTH), "pos_embed": (1, 1 + EVA_PATCHES, EVA_WIDTH)}
    shapes |= {"patch_embed.proj.weight": (EVA_WIDTH, 3, 14, 14), "patch_embed.proj.bias": (EVA_WIDTH,)}
    for number in range(EVA_BLOCKS):
        block = {
            "norm1.weight": (EVA_WIDTH,),
            "norm1.bias": (EVA_WIDTH,),
            "attn.q_bias": (EVA_WIDTH,),
            "attn.v_bias": (EVA_WIDTH,),
            "attn.qkv.weight": (3 * EVA_WIDTH, EVA_WIDTH),
            "attn.proj.weight": (EVA_WIDTH, EVA_WIDTH),
            "attn.proj.bias": (EVA_WIDTH,),
            "norm2.weight": (EVA_WIDTH,),
            "norm2.bias": (EVA_WIDTH,),
            "mlp.fc1.weight": (EVA_INNER, EVA_WIDTH),
            "mlp.fc1.bias": (EVA_INNER,),
            "mlp.fc2.weight": (EVA_WIDTH, EVA_INNER),
            "mlp.fc2.bias": (EVA_WIDTH,),
        }
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    return {name: _random(name, shape) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return ones for norms, zeros for biases, small values for embeddings, and matrices that preserve the scale of inputs."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    inputs = math.prod(shape[1:])
    return torch.randn(shape) * (0.02 if name in ("cls_token", "pos_embed") else inputs**-0.5)
