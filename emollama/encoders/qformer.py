"""BLIP-2's Q-Former, frozen: a few learned queries gather what an image's rows tell.

Letters: F images, P patches of one, D width of their rows, Q queries, W width of the Q-Former. Source of shapes and names: the
published ``blip2_pretrained_flant5xxl.pth`` (LAVIS), which MiniGPT-4 takes it from too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emollama.encoders.shapes import QFormerShape
from emollama.encoders.weights import read_tensors, require_fit
from emollama.errors import UserError
from emollama.listing import listing

HEAD = 64  # width of an attention head of every published one
# Parts of the names in a BLIP-2 file -> in the state dict of QFormer.
RENAMED = {
    "Qformer.bert.embeddings.LayerNorm.": "qformer.layernorm.",
    "Qformer.bert.encoder.": "qformer.encoder.",
    "attention.self.": "attention.attention.",
}
# Its text side, in files of some training stages: nothing reads text here.
TEXT = re.compile(
    r"Qformer\.(cls\.|bert\.(pooler\.|embeddings\.(word_embeddings|position_embeddings|position_ids)"
    r"|encoder\.layer\.\d+\.(intermediate|output)\.))"
)
LAYER = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.(crossattention\.)?")
FIRST = "Qformer.bert.encoder.layer.0"
# What tells the sizes, with the dimensions of each: (1, Q, W), (inner, W), (W, D).
TELLING = {"query_tokens": 3, f"{FIRST}.intermediate_query.dense.weight": 2, f"{FIRST}.crossattention.self.key.weight": 2}
REMEDY = "Name an original file of BLIP-2 such as blip2_pretrained_flant5xxl.pth."


def read_qformer(path: str, key: str, heads: int | None = None) -> tuple[QFormerShape, dict[str, Tensor]]:
    """Shape and tensors of a Q-Former in an original BLIP-2 or MiniGPT-4 file, under the names of :class:`QFormer`.

    Other parts of such a file (``visual_encoder``, ``ln_vision``, projections, the text side) are left out.

    Args:
        path: ``.pth`` or ``.safetensors``.
        key: the configuration key that named it, for messages.
        heads: of each layer, which no tensor tells; None for heads of the published width, 64.

    Raises:
        UserError: no such file, or tensors that are no Q-Former's, or of a width that heads do not fill.
    """
    stored = read_tensors(path, key)
    tensors = {
        name: value
        for name, value in stored.items()
        if name == "query_tokens" or (name.startswith("Qformer.") and not TEXT.match(name))
    }
    if not tensors:
        held = ", ".join(list(stored)[:3])
        raise UserError(f"{key}: '{path}' holds no Q-Former (its tensors: {held}, ...). {REMEDY}")
    if wrong := [name for name, dimensions in TELLING.items() if name not in tensors or tensors[name].ndim != dimensions]:
        raise UserError(f"{key}: '{path}' lacks, or has in another shape, {listing(wrong)}. {REMEDY}")
    query, feed, cross = (tensors[name] for name in TELLING)
    inner, width = feed.shape
    if width % (heads or HEAD):
        wanted = f"{heads} heads" if heads else f"heads that are {HEAD} wide"
        raise UserError(f"{key}: the Q-Former of '{path}' is {width} wide, which {wanted} do not fill. {REMEDY}")
    layers, every = _depth(tensors)
    shape = QFormerShape(width, layers, heads or width // HEAD, inner, every, query.shape[1], cross.shape[1])
    return shape, {_renamed(name): value for name, value in tensors.items()}


class QFormer(nn.Module):
    """Rows of an image -> Q rows of width W. Frozen, in float32 whatever is set outside.

    Its attention is plain matrix products (transformers' "eager") and not a kernel that is chosen by the hardware, so that rows
    which were kept on disk are those that would be computed. With 32 queries and some hundred rows nothing is lost by that.

    Args:
        shape: sizes of the transformer.
        device: where to build it; the meta device gives shapes without weights.

    Attributes:
        shape: the same.
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
            "attn_implementation": "eager",
        }
        with device:
            self.query_tokens = nn.Parameter(torch.zeros(1, shape.queries, shape.width))
            self.qformer = Blip2QFormerModel(Blip2QFormerConfig(**settings))
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str, *, device: torch.device, key: str, heads: int | None = None) -> QFormer:
        """Build it from a file.

        Args:
            path: see :func:`read_qformer`.
            device: as for the class; on the meta device nothing but names and shapes is looked at.
            key: the configuration key that named the file, for messages.
            heads: see :func:`read_qformer`.

        Raises:
            UserError: as :func:`read_qformer`; a tensor is missing, of another shape, or unknown: names all of them.
        """
        shape, tensors = read_qformer(path, key, heads)
        made = cls(shape, device=torch.device("meta"))
        wanted = under_original_names(made.state_dict())
        require_fit(under_original_names(tensors), wanted, file=f"{key}: '{path}'", remedy=REMEDY)
        if device.type != "meta":
            made.to_empty(device=device)
            made.load_state_dict(tensors)
        return made

    def train(self, mode: bool = True) -> QFormer:
        """Stays in eval mode: it is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, rows: Tensor) -> Tensor:
        """(F, 1 + P, D) rows behind ``ln_vision`` -> (F, Q, W) float32."""
        with torch.autocast(rows.device.type, enabled=False):
            queries = self.query_tokens.expand(len(rows), -1, -1)
            gathered: Tensor = self.qformer(query_embeds=queries, encoder_hidden_states=rows.float()).last_hidden_state
        return gathered


def _depth(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Layers, and the distance between those that look at the image; a lone one is the first of as many as there are."""
    found = [match for name in tensors if (match := LAYER.match(name))]
    layers = 1 + max(int(match[1]) for match in found)
    looking = sorted({int(match[1]) for match in found if match[2]})
    return layers, looking[1] - looking[0] if len(looking) > 1 else layers


def _renamed(name: str) -> str:
    for original, ours in RENAMED.items():
        name = name.replace(original, ours)
    return name


def under_original_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a :class:`QFormer` as an original file names them, which is what messages tell."""
    named = {}
    for name, value in tensors.items():
        for original, ours in RENAMED.items():
            name = name.replace(ours, original)
        named[name] = value
    return named
