"""Features changed at random in training. Everything random comes from the draw's generator, so a resumed run repeats it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from emollama.data.slots import FRAME, IMAGE, PATCH

if TYPE_CHECKING:
    from torch import Tensor

AugmentationKind = Literal["noise", "drop_modality", "mask_rows"]
MODALITIES = (IMAGE, ("face",), ("video",), ("audio",))


@dataclass(frozen=True)
class Augmentation:
    """What happens to the features of a clip that is drawn.

    Attributes:
        prob: probability of each kind, independently.
        kinds: those that are on.
        noise: standard deviation of the noise, as a share of each slot's own.
        mask: share of the image rows that become zeros.

    Raises:
        ValueError: a probability or share outside 0 to 1, or a negative noise; names the key.
    """

    prob: float
    kinds: tuple[AugmentationKind, ...]
    noise: float
    mask: float

    def __post_init__(self) -> None:
        for key, value in (("augmentation_prob", self.prob), ("augmentation_mask", self.mask)):
            if not 0 <= value <= 1:
                raise ValueError(f"{key} is {value}; it must be from 0 to 1")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"augmentations: {list(self.kinds)} names a kind twice")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"augmentation_noise is {self.noise}; it must be at least 0, and finite")

    def __call__(self, features: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """The features, changed; the tensors that came in are left as they were.

        Args:
            features: slot -> rows (n, D).
            rng: the draw's generator.
        """
        steps = {"noise": self._noisy, "drop_modality": self._dropped, "mask_rows": self._masked}
        for kind in self.kinds:
            if rng.random() < self.prob:
                features = features | steps[kind](features, rng)
        return features

    def _noisy(self, features: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        rows_of = {slot: rows for slot, rows in features.items() if slot not in (*IMAGE, FRAME) and rows.numel()}
        return {slot: rows + _normal(rows, rng) * rows.std(correction=0) * self.noise for slot, rows in rows_of.items()}

    def _dropped(self, features: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """One modality's rows as zeros; the last one that says anything stays."""
        import torch  # here, so that the Config classes can check an augmentation without torch

        frame = features.get(FRAME, torch.zeros(0, 0))
        present = [slots for slots in MODALITIES if any(features[slot].any() for slot in slots if slot in features)]
        present = [IMAGE, *present] if len(frame) else present
        if len(present) < 2:
            return {}
        dropped = present[rng.integers(len(present))]
        if dropped == IMAGE and len(frame):  # rows of zeros in place of those that the model would make of the frame
            counts = {"image": frame.shape[1] // 3 // PATCH**2, "cls": 1}
            return {FRAME: frame[:0]} | {slot: torch.zeros(count, features[slot].shape[1]) for slot, count in counts.items()}
        return {slot: torch.zeros_like(features[slot]) for slot in dropped}

    def _masked(self, features: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        import torch

        rows = features["image"].clone()
        rows[torch.from_numpy(rng.permutation(len(rows))[: round(self.mask * len(rows))])] = 0
        return {"image": rows}


def _normal(rows: Tensor, rng: np.random.Generator) -> Tensor:
    import torch

    return torch.from_numpy(rng.standard_normal(rows.shape, np.float32))
