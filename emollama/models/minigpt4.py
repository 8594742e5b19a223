"""MiniGPT-4: an image through frozen encoders, and one trained projection into the language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from emollama.data.batch import Batch, Rows
from emollama.data.features import FRAME, PATCH, KeptShape, SlotShape
from emollama.data.image_prompt import BUILT_IN, ImagePrompt, read_prompts
from emollama.data.prompt import LossAverage, Placeholders
from emollama.encoders.encoder import Arithmetic
from emollama.encoders.eva_vit import EvaShape
from emollama.encoders.qformer import QFormerShape
from emollama.errors import require_at_least
from emollama.media.choice import FrameChoice
from emollama.models import frames, llm, upstream, vision
from emollama.models.fusion import GROUP, ImageProjection
from emollama.models.packed_llm import LLMConfig, PackedLLM
from emollama.registry import MODELS
from emollama.stores.manifest import Manifest


@MODELS.register("minigpt4")
class MiniGPT4(PackedLLM):
    """The model behind ``arch: minigpt4``; arguments as those of :class:`~emollama.models.packed_llm.PackedLLM`.

    A clip brings its image (slot ``frame``), or the rows that were made of it before (slot ``image``).
    """

    @dataclass
    class Config(LLMConfig):
        """Keys of the ``model`` block of ``arch: minigpt4``."""

        train_llm: llm.TrainLLM = "none"
        """Train adapters, nothing, or every weight of the language model."""
        prompt_template: str = "###Human: {} ###Assistant: "
        """Wraps a turn; {} is where its text goes. Vicuna's; for Llama 2: '[INST] {} [/INST] ' with end_sym '</s>'."""
        end_sym: str = "###"
        """Ends every answer."""
        max_txt_len: int = 160
        """Tokens of an answer, the end symbol included."""
        prompt_path: str | None = None
        """File of prompts, a line each, with <ImageHere> where the image stands: what a clip is asked where its dataset has no
        instructions. Training draws one, evaluation takes the first. Null: four built-in ones."""
        image_size: int = 224
        """Side that images are resized to, in pixels."""
        vit_weights: str = "eva_vit_g.pth"
        """Weights of the image encoder, EVA-CLIP ViT-g/14. It is never trained and never saved."""
        vit_precision: Arithmetic = "fp16"
        """Arithmetic of the image encoder. The Q-Former's is float32."""
        has_qformer: bool = True
        """True as in MiniGPT-4 with Vicuna. False as in MiniGPT-4 with Llama 2: four neighbouring rows of the image encoder are
        joined into one, and the norm behind them is the identity."""
        q_former_model: str = "blip2_pretrained_flant5xxl.pth"
        """BLIP-2's file: the Q-Former, and the norm behind the image encoder (ln_vision). They are never trained and never saved.
        Not read where has_qformer is False."""
        num_query_token: int = QFormerShape.queries
        """Rows that the Q-Former makes of an image; the file's number."""
        query_width: int = QFormerShape.width
        """Width of these rows; the file's."""
        vit_width: int = EvaShape.width
        """Width of the image encoder's rows, which has_qformer: False needs to know; the file's."""
        cache_visual: bool = False
        """Keep what the frozen encoders make of each image, so that they see it once."""
        visual_cache_path: str = "visual_cache"
        """Folder of what is kept: 98 KB an image, 1.4 MB without the Q-Former. Rows made by other encoders in it are an error."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.image_size < 2 * PATCH or self.image_size % (2 * PATCH):
                raise ValueError(f"image_size is {self.image_size}; it must be a multiple of {2 * PATCH}, two patches")
            require_at_least(1, self, "num_query_token", "query_width", "vit_width")

        @property
        def patches(self) -> int:
            """Patches of an image."""
            return (self.image_size // PATCH) ** 2

    # What the published training code stores of the Q-Former, beside what is trained.
    unused_names = (*upstream.UNUSED, "Qformer.bert.embeddings.position_ids")
    shape_keys = "has_qformer, llama_model and lora_r"

    def __init__(self, cfg: Config, *, device: torch.device, frozen_dtype: torch.dtype) -> None:
        super().__init__(cfg, device=device, frozen_dtype=frozen_dtype)
        image = self.slot_shapes(cfg)["image"]
        with device:
            self.fusion = ImageProjection(image.width, llm.width(self.llm_config), cfg.dropout)
        self.vision = vision.FrozenVision(cfg, image, device=device)

    @staticmethod
    def slot_shapes(cfg: Config) -> dict[str, SlotShape]:
        """slot -> what one clip is expected to bring."""
        rows, width = (cfg.num_query_token, cfg.query_width) if cfg.has_qformer else (cfg.patches // GROUP, GROUP * cfg.vit_width)
        image = SlotShape(rows, width)
        kept = KeptShape.of(image, cfg.visual_cache_path) if cfg.cache_visual else image
        return {"image": kept, FRAME: SlotShape(1, 3 * cfg.image_size**2)}

    @staticmethod
    def made_of_frames(cfg: Config, choice: FrameChoice) -> Manifest:
        """How images become rows in the step.

        Raises:
            UserError: weights that are missing, of another architecture, or of another size than configured.
        """
        return vision.manifest(cfg, MiniGPT4.slot_shapes(cfg)["image"], choice)

    @staticmethod
    def prompt(cfg: Config, loss_average: LossAverage = "sample") -> ImagePrompt:
        """The renderer that goes with this model; needs the LLM's folder, not its weights."""
        prompts = BUILT_IN if cfg.prompt_path is None else read_prompts(cfg.prompt_path, "model.prompt_path")
        placeholders = Placeholders(
            video=ImageProjection.VIDEO,
            feature=ImageProjection.FEATURE,
            first_id=llm.embedding_rows(llm.read_config(cfg.llama_model)),
            rows_out=frames.with_frames(ImageProjection.rows_out, {"image": MiniGPT4.slot_shapes(cfg)["image"].rows}),
        )
        return ImagePrompt(llm.load_tokenizer(cfg.llama_model), cfg.style(), placeholders, prompts, loss_average)

    def raw_rows(self, batch: Batch) -> Mapping[str, Rows]:
        """The images' rows: those that the clips bring, and those that are made of their images now."""
        offsets = batch.slots[FRAME].offsets
        places = [place for clip, place in enumerate(batch.keep) if offsets[clip] < offsets[clip + 1]]
        return frames.encoded(batch.slots, lambda images: {"image": self.vision(images, places)})
