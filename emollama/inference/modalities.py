"""Which slots of the model get features of a clip, and why the others get none."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from emollama.data.dataset import FeatureSource, SampleDataset
from emollama.data.slots import PIXELS, without_pixels
from emollama.inference.clip_encoders import frame_slot
from emollama.inference.prediction_block import PredictionBlock
from emollama.inference.requests import Modality, UnusableInput
from emollama.media.frame_selection import NO_PEAK

OF_REQUEST = "features of the request"


class Modalities:
    """Describes the model's input for each slot.

    Args:
        block: the evaluation block that defines the prompts.
        slots: the slots of the model.
        encoders: first slot of an encoder -> dotted name of its block.
    """

    def __init__(self, block: PredictionBlock, slots: Collection[str], encoders: Mapping[str, str]) -> None:
        self._block, self._slots, self._encoders = block, without_pixels(dict.fromkeys(slots)), encoders

    def of(
        self,
        dataset: SampleDataset,
        name: str,
        *,
        masked: Mapping[str, str],
        failed: Mapping[str, str],
        in_request: Collection[str],
    ) -> dict[str, Modality]:
        """Return slot -> the model's input.

        Args:
            dataset: the dataset of the clip.
            name: name of the clip.
            masked: slot that is replaced by zeros -> where this is configured.
            failed: first slot of an encoder -> why it has no array of the clip.
            in_request: slots whose arrays the request contains.
        """
        sources = {slot: source for source in dataset.features for slot in source.filled_slots}
        modalities = {}
        for slot in self._slots:
            if slot not in sources:
                modalities[slot] = Modality("missing", f"{self._block.key} has no {slot} features")
            elif slot in masked:
                modalities[slot] = Modality("zero", masked[slot])
            elif sources[slot].slots[0] in in_request:
                modalities[slot] = Modality("real", OF_REQUEST)
            else:
                modalities[slot] = self._extracted(slot, sources[slot], name, failed)
        return modalities

    def _extracted(self, slot: str, source: FeatureSource, name: str, failed: Mapping[str, str]) -> Modality:
        """Return the model's input for a slot whose features are extracted from the clip."""
        online = source.slots == (PIXELS,)
        encoder = "model.vit_weights" if online else self._encoders.get(source.slots[0], "")
        if name in source:
            return Modality("real", encoder)
        if not encoder:
            return Modality("missing", f"no block under 'encoders' computes {slot} features; zeros replace them")
        why = failed.get(frame_slot(self._block) if online else source.slots[0], "no array")
        peaks, frames = (self._block.key, self._block.key) if online else ("extraction", encoder)
        remedy = f". {_remedy(peaks, frames, name)}" if why == NO_PEAK else ""
        return Modality("zero", f"{encoder}: {why}{remedy}")


def _remedy(peaks: str, frames: str, name: str) -> str:
    """Return how to fix an unknown peak frame.

    Args:
        peaks: the block with the key ``peak_index_path``.
        frames: the block with the key ``frame_selection``.
        name: the clip.
    """
    other = f"{frames}.frame_selection=middle with run.allow_other_features=True"
    return f"Add a row with the name '{name}' to {peaks}.peak_index_path, or select another frame: {other}"


def require_features(modalities: Mapping[str, Modality], what: str, param: str) -> None:
    """Check that the model gets features for at least one slot, because its answer would be meaningless otherwise.

    Args:
        modalities: slot -> the model's input.
        what: the clip, for the message.
        param: the field of the request with the clip.

    Raises:
        UnusableInput: If no slot has features. The message gives each reason once.
    """
    if any(modality.state == "real" for modality in modalities.values()):
        return
    first: dict[str, str] = {}  # reason without the encoder -> the first slot with it
    repeated: dict[str, list[str]] = {}
    for slot, modality in modalities.items():
        reason = modality.why.partition(": ")[2] or modality.why
        if first.setdefault(reason, slot) != slot:
            repeated.setdefault(first[reason], []).append(slot)
    reasons = ""
    for slot in first.values():
        reasons += f"\n- {slot}: {modalities[slot].state}, {modalities[slot].why}"
        reasons += f"; the same for {', '.join(repeated[slot])}" if slot in repeated else ""
    raise UnusableInput(f"the model gets no features of {what}:{reasons}", param)
