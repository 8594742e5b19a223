"""MAE and VideoMAE out of the files (.pth) of their authors' code: the tensors tell the sizes, and have other names.

Letters: F images, P patches of one, S their side in pixels, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emollama.encoders.hugging_face import new_config
from emollama.encoders.weights import read_tensors, require_fit
from emollama.errors import UserError
from emollama.listing import listing

BLOCK = re.compile(r"blocks\.(\d+)\.")
EPS = 1e-6  # of the norms
FRAMES, SIDE = 16, 224  # of VideoMAE, whose files do not tell
DECODER = re.compile(r"decoder_|mask_token|head\.")  # of MAE, and heads: never run here
# Parts of the names in a VideoMAE file -> in a Hugging Face folder. Queries, keys and values are one tensor there.
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
KNOWN = re.compile(
    r"(patch_embed\.proj|norm|fc_norm|head)\.(weight|bias)"
    r"|blocks\.\d+\.((norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)|attn\.(qkv\.weight|q_bias|v_bias))"
)


class Vit(NamedTuple):
    """Sizes of a vision transformer: D, layers, width inside a feed-forward layer, side of a patch in pixels."""

    width: int
    depth: int
    inner: int
    patch: int

    @property
    def heads(self) -> int:
        """Heads of the published ones: each 64 wide; in ViT-H, of width 1280, 80."""
        return 16 if self.width == 1280 else max(1, self.width // 64)


class MaeFile(NamedTuple):
    """MAE's encoder in a file: its sizes, S, and tensors by timm's names, which are the original ones."""

    vit: Vit
    side: int
    tensors: dict[str, Tensor]


def read_mae(path: str, key: str) -> MaeFile:
    """Read the encoder of an original MAE file.

    Args:
        path: the file.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: no such file, or tensors that are not MAE's.
    """
    stored = read_tensors(path, key)
    tensors = {name: value for name, value in stored.items() if not DECODER.match(name)}
    vit = _sizes(tensors, dimensions=4)
    if vit is None or "pos_embed" not in tensors or "cls_token" not in tensors:
        raise UserError(_no_encoder("MAE", path, stored, key))
    return MaeFile(vit, vit.patch * round((tensors["pos_embed"].shape[1] - 1) ** 0.5), tensors)


def build_mae(path: str, key: str) -> nn.Module:
    """timm's transformer with the tensors of an original MAE file, float32 on the CPU, in eval mode.

    Its ``forward_features`` makes (F, 1 + P, D) of (F, 3, S, S), after the final norm; row 0 is the class token.

    Raises:
        UserError: as :func:`read_mae`; a tensor is missing, of another shape, or unknown: names all of them.
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
    require_fit(tensors, model.state_dict(), file=f"{key}: '{path}'", remedy="Name a file of MAE's pretraining.")
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return model.requires_grad_(False).eval()


def read_videomae(path: str, final_norm: bool | None, key: str) -> tuple[Any, dict[str, Tensor]]:
    """Configuration and tensors of an original VideoMAE file, as a Hugging Face folder has them.

    Args:
        path: the file, of pretraining or of a fine-tuned model.
        final_norm: whether the model has a norm behind its last layer; None: where the file holds one.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: no such file, or tensors that are not VideoMAE's.
    """
    stored = read_tensors(path, key)
    prefix = "encoder."  # in files of pretraining, beside "decoder."
    tensors = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)} or stored
    vit = _sizes(tensors, dimensions=5)
    if vit is None:
        raise UserError(_no_encoder("VideoMAE", path, stored, key))
    if strange := sorted(name for name in tensors if not KNOWN.fullmatch(name)):
        raise UserError(f"{key}: '{path}' has unknown tensors, {listing(strange)}. Name a file of VideoMAE's pretraining.")
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
    return config, _renamed(tensors)


def _sizes(tensors: Mapping[str, Tensor], dimensions: int) -> Vit | None:
    """Sizes that the tensors tell; None where they are no vision transformer's, or its patches have other dimensions."""
    embedding, first = tensors.get("patch_embed.proj.weight"), tensors.get("blocks.0.mlp.fc1.weight")
    if embedding is None or first is None or embedding.ndim != dimensions:
        return None
    depth = 1 + max(int(match[1]) for name in tensors if (match := BLOCK.match(name)))
    return Vit(embedding.shape[0], depth, first.shape[0], embedding.shape[-1])


def _no_encoder(what: str, path: str, stored: Mapping[str, Tensor], key: str) -> str:
    held = ", ".join(list(stored)[:3])
    return (
        f"{key}: '{path}' holds no {what} encoder (its tensors: {held}, ...). Name a file of {what}'s pretraining, or a folder."
    )


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for old, new in RENAMED.items():
            name = re.sub(old, new, name)
        if name.endswith(".qkv.weight"):
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            named |= {name.replace(".qkv.", f".{part}."): weight for part, weight in parts}
        else:
            named[name] = value
    return named
