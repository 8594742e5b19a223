"""What MiniGPT-4 sees with: a frozen EVA transformer, BLIP-2's norm, a frozen Q-Former; and what they made, kept on disk.

Letters: F images, Q rows that are made of one, W their width, P patches, D width of the EVA transformer's rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from emollama.data.slots import CachedShape, SlotShape
from emollama.encoders.encoder import in_batches
from emollama.encoders.eva_vit import EvaFiles, EvaVit, read_eva, read_ln_vision
from emollama.encoders.qformer import HEAD, QFormer, read_qformer
from emollama.encoders.shapes import IDENTITY, EvaShape, QFormerShape
from emollama.encoders.weights import digest
from emollama.errors import UserError
from emollama.media.frame_selection import FrameChoice
from emollama.models import frames
from emollama.models.fusion import GROUP
from emollama.paths import PATHS, looked_up
from emollama.stores.feature_cache import FeatureCache
from emollama.stores.manifest import Manifest

VIT, QFORMER = "model.vit_weights", "model.q_former_model"  # keys of the files
TOGETHER = 4  # images that are encoded at once, always as many: so that an image's rows are the same bits in any company


class FrozenVision(nn.Module):
    """Images -> rows for the language model's projection. Never trained, never saved.

    Args:
        cfg: the ``model`` block of ``arch: minigpt4``.
        shape: of the rows that are made of an image.
        device: where to build it. On the meta device there are shapes without weights, and files that are not there are taken
            to be the published ones.

    Attributes:
        vit: (F, 3, side, side) -> (F, 1 + P, D).
        qformer: (F, 1 + P, D) -> (F, Q, W); None where there is none.

    Raises:
        UserError: files that are missing, of another architecture or size; kept rows that were made otherwise.
    """

    def __init__(self, cfg: Any, shape: SlotShape, *, device: torch.device) -> None:
        super().__init__()
        self._kept = FeatureCache(shape.cache_folder, shape) if isinstance(shape, CachedShape) else None
        if device.type == "meta" and (absent := [path for path in _files(cfg) if not looked_up(PATHS.isfile, path, "model")]):
            text = "no file %s: figures are those of the published encoders"
            logging.getLogger("emollama").info(text, " and ".join(absent))
            self._build_published(cfg, device)
            return
        if self._kept is not None:
            self._kept.require_same_manifest(
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

    def forward(self, images: Tensor, places: Sequence[str | None]) -> Tensor:
        """(F, 3, side, side) normalised pixels -> (F, Q, W) float32.

        Args:
            images: of a micro-batch.
            places: where the rows of each are to be kept; None for nowhere.
        """
        rows = in_batches(self._encode, images, TOGETHER)
        if self._kept is not None:
            for place, made in zip(places, rows.cpu().numpy(), strict=True):
                if place is not None:
                    self._kept.write(place, made)
        return rows

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        rows: Tensor = self.vit(images)
        return joined(rows[:, 1:]) if self.qformer is None else self.qformer(rows)


def joined(patches: Tensor) -> Tensor:
    """(F, P, D) -> (F, P / 4, 4 D): four neighbouring rows, in raster order, become one."""
    return patches.reshape(len(patches), -1, GROUP * patches.shape[2])


def manifest(cfg: Any, shape: SlotShape, choice: FrameChoice) -> Manifest:
    """How images become rows: what a manifest of kept ones says.

    Args:
        cfg: the ``model`` block of ``arch: minigpt4``.
        shape: of the rows that are made of an image.
        choice: which frame of a video is taken; images have one.

    Raises:
        UserError: weights that are missing, of another architecture, or of another size than configured.
    """
    _require_agreement(cfg)
    eva = frames.manifest(cfg.vit_weights, cfg, choice, _norm(cfg))
    if cfg.has_qformer:
        made = {"q_former_model": digest(cfg.q_former_model)[:16]}
    else:
        made = {"pooling": f"{GROUP} neighbouring rows joined"}
    return replace(eva, slots=("image",), rows=shape.num_tokens, width=shape.dim, recipe={**eva.recipe, **made})


def _files(cfg: Any) -> list[str]:
    return [cfg.vit_weights, cfg.q_former_model] if cfg.has_qformer else [cfg.vit_weights]


def _norm(cfg: Any) -> str:
    """The published model takes the norm out of BLIP-2's file together with the Q-Former, and else leaves it as it was made."""
    return str(cfg.q_former_model) if cfg.has_qformer else IDENTITY


def _require_agreement(cfg: Any) -> None:
    """Check, on names and shapes alone, that the files fit the configured sizes and each other."""
    eva, _ = read_eva(cfg.vit_weights, VIT, EvaShape.depth)
    read_ln_vision(_norm(cfg), eva.width, QFORMER)  # names the key that is at fault
    if not cfg.has_qformer:
        _require_equal("vit_width", cfg.vit_width, eva.width, VIT, cfg.vit_weights)
        return
    found, _ = read_qformer(cfg.q_former_model, QFORMER)
    _require_equal("query_width", cfg.query_width, found.width, QFORMER, cfg.q_former_model)
    _require_equal("num_query_token", cfg.num_query_token, found.queries, QFORMER, cfg.q_former_model)
    if found.vision != eva.width:
        text = f"{VIT}: '{cfg.vit_weights}' makes rows {eva.width} wide, and {QFORMER} '{cfg.q_former_model}' takes rows"
        raise UserError(f"{text} {found.vision} wide. Name files that belong together.")


def _require_equal(key: str, configured: int, found: int, file_key: str, path: str) -> None:
    if configured != found:
        raise UserError(f"model.{key} is {configured}, and in {file_key} '{path}' it is {found}. Correct one.")
