"""Sizes of the image encoders; the defaults are those of the published weights."""

from __future__ import annotations

from dataclasses import dataclass

EVA_HEAD = 88  # width of an attention head of the EVA transformer
IDENTITY = "identity"  # value of ln_vision: no norm behind the EVA transformer


@dataclass(frozen=True)
class EvaShape:
    """Sizes of the transformer; the defaults are those of the published ViT-g.

    Attributes:
        width: D.
        depth: blocks that run; the published file holds one more, whose output nobody uses.
        inner: width inside the feed-forward layers.
    """

    width: int = 1408
    depth: int = 39
    inner: int = 6144


@dataclass(frozen=True)
class QFormerShape:
    """Sizes of the transformer; the defaults are the published ones.

    Attributes:
        width: W.
        layers: how many.
        heads: attention heads of each.
        inner: width inside the feed-forward layers.
        every: the first of each so many layers looks at the image.
        queries: Q.
        vision: D.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    every: int = 2
    queries: int = 32
    vision: int = 1408
