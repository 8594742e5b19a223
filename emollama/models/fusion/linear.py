"""Fusion modules that project each feature vector by itself, as published with Emotion-LLaMA and MiniGPT-4.

Shape letters: n = feature vectors of a slot in the whole micro-batch, D = size of a feature vector of the slot, H = hidden size
of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from emollama.data.batch import PackedFeatures
from emollama.data.fusion_layout import FusionLayout
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.models.fusion.configs import ImageProjectionConfig, LinearFusionConfig
from emollama.models.fusion.feature_tokens import project

GROUP = 4  # number of neighbouring patch vectors, in raster order, that are concatenated into one
PUBLISHED = {  # slot -> name of its layer in the checkpoints of Emotion-LLaMA, in the order of initialization
    "image": "llama_proj",
    "face": "feats_llama_proj1",
    "video": "feats_llama_proj2",
    "audio": "feats_llama_proj3",
    "cls": "cls_tk_llama_proj",
}


class LinearFusion(nn.Module):
    """A linear projection for each slot.

    The output ``video`` has the tokens of the slot ``image``, one for each group of four patches. The output ``feature`` has one
    token for each vector of the other slots: face, video, audio, cls, and then further slots in the order of their declaration.
    The layer of a further slot ``x`` is ``feats_llama_proj_x``.

    Args:
        cfg: no keys.
        slots: slot -> shape of its feature vectors. Any slots are accepted.
        hidden_size: H.
    """

    Config = LinearFusionConfig

    def __init__(self, cfg: LinearFusionConfig, slots: Mapping[str, SlotShape], hidden_size: int) -> None:
        super().__init__()
        self._layers = {slot: layer_name(slot) for slot in _in_order(slots)}
        for slot, name in self._layers.items():
            self.add_module(name, nn.Linear(slots[slot].dim * (GROUP if slot == "image" else 1), hidden_size))

    @classmethod
    def layout(cls, cfg: LinearFusionConfig, slots: Mapping[str, SlotShape]) -> FusionLayout:
        """Return names and numbers of the feature tokens; see :class:`LinearFusion`."""
        feature = tuple(slot for slot in _in_order(slots) if slot != "image")
        new = tuple(f"{layer_name(slot)}.*" for slot in feature if slot not in PUBLISHED)
        return FusionLayout({"video": ("image",) if "image" in slots else (), "feature": feature}, _num_feature_tokens, new)

    def forward(self, slots: Mapping[str, PackedFeatures]) -> dict[str, Tensor]:
        """Project every slot: slot -> feature vectors (n, D) to slot -> feature tokens (n, H), or (n / 4, H) for image.

        The number of image vectors of each sample is a multiple of four, so a group never contains vectors of two samples.
        """
        # All layers run even on empty slots, because data parallelism expects a gradient for each parameter on every rank.
        vectors = {slot: slots[slot].values for slot in self._layers}
        if "image" in vectors:
            vectors["image"] = vectors["image"].reshape(-1, GROUP * vectors["image"].shape[1])
        return {slot: project(self.get_submodule(name), vectors[slot]) for slot, name in self._layers.items()}


class ImageProjection(nn.Module):
    """One linear projection of an image's feature vectors, as published with MiniGPT-4, whose checkpoints name it ``llama_proj``.

    Its only output is ``image``.

    Args:
        cfg: no keys.
        slots: ``image`` -> shape of its feature vectors.
        hidden_size: H.
    """

    Config = ImageProjectionConfig

    def __init__(self, cfg: ImageProjectionConfig, slots: Mapping[str, SlotShape], hidden_size: int) -> None:
        super().__init__()
        self.llama_proj = nn.Linear(slots["image"].dim, hidden_size)

    @classmethod
    def layout(cls, cfg: ImageProjectionConfig, slots: Mapping[str, SlotShape]) -> FusionLayout:
        """Return one feature token for each feature vector of the image.

        Raises:
            UserError: If the model has slots other than ``image``.
        """
        if set(slots) != {"image"}:
            raise UserError(
                f"model.slots: the fusion module 'image_projection' accepts only the slot image, but the model has"
                f" {', '.join(slots)}. Remove the others, or select another fusion."
            )
        return FusionLayout({"image": ("image",)}, lambda lengths: {"image": lengths["image"]})

    def forward(self, slots: Mapping[str, PackedFeatures]) -> dict[str, Tensor]:
        """Project {"image": (n, D)}, the feature vectors of all samples, to {"image": (n, H)}."""
        return {"image": project(self.llama_proj, slots["image"].values)}


def _in_order(slots: Mapping[str, SlotShape]) -> list[str]:
    """Return the slots in the order of initialization: the published ones, then the others as declared."""
    return [slot for slot in PUBLISHED if slot in slots] + [slot for slot in slots if slot not in PUBLISHED]


def layer_name(slot: str) -> str:
    """Return the name of the layer that projects a slot's feature vectors."""
    return PUBLISHED.get(slot, f"feats_llama_proj_{slot}")


def _num_feature_tokens(lengths: Mapping[str, int]) -> dict[str, int]:
    """Convert the number of a sample's feature vectors by slot to the number of feature tokens by part."""
    image = lengths.get("image", 0)
    if image % GROUP:
        raise ValueError(
            f"{image} image vectors cannot be joined in groups of {GROUP}: an EVA array must contain a class token and a"
            f" multiple of {GROUP} patch vectors"
        )
    return {slot: length // GROUP if slot == "image" else length for slot, length in lengths.items()}
