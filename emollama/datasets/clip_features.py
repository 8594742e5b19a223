"""Opens the features that a dataset block of video clips names, and checks them against the slots of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from emollama.data.features import Features
from emollama.data.slots import PIXELS, SlotShape, declared_slots
from emollama.datasets.clip_config import ClipConfig
from emollama.errors import UserError
from emollama.paths import join
from emollama.suggestions import did_you_mean


def open_features(
    cfg: ClipConfig, slot_shapes: Mapping[str, SlotShape], block_path: str, resolve_path: Callable[[str], str]
) -> list[Features]:
    """Open the store of each slot, and the videos if the model encodes their frames.

    Args:
        cfg: the dataset's block of the configuration.
        slot_shapes: slot -> the shape that the model expects.
        block_path: path of the config block, for messages.
        resolve_path: resolves a path that is relative to the folder of the annotation file.

    Raises:
        UserError: If the model has no such slot, or a store does not exist.
    """
    groups = declared_slots(slot_shapes)
    configured = {slot: feature for slot, feature in cfg.feature_configs().items() if feature is not None}
    # A slot that is null needs no counterpart in the model, but it may be misspelled.
    misspelled = [slot for slot in cfg.features if slot not in groups and did_you_mean(slot, groups, cutoff=0.75)]
    _require_slots(list(dict.fromkeys([*configured, *misspelled])), groups, block_path)
    features = []
    for slot, feature in configured.items():
        key = f"{block_path}.features.{slot}"
        if feature.pooling is not None:
            _require_one_vector(slot, slot_shapes[slot], key)
        path, shape = resolve_path(feature.path), slot_shapes[slot]
        features.append(Features.open(path, groups[slot], shape, key, feature.pooling, cfg.stream))
    if cfg.reads_frames:
        peaks = None if cfg.peak_index_path is None else resolve_path(cfg.peak_index_path)
        folder = join(cfg.data_root, str(cfg.image_path))
        # Imported here because it imports PyAV, which runs with extracted features do not need.
        from emollama.datasets.frame_store import open_frames

        features.append(open_frames(folder, slot_shapes.get(PIXELS), block_path, cfg.frame_selection, peaks))
    all_values = cfg.check_values == "all"
    return [dataclasses.replace(source, all_values=all_values, accepts_pooling=True) for source in features]


def slot_sources(cfg: ClipConfig, slot_shapes: Mapping[str, SlotShape]) -> dict[str, str | None]:
    """Return slot -> configured path of its features (with their pooling), or None if the clips have none.

    Slots that the block does not mention are left out, unless they get zeros (``missing_features: zero``).
    """
    sources: dict[str, str | None] = dict.fromkeys(declared_slots(slot_shapes)) if cfg.missing_features == "zero" else {}
    features = {slot: None if feature is None else str(feature) for slot, feature in cfg.feature_configs().items()}
    return sources | features | ({"image": cfg.image_path} if cfg.reads_frames else {})


def _require_one_vector(slot: str, shape: SlotShape, key: str) -> None:
    """Raise a UserError if a slot has several vectors or a class token, which pooling would average."""
    if shape.class_token is not None or shape.num_vectors not in (1, None):
        problem = "has a class token" if shape.class_token is not None else f"has length {shape.num_vectors}"
        raise UserError(
            f"{key}.pooling: the mean is a single vector, but the slot {slot} of the model {problem}. Remove pooling."
        )


def _require_slots(slots: list[str], groups: Mapping[str, tuple[str, ...]], block_path: str) -> None:
    """Raise a UserError for features without a slot, which says how to declare it."""
    unknown = [slot for slot in slots if slot not in groups]
    if not unknown:
        return
    its_slots = f"Its slots are {', '.join(groups)}" if groups else "It has no slots"
    text = f"{block_path}.features: the model has no slot for {', '.join(unknown)}. {its_slots}"
    owners = {token: slot for slot, (_, *tokens) in groups.items() for token in tokens}
    if filled := [slot for slot in unknown if slot in owners]:
        raise UserError(f"{text}; the arrays of {owners[filled[0]]} also fill {filled[0]}. Remove {filled[0]}.")
    hint = "".join(did_you_mean(slot, groups) for slot in unknown)
    keys = " and ".join(f"features.{slot}: null" for slot in unknown)
    declared = ", ".join(f"{slot}: {{dim: D}}" for slot in unknown)
    raise UserError(
        f"{text}.{hint} Declare it in the block 'model', slots: {{{declared}}}, where D is the size of a feature vector"
        f" (arch: minigpt_v2), or set {keys}. For images with captions, use flickr30k_caption."
    )
