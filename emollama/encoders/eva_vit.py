"""EVA-CLIP ViT-g/14 as the MiniGPT family uses it: patches without a final norm, then ``ln_vision``.

Letters: F images, P patches of one, D width. Source of shapes and names: the published ``eva_vit_g.pth`` (LAVIS, BLIP-2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emollama.data.slots import PATCH
from emollama.dtypes import Arithmetic
from emollama.encoders.encoder import DTYPES, exact_convolutions
from emollama.encoders.shapes import EVA_HEAD, IDENTITY, EvaShape
from emollama.encoders.weights import read_tensors, require_fit
from emollama.errors import UserError

LN_EPS = 1e-5  # of ln_vision; the blocks' norms have 1e-6
UNUSED = re.compile(r"(norm|fc_norm|head|lm_head)\.|mask_token|rel_pos_bias")  # in published files, and never run here
BLOCK = re.compile(r"blocks\.(\d+)\.")
REMEDY = "Name a file such as eva_vit_g.pth."


@dataclass(frozen=True)
class EvaFiles:
    """Where a pretrained encoder lies, and how it is to run.

    Attributes:
        path: see :func:`read_eva`.
        image_size: side of the images in pixels; positions are interpolated where the file has those of another size.
        precision: of the arithmetic.
        depth: blocks that run.
        ln_vision: see :func:`read_ln_vision`.
    """

    path: str
    image_size: int
    precision: Arithmetic
    depth: int = EvaShape.depth
    ln_vision: str = IDENTITY


def read_eva(path: str, key: str, depth: int) -> tuple[EvaShape, dict[str, Tensor]]:
    """Shape and tensors of a weights file, under timm's names, which are the original ones.

    Args:
        path: ``.pth`` or ``.safetensors``; names may begin with ``visual_encoder.``, as in files of whole models.
        key: the configuration key that named it, for messages.
        depth: blocks that shall run; a file with fewer is taken as it is.

    Raises:
        UserError: no such file, or tensors that are no EVA transformer's.
    """
    stored = read_tensors(path, key)
    inside = {name.removeprefix("visual_encoder."): value for name, value in stored.items() if name.startswith("visual_encoder.")}
    tensors = {name: value for name, value in (inside or stored).items() if not UNUSED.match(name)}
    blocks = {int(match[1]) for name in tensors if (match := BLOCK.match(name))}
    embedding, first = tensors.get("patch_embed.proj.weight"), tensors.get("blocks.0.mlp.fc1.weight")
    if not blocks or embedding is None or first is None or "blocks.0.attn.q_bias" not in tensors:
        held = ", ".join(list(stored)[:3])
        raise UserError(
            f"{key}: '{path}' holds no EVA transformer (its tensors: {held}, ...). Name a file such as eva_vit_g.pth."
        )
    width, patch = embedding.shape[0], embedding.shape[-1]
    if patch != PATCH or width % EVA_HEAD:
        raise UserError(
            f"{key}: '{path}' has patches of {patch} and width {width}; expected {PATCH}, and a multiple of {EVA_HEAD}"
        )
    depth = min(depth, max(blocks) + 1)
    kept = {name: value for name, value in tensors.items() if not (match := BLOCK.match(name)) or int(match[1]) < depth}
    return EvaShape(width, depth, first.shape[0]), kept


def read_ln_vision(source: str, width: int, key: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the norm behind the transformer, (D,) each.

    Args:
        source: ``identity`` (ones and zeros: minigpt_v2 and Emotion-LLaMA never load it), or a file that holds it, such as
            BLIP-2's Q-Former file, which minigpt4 takes it from.
        width: D.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: a file without it, or of another width.
    """
    if source == IDENTITY:
        return torch.ones(width), torch.zeros(width)
    stored = read_tensors(source, key)
    if "ln_vision.weight" not in stored or "ln_vision.bias" not in stored:
        raise UserError(f"{key}: '{source}' holds no ln_vision. Name BLIP-2's Q-Former file, or set {IDENTITY}.")
    weight, bias = stored["ln_vision.weight"].float(), stored["ln_vision.bias"].float()
    if len(weight) != width:
        raise UserError(f"{key}: ln_vision of '{source}' is {len(weight)} wide, and the image encoder {width}")
    return weight, bias


class EvaVit(nn.Module):
    """Images -> class row and patch rows. Frozen.

    Args:
        shape: sizes of the transformer.
        image_size: side of the images in pixels.
        precision: of the arithmetic; with bf16 and fp16 the large matrices are kept so too, norms in float32.
        device: where to build it; the meta device gives shapes without weights.
    """

    def __init__(self, shape: EvaShape, *, image_size: int, precision: Arithmetic, device: torch.device) -> None:
        from timm.models.eva import Eva

        super().__init__()
        self.precision = precision
        self.width = shape.width
        self.patches = (image_size // PATCH) ** 2

        class WithoutValues(Eva):
            def init_weights(self, needs_reset: bool = True) -> None:
                """The meta device holds no values, and the initialization takes most of the time of building the module."""

        with device:
            self.visual_encoder = (WithoutValues if device.type == "meta" else Eva)(
                img_size=image_size,
                patch_size=PATCH,
                embed_dim=shape.width,
                depth=shape.depth,
                num_heads=shape.width // EVA_HEAD,
                mlp_ratio=shape.inner / shape.width,
                num_classes=0,
                global_pool="",
                use_post_transformer_norm=False,
            )
            self.ln_vision = nn.LayerNorm(shape.width, eps=LN_EPS)
        for layer in self.modules():
            if precision != "fp32" and isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(DTYPES[precision])
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, files: EvaFiles, *, device: torch.device, key: str) -> EvaVit:
        """Build it from files.

        Args:
            files: where they lie, and how they are to run.
            device: as for the class; on the meta device nothing but names and shapes is looked at.
            key: the configuration key that named the file, for messages.

        Raises:
            UserError: files that are missing, or lack a tensor.
        """
        shape, tensors = read_eva(files.path, key, files.depth)
        made = cls(shape, image_size=files.image_size, precision=files.precision, device=torch.device("meta"))
        tensors["pos_embed"] = interpolated(tensors["pos_embed"], made.patches) if "pos_embed" in tensors else torch.empty(0)
        weight, bias = read_ln_vision(files.ln_vision, shape.width, f"{key} (ln_vision)")
        require_fit(tensors, made.visual_encoder.state_dict(), file=f"{key}: '{files.path}'", remedy=REMEDY)
        if device.type != "meta":
            made.to_empty(device=device)
            for zeros in made.visual_encoder.buffers():  # the keys' biases, which no file holds
                zeros.zero_()
            made.visual_encoder.load_state_dict(tensors)
            made.ln_vision.load_state_dict({"weight": weight, "bias": bias})
        return made

    def train(self, mode: bool = True) -> EvaVit:
        """Stays in eval mode: it is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(F, 3, side, side) normalised pixels -> (F, 1 + P, D) float32; row 0 is the class token."""
        half = self.precision != "fp32"
        dtype = DTYPES[self.precision] if half else torch.bfloat16
        with exact_convolutions(), torch.autocast(images.device.type, dtype=dtype, enabled=half):
            rows = self.visual_encoder.forward_features(images)
        with torch.autocast(images.device.type, enabled=False):
            return F.layer_norm(rows.float(), (rows.shape[-1],), self.ln_vision.weight, self.ln_vision.bias, LN_EPS)


def interpolated(positions: Tensor, patches: int) -> Tensor:
    """Position embeddings (1, 1 + P', D) for another number of patches: bicubic, without antialiasing, as published."""
    if positions.shape[1] == 1 + patches:
        return positions
    old, new = round((positions.shape[1] - 1) ** 0.5), round(patches**0.5)
    grid = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)
