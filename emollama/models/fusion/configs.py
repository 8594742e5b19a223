"""Keys of the registered fusion modules, under ``model.fusion``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LinearFusionConfig:
    """No keys."""


@dataclass
class ImageProjectionConfig:
    """No keys."""
