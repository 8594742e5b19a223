"""Slots: the names under which a sample's features reach the model, and the shapes that the model expects.

A model declares its slots (``slots: {gaze: {dim: 7}}``), a dataset the features that fill them (``features: {gaze: gaze_npy}``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from emollama.dtypes import ComputeDtype
from emollama.field_texts import documented
from emollama.stores.feature_cache import FeatureCache
from emollama.suggestions import did_you_mean

PATCH = 14  # side of an EVA patch in pixels
PIXELS = "frame"  # slot of a frame's or an image's pixels, which an encoder inside the model replaces by the slots of IMAGE
IMAGE = ("image", "cls")
FrameSelection = Literal["first", "middle", "random", "peak"]  # which frame of a video is encoded
Pooling = Literal["mean"]  # how several vectors of an array become one
POOLING: tuple[Pooling, ...] = ("mean",)
T = TypeVar("T")


@dataclass(frozen=True)
class SlotShape:
    """The shape that a model expects of a slot's features.

    Attributes:
        num_vectors: number of feature vectors per sample; None for any number of at least one.
        dim: size D of each feature vector; arrays must have it.
        class_token: the slot that gets the first vector of each array, the class token of an image encoder; None if all vectors
            belong to the slot itself. ``num_vectors`` does not count the class token.
        cache_folder: folder in which the model caches the features that it computes from images
            (:mod:`emollama.stores.feature_cache`); None if it does not.
        compute_dtype: the dtype in which the run computes. Larger values than its largest one cannot be used.
    """

    num_vectors: int | None
    dim: int
    class_token: str | None = None
    cache_folder: str | None = None
    compute_dtype: ComputeDtype = "fp32"

    @property
    def num_zeros(self) -> int:
        """Number of zero vectors that replace a missing array."""
        return self.num_vectors or 1


@documented
@dataclass(frozen=True)
class SlotConfig:
    """A slot as a ``model`` block declares it."""

    dim: int
    """Size of each feature vector."""
    length: int | None = 1
    """Number of feature vectors per sample. If null, any number of at least one."""
    class_token: str | None = None
    """The slot that gets the first vector of each array. If null, there is no class token."""

    def shape(self) -> SlotShape:
        """Return the shape of the slot."""
        return SlotShape(self.length, self.dim, self.class_token)


def parse_slots(slots: Mapping[str, Any], default_lengths: Mapping[str, int]) -> dict[str, SlotConfig]:
    """Check the key ``slots`` of a ``model`` block. A slot that is null is left out.

    Args:
        slots: slot -> mapping with the keys of :class:`SlotConfig`, or None.
        default_lengths: slot -> ``length`` if the configuration does not set it; 1 for other slots.

    Raises:
        ValueError: If a name, key or value is invalid, or a slot is declared twice. The message names the key.
    """
    parsed = {name: _parse_slot(name, keys, default_lengths.get(name, 1)) for name, keys in slots.items() if keys is not None}
    declared = dict.fromkeys(parsed, "slots")
    for name, slot in parsed.items():
        if slot.class_token is None:
            continue
        valid = slot.class_token.isidentifier() and slot.class_token != PIXELS
        if slot.class_token in declared or not valid:
            problem = "is declared twice" if valid else "has a name that is not valid or reserved"
            raise ValueError(f"slots.{name}.class_token: the slot '{slot.class_token}' {problem}. Choose another name.")
        declared[slot.class_token] = name
    return parsed


def slot_shapes(slots: Mapping[str, SlotConfig]) -> dict[str, SlotShape]:
    """Return slot -> shape in the order of declaration; the slot of a class token follows its own slot."""
    shapes: dict[str, SlotShape] = {}
    for name, slot in slots.items():
        shapes[name] = slot.shape()
        if slot.class_token is not None:
            shapes[slot.class_token] = SlotShape(1, slot.dim)
    return shapes


def without_pixels(slots: Mapping[str, T]) -> dict[str, T]:
    """Return the slots of feature vectors, which a fusion module gets: all but pixels."""
    return {slot: value for slot, value in slots.items() if slot != PIXELS}


def declared_slots(shapes: Mapping[str, SlotShape]) -> dict[str, tuple[str, ...]]:
    """Return slot -> the slots that one of its arrays fills, without pixels and without the slots of class tokens."""
    class_tokens = {shape.class_token for shape in shapes.values()}
    return {
        slot: (slot,) if shape.class_token is None else (slot, shape.class_token)
        for slot, shape in without_pixels(shapes).items()
        if slot not in class_tokens
    }


def unfilled_slots(shapes: Mapping[str, SlotShape], sources: Iterable[Mapping[str, str | None]]) -> list[str]:
    """Return the declared slots that no dataset mentions.

    Args:
        shapes: the slots of the model.
        sources: slot -> source of its features for each dataset. The source None means that the dataset has no such features on
            purpose.
    """
    mentioned = {slot for dataset_sources in sources for slot in dataset_sources}
    return [slot for slot in declared_slots(shapes) if slot not in mentioned]


def _parse_slot(name: str, keys: Any, default_length: int) -> SlotConfig:
    key = f"slots.{name}"
    if not name.isidentifier() or name == PIXELS:
        rule = f"Use letters, digits (not first) and _; '{PIXELS}' is reserved."
        raise ValueError(f"{key}: '{name}' cannot be the name of a slot. {rule}")
    if not isinstance(keys, Mapping):
        raise ValueError(f"{key}: expected a mapping such as {{dim: 7}}, or null for no such slot, got {keys!r}")
    valid = [item.name for item in fields(SlotConfig)]
    for item in keys:
        if item not in valid:
            raise ValueError(f"{key}: unknown key '{item}'.{did_you_mean(str(item), valid)} Keys: {', '.join(valid)}")
    if "dim" not in keys:
        raise ValueError(f"{key}.dim is missing. It is the size of each feature vector, such as {{dim: 7}}.")
    slot = SlotConfig(keys["dim"], keys.get("length", default_length), keys.get("class_token"))
    if not _is_positive(slot.dim):
        raise ValueError(f"{key}.dim is {slot.dim!r}; expected a whole number of at least 1")
    if slot.length is not None and not _is_positive(slot.length):
        raise ValueError(f"{key}.length is {slot.length!r}; expected a whole number of at least 1, or null for any number")
    if slot.class_token is not None and not isinstance(slot.class_token, str):
        raise ValueError(f"{key}.class_token is {slot.class_token!r}; expected the name of a slot, or null")
    return slot


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def feature_cache(shape: SlotShape) -> FeatureCache | None:
    """Return the cache of a slot whose features the model computes from images; None if they are not cached."""
    if shape.cache_folder is None or shape.num_vectors is None:
        return None
    return FeatureCache(shape.cache_folder, (shape.num_vectors, shape.dim))
