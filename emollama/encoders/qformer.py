"""BLIP-2's Q-Former, frozen: learned queries attend to the tokens of an image.

Shape letters: F images, P patches of an image, D width of the image tokens, Q queries, W width of the Q-Former. Source of
shapes and names: the published ``blip2_pretrained_flant5xxl.pth`` (LAVIS), which MiniGPT-4 uses, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emollama.encoders.shapes import QFormerShape
from emollama.encoders.weights import read_tensors, require_tensors
from emollama.errors import UserError
from emollama.listing import listing

HEAD = 64  # width of an attention head in all published Q-Formers
# Parts of tensor names in a BLIP-2 file -> in the state dict of QFormer.
RENAMED = {
    "Qformer.bert.embeddings.LayerNorm.": "qformer.layernorm.",
    "Qformer.bert.encoder.": "qformer.encoder.",
    "attention.self.": "attention.attention.",
}
# Tensors for text input, which files of some training stages contain. They are not used here.
TEXT = re.compile(
    r"Qformer\.(cls\.|bert\.(pooler\.|embeddings\.(word_embeddings|position_embeddings|position_ids)"
    r"|encoder\.layer\.\d+\.(intermediate|output)\.))"
)
LAYER = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.(crossattention\.)?")
FIRST = "Qformer.bert.encoder.layer.0"
# The tensors from which sizes are inferred, (1, Q, W), (inner, W) and (W, D), with their numbers of dimensions.
SIZE_TENSORS = {"query_tokens": 3, f"{FIRST}.intermediate_query.dense.weight": 2, f"{FIRST}.crossattention.self.key.weight": 2}
REMEDY = "Name an original file of BLIP-2 such as blip2_pretrained_flant5xxl.pth."


def read_qformer(path: str, key: str, heads: int | None = None) -> tuple[QFormerShape, dict[str, Tensor]]:
    """Read the Q-Former in an original BLIP-2 or MiniGPT-4 file.

    Other parts of the file (``visual_encoder``, ``ln_vision``, projections, text input) are ignored.

    Args:
        path: a ``.pth`` or ``.safetensors`` file.
        key: the configuration key that contains the path, for messages.
        heads: attention heads per layer, which cannot be inferred from the tensors; None for heads of width 64, as published.

    Returns:
        Its sizes, and its tensors with the names of :class:`QFormer`.

    Raises:
        UserError: If the file does not exist or does not contain a Q-Former, or its width is not a multiple of the head width.
    """
    stored = read_tensors(path, key)
    tensors = {
        name: value
        for name, value in stored.items()
        if name == "query_tokens" or (name.startswith("Qformer.") and not TEXT.match(name))
    }
    if not tensors:
        names = ", ".join(list(stored)[:3])
        raise UserError(f"{key}: '{path}' contains no Q-Former (its tensors: {names}, ...). {REMEDY}")
    if wrong := [name for name, dimensions in SIZE_TENSORS.items() if name not in tensors or tensors[name].ndim != dimensions]:
        raise UserError(f"{key}: '{path}' has missing tensors or wrong shapes ({listing(wrong, 'tensor')}). {REMEDY}")
    query, feed_forward, cross = (tensors[name] for name in SIZE_TENSORS)
    inner, width = feed_forward.shape
    if width % (heads or HEAD):
        divisor = f"the number of heads, {heads}" if heads else f"the width of a head, {HEAD}"
        raise UserError(f"{key}: the Q-Former of '{path}' has width {width}, which is not a multiple of {divisor}. {REMEDY}")
    layers, every = _layers(tensors)
    shape = QFormerShape(width, layers, heads or width // HEAD, inner, every, query.shape[1], cross.shape[1])
    return shape, {_module_name(name): value for name, value in tensors.items()}


class QFormer(nn.Module):
    """Reduces the tokens of an image to Q tokens of width W. Its weights are frozen, and its arithmetic is always float32.

    Args:
        shape: sizes of the transformer.
        device: device of the module; the meta device for shapes without weights.

    Attributes:
        shape: sizes of the transformer.
        query_tokens: the learned queries, (1, Q, W).
        qformer: the transformer.
    """

    def __init__(self, shape: QFormerShape, *, device: torch.device) -> None:
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        super().__init__()
        self.shape = shape
        settings: dict[str, Any] = {
            "hidden_size": shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "intermediate_size": shape.inner,
            "cross_attention_frequency": shape.every,
            "encoder_hidden_size": shape.vision,
            # Plain matrix products instead of kernels that depend on the hardware: cached features must have the bits that would
            # be computed. With 32 queries and some hundred image tokens, this costs no time.
            "attn_implementation": "eager",
        }
        with device:
            self.query_tokens = nn.Parameter(torch.zeros(1, shape.queries, shape.width))
            self.qformer = Blip2QFormerModel(Blip2QFormerConfig(**settings))
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str, *, device: torch.device, key: str, heads: int | None = None) -> QFormer:
        """Load the Q-Former from a file.

        Args:
            path: see :func:`read_qformer`.
            device: device of the module; on the meta device, only names and shapes are checked.
            key: the configuration key that contains the path, for messages.
            heads: see :func:`read_qformer`.

        Raises:
            UserError: As in :func:`read_qformer`, or if tensors are missing, unknown or have other shapes.
        """
        shape, tensors = read_qformer(path, key, heads)
        model = cls(shape, device=torch.device("meta"))
        expected = with_original_names(model.state_dict())
        require_tensors(with_original_names(tensors), expected, file=f"{key}: '{path}'", remedy=REMEDY)
        if device.type != "meta":
            model.to_empty(device=device)
            model.load_state_dict(tensors)
        return model

    def train(self, mode: bool = True) -> QFormer:
        """Stay in eval mode, because the module is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Reduce the tokens of images.

        Args:
            tokens: (F, 1 + P, D), after ``ln_vision``.

        Returns:
            (F, Q, W) float32.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            queries = self.query_tokens.expand(len(tokens), -1, -1)
            outputs: Tensor = self.qformer(query_embeds=queries, encoder_hidden_states=tokens.float()).last_hidden_state
        return outputs


def _layers(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the number of layers, and the distance between layers with cross-attention (all layers if there is only one)."""
    matches = [match for name in tensors if (match := LAYER.match(name))]
    layers = 1 + max(int(match[1]) for match in matches)
    with_cross_attention = sorted({int(match[1]) for match in matches if match[2]})
    return layers, with_cross_attention[1] - with_cross_attention[0] if len(with_cross_attention) > 1 else layers


def _module_name(name: str) -> str:
    for original, renamed in RENAMED.items():
        name = name.replace(original, renamed)
    return name


def with_original_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a :class:`QFormer` as in an original file. Messages use these names."""
    originals = {}
    for name, value in tensors.items():
        for original, renamed in RENAMED.items():
            name = name.replace(renamed, original)
        originals[name] = value
    return originals
