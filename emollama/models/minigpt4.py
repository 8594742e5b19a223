"""MiniGPT-4: an image through frozen encoders, and one trained projection into the language model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from emollama.data.batch import Batch, PackedFeatures
from emollama.data.prompts.image_prompt import BUILT_IN, ImagePrompt, read_prompts
from emollama.data.prompts.prompt import Placeholders
from emollama.data.prompts.prompt_style import LossAverage
from emollama.data.slots import FRAME, CachedShape, SlotShape
from emollama.media.frame_selection import FrameChoice
from emollama.models import checkpoint_names, frames, llm, vision
from emollama.models.configs import MiniGPT4Config
from emollama.models.fusion import GROUP, ImageProjection
from emollama.models.packed_llm import PackedLLM
from emollama.stores.manifest import Manifest


class MiniGPT4(PackedLLM):
    """The model behind ``arch: minigpt4``; arguments as those of :class:`~emollama.models.packed_llm.PackedLLM`.

    A clip brings its image (slot ``frame``), or the rows that were made of it before (slot ``image``).
    """

    Config = MiniGPT4Config

    # What the published training code stores of the Q-Former, beside what is trained.
    unused_names = (*checkpoint_names.UNUSED, "Qformer.bert.embeddings.position_ids")
    shape_keys = "has_qformer, llama_model and lora_r"
    architecture = "minigpt4"

    def __init__(self, cfg: MiniGPT4Config, *, device: torch.device, frozen_dtype: torch.dtype) -> None:
        super().__init__(cfg, device=device, frozen_dtype=frozen_dtype)
        image = self.slot_shapes(cfg)["image"]
        with device:
            self.fusion = ImageProjection(image.dim, llm.width(self.llm_config), cfg.dropout)
        self.vision = vision.FrozenVision(cfg, image, device=device)

    @staticmethod
    def slot_shapes(cfg: MiniGPT4Config) -> dict[str, SlotShape]:
        """slot -> what one clip is expected to bring."""
        rows, width = (cfg.num_query_token, cfg.query_width) if cfg.has_qformer else (cfg.patches // GROUP, GROUP * cfg.vit_width)
        image = SlotShape(rows, width)
        kept = CachedShape.of(image, cfg.visual_cache_path) if cfg.cache_visual else image
        return {"image": kept, FRAME: SlotShape(1, 3 * cfg.image_size**2)}

    @staticmethod
    def frame_manifest(cfg: MiniGPT4Config, choice: FrameChoice) -> Manifest:
        """How images become rows in the step.

        Raises:
            UserError: weights that are missing, of another architecture, or of another size than configured.
        """
        return vision.manifest(cfg, MiniGPT4.slot_shapes(cfg)["image"], choice)

    @staticmethod
    def prompt(cfg: MiniGPT4Config, loss_average: LossAverage = "sample") -> ImagePrompt:
        """The renderer that goes with this model; needs the LLM's folder, not its weights."""
        prompts = BUILT_IN if cfg.prompt_path is None else read_prompts(cfg.prompt_path, "model.prompt_path")
        placeholders = Placeholders(
            video=ImageProjection.VIDEO,
            feature=ImageProjection.FEATURE,
            first_id=llm.embedding_rows(llm.read_config(cfg.llama_model)),
            num_tokens=frames.with_frames(ImageProjection.num_tokens, {"image": MiniGPT4.slot_shapes(cfg)["image"].num_tokens}),
        )
        return ImagePrompt(llm.load_tokenizer(cfg.llama_model), cfg.style(), placeholders, prompts, loss_average)

    def features_for_fusion(self, batch: Batch) -> Mapping[str, PackedFeatures]:
        """The images' rows: those that the clips bring, and those that are made of their images now."""
        offsets = batch.slots[FRAME].offsets
        places = [place for clip, place in enumerate(batch.cache_key) if offsets[clip] < offsets[clip + 1]]
        return frames.encoded(batch.slots, lambda images: {"image": self.vision(images, places)})
