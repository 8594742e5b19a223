"""Encode frames with a frozen image encoder in the training step, for datasets that return pixels instead of features.

Shape letters: F = frames of a micro-batch, P = patches of a frame, n = feature vectors of a frame in a slot, D = their size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from emollama.data.batch import PackedFeatures
from emollama.data.slots import IMAGE, PIXELS, FrameSelection, SlotShape, without_pixels
from emollama.encoders.eva_vit import EvaFiles, EvaVit, read_eva
from emollama.encoders.shapes import IDENTITY, EvaShape
from emollama.encoders.weights import digest
from emollama.errors import UserError
from emollama.stores.manifest import Manifest

TokenCounter = Callable[[Mapping[str, int]], dict[str, int]]


def build(weights: str, cfg: Any, device: torch.device) -> EvaVit:
    """Load the encoder that a ``model`` block configures, as in Emotion-LLaMA: 39 layers, and ``ln_vision`` is the identity.

    Raises:
        UserError: If the file does not exist, is not an EVA transformer, or its hidden size differs from ``slots.image.dim``.
    """
    key = "model.vit_weights"
    encoder = EvaVit.load(EvaFiles(weights, cfg.image_size, cfg.vit_precision), device=device, key=key)
    dim = cfg.parsed_slots()["image"].dim
    if encoder.width != dim:
        raise UserError(
            f"{key}: the encoder in '{weights}' has hidden size {encoder.width}, but model.slots.image.dim is {dim}."
            " Change one of them so that they agree."
        )
    encoder.visual_encoder.set_grad_checkpointing(cfg.use_grad_checkpoint_vit)
    return encoder


def manifest(weights: str, cfg: Any, choice: FrameSelection, ln_vision: str = IDENTITY) -> Manifest:
    """Return the manifest of features that this encoder computes.

    Args:
        weights: path of the encoder's weights.
        cfg: the ``model`` block.
        choice: which frame of a video is encoded.
        ln_vision: the argument of :func:`~emollama.encoders.eva_vit.read_ln_vision`.

    Raises:
        UserError: If the weights do not exist or are not those of an EVA transformer.
    """
    # Imported here because it imports PyAV, which most runs do not need.
    from emollama.encoders.eva import Eva

    # Read the file first, so that an error names the key of the model instead of the encoder's.
    read_eva(weights, "model.vit_weights", EvaShape.depth)
    eva = Eva.Config(weights, image_size=cfg.image_size, precision=cfg.vit_precision, frame_selection=choice, ln_vision=ln_vision)
    described = Eva.describe(eva, "model")
    return Manifest(IMAGE, described.shape.num_vectors, described.shape.dim, described.settings, digest(weights), "float32")


def count_tokens_with_pixels(num_feature_tokens: TokenCounter, shapes: Mapping[str, SlotShape]) -> TokenCounter:
    """Wrap a fusion module's token count so that each frame or image adds the vectors that its encoder will return.

    Args:
        num_feature_tokens: number of feature vectors by slot -> number of feature tokens by part.
        shapes: the slots of the model.
    """
    vectors_per_frame = {slot: shapes[slot].num_vectors or 1 for slot in IMAGE if slot in shapes}

    def count_tokens(counts: Mapping[str, int]) -> dict[str, int]:
        rest = without_pixels(counts)
        frames = counts.get(PIXELS, 0)
        return num_feature_tokens(rest | {slot: rest[slot] + frames * count for slot, count in vectors_per_frame.items()})

    return count_tokens


def image_and_class(vit: EvaVit) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a function from frames (F, 3, side, side) to image features (F, P, D) and class tokens (F, 1, D)."""

    def encode(images: Tensor) -> dict[str, Tensor]:
        vectors = vit(images)
        return {"image": vectors[:, 1:], "cls": vectors[:, :1]}

    return encode


def encode_pixels(
    slots: Mapping[str, PackedFeatures], encode: Callable[[Tensor], Mapping[str, Tensor]]
) -> dict[str, PackedFeatures]:
    """Replace the slot ``frame`` by features: those of a sample's frame follow the cached features of the sample.

    Args:
        slots: packed features by slot, including the pixels ``frame`` (F, 3 x side x side).
        encode: (F, 3, side, side) -> slot -> (F, n, D).
    """
    rest = without_pixels(slots)
    frames = slots[PIXELS]
    if not len(frames.values):
        return rest
    side = round((frames.values.shape[1] / 3) ** 0.5)
    encoded = encode(frames.values.reshape(-1, 3, side, side))
    return rest | {slot: _append(slots[slot], frames.offsets, vectors) for slot, vectors in encoded.items()}


def _append(cached: PackedFeatures, frame_offsets: tuple[int, ...], encoded: Tensor) -> PackedFeatures:
    """Append the features of each sample's frames, ``encoded`` (F, n, D), to the sample's cached features."""
    pieces, offsets = [], [0]
    for index in range(len(frame_offsets) - 1):
        stored = cached.values[cached.offsets[index] : cached.offsets[index + 1]]
        new = encoded[frame_offsets[index] : frame_offsets[index + 1]].flatten(0, 1)
        pieces += [stored, new]
        offsets.append(offsets[-1] + len(stored) + len(new))
    return PackedFeatures(torch.cat(pieces), tuple(offsets))
