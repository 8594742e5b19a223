"""What every model here is around: a language model that reads packed micro-batches, with rows in place of some tokens.

Letters: T tokens of a packed micro-batch, B samples, L labelled tokens, H the LLM's width, V its vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emollama.data.batch import IGNORED, Batch, PackedFeatures
from emollama.data.prompts.prompt import Prompt
from emollama.models import checkpoint_names, llm
from emollama.models.decoding import DecodingState, empty_cache
from emollama.models.fusion import STEADY_ROWS, place_feature_tokens


class PackedLLM(nn.Module, ABC):
    """A language model with a fusion module, trained and read on packed micro-batches.

    Args:
        cfg: the ``model`` block.
        device: where to build it; the meta device gives shapes without weights.
        frozen_dtype: dtype of weights that are not trained; trained ones are float32.

    Attributes:
        fusion: raw rows by slot -> rows of the LLM's width by placeholder; the subclass sets it.
    """

    unused_names: tuple[str, ...] = checkpoint_names.UNUSED
    absent_together: tuple[str, ...] = ()
    shape_keys = "lora_r, slot_dims and llama_model"
    architecture = ""
    stored_name = staticmethod(checkpoint_names.stored_name)
    fusion: nn.Module

    def __init__(self, cfg: Any, *, device: torch.device, frozen_dtype: torch.dtype) -> None:
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
        self.first_placeholder = llm.embedding_rows(self.llm_config)

    @abstractmethod
    def features_for_fusion(self, batch: Batch) -> Mapping[str, PackedFeatures]:
        """The slots that the fusion module takes; frames have become rows."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        table: torch.nn.Module = self.llama_model.get_input_embeddings()
        return next(table.parameters()).device

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of each labelled token, (L,) float32, in the batch's order. Logits are made at these places only."""
        places = (batch.labels != IGNORED).nonzero().squeeze(1)
        logits = self._packed_logits(batch, _steady(places) - 1, use_cache=False)[: len(places)]
        return F.cross_entropy(logits.float(), batch.labels[places], reduction="none")

    def prefill(self, batch: Batch) -> tuple[Tensor, DecodingState]:
        """Read B prompts: next-token logits (B, V) float32, and where the sequences stand."""
        cache = empty_cache()
        last = batch.cu_seqlens[1:].long() - 1
        logits = self._packed_logits(batch, _steady(last), past_key_values=cache, use_cache=True)[: len(last)]
        return logits.float(), DecodingState.from_packed(cache, batch.lengths)

    def decode(self, ids: Tensor, state: DecodingState) -> Tensor:
        """Read (B, Q) more tokens into ``state.cache``: logits behind each of them, (B, Q, V) float32."""
        mask, positions = state.extended(ids.shape[1])
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
        return place_feature_tokens(text, batch.input_ids, self.fusion(self.features_for_fusion(batch)), self.first_placeholder)


def _steady(places: Tensor) -> Tensor:
    """The places, the last one repeated where there are few: the head is never asked for fewer rows than are steady."""
    return torch.cat([places, places[-1:].expand(max(0, STEADY_ROWS - len(places)))])


def _until(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
