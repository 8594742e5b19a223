"""MiniGPT-4: frozen image encoders, and one trained projection into the language model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from emollama.data.batch import Batch, PackedFeatures
from emollama.data.prompts.image_tag import read_prompts
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.prompts.prompt_style import LossAverage
from emollama.data.slots import PIXELS, FrameSelection, SlotShape
from emollama.models import checkpoint_names, frames, prompt_formats, vision
from emollama.models.configs import MiniGPT4Config
from emollama.models.fusion.linear import GROUP
from emollama.models.packed_llm import PackedLLM
from emollama.registry import PROMPT_FORMATS
from emollama.stores.manifest import Manifest
from emollama.weight_parts import Weights


class MiniGPT4(PackedLLM):
    """The model of ``arch: minigpt4``; for its arguments see :class:`~emollama.models.packed_llm.PackedLLM`.

    A sample contains its image as pixels (slot ``frame``), or features that were cached before (slot ``image``).
    """

    Config = MiniGPT4Config

    # The published training code also stores this buffer of the frozen Q-Former.
    ignored_tensors: tuple[str, ...] = (*checkpoint_names.IGNORED_TENSORS, "Qformer.bert.embeddings.position_ids")
    shape_keys: tuple[str, ...] = ("has_qformer", "llama_model", "lora_r")
    architecture = "minigpt4"

    def __init__(self, cfg: MiniGPT4Config, *, device: torch.device, frozen_dtype: torch.dtype, weights: Weights = "all") -> None:
        super().__init__(cfg, device=device, frozen_dtype=frozen_dtype, weights=weights)
        self.vision = vision.FrozenVision(cfg, self.slot_shapes(cfg)["image"], device=device)

    @staticmethod
    def slot_shapes(cfg: MiniGPT4Config) -> dict[str, SlotShape]:
        """Return the expected shape of a sample's features for each slot."""
        if cfg.has_qformer:
            num_vectors, dim = cfg.num_query_token, cfg.query_width
        else:
            num_vectors, dim = cfg.patches // GROUP, GROUP * cfg.vit_width
        folder = cfg.visual_cache_path if cfg.cache_visual else None
        return {"image": SlotShape(num_vectors, dim, cache_folder=folder), PIXELS: SlotShape(1, 3 * cfg.image_size**2)}

    @staticmethod
    def fusion_key(cfg: MiniGPT4Config) -> str:
        """Return the name of the only fusion module of this architecture."""
        return "image_projection"

    @staticmethod
    def frame_manifest(cfg: MiniGPT4Config, choice: FrameSelection) -> Manifest:
        """Return the manifest of the features that the model computes from images.

        Raises:
            UserError: If weights do not exist, or are of a different architecture or size than configured.
        """
        return vision.manifest(cfg, MiniGPT4.slot_shapes(cfg)["image"], choice)

    @classmethod
    def prompt_format(cls, cfg: MiniGPT4Config, loss_average: LossAverage = "sample") -> PromptFormat:
        """Return the prompt format of this model. It reads the language model's folder, but not its weights."""
        block = PROMPT_FORMATS.block(cfg.prompt_format)
        if cfg.prompt_path is not None:
            block["prompts"] = read_prompts(cfg.prompt_path, "model.prompt_path")
        return prompt_formats.build(cfg, block, cls.feature_layout(cfg), loss_average)

    def features_for_fusion(self, batch: Batch) -> Mapping[str, PackedFeatures]:
        """Return the image features: cached ones, and those computed now from the samples' pixels."""
        offsets = batch.slots[PIXELS].offsets
        keys = [key for index, key in enumerate(batch.cache_key) if offsets[index] < offsets[index + 1]]
        return frames.encode_pixels(batch.slots, lambda images: {"image": self.vision(images, keys)})
