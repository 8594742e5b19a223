"""Load MAE and VideoMAE from the files (.pth) of their authors' code.

These files have no configuration and other tensor names than Hugging Face folders. Sizes are inferred from the tensors.

Shape letters: F images, P patches of an image, S height and width in pixels, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emollama.encoders.hugging_face import new_config
from emollama.encoders.weights import read_tensors, require_tensors
from emollama.errors import UserError
from emollama.listing import listing

BLOCK = re.compile(r"blocks\.(\d+)\.")
EPS = 1e-6  # epsilon of the norms
FRAMES, SIDE = 16, 224  # of VideoMAE; they cannot be inferred from the tensors
UNUSED = re.compile(r"decoder_|mask_token|head\.")  # tensors of MAE's decoder and of heads, which are not used
# Patterns in tensor names of a VideoMAE file -> names in a Hugging Face folder. In the file, query, key and value are one tensor.
RENAMED = {
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^blocks\.": "encoder.layer.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.attn\.proj\.": ".attention.output.dense.",
    r"\.attn\.": ".attention.attention.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
    r"^norm\.": "layernorm.",
}
VIDEOMAE_NAMES = re.compile(
    r"(patch_embed\.proj|norm|fc_norm|head)\.(weight|bias)"
    r"|blocks\.\d+\.((norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)|attn\.(qkv\.weight|q_bias|v_bias))"
)


class Vit(NamedTuple):
    """Sizes of a vision transformer.

    Attributes:
        width: D.
        depth: number of layers.
        inner: width of the feed-forward layers.
        patch: height and width of a patch in pixels.
    """

    width: int
    depth: int
    inner: int
    patch: int

    @property
    def heads(self) -> int:
        """Number of attention heads. Published heads have width 64, those of ViT-H (width 1280) have width 80."""
        return 16 if self.width == 1280 else max(1, self.width // 64)


class MaeFile(NamedTuple):
    """The encoder in an original MAE file.

    Attributes:
        vit: its sizes.
        side: S.
        tensors: name -> tensor, with timm's names, which are also the original ones.
    """

    vit: Vit
    side: int
    tensors: dict[str, Tensor]


def read_mae(path: str, key: str) -> MaeFile:
    """Read the encoder of an original MAE file.

    Args:
        path: the file.
        key: the configuration key that contains the path, for messages.

    Raises:
        UserError: If the file does not exist or does not contain an MAE encoder.
    """
    stored = read_tensors(path, key)
    tensors = {name: value for name, value in stored.items() if not UNUSED.match(name)}
    vit = _sizes(tensors, dimensions=4)
    if vit is None or "pos_embed" not in tensors or "cls_token" not in tensors:
        raise UserError(_no_encoder("MAE", path, stored, key))
    return MaeFile(vit, vit.patch * round((tensors["pos_embed"].shape[1] - 1) ** 0.5), tensors)


def build_mae(path: str, key: str) -> nn.Module:
    """Build a VisionTransformer of timm with the tensors of an original MAE file, in float32 on the CPU, in eval mode.

    Its ``forward_features`` maps (F, 3, S, S) to (F, 1 + P, D) after the final norm. Row 0 is the class token.

    Args:
        path: the file.
        key: the configuration key that contains the path, for messages.

    Raises:
        UserError: If the file does not exist or does not contain an MAE encoder, or tensors are missing, unknown or have other
            shapes.
    """
    from timm.models.vision_transformer import VisionTransformer

    vit, side, tensors = read_mae(path, key)
    with torch.device("meta"):
        model = VisionTransformer(
            img_size=side,
            patch_size=vit.patch,
            embed_dim=vit.width,
            depth=vit.depth,
            num_heads=vit.heads,
            mlp_ratio=vit.inner / vit.width,
            num_classes=0,
            global_pool="",
            norm_layer=partial(nn.LayerNorm, eps=EPS),
        )
    require_tensors(tensors, model.state_dict(), file=f"{key}: '{path}'", remedy="Specify a file of MAE's pretraining.")
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return model.requires_grad_(False).eval()


def read_videomae(path: str, final_norm: bool | None, key: str) -> tuple[Any, dict[str, Tensor]]:
    """Read an original VideoMAE file.

    Args:
        path: the file of a pretrained or fine-tuned model.
        final_norm: whether the model has a norm after its last layer; None: if the file contains one.
        key: the configuration key that contains the path, for messages.

    Returns:
        The configuration of transformers, and the tensors with their names in a Hugging Face folder.

    Raises:
        UserError: If the file does not exist, does not contain a VideoMAE encoder, or contains unknown tensors.
    """
    stored = read_tensors(path, key)
    prefix = "encoder."  # of the encoder in files of pretraining, which also contain "decoder."
    tensors = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)} or stored
    vit = _sizes(tensors, dimensions=5)
    if vit is None:
        raise UserError(_no_encoder("VideoMAE", path, stored, key))
    if unknown := sorted(name for name in tensors if not VIDEOMAE_NAMES.fullmatch(name)):
        raise UserError(
            f"{key}: '{path}' contains {listing(unknown, 'unknown tensor')}. Specify a file of VideoMAE's pretraining."
        )
    config = new_config(
        "videomae",
        hidden_size=vit.width,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.heads,
        intermediate_size=vit.inner,
        patch_size=vit.patch,
        tubelet_size=tensors["patch_embed.proj.weight"].shape[2],
        num_frames=FRAMES,
        image_size=SIDE,
        layer_norm_eps=EPS,
        use_mean_pooling="norm.weight" not in tensors if final_norm is None else not final_norm,
    )
    return config, _rename(tensors)


def _sizes(tensors: Mapping[str, Tensor], dimensions: int) -> Vit | None:
    """Infer the sizes from the tensors.

    Args:
        tensors: name -> tensor.
        dimensions: expected number of dimensions of the patch embedding: 4 for images, 5 for videos.

    Returns:
        The sizes; None if the tensors are not those of such a vision transformer.
    """
    embedding, first = tensors.get("patch_embed.proj.weight"), tensors.get("blocks.0.mlp.fc1.weight")
    if embedding is None or first is None or embedding.ndim != dimensions:
        return None
    depth = 1 + max(int(match[1]) for name in tensors if (match := BLOCK.match(name)))
    return Vit(embedding.shape[0], depth, first.shape[0], embedding.shape[-1])


def _no_encoder(what: str, path: str, stored: Mapping[str, Tensor], key: str) -> str:
    names = ", ".join(list(stored)[:3])
    text = f"{key}: '{path}' contains no {what} encoder (its tensors: {names}, ...)."
    return f"{text} Specify a file of {what}'s pretraining, or a Hugging Face folder."


def _rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for old, new in RENAMED.items():
            name = re.sub(old, new, name)
        if name.endswith(".qkv.weight"):
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            renamed |= {name.replace(".qkv.", f".{part}."): weight for part, weight in parts}
        else:
            renamed[name] = value
    return renamed
