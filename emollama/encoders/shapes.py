"""Sizes of the image encoders. The defaults are the sizes of the published weights."""

from __future__ import annotations

from dataclasses import dataclass

EVA_HEAD = 88  # width of an attention head of the EVA transformer
IDENTITY = "identity"  # value of ln_vision: no norm after the EVA transformer


@dataclass(frozen=True)
class EvaShape:
    """Sizes of the EVA transformer. The defaults are those of the published ViT-g.

    Attributes:
        width: width of the tokens.
        depth: number of transformer layers that are used. The published file contains one more, which no MiniGPT model uses.
        inner: width of the feed-forward layers.
    """

    width: int = 1408
    depth: int = 39
    inner: int = 6144


@dataclass(frozen=True)
class QFormerShape:
    """Sizes of the Q-Former. The defaults are those of the published weights.

    Attributes:
        width: width of the queries.
        layers: number of layers.
        heads: attention heads per layer.
        inner: width of the feed-forward layers.
        every: the first of every so many layers has cross-attention to the image.
        queries: number of queries.
        vision: width of the image tokens.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    every: int = 2
    queries: int = 32
    vision: int = 1408
