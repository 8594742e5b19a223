"""EVA-CLIP ViT-g/14 as in the MiniGPT family: without the transformer's final norm, followed by ``ln_vision``.

Shape letters: F images, P patches of an image, D width. Source of shapes and names: the published ``eva_vit_g.pth`` (LAVIS,
BLIP-2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emollama.data.slots import PATCH
from emollama.dtypes import ComputeDtype
from emollama.encoders.encoder import DTYPES, exact_convolutions
from emollama.encoders.shapes import EVA_HEAD, IDENTITY, EvaShape
from emollama.encoders.weights import read_tensors, require_tensors
from emollama.errors import UserError

LN_EPS = 1e-5  # epsilon of ln_vision; the norms of the transformer layers have 1e-6
UNUSED = re.compile(r"(norm|fc_norm|head|lm_head)\.|mask_token|rel_pos_bias")  # tensors of published files that are not used
BLOCK = re.compile(r"blocks\.(\d+)\.")
REMEDY = "Specify a file such as eva_vit_g.pth."


@dataclass(frozen=True)
class EvaFiles:
    """Files and settings of a pretrained encoder.

    Attributes:
        path: see :func:`read_eva`.
        image_size: height and width of the images in pixels. Position embeddings for a different size are interpolated.
        precision: precision of the arithmetic.
        depth: number of transformer layers to use.
        ln_vision: see :func:`read_ln_vision`.
    """

    path: str
    image_size: int
    precision: ComputeDtype
    depth: int = EvaShape.depth
    ln_vision: str = IDENTITY


def read_eva(path: str, key: str, depth: int) -> tuple[EvaShape, dict[str, Tensor]]:
    """Read sizes and tensors of a weights file. Tensors have timm's names, which are also the original ones.

    Args:
        path: a ``.pth`` or ``.safetensors`` file; names may start with ``visual_encoder.``, as in files of entire models.
        key: the configuration key that contains the path, for messages.
        depth: number of transformer layers to use; if the file has fewer, all are used.

    Raises:
        UserError: If the file does not exist, or does not contain an EVA transformer.
    """
    stored = read_tensors(path, key)
    prefix = "visual_encoder."
    prefixed = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    tensors = {name: value for name, value in (prefixed or stored).items() if not UNUSED.match(name)}
    blocks = {int(match[1]) for name in tensors if (match := BLOCK.match(name))}
    embedding, first = tensors.get("patch_embed.proj.weight"), tensors.get("blocks.0.mlp.fc1.weight")
    if not blocks or embedding is None or first is None or "blocks.0.attn.q_bias" not in tensors:
        names = ", ".join(list(stored)[:3])
        raise UserError(f"{key}: '{path}' contains no EVA transformer (its tensors: {names}, ...). {REMEDY}")
    width, patch = embedding.shape[0], embedding.shape[-1]
    if patch != PATCH or width % EVA_HEAD:
        raise UserError(
            f"{key}: '{path}' has patches of {patch} pixels and width {width}; expected {PATCH} pixels and a multiple of"
            f" {EVA_HEAD}. {REMEDY}"
        )
    depth = min(depth, max(blocks) + 1)
    used = {name: value for name, value in tensors.items() if not (match := BLOCK.match(name)) or int(match[1]) < depth}
    return EvaShape(width, depth, first.shape[0]), used


def read_ln_vision(source: str, width: int, key: str) -> tuple[Tensor, Tensor]:
    """Read weight and bias of the layer norm after the transformer, (D,) each.

    Args:
        source: ``identity`` for ones and zeros, because minigpt_v2 and Emotion-LLaMA never load this norm; or a file that
            contains it, such as BLIP-2's Q-Former file for minigpt4.
        width: D.
        key: the configuration key that contains the source, for messages.

    Raises:
        UserError: If the file does not contain the norm, or contains a norm of a different width.
    """
    if source == IDENTITY:
        return torch.ones(width), torch.zeros(width)
    stored = read_tensors(source, key)
    if "ln_vision.weight" not in stored or "ln_vision.bias" not in stored:
        raise UserError(f"{key}: '{source}' contains no ln_vision. Name BLIP-2's Q-Former file, or set {IDENTITY}.")
    weight, bias = stored["ln_vision.weight"].float(), stored["ln_vision.bias"].float()
    if len(weight) != width:
        text = f"{key}: ln_vision of '{source}' has width {len(weight)}, but the image encoder has width {width}."
        raise UserError(f"{text} Name files that belong together.")
    return weight, bias


class EvaVit(nn.Module):
    """Computes class token and patch tokens of images. Its weights are frozen.

    Args:
        shape: sizes of the transformer.
        image_size: height and width of the images in pixels.
        precision: precision of the arithmetic. With bf16 and fp16, the large matrices are stored in this type and the norms in
            float32.
        device: device of the module; the meta device for shapes without weights.
    """

    def __init__(self, shape: EvaShape, *, image_size: int, precision: ComputeDtype, device: torch.device) -> None:
        from timm.models.eva import Eva

        super().__init__()
        self.precision = precision
        self.width = shape.width
        self.patches = (image_size // PATCH) ** 2

        class UninitializedEva(Eva):
            # Tensors on the meta device have no values, but their initialization takes most of the time of building the module.
            def init_weights(self, needs_reset: bool = True) -> None:
                """Do nothing."""

        with device:
            self.visual_encoder = (UninitializedEva if device.type == "meta" else Eva)(
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
        """Load the encoder from files.

        Args:
            files: the files and settings.
            device: device of the module; on the meta device, only names and shapes are checked.
            key: the configuration key that contains the path, for messages.

        Raises:
            UserError: If a file is missing, or lacks a tensor.
        """
        shape, tensors = read_eva(files.path, key, files.depth)
        model = cls(shape, image_size=files.image_size, precision=files.precision, device=torch.device("meta"))
        positions = tensors.get("pos_embed")
        tensors["pos_embed"] = torch.empty(0) if positions is None else interpolate_positions(positions, model.patches)
        weight, bias = read_ln_vision(files.ln_vision, shape.width, f"{key} (ln_vision)")
        require_tensors(tensors, model.visual_encoder.state_dict(), file=f"{key}: '{files.path}'", remedy=REMEDY)
        if device.type != "meta":
            model.to_empty(device=device)
            for buffer in model.visual_encoder.buffers():  # biases of the keys, which are zero and in no file
                buffer.zero_()
            model.visual_encoder.load_state_dict(tensors)
            model.ln_vision.load_state_dict({"weight": weight, "bias": bias})
        return model

    def train(self, mode: bool = True) -> EvaVit:
        """Stay in eval mode, because the module is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (F, 3, image_size, image_size) normalized pixels.

        Returns:
            (F, 1 + P, D) float32. Row 0 of an image is the class token.
        """
        half = self.precision != "fp32"
        dtype = DTYPES[self.precision] if half else torch.bfloat16
        with exact_convolutions(), torch.autocast(images.device.type, dtype=dtype, enabled=half):
            tokens = self.visual_encoder.forward_features(images)
        with torch.autocast(images.device.type, enabled=False):
            return F.layer_norm(tokens.float(), (tokens.shape[-1],), self.ln_vision.weight, self.ln_vision.bias, LN_EPS)


def interpolate_positions(positions: Tensor, patches: int) -> Tensor:
    """Interpolate position embeddings for another number of patches: bicubic, without antialiasing, as in the published code.

    Args:
        positions: (1, 1 + P', D), class token first.
        patches: P.

    Returns:
        (1, 1 + P, D).
    """
    if positions.shape[1] == 1 + patches:
        return positions
    old, new = round((positions.shape[1] - 1) ** 0.5), round(patches**0.5)
    grid = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)
