"""Frames through the frozen image encoder in the step, where a dataset brings pixels in place of cached rows.

Letters: F frames of a micro-batch, P patches of one, D the image rows' width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from emollama.data.batch import Rows
from emollama.data.features import FRAME
from emollama.encoders.eva_vit import EvaFiles, EvaVit
from emollama.errors import UserError

RowsOut = Callable[[Mapping[str, int]], dict[str, int]]


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


def with_frames(rows_out: RowsOut, patches: int) -> RowsOut:
    """A fusion module's ``rows_out`` for clips that may bring a frame: it counts as the rows that are made of it."""

    def counted(counts: Mapping[str, int]) -> dict[str, int]:
        rest = {slot: count for slot, count in counts.items() if slot != FRAME}
        frame = counts.get(FRAME, 0)
        return rows_out(rest | {"image": rest["image"] + frame * patches, "cls": rest["cls"] + frame})

    return counted


def encoded(slots: Mapping[str, Rows], vit: EvaVit) -> dict[str, Rows]:
    """The slots without frames: each frame's rows stand where its clip's image and class rows are.

    Args:
        slots: with the slot ``frame``, (F, 3 x side x side).
        vit: the encoder, (F, 3, side, side) -> (F, 1 + P, D).
    """
    rest = {slot: rows for slot, rows in slots.items() if slot != FRAME}
    frames = slots[FRAME]
    if not len(frames.values):
        return rest
    side = round((frames.values.shape[1] / 3) ** 0.5)
    rows = vit(frames.values.reshape(-1, 3, side, side))
    made = {"image": rows[:, 1:], "cls": rows[:, :1]}
    return rest | {slot: _joined(slots[slot], frames.offsets, parts) for slot, parts in made.items()}


def _joined(cached: Rows, frames: tuple[int, ...], made: Tensor) -> Rows:
    """Each clip's cached rows, then those made of its frames; ``made`` is (F, rows of a frame, D)."""
    pieces, offsets = [], [0]
    for clip in range(len(frames) - 1):
        kept = cached.values[cached.offsets[clip] : cached.offsets[clip + 1]]
        new = made[frames[clip] : frames[clip + 1]].flatten(0, 1)
        pieces += [kept, new]
        offsets.append(offsets[-1] + len(kept) + len(new))
    return Rows(torch.cat(pieces), tuple(offsets))
