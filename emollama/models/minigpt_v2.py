"""MiniGPT-v2 / Emotion-LLaMA: feature rows projected into the prompt of a LoRA-adapted language model.

Letters: T tokens of a packed micro-batch, B samples, L labelled tokens, H the LLM's width, V its vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emollama.config import MISSING
from emollama.data.batch import IGNORED, Batch
from emollama.data.features import FRAME, PATCH, SlotShape
from emollama.data.prompt import LossAverage, Placeholders, Prompt, PromptStyle
from emollama.encoders.encoder import Arithmetic
from emollama.errors import require_at_least
from emollama.models import frames, llm, upstream
from emollama.models.decoding import Unfinished, empty_cache
from emollama.models.fusion import STEADY_ROWS, place_rows
from emollama.registry import FUSIONS, MODELS


@MODELS.register("minigpt_v2")
class MiniGPTv2(nn.Module):
    """The model behind ``arch: minigpt_v2``.

    Args:
        cfg: the ``model`` block.
        device: where to build it; the meta device gives shapes without weights.
        frozen_dtype: dtype of weights that are not trained; trained ones are float32.
    """

    @dataclass
    class Config:
        """Keys of the ``model`` block."""

        llama_model: str = MISSING
        """Folder of a Hugging Face causal language model with its tokenizer."""
        ckpt: Union[str, list[str], None] = None  # noqa: UP007
        """Checkpoint whose trainable tensors are loaded at the start. Several are an ensemble."""
        ensemble: Literal["predictions", "weights"] = "predictions"
        """How several checkpoints answer. predictions: by the mean of their distributions (of next tokens, or of labels).
        weights: as one model, the mean of their tensors; the halves of adapters are averaged each."""
        ckpt_allow_missing: list[str] = field(default_factory=list)
        """Globs of trainable tensors that ckpt may lack; they keep their initial values."""
        train_llm: llm.TrainLLM = "lora"
        """Train adapters, nothing, or every weight of the language model."""
        lora_r: int = 64
        """Rank of the adapters."""
        lora_alpha: int = 16
        """Scale of the adapters: their output is multiplied by lora_alpha / lora_r."""
        lora_dropout: float = 0.05
        """Probability of dropping a component of an adapter's input, in training."""
        lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
        """Names of the linear layers that get adapters."""
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
        dropout: float = 0.0
        """Probability of dropping a component of the fusion module's output, in training."""
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
            FUSIONS.get(self.fusion, "fusion")
            if self.prompt_template.count("{}") != 1:
                raise ValueError(f"prompt_template {self.prompt_template!r} must contain {{}} exactly once")
            if not self.end_sym:
                raise ValueError("end_sym is empty; an answer needs an end, such as </s>")
            if self.low_resource and self.load_in_4bit:
                raise ValueError("low_resource (8 bits) and load_in_4bit are both on. Keep one.")
            if self.train_llm == "full" and (self.low_resource or self.load_in_4bit):
                raise ValueError("train_llm: full cannot train quantized weights. Use lora, or load in full precision.")
            if self.image_size % (2 * PATCH):
                raise ValueError(f"image_size {self.image_size} is not a multiple of {2 * PATCH}: its rows do not group by four")
            require_at_least(1, self, "lora_r", "lora_alpha")
            require_at_least(8, self, "max_txt_len", "max_context_len")
            if "image" not in self.slot_dims or min(self.slot_dims.values()) < 1:
                raise ValueError(f"slot_dims {self.slot_dims}: 'image' is needed, and every width is at least 1")
            for key in ("lora_dropout", "dropout"):
                if not 0 <= getattr(self, key) < 1:
                    raise ValueError(f"{key} is {getattr(self, key)}; it must be in [0, 1)")

    unused_names = upstream.UNUSED
    absent_together = upstream.ABSENT_TOGETHER
    stored_name = staticmethod(upstream.stored_name)

    def __init__(self, cfg: Config, *, device: torch.device, frozen_dtype: torch.dtype) -> None:
        from emollama.models import llm_weights  # here, because it takes seconds, and most commands need no weights

        super().__init__()
        self.cfg = cfg
        self.llm_config = llm.read_config(cfg.llama_model)
        options = llm_weights.LLMOptions(
            path=cfg.llama_model,
            train=cfg.train_llm,
            lora_r=cfg.lora_r,
            lora_alpha=cfg.lora_alpha,
            lora_dropout=cfg.lora_dropout,
            lora_targets=cfg.lora_target_modules,
            quantize=8 if cfg.low_resource else 4 if cfg.load_in_4bit else None,
            checkpointing=cfg.use_grad_checkpoint,
        )
        self.llama_model: Any = llm_weights.build(options, self.llm_config, dtype=frozen_dtype, device=device)
        with device:
            self.fusion = FUSIONS.get(cfg.fusion)(cfg.slot_dims, llm.width(self.llm_config), cfg.dropout)
        self.vit = frames.build(cfg.vit_weights, cfg, device) if cfg.vit_weights is not None else None
        self.first_placeholder = llm.embedding_rows(self.llm_config)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        table: torch.nn.Module = self.llama_model.get_input_embeddings()
        return next(table.parameters()).device

    @staticmethod
    def slot_shapes(cfg: Config) -> dict[str, SlotShape]:
        """slot -> what one clip is expected to bring."""
        dims = cfg.slot_dims
        image = SlotShape((cfg.image_size // PATCH) ** 2, dims["image"])
        others = {slot: SlotShape(1, width) for slot, width in dims.items() if slot != "image"}
        pixels = {FRAME: SlotShape(1, 3 * cfg.image_size**2)} if cfg.vit_weights is not None else {}
        return {"image": image, "cls": SlotShape(1, dims["image"])} | others | pixels

    @staticmethod
    def prompt(cfg: Config, loss_average: LossAverage = "sample") -> Prompt:
        """The renderer that goes with this model; needs the LLM's folder, not its weights."""
        fusion = FUSIONS.get(cfg.fusion)
        placeholders = Placeholders(
            video=fusion.VIDEO,
            feature=fusion.FEATURE,
            first_id=llm.embedding_rows(llm.read_config(cfg.llama_model)),
            rows_out=frames.with_frames(fusion.rows_out, (cfg.image_size // PATCH) ** 2),
        )
        style = PromptStyle(cfg.prompt_template, cfg.chat_template, cfg.end_sym, cfg.max_txt_len, cfg.max_context_len)
        return Prompt(llm.load_tokenizer(cfg.llama_model), style, placeholders, loss_average)

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of each labelled token, (L,) float32, in the batch's order. Logits are made at these places only."""
        places = (batch.labels != IGNORED).nonzero().squeeze(1)
        logits = self._packed_logits(batch, _steady(places) - 1, use_cache=False)[: len(places)]
        return F.cross_entropy(logits.float(), batch.labels[places], reduction="none")

    def begin(self, batch: Batch) -> tuple[Tensor, Unfinished]:
        """Read B prompts: next-token logits (B, V) float32, and where the sequences stand."""
        cache = empty_cache()
        last = batch.cu_seqlens[1:].long() - 1
        logits = self._packed_logits(batch, _steady(last), past_key_values=cache, use_cache=True)[: len(last)]
        return logits.float(), Unfinished.of_packed(cache, batch.lengths)

    def advance(self, ids: Tensor, state: Unfinished) -> Tensor:
        """Read (B, Q) more tokens into ``state.cache``: logits behind each of them, (B, Q, V) float32."""
        mask, positions = state.grown(ids.shape[1])
        table = self.llama_model.get_input_embeddings()
        logits: Tensor = self.llama_model(
            inputs_embeds=table(ids),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
        ).logits
        return logits.float()

    @torch.inference_mode()
    def beam_search(self, batch: Batch, prompt: Prompt, options: Mapping[str, Any]) -> list[list[int]]:
        """Continue each sample of a batch that was rendered without answers, by transformers' own search.

        Args:
            batch: B prompts.
            prompt: the renderer that made them; tells where an answer ends.
            options: keyword arguments of transformers' ``generate``.

        Returns:
            B lists of new token ids, up to and including the end.
        """
        pieces = self._embed(batch).split(batch.lengths)
        embeddings = torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True, padding_side="left")
        lengths = torch.tensor(batch.lengths, device=embeddings.device)
        mask = torch.arange(embeddings.shape[1], device=embeddings.device) >= embeddings.shape[1] - lengths[:, None]
        tokenizer = prompt.tokenizer
        stops = {} if prompt.ends_with_eos else {"stop_strings": [self.cfg.end_sym], "tokenizer": tokenizer}
        out = self.llama_model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            use_cache=True,
            **stops,
            **options,
        )
        return [_until(ids, tokenizer.eos_token_id) for ids in out.tolist()]

    def _packed_logits(self, batch: Batch, places: Tensor, **cache: Any) -> Tensor:
        """(len(places), V): next-token logits behind these places of a packed batch, which is one row."""
        logits: Tensor = self.llama_model(
            inputs_embeds=self._embed(batch).unsqueeze(0),
            position_ids=batch.position_ids.unsqueeze(0),
            cu_seqlens=batch.cu_seqlens,
            max_length=batch.max_length,
            logits_to_keep=places,
            **cache,
        ).logits[0]
        return logits

    def _embed(self, batch: Batch) -> Tensor:
        """(T, H): rows of the LLM's table for text, rows of the fusion module at placeholders."""
        table = self.llama_model.get_input_embeddings()
        is_text = batch.input_ids < self.first_placeholder
        text = table(batch.input_ids.where(is_text, 0))
        slots = batch.slots if self.vit is None else frames.encoded(batch.slots, self.vit)
        return place_rows(text, batch.input_ids, self.fusion(slots), self.first_placeholder)


def _steady(places: Tensor) -> Tensor:
    """The places, the last one repeated where there are few: the head is never asked for fewer rows than are steady."""
    return torch.cat([places, places[-1:].expand(max(0, STEADY_ROWS - len(places)))])


def _until(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
