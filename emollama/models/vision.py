"""MiniGPT-4's image encoders: a frozen EVA transformer, BLIP-2's norm and a frozen Q-Former, with a cache on disk.

Shape letters: F = images, Q = feature vectors of an image, W = their size, P = patches, D = hidden size of the EVA transformer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from emollama.data.slots import FrameSelection, SlotShape, feature_cache
from emollama.encoders.encoder import in_batches
from emollama.encoders.eva_vit import EvaFiles, EvaVit, read_eva, read_ln_vision
from emollama.encoders.qformer import HEAD, QFormer, read_qformer
from emollama.encoders.shapes import IDENTITY, EvaShape, QFormerShape
from emollama.encoders.weights import digest
from emollama.errors import UserError
from emollama.models import frames
from emollama.models.fusion.linear import GROUP
from emollama.paths import PATHS, path_exists
from emollama.stores.manifest import Manifest

VIT, QFORMER = "model.vit_weights", "model.q_former_model"  # keys of the files
# Images are always encoded four at a time, because the last bits of a result depend on the batch size. Cached features are
# therefore equal to those that would be computed for any micro-batch size.
IMAGES_PER_BATCH = 4


class FrozenVision(nn.Module):
    """Encodes images to features for the language model's projection. It is neither trained nor saved.

    Args:
        cfg: the ``model`` block of ``arch: minigpt4``.
        shape: shape of the features of an image.
        device: device of the encoders. On the meta device they have shapes but no weights; if a file does not exist there, the
            shapes of the published encoders are assumed.

    Attributes:
        vit: (F, 3, side, side) -> (F, 1 + P, D).
        qformer: (F, 1 + P, D) -> (F, Q, W), or None if ``has_qformer`` is False.

    Raises:
        UserError: If a file does not exist or has a different architecture or size, or if the cached features have a different
            manifest.
    """

    def __init__(self, cfg: Any, shape: SlotShape, *, device: torch.device) -> None:
        super().__init__()
        self._cache = feature_cache(shape)
        if device.type == "meta" and (absent := [path for path in _files(cfg) if not path_exists(PATHS.isfile, path, "model")]):
            text = "%s: file not found; the sizes of the published encoders are assumed"
            logging.getLogger("emollama").info(text, " and ".join(absent))
            self._build_published(cfg, device)
            return
        if self._cache is not None:
            self._cache.require_same_manifest(
                manifest(cfg, shape, "first"), "model.visual_cache_path", write=device.type != "meta"
            )
        else:
            _require_agreement(cfg)
        files = EvaFiles(cfg.vit_weights, cfg.image_size, cfg.vit_precision, ln_vision=_norm(cfg))
        self.vit = EvaVit.load(files, device=device, key=VIT)
        self.qformer = QFormer.load(cfg.q_former_model, device=device, key=QFORMER) if cfg.has_qformer else None

    def _build_published(self, cfg: Any, device: torch.device) -> None:
        eva = EvaShape(cfg.vit_width)
        self.vit = EvaVit(eva, image_size=cfg.image_size, precision=cfg.vit_precision, device=device)
        heads = max(1, cfg.query_width // HEAD)
        shape = QFormerShape(cfg.query_width, heads=heads, queries=cfg.num_query_token, vision=eva.width)
        self.qformer = QFormer(shape, device=device) if cfg.has_qformer else None

    def forward(self, images: Tensor, keys: Sequence[str | None]) -> Tensor:
        """Encode images, and write their features to the cache if there is one.

        Args:
            images: normalized pixels, (F, 3, side, side).
            keys: F cache keys; None does not cache that image.

        Returns:
            (F, Q, W) float32.
        """
        features = in_batches(self._encode, images, IMAGES_PER_BATCH)
        if self._cache is not None:
            for key, vectors in zip(keys, features.cpu().numpy(), strict=True):
                if key is not None:
                    self._cache.write(key, vectors)
        return features

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.vit(images)
        return group_patches(vectors[:, 1:]) if self.qformer is None else self.qformer(vectors)


def group_patches(patches: Tensor) -> Tensor:
    """Concatenate groups of four neighbouring patch vectors in raster order: (F, P, D) -> (F, P / 4, 4 D)."""
    return patches.reshape(len(patches), -1, GROUP * patches.shape[2])


def manifest(cfg: Any, shape: SlotShape, choice: FrameSelection) -> Manifest:
    """Return the manifest of the features that the encoders compute.

    Args:
        cfg: the ``model`` block of ``arch: minigpt4``.
        shape: shape of the features of an image.
        choice: which frame of a video is encoded; it has no effect on images.

    Raises:
        UserError: If weights do not exist, or are of a different architecture or size than configured.
    """
    _require_agreement(cfg)
    eva = frames.manifest(cfg.vit_weights, cfg, choice, _norm(cfg))
    if cfg.has_qformer:
        changes = {"q_former_model": digest(cfg.q_former_model)[:16]}
    else:
        changes = {"pooling": f"{GROUP} neighbouring rows joined"}
    return replace(eva, slots=("image",), num_vectors=shape.num_vectors, dim=shape.dim, settings={**eva.settings, **changes})


def _files(cfg: Any) -> list[str]:
    return [cfg.vit_weights, cfg.q_former_model] if cfg.has_qformer else [cfg.vit_weights]


def _norm(cfg: Any) -> str:
    """Return the file of the norm after the image encoder.

    The published model loads it from BLIP-2's file together with the Q-Former; without the Q-Former it is never loaded.
    """
    return str(cfg.q_former_model) if cfg.has_qformer else IDENTITY


def _require_agreement(cfg: Any) -> None:
    """Check that the files fit the configured sizes and each other, from tensor names and shapes alone."""
    eva, _ = read_eva(cfg.vit_weights, VIT, EvaShape.depth)
    # Checked here, so that an error names this key of the model instead of the encoder's.
    read_ln_vision(_norm(cfg), eva.width, QFORMER)
    if not cfg.has_qformer:
        _require_equal("vit_width", cfg.vit_width, eva.width, VIT, cfg.vit_weights)
        return
    qformer, _ = read_qformer(cfg.q_former_model, QFORMER)
    _require_equal("query_width", cfg.query_width, qformer.width, QFORMER, cfg.q_former_model)
    _require_equal("num_query_token", cfg.num_query_token, qformer.queries, QFORMER, cfg.q_former_model)
    if qformer.vision != eva.width:
        raise UserError(
            f"{VIT}: the encoder in '{cfg.vit_weights}' has hidden size {eva.width}, but the Q-Former in {QFORMER}"
            f" '{cfg.q_former_model}' expects hidden size {qformer.vision}. Use files that belong together."
        )


def _require_equal(key: str, configured: int, stored: int, file_key: str, path: str) -> None:
    if configured != stored:
        text = f"model.{key} is {configured}, but in {file_key} '{path}' it is {stored}."
        raise UserError(f"{text} Set model.{key} to {stored}, or use a different file.")
