"""Random augmentation of features in training.

All random numbers come from the sample's generator, so a resumed run repeats the same augmentation.
Letters: n feature vectors of a slot, D their size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from emollama.data.slots import IMAGE, PATCH, PIXELS

if TYPE_CHECKING:
    from torch import Tensor

AugmentationKind = Literal["noise", "drop_modality", "mask_rows"]


@dataclass(frozen=True)
class Augmentation:
    """Changes the features of a training sample at random.

    Attributes:
        prob: probability of each kind of augmentation, independently.
        kinds: the enabled kinds.
        noise: standard deviation of the noise, as a fraction of the standard deviation of each slot's values.
        mask: fraction of a slot's feature vectors that become zeros.
        modalities: the slots of each modality, in the order of the model.

    Raises:
        ValueError: If a probability or fraction is outside 0 to 1, a kind is repeated, or the noise is negative. The message
            names the key.
    """

    prob: float
    kinds: tuple[AugmentationKind, ...]
    noise: float
    mask: float
    modalities: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for key, value in (("augmentation_prob", self.prob), ("augmentation_mask", self.mask)):
            if not 0 <= value <= 1:
                raise ValueError(f"{key} is {value}; it must be from 0 to 1")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"augmentations: {list(self.kinds)} contains a kind twice")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"augmentation_noise is {self.noise}; it must be at least 0, and finite")

    def __call__(self, features: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the augmented features; the input tensors are not modified.

        Args:
            features: slot -> feature vectors (n, D), in float32 or float16.
            rng: the sample's generator.

        Returns:
            The same slots, in float32.
        """
        steps = {"noise": self._add_noise, "drop_modality": self._drop_modality, "mask_rows": self._mask_vectors}
        # Imported here so that the Config classes can check an augmentation without torch.
        from emollama.data.int8_vectors import dequantized

        features = {slot: dequantized(vectors).float() for slot, vectors in features.items()}
        for kind in self.kinds:
            if rng.random() < self.prob:
                features = features | steps[kind](features, rng)
        return features

    def _add_noise(self, features: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        vectors_by_slot = {
            slot: vectors for slot, vectors in features.items() if slot not in (*IMAGE, PIXELS) and vectors.numel()
        }
        return {
            slot: vectors + _normal(vectors, rng) * vectors.std(correction=0) * self.noise
            for slot, vectors in vectors_by_slot.items()
        }

    def _drop_modality(self, features: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Replace one modality by zeros, unless only one modality has nonzero features."""
        import torch

        frame = features.get(PIXELS, torch.zeros(0, 0))
        present = [slots for slots in self.modalities if any(features[slot].any() for slot in slots if slot in features)]
        present = [IMAGE, *present] if len(frame) else present
        if len(present) < 2:
            return {}
        dropped = present[rng.integers(len(present))]
        if dropped == IMAGE and len(frame):
            # The model would compute image features from the frame. Remove the frame and supply zeros in their place.
            counts = {"image": frame.shape[1] // 3 // PATCH**2, "cls": 1}
            return {PIXELS: frame[:0]} | {slot: torch.zeros(count, features[slot].shape[1]) for slot, count in counts.items()}
        return {slot: torch.zeros_like(features[slot]) for slot in dropped}

    def _mask_vectors(self, features: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Replace some vectors of each slot that has several by zeros. A class token is never masked."""
        import torch

        masked = {}
        for slot, *_ in self.modalities:
            vectors = features[slot].clone()
            if slot == IMAGE[0] or len(vectors) > 1:
                vectors[torch.from_numpy(rng.permutation(len(vectors))[: round(self.mask * len(vectors))])] = 0
                masked[slot] = vectors
        return masked


def _normal(vectors: Tensor, rng: np.random.Generator) -> Tensor:
    import torch

    return torch.from_numpy(rng.standard_normal(vectors.shape, np.float32))
