"""Keys of the ``model`` blocks of the registered models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, Union

from emollama.config import MISSING
from emollama.data.prompts.prompt_style import PromptStyle
from emollama.data.slots import PATCH
from emollama.dtypes import Arithmetic
from emollama.encoders.shapes import EvaShape, QFormerShape
from emollama.errors import require_at_least
from emollama.registry import FUSIONS

TrainLLM = Literal["lora", "none", "full"]


@dataclass
class LLMConfig:
    """Keys of a ``model`` block about its language model.

    Attributes:
        contents: what a checkpoint of the model is called in messages; "" for its ``arch``.
    """

    contents = ""

    llama_model: str = MISSING
    """Folder of a Hugging Face causal language model with its tokenizer."""
    ckpt: Union[str, list[str], None] = None  # noqa: UP007
    """Checkpoint whose trainable tensors are loaded at the start. Several are an ensemble."""
    ensemble: Literal["predictions", "weights"] = "predictions"
    """How several checkpoints answer. predictions: by the mean of their distributions (of next tokens, or of labels).
    weights: as one model, the mean of their tensors; the halves of adapters are averaged each."""
    ckpt_allow_missing: list[str] = field(default_factory=list)
    """Globs of trainable tensors that ckpt may lack; they keep their initial values."""
    train_llm: TrainLLM = "lora"
    """Train adapters, nothing, or every weight of the language model."""
    lora_r: int = 64
    """Rank of the adapters."""
    lora_alpha: int = 16
    """Scale of the adapters: their output is multiplied by lora_alpha / lora_r."""
    lora_dropout: float = 0.05
    """Probability of dropping a component of an adapter's input, in training."""
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Names of the linear layers that get adapters."""
    dropout: float = 0.0
    """Probability of dropping a component of a projected row, in training."""
    use_grad_checkpoint: bool = True
    """Recompute the language model's activations in the backward pass: less memory, about a third more time."""
    low_resource: bool = False
    """Load the language model in 8 bits (needs bitsandbytes)."""
    load_in_4bit: bool = False
    """Load the language model in 4 bits (needs bitsandbytes)."""
    max_txt_len: int = 1024
    """Tokens of an answer, the end symbol included."""
    max_context_len: int = 3800
    """Tokens of the prompt's text, placeholders not counted."""
    end_sym: str = "</s>"
    """Ends every answer."""
    prompt_template: str = "[INST] {} [/INST]"
    """Wraps a turn; {} is where its text goes."""
    chat_template: bool = True
    """False leaves prompt_template out."""

    def __post_init__(self) -> None:
        if self.prompt_template.count("{}") != 1:
            raise ValueError(f"prompt_template {self.prompt_template!r} must contain {{}} exactly once")
        if not self.end_sym:
            raise ValueError("end_sym is empty; an answer needs an end, such as </s>")
        if self.low_resource and self.load_in_4bit:
            raise ValueError("low_resource (8 bits) and load_in_4bit are both on. Keep one.")
        if self.train_llm == "full" and (self.low_resource or self.load_in_4bit):
            raise ValueError("train_llm: full cannot train quantized weights. Use lora, or load in full precision.")
        require_at_least(1, self, "lora_r", "lora_alpha")
        require_at_least(8, self, "max_txt_len", "max_context_len")
        for key in ("lora_dropout", "dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be in [0, 1)")

    @classmethod
    def recognizes(cls, stored: Collection[str], wanted: Collection[str]) -> bool:
        """Whether a checkpoint is one of this model, as far as its tensors' names tell; asked where it does not fit a model.

        Args:
            stored: names of the checkpoint's tensors.
            wanted: names of the tensors of the model that it does not fit, which may be another one.
        """
        return False

    def style(self) -> PromptStyle:
        """How a turn is wrapped and an answer ended."""
        return PromptStyle(self.prompt_template, self.chat_template, self.end_sym, self.max_txt_len, self.max_context_len)


@dataclass
class MiniGPTv2Config(LLMConfig):
    """Keys of the ``model`` block of ``arch: minigpt_v2``."""

    contents = "MiniGPT-v2 or Emotion-LLaMA"

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
        FUSIONS.require(self.fusion, "fusion")
        if self.image_size % (2 * PATCH):
            raise ValueError(f"image_size {self.image_size} is not a multiple of {2 * PATCH}: its rows do not group by four")
        if "image" not in self.slot_dims or min(self.slot_dims.values()) < 1:
            raise ValueError(f"slot_dims {self.slot_dims}: 'image' is needed, and every width is at least 1")

    @classmethod
    def recognizes(cls, stored: Collection[str], wanted: Collection[str]) -> bool:
        """Whether a checkpoint with tensors of these names is one of MiniGPT-v2; see :class:`LLMConfig`."""
        if any(name.startswith(("feats_llama_proj", "cls_tk_llama_proj")) for name in stored):
            return True
        return any(".lora_" in name for name in stored) and not any(".lora_" in name for name in wanted)


@dataclass
class MiniGPT4Config(LLMConfig):
    """Keys of the ``model`` block of ``arch: minigpt4``."""

    contents = "MiniGPT-4 (an image projection, no adapters)"

    train_llm: TrainLLM = "none"
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

    @classmethod
    def recognizes(cls, stored: Collection[str], wanted: Collection[str]) -> bool:
        """Whether a checkpoint with tensors of these names is one of MiniGPT-4; see :class:`LLMConfig`."""
        return "llama_proj.weight" in stored and not any(name.startswith("llama_model.") for name in stored)

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // PATCH) ** 2
