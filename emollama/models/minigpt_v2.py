"""MiniGPT-v2 / Emotion-LLaMA: feature rows projected into the prompt of a LoRA-adapted language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from emollama.data.batch import Batch, Rows
from emollama.data.features import FRAME, PATCH, SlotShape
from emollama.data.prompt import LossAverage, Placeholders, Prompt
from emollama.encoders.encoder import Arithmetic
from emollama.media.choice import FrameChoice
from emollama.models import frames, llm, upstream
from emollama.models.packed_llm import LLMConfig, PackedLLM
from emollama.registry import FUSIONS, MODELS
from emollama.stores.manifest import Manifest


@MODELS.register("minigpt_v2")
class MiniGPTv2(PackedLLM):
    """The model behind ``arch: minigpt_v2``; arguments as those of :class:`~emollama.models.packed_llm.PackedLLM`."""

    @dataclass
    class Config(LLMConfig):
        """Keys of the ``model`` block of ``arch: minigpt_v2``."""

        fusion: str = "linear"
        """Registered fusion module."""
        slot_dims: dict[str, int] = field(default_factory=lambda: {"image": 1408, "face": 1024, "video": 1024, "audio": 1024})
        """Width of each slot's rows; the class row shares the image's."""
        image_size: int = 448
        """Side of the frames that the EVA caches were made from, in pixels: (image_size / 14)^2 rows beside the class row.
        A cache made at another size is an error."""
        vit_weights: str | None = None
        """Weights of the image encoder (eva_vit_g.pth) for datasets whose image_feature_path is null: their frames go through it
        in each step. It is never trained and never saved. Null: image features are pre-extracted."""
        vit_precision: Arithmetic = "fp16"
        """Arithmetic of the image encoder."""
        use_grad_checkpoint_vit: bool = False
        """Recompute the image encoder's activations. As it is frozen, none are kept in any case, and nothing is saved by it."""

        def __post_init__(self) -> None:
            super().__post_init__()
            FUSIONS.get(self.fusion, "fusion")
            if self.image_size % (2 * PATCH):
                raise ValueError(f"image_size {self.image_size} is not a multiple of {2 * PATCH}: its rows do not group by four")
            if "image" not in self.slot_dims or min(self.slot_dims.values()) < 1:
                raise ValueError(f"slot_dims {self.slot_dims}: 'image' is needed, and every width is at least 1")

    absent_together = upstream.ABSENT_TOGETHER

    def __init__(self, cfg: Config, *, device: torch.device, frozen_dtype: torch.dtype) -> None:
        super().__init__(cfg, device=device, frozen_dtype=frozen_dtype)
        with device:
            self.fusion = FUSIONS.get(cfg.fusion)(cfg.slot_dims, llm.width(self.llm_config), cfg.dropout)
        self.vit = frames.build(cfg.vit_weights, cfg, device) if cfg.vit_weights is not None else None

    @staticmethod
    def slot_shapes(cfg: Config) -> dict[str, SlotShape]:
        """slot -> what one clip is expected to bring."""
        dims = cfg.slot_dims
        image = SlotShape((cfg.image_size // PATCH) ** 2, dims["image"])
        others = {slot: SlotShape(1, width) for slot, width in dims.items() if slot != "image"}
        pixels = {FRAME: SlotShape(1, 3 * cfg.image_size**2)} if cfg.vit_weights is not None else {}
        return {"image": image, "cls": SlotShape(1, dims["image"])} | others | pixels

    @staticmethod
    def made_of_frames(cfg: Config, choice: FrameChoice) -> Manifest:
        """How frames become rows in the step: what a manifest of caches would say.

        Raises:
            UserError: weights that are missing or no EVA transformer's.
        """
        assert cfg.vit_weights is not None
        return frames.manifest(cfg.vit_weights, cfg, choice)

    @staticmethod
    def prompt(cfg: Config, loss_average: LossAverage = "sample") -> Prompt:
        """The renderer that goes with this model; needs the LLM's folder, not its weights."""
        fusion = FUSIONS.get(cfg.fusion)
        placeholders = Placeholders(
            video=fusion.VIDEO,
            feature=fusion.FEATURE,
            first_id=llm.embedding_rows(llm.read_config(cfg.llama_model)),
            rows_out=frames.with_frames(fusion.rows_out, {"image": (cfg.image_size // PATCH) ** 2, "cls": 1}),
        )
        return Prompt(llm.load_tokenizer(cfg.llama_model), cfg.style(), placeholders, loss_average)

    def raw_rows(self, batch: Batch) -> Mapping[str, Rows]:
        """The slots; rows made of frames are among the image's and the class token's."""
        return batch.slots if self.vit is None else frames.encoded(batch.slots, frames.image_and_class(self.vit))
