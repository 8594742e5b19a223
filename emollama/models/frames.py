"""Frames through a frozen image encoder in the step, where a dataset brings pixels in place of rows.

Letters: F frames of a micro-batch, n rows of a slot that are made of one, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from emollama.data.batch import PackedFeatures
from emollama.data.slots import FRAME, IMAGE
from emollama.encoders.eva import Eva
from emollama.encoders.eva_vit import EvaFiles, EvaVit, read_eva
from emollama.encoders.shapes import IDENTITY, EvaShape
from emollama.encoders.weights import digest
from emollama.errors import UserError
from emollama.media.frame_selection import FrameChoice
from emollama.stores.manifest import Manifest

TokenCounter = Callable[[Mapping[str, int]], dict[str, int]]


def build(weights: str, cfg: Any, device: torch.device) -> EvaVit:
    """The encoder that a model's block asks for, as Emotion-LLaMA has it: 39 blocks, ``ln_vision`` the identity.

    Raises:
        UserError: a file that is missing or no EVA transformer's, or another width than ``slot_dims.image``.
    """
    key = "model.vit_weights"
    made = EvaVit.load(EvaFiles(weights, cfg.image_size, cfg.vit_precision), device=device, key=key)
    if made.width != cfg.slot_dims["image"]:
        raise UserError(f"{key}: '{weights}' is {made.width} wide, model.slot_dims.image {cfg.slot_dims['image']}. Correct one.")
    made.visual_encoder.set_grad_checkpointing(cfg.use_grad_checkpoint_vit)
    return made


def manifest(weights: str, cfg: Any, choice: FrameChoice, ln_vision: str = IDENTITY) -> Manifest:
    """What a manifest of this encoder's caches would say.

    Args:
        weights: of the encoder.
        cfg: the model's block.
        choice: which frame of a video is taken.
        ln_vision: as :func:`~emollama.encoders.eva_vit.read_ln_vision` takes it.

    Raises:
        UserError: weights that are missing or no EVA transformer's.
    """
    read_eva(weights, "model.vit_weights", EvaShape.depth)  # names the key that is at fault
    eva = Eva.Config(weights, image_size=cfg.image_size, precision=cfg.vit_precision, frame_selection=choice, ln_vision=ln_vision)
    described = Eva.describe(eva, "model")
    return Manifest(IMAGE, described.shape.num_tokens, described.shape.dim, described.recipe, digest(weights), "float32")


def with_frames(num_tokens: TokenCounter, made: Mapping[str, int]) -> TokenCounter:
    """A fusion module's ``num_tokens`` for clips that may bring a frame: it counts as the rows that are made of it.

    Args:
        num_tokens: number of feature vectors by slot -> number of feature tokens by placeholder.
        made: slot -> rows that are made of a frame.
    """

    def counted(counts: Mapping[str, int]) -> dict[str, int]:
        rest = {slot: count for slot, count in counts.items() if slot != FRAME}
        return num_tokens(rest | {slot: rest[slot] + counts.get(FRAME, 0) * rows for slot, rows in made.items()})

    return counted


def image_and_class(vit: EvaVit) -> Callable[[Tensor], dict[str, Tensor]]:
    """(F, 3, side, side) -> the rows of an EVA cache, image (F, P, D) and class token (F, 1, D)."""

    def encode(images: Tensor) -> dict[str, Tensor]:
        rows = vit(images)
        return {"image": rows[:, 1:], "cls": rows[:, :1]}

    return encode


def encoded(slots: Mapping[str, PackedFeatures], encode: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, PackedFeatures]:
    """The slots without frames: features of a frame follow those that its sample has itself.

    Args:
        slots: with the slot ``frame``, (F, 3 x side x side).
        encode: (F, 3, side, side) -> slot -> (F, n, D).
    """
    rest = {slot: rows for slot, rows in slots.items() if slot != FRAME}
    frames = slots[FRAME]
    if not len(frames.values):
        return rest
    side = round((frames.values.shape[1] / 3) ** 0.5)
    made = encode(frames.values.reshape(-1, 3, side, side))
    return rest | {slot: _joined(slots[slot], frames.offsets, parts) for slot, parts in made.items()}


def _joined(cached: PackedFeatures, frames: tuple[int, ...], made: Tensor) -> PackedFeatures:
    """Each clip's cached rows, then those made of its frames; ``made`` is (F, rows of a frame, D)."""
    pieces, offsets = [], [0]
    for clip in range(len(frames) - 1):
        kept = cached.values[cached.offsets[clip] : cached.offsets[clip + 1]]
        new = made[frames[clip] : frames[clip + 1]].flatten(0, 1)
        pieces += [kept, new]
        offsets.append(offsets[-1] + len(kept) + len(new))
    return PackedFeatures(torch.cat(pieces), tuple(offsets))
