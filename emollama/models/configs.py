"""Keys of the ``model`` blocks of the registered models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union

from emollama.config import MISSING
from emollama.data.prompts.prompt_style import PromptStyle
from emollama.data.slots import PATCH, SlotConfig, parse_slots
from emollama.dtypes import ComputeDtype
from emollama.encoders.shapes import EvaShape, QFormerShape
from emollama.errors import UserError, require_at_least
from emollama.field_texts import documented
from emollama.listing import abbreviated
from emollama.registry import FUSIONS, PROMPT_FORMATS
from emollama.suggestions import did_you_mean

TrainLLM = Literal["lora", "none", "full"]
PackingKey = Literal["auto", "packed", "padded", "off"]
KernelsKey = Literal["auto", "liger", "plain"]
FrozenDtype = Literal["auto", "fp8"]
RECOMPUTED = "auto, True, False, or a whole number of at least 1"  # values of use_grad_checkpoint


@documented
@dataclass
class LLMConfig:
    """Keys of a ``model`` block that configure its language model.

    Attributes:
        checkpoint_description: name of the model's checkpoints in error messages; "" for the value of ``arch``.
    """

    checkpoint_description = ""

    llama_model: str = MISSING
    """Folder that contains a Hugging Face causal language model and its tokenizer."""
    ckpt: Union[str, list[str], None] = None  # noqa: UP007
    """Checkpoint whose trainable tensors are loaded at the start. A list of checkpoints is an ensemble."""
    ensemble: Literal["predictions", "weights"] = "predictions"
    """How an ensemble answers. predictions: the members' distributions over the next token or over the labels are averaged.
    weights: the members' tensors are averaged into one model; lora_A and lora_B are averaged separately."""
    ckpt_allow_missing: list[str] = field(default_factory=list)
    """Glob patterns of trainable tensors that may be missing from ckpt; they keep their initial values."""
    train_llm: TrainLLM = "lora"
    """What to train of the language model: lora (adapters), none, or full (all weights)."""
    lora_r: int = 64
    """Rank of the LoRA adapters."""
    lora_alpha: int = 16
    """Scale of the LoRA adapters: their output is multiplied by lora_alpha / lora_r."""
    lora_dropout: float = 0.05
    """Dropout probability on the input of the LoRA adapters during training."""
    lora_target_modules: Union[str, list[str], None] = None  # noqa: UP007
    """Linear layers that get LoRA adapters: the ends of their names, such as [q_proj, v_proj], or all-linear. If null, the query
    and value projections of each layer, which have other names in some models ([qkv_proj] in Phi-3); see docs/models.md."""
    merge_adapters: bool = False
    """Add the LoRA adapters to the weights of the language model for inference (evaluation, predict, serving), which is faster.
    Values differ by rounding. Training and its validation never do so; an ensemble and a quantized model cannot."""
    dropout: float = 0.0
    """Dropout probability on the feature tokens during training."""
    use_grad_checkpoint: Annotated[Union[bool, int, str], RECOMPUTED] = True  # noqa: UP007
    """Recompute the language model's activations in the backward pass, which saves memory and takes about a third more time.
    True: those of all layers; a number n: those of every n-th layer; False: none. auto: as few as fit into the free memory, which
    is measured at the start."""
    packing: PackingKey = "auto"
    """How the language model reads the samples of a micro-batch. packed: in one row without padding; models that mix the samples
    of a row are rejected. padded: one row per sample, with the attention of transformers, which also computes on the padding.
    off: one sample after the other.
    auto: packed if a check of a small random copy of the model shows that the losses are correct, otherwise padded."""
    kernels: KernelsKey = "auto"
    """How layers and LoRA adapters are computed in training. plain: as transformers and peft do.
    liger: with the kernels of Liger on a GPU (pip install 'emollama[fast]'), for models whose layers are those of Llama.
    auto: adapters with few operations, and layers, too, where a check of a small random copy of the model on the CPU, without
    Liger, shows that losses and gradients are the same; on a GPU with Liger if it is installed and can be imported."""
    compile: bool = False
    """Compile the layers for training with torch.compile, if they are like those of Llama. The start may take minutes."""
    frozen_dtype: FrozenDtype = "auto"
    """Numbers of the language model's frozen linear layers. auto: those of run.amp. fp8: their products are computed in 8 bits,
    with weights that are rounded at the start, on a GPU such as H100 or H200, in runs in bfloat16; losses change by rounding."""
    low_resource: bool = False
    """Load the language model in 8 bits (needs bitsandbytes)."""
    load_in_4bit: bool = False
    """Load the language model in 4 bits (needs bitsandbytes)."""
    max_txt_len: int = 1024
    """Maximum number of tokens of an answer, including the end symbol."""
    max_context_len: int = 3800
    """Maximum number of text tokens of a prompt; feature tokens are not counted."""
    end_sym: str = "</s>"
    """Text that ends every answer."""
    prompt_template: str = "[INST] {} [/INST]"
    """Template for the user's turn; {} is replaced by its text."""
    chat_template: bool = True
    """Wrap the user's turn in prompt_template. If False, it is inserted unchanged. (This is not the tokenizer's chat
    template.)"""
    prompt_format: Union[str, dict[str, Any]] = "emotion_llama"  # noqa: UP007
    """Prompt format: where a prompt has the feature tokens and the user text. The name of a registered format, or
    {type: template, template: ..., ...} (docs/prompt_formats.md)."""

    def __post_init__(self) -> None:
        if self.prompt_template.count("{}") != 1:
            raise ValueError(f"prompt_template {self.prompt_template!r} must contain {{}} exactly once")
        if not self.end_sym:
            raise ValueError("end_sym is empty; every answer needs an end symbol, such as </s>")
        if self.low_resource and self.load_in_4bit:
            raise ValueError("low_resource (8 bits) and load_in_4bit are both True. Set one of them to False.")
        if self.train_llm == "full" and (self.low_resource or self.load_in_4bit):
            raise ValueError(
                "train_llm: full cannot train quantized weights. Set train_llm: lora, or low_resource and load_in_4bit to False."
            )
        self._require_combinations()
        if self.merge_adapters:
            self._require_mergeable()
        require_at_least(1, self, "lora_r", "lora_alpha")
        require_at_least(8, self, "max_txt_len", "max_context_len")
        PROMPT_FORMATS.nested_config(self.prompt_format, "prompt_format")
        every = self.use_grad_checkpoint
        if every != "auto" and not isinstance(every, bool) and not (isinstance(every, int) and every >= 1):
            raise ValueError(f"use_grad_checkpoint is {every!r}; it must be {RECOMPUTED}")
        for key in ("lora_dropout", "dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be in [0, 1)")

    @classmethod
    def recognizes(cls, stored: Collection[str], expected: Collection[str]) -> bool:
        """Return whether tensor names suggest that a checkpoint belongs to this architecture.

        It is called to explain why a checkpoint does not fit a model.

        Args:
            stored: names of the checkpoint's tensors.
            expected: names of the tensors of the model that the checkpoint does not fit, possibly of a different architecture.
        """
        return False

    def _require_combinations(self) -> None:
        full, fp8, compiled = self.train_llm == "full", self.frozen_dtype == "fp8", self.compile
        others = {
            **{name: (getattr(self, name), fp8 or compiled) for name in ("low_resource", "load_in_4bit")},
            "train_llm: full": (full, fp8),
            "merge_adapters": (self.merge_adapters, fp8),
            f"kernels: {self.kernels}": (self.kernels != "auto", compiled),
            "compile: True": (compiled, fp8),
        }
        key, off = ("frozen_dtype: fp8", "frozen_dtype: auto") if fp8 else ("compile: True", "compile: False")
        for name in (name for name, conditions in others.items() if all(conditions)):
            raise ValueError(f"{key} and {name} cannot be combined. Set {off}, or change {name}.")

    def _require_mergeable(self) -> None:
        if self.train_llm != "lora":
            raise ValueError(f"merge_adapters has no effect, because train_llm is {self.train_llm}. Remove it.")
        if self.low_resource or self.load_in_4bit:
            raise ValueError(
                "merge_adapters cannot add adapters to quantized weights. Set merge_adapters: False, or low_resource and"
                " load_in_4bit to False."
            )
        if isinstance(self.ckpt, list) and len(self.ckpt) > 1 and self.ensemble == "predictions":
            raise ValueError(
                "merge_adapters: the members of an ensemble share the weights of the language model, so their adapters cannot be"
                " merged. Set merge_adapters: False, or ensemble: weights."
            )

    def require_layout(self, name: str, key: str) -> None:
        """Check that the prompt format has a layout.

        Raises:
            UserError: If it does not. The message starts with ``key`` and contains the names of all layouts.
        """
        layouts = PROMPT_FORMATS.nested_config(self.prompt_format, "model.prompt_format").layout_names
        if name not in layouts:
            text = f"{key}: unknown layout '{name}'.{did_you_mean(name, layouts)}"
            raise UserError(f"{text} The layouts of model.prompt_format are {abbreviated(layouts)}.")

    def style(self) -> PromptStyle:
        """Return the template, end symbol and length limits of prompts."""
        return PromptStyle(self.prompt_template, self.chat_template, self.end_sym, self.max_txt_len, self.max_context_len)


@documented
@dataclass
class MiniGPTv2Config(LLMConfig):
    """Keys of the ``model`` block of ``arch: minigpt_v2``."""

    checkpoint_description = "MiniGPT-v2 or Emotion-LLaMA"

    fusion: Union[str, dict[str, Any]] = "linear"  # noqa: UP007
    """Name of the registered fusion module, or a block with its keys: {type: name, ...}."""
    slots: dict[str, Any] = field(
        default_factory=lambda: {
            "image": {"dim": 1408, "class_token": "cls"},
            "face": {"dim": 1024},
            "video": {"dim": 1024},
            "audio": {"dim": 1024},
        }
    )
    """slot -> {dim: size of its feature vectors, length: number of vectors per sample, class_token: slot of the first vector of
    each array}. length is 1 if it is not set ((image_size / 14)^2 for image), or null for any number of vectors. A slot that you
    add, such as {gaze: {dim: 7}}, needs features.gaze in a dataset block. null removes a slot. slot_dims: {face: 1024} is another
    way to write slots: {face: {dim: 1024}}."""
    image_size: int = 448
    """Side in pixels of the frames from which EVA features were extracted: each frame has (image_size / 14)^2 patch vectors and a
    class token. Features of a different size are rejected."""
    vit_weights: str | None = None
    """Weights of the image encoder (eva_vit_g.pth) for datasets whose features.image is null: it encodes their frames in each
    step. The encoder is neither trained nor saved. If null, image features must have been extracted beforehand."""
    vit_precision: ComputeDtype = "fp16"
    """Precision of the image encoder's computations."""
    use_grad_checkpoint_vit: bool = False
    """Accepted for compatibility. It has no benefit, because the image encoder is frozen and stores no activations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        FUSIONS.nested_config(self.fusion, "fusion")
        if self.image_size % (2 * PATCH):
            raise ValueError(
                f"image_size is {self.image_size}; it must be a multiple of {2 * PATCH}, so that patches can be joined in groups"
                " of four"
            )
        slots = self.parsed_slots()
        if self.vit_weights is not None and ("image" not in slots or slots["image"].class_token != "cls"):
            raise ValueError(
                "vit_weights encodes frames for the slots image and cls, but slots declares no image with class_token: cls."
                " Set vit_weights: null, or declare it."
            )

    def parsed_slots(self) -> dict[str, SlotConfig]:
        """Return the declared slots with their defaults filled in."""
        return parse_slots(self.slots, {"image": (self.image_size // PATCH) ** 2})

    @classmethod
    def recognizes(cls, stored: Collection[str], expected: Collection[str]) -> bool:
        """Return whether tensor names are those of a MiniGPT-v2 checkpoint; see :class:`LLMConfig`."""
        if any(name.startswith(("feats_llama_proj", "cls_tk_llama_proj")) for name in stored):
            return True
        return any(".lora_" in name for name in stored) and not any(".lora_" in name for name in expected)


@documented
@dataclass
class MiniGPT4Config(LLMConfig):
    """Keys of the ``model`` block of ``arch: minigpt4``."""

    checkpoint_description = "MiniGPT-4 (an image projection, no adapters)"

    train_llm: TrainLLM = "none"
    """What to train of the language model: lora (adapters), none, or full (all weights)."""
    prompt_template: str = "###Human: {} ###Assistant: "
    """Template for the user's turn; {} is replaced by its text. The default is Vicuna's; for Llama 2, set
    '[INST] {} [/INST] ' and end_sym '</s>'."""
    end_sym: str = "###"
    """Text that ends every answer."""
    max_txt_len: int = 160
    """Maximum number of tokens of an answer, including the end symbol."""
    prompt_format: Union[str, dict[str, Any]] = "minigpt4"  # noqa: UP007
    """Prompt format: where a prompt has the feature tokens and the user text. The name of a registered format, or
    {type: template, template: ..., ...} (docs/prompt_formats.md)."""
    prompt_path: str | None = None
    """Text file with one prompt per line, each with <ImageHere> where the image goes, for datasets without instructions. Training
    chooses one at random, evaluation uses the first. If null, four built-in prompts are used."""
    image_size: int = 224
    """Side in pixels to which images are resized."""
    vit_weights: str = "eva_vit_g.pth"
    """Weights of the image encoder, EVA-CLIP ViT-g/14. The encoder is neither trained nor saved."""
    vit_precision: ComputeDtype = "fp16"
    """Precision of the image encoder's computations. The Q-Former computes in float32."""
    has_qformer: bool = True
    """True, as in MiniGPT-4 with Vicuna: a Q-Former follows the image encoder. False, as in MiniGPT-4 with Llama 2: groups of
    four neighbouring patch vectors are concatenated, and the norm before them is the identity."""
    q_former_model: str = "blip2_pretrained_flant5xxl.pth"
    """BLIP-2's file with the Q-Former and the norm after the image encoder (ln_vision), which are neither trained nor saved.
    It is not read if has_qformer is False."""
    num_query_token: int = QFormerShape.queries
    """Number of query tokens of the Q-Former per image; it must match q_former_model."""
    query_width: int = QFormerShape.width
    """Hidden size of the Q-Former's query tokens; it must match q_former_model."""
    vit_width: int = EvaShape.width
    """Dimension of the image encoder's patch vectors if has_qformer is False; it must match vit_weights."""
    cache_visual: bool = False
    """Cache the output of the frozen encoders on disk, so that each image is encoded only once."""
    visual_cache_path: str = "visual_cache"
    """Folder of the cache: 98 KB per image, or 1.4 MB without the Q-Former. A cache of other encoders is rejected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 2 * PATCH or self.image_size % (2 * PATCH):
            raise ValueError(f"image_size is {self.image_size}; it must be a positive multiple of {2 * PATCH} (two patches)")
        require_at_least(1, self, "num_query_token", "query_width", "vit_width")
        if self.prompt_path is not None and "prompts" in PROMPT_FORMATS.block(self.prompt_format):
            raise ValueError("prompt_path and prompt_format.prompts are both set. Remove one of them.")

    @classmethod
    def recognizes(cls, stored: Collection[str], expected: Collection[str]) -> bool:
        """Return whether tensor names are those of a MiniGPT-4 checkpoint; see :class:`LLMConfig`."""
        return "llama_proj.weight" in stored and not any(name.startswith("llama_model.") for name in stored)

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // PATCH) ** 2
