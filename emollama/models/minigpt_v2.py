"""MiniGPT-v2 and Emotion-LLaMA: feature vectors are projected into the prompt of a language model with LoRA adapters."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from emollama.data.batch import Batch, PackedFeatures
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.prompts.prompt_style import LossAverage
from emollama.data.slots import PIXELS, FrameSelection, SlotShape, slot_shapes
from emollama.models import checkpoint_names, frames, prompt_formats
from emollama.models.configs import MiniGPTv2Config
from emollama.models.packed_llm import PackedLLM
from emollama.stores.manifest import Manifest
from emollama.weight_parts import Weights


class MiniGPTv2(PackedLLM):
    """The model of ``arch: minigpt_v2``; for its arguments see :class:`~emollama.models.packed_llm.PackedLLM`."""

    Config = MiniGPTv2Config

    optional_tensor_group = checkpoint_names.OPTIONAL_TENSOR_GROUP
    architecture = "minigpt_v2"

    def __init__(
        self, cfg: MiniGPTv2Config, *, device: torch.device, frozen_dtype: torch.dtype, weights: Weights = "all"
    ) -> None:
        super().__init__(cfg, device=device, frozen_dtype=frozen_dtype, weights=weights)
        self.vit = frames.build(cfg.vit_weights, cfg, device) if cfg.vit_weights is not None else None

    @staticmethod
    def slot_shapes(cfg: MiniGPTv2Config) -> dict[str, SlotShape]:
        """Return the expected shape of a sample's features for each slot."""
        pixels = {PIXELS: SlotShape(1, 3 * cfg.image_size**2)} if cfg.vit_weights is not None else {}
        return slot_shapes(cfg.parsed_slots()) | pixels

    @staticmethod
    def frame_manifest(cfg: MiniGPTv2Config, choice: FrameSelection) -> Manifest:
        """Return the manifest of the features that the model computes from frames.

        Raises:
            UserError: If the weights do not exist or are not those of an EVA transformer.
        """
        assert cfg.vit_weights is not None
        return frames.manifest(cfg.vit_weights, cfg, choice)

    @classmethod
    def prompt_format(cls, cfg: MiniGPTv2Config, loss_average: LossAverage = "sample") -> PromptFormat:
        """Return the prompt format of this model. It reads the language model's folder, but not its weights."""
        return prompt_formats.build(cfg, cfg.prompt_format, cls.feature_layout(cfg), loss_average)

    def features_for_fusion(self, batch: Batch) -> Mapping[str, PackedFeatures]:
        """Return the features by slot; those computed from frames are in ``image`` and ``cls``."""
        return batch.slots if self.vit is None else frames.encode_pixels(batch.slots, frames.image_and_class(self.vit))
