"""Base class of the models: a language model that reads packed micro-batches with feature tokens at placeholder ids.

Shape letters: T = tokens of a packed micro-batch, B = samples, L = labelled tokens, Q = new tokens per sequence,
H = hidden size of the language model, V = size of its vocabulary.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from emollama.data.batch import Batch, PackedFeatures
from emollama.data.fusion_layout import FusionLayout
from emollama.data.prompts import tokenizer_check
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.slots import SlotShape, without_pixels
from emollama.decoding_state import DecodingState
from emollama.errors import UserError
from emollama.models import checkpoint_names, dropout, frames, kernels, llm, padded
from emollama.models.cross_entropy import cross_entropy
from emollama.models.fusion.build import FusionKey, build_fusion, fusion_layout
from emollama.models.fusion.feature_tokens import joined_feature_tokens, pad_positions
from emollama.models.kv_cache import empty_cache, left_padded_state, unpacked_state
from emollama.models.length_limit import length_limit
from emollama.stores.manifest import Manifest
from emollama.weight_parts import Weights


class PackedLLM(nn.Module, ABC):
    """A language model with a fusion module, which processes packed micro-batches.

    Args:
        cfg: the ``model`` block.
        device: device of the model; on the meta device it has shapes but no weights.
        frozen_dtype: dtype of frozen weights; trained weights are float32.
        weights: which weights of the language model to load; see :data:`~emollama.weight_parts.Weights`.

    Attributes:
        ignored_tensors: glob patterns of checkpoint tensors that the model does not use.
        optional_tensor_group: trained tensors that may be missing from a checkpoint if all of them are.
        optional_tensors: glob patterns of further trained tensors that may be missing from a checkpoint.
        shape_keys: keys of the ``model`` block that determine tensor shapes, for messages.
        architecture: the value of ``model.arch``, for messages.
        stored_name: function from a parameter's name to its name in a checkpoint.
        max_tokens: number of tokens that the language model has positions for; None without such a limit.
        fusion: the fusion module (features by slot -> feature tokens by part).
    """

    ignored_tensors: tuple[str, ...] = checkpoint_names.IGNORED_TENSORS
    optional_tensor_group: tuple[str, ...] = ()
    shape_keys: tuple[str, ...] = ("lora_r", "slots", "llama_model")
    architecture = ""
    stored_name = staticmethod(checkpoint_names.stored_name)

    def __init__(self, cfg: Any, *, device: torch.device, frozen_dtype: torch.dtype, weights: Weights = "all") -> None:
        # Imported here because it takes seconds, and most commands need no weights.
        from emollama.models import embedding_table, llm_weights, packing_check

        super().__init__()
        self.cfg = cfg
        self.llm_config = llm.read_config(cfg.llama_model)
        self.packing = packing_check.resolve(cfg.packing, self.llm_config, device, frozen_dtype)
        self._limit = length_limit(self.packing, self.llm_config)
        self.max_tokens = self._limit.tokens if self._limit is not None else None
        options = llm_weights.options_of(cfg, self.packing.attention, weights)
        build = embedding_table.build if weights == "embeddings" else llm_weights.build
        self.llama_model: Any = build(options, self.llm_config, dtype=frozen_dtype, device=device)
        dropout.replace_dropout(self.llama_model)
        self._fused = kernels.use_kernels(cfg, self.packing, self._llm, device)
        # In a few models, such as some of OPT, the embedding table is narrower than the layers.
        width = self.llama_model.get_input_embeddings().weight.shape[1]
        self.fusion, layout = build_fusion(self.fusion_key(cfg), without_pixels(self.slot_shapes(cfg)), width, device)
        self.dropout = dropout.CounterDropout(cfg.dropout, "dropout")
        self.optional_tensors = layout.optional_tensors
        self._parts = layout.parts

    @staticmethod
    @abstractmethod
    def slot_shapes(cfg: Any) -> dict[str, SlotShape]:
        """Return the expected shape of a sample's features for each slot."""

    @staticmethod
    def fusion_key(cfg: Any) -> FusionKey:
        """Return the value of ``model.fusion``: a registered name, or a block with ``type``."""
        key: FusionKey = cfg.fusion
        return key

    @classmethod
    def check_language_model(
        cls, cfg: Any, prompt: PromptFormat | None, *, device: torch.device, frozen_dtype: torch.dtype, uses: Collection[str] = ()
    ) -> list[str]:
        """Check the language model without its weights; return lines about costs and probable mistakes.

        Args:
            cfg: the ``model`` block.
            prompt: the prompt format; None if the folder has no tokenizer.
            device: device of the run.
            frozen_dtype: dtype of frozen weights.
            uses: of "beam search", "shared prompts" (``run.tasks_per_clip``) and "compiled layers", those that the run uses.

        Raises:
            UserError: If the language model cannot be run correctly, or not as the configuration and ``uses`` demand.
        """
        # Imported here for the same reason as in __init__.
        from emollama.models import llm_weights, packing_check

        config = llm.read_config(cfg.llama_model)
        packing = packing_check.resolve(cfg.packing, config, device, frozen_dtype)
        if "beam search" in uses:
            packing.require_beam_search(config.model_type)
        lines = kernels.check_kernels(cfg, packing, config.model_type, device, frozen_dtype, compiled="compiled layers" in uses)
        if "shared prompts" in uses:
            packing.require_shared_prompts(config.model_type)
        if (limit := length_limit(packing, config)) is not None:
            shapes = without_pixels(cls.slot_shapes(cfg))
            features = cls.feature_layout(cfg).num_feature_tokens({slot: shape.num_zeros for slot, shape in shapes.items()})
            limit.require_keys(cfg, sum(features.values()))
        lines += [*packing.notices(config.model_type), *llm_weights.check_options(cfg, config)]
        lines += llm.float16_warning(config, frozen_dtype)
        if prompt is not None:
            lines += tokenizer_check.warnings(prompt.tokenizer, llm.vocabulary(cfg.llama_model, config), cfg.end_sym)
        return lines

    def _require_length(self, tokens: int) -> None:
        if self._limit is not None:
            self._limit.require(tokens)

    @classmethod
    def pads_samples(cls, cfg: Any, *, device: torch.device, frozen_dtype: torch.dtype) -> bool:
        """Return whether the samples of a micro-batch are padded to the longest one."""
        # Imported here for the same reason as in __init__.
        from emollama.models import packing_check

        return packing_check.resolve(cfg.packing, llm.read_config(cfg.llama_model), device, frozen_dtype).is_padded

    @classmethod
    def feature_layout(cls, cfg: Any) -> FusionLayout:
        """Return names and numbers of a sample's feature tokens, without building the fusion module.

        Raises:
            UserError: If the fusion module is unknown, or does not accept the slots of the model.
        """
        shapes = cls.slot_shapes(cfg)
        layout = fusion_layout(cls.fusion_key(cfg), without_pixels(shapes))
        num_feature_tokens = frames.count_tokens_with_pixels(layout.num_feature_tokens, shapes)
        return dataclasses.replace(layout, num_feature_tokens=num_feature_tokens)

    @abstractmethod
    def features_for_fusion(self, batch: Batch) -> Mapping[str, PackedFeatures]:
        """Return the input of the fusion module: features by slot, with frames replaced by their features."""

    @staticmethod
    def frame_manifest(cfg: Any, choice: Any) -> Manifest:
        """Return the manifest of the features that the model computes from frames. A model that does so overrides this method."""
        raise UserError("this model computes no features from frames. Specify extracted features in each block.")

    @property
    def _llm(self) -> Any:
        """The language model without the wrapper of peft, which rejects embeddings for a few models."""
        llm = self.llama_model
        return llm.get_base_model() if hasattr(llm, "get_base_model") else llm

    @property
    def device(self) -> torch.device:
        """Device of the embedding table, on which the model expects its inputs."""
        table: torch.nn.Module = self.llama_model.get_input_embeddings()
        return next(table.parameters()).device

    def forward(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of each labelled token, (L,) float32, in the batch's order."""
        self._require_length(batch.max_length)
        positions = batch.label_positions
        # Logits are computed only where a label follows: those of all tokens, (T, V), would need far more memory.
        with dropout.use_keys(dropout.token_keys_of(batch)), kernels.uncached_autocast(self.cfg, self.device):
            if self.packing.is_packed:
                logits = self._packed_logits(batch, positions - 1, use_cache=False)
            else:
                logits = self._padded_logits(batch, self._embed(batch), padded.Positions.before_labels(batch))
        return cross_entropy(logits, batch.labels[positions])

    def prefill(self, batch: Batch) -> tuple[Tensor, DecodingState]:
        """Process B prompts; return next-token logits (B, V) float32 and the decoding state."""
        self._require_length(batch.max_length)
        if not self.packing.is_packed:
            return self._padded_prefill(batch)
        last = batch.cu_seqlens[1:].long() - 1
        cache = empty_cache()
        logits = self._packed_logits(batch, last, past_key_values=cache, use_cache=True)
        return logits.float(), unpacked_state(cache, batch.lengths)

    def decode(self, ids: Tensor, state: DecodingState) -> Tensor:
        """Return the logits after each of the next tokens (B, Q), (B, Q, V) float32, and append the tokens to the state."""
        self._require_length(state.width + ids.shape[1])
        return padded.decode(self._llm, ids, state).float()

    def decode_answers(self, answers: Sequence[Sequence[int]], state: DecodingState) -> list[Tensor]:
        """Return the logits after each token but the last of several answers; see :class:`~emollama.components.Model`."""
        self._require_length(state.width + max(map(len, answers)) - 1)
        if self.packing.joint_answers:
            return [logits.float() for logits in padded.decode_answers(self._llm, answers, state)]
        rows = [torch.tensor(answer[:-1], device=self.device).expand(len(state.lengths), -1) for answer in answers]
        return [padded.decode(self._llm, ids, state, keep=False).float() for ids in rows]

    def merge_adapters(self) -> None:
        """Add the adapters to the frozen weights and remove them, for inference only.

        Raises:
            UserError: If an adapted layer shares its weights with another module.
        """
        # Imported here for the same reason as in __init__.
        from emollama.models import llm_weights

        self.llama_model = llm_weights.merged(self.llama_model)

    @torch.inference_mode()
    def beam_search(self, batch: Batch, prompt: PromptFormat, options: Mapping[str, Any]) -> list[list[int]]:
        """Generate a continuation of each prompt with the beam search of transformers.

        Args:
            batch: B prompts without answers.
            prompt: the prompt format of the batch; it defines how an answer ends.
            options: keyword arguments of transformers' ``generate``.

        Returns:
            B lists of new token ids, up to and including the end of the answer.

        Raises:
            UserError: If the beam search of transformers does not work with the language model.
        """
        self.packing.require_beam_search(self.llm_config.model_type)
        self._require_length(batch.max_length + options.get("max_new_tokens", 0))
        if not prompt.ends_with_eos:
            options = {"stop_strings": [self.cfg.end_sym], "tokenizer": prompt.tokenizer, **options}
        pieces = list(self._embed(batch).split(list(batch.lengths)))
        # Most models that cannot be packed compute wrong values if generate() of transformers gets a padded batch.
        groups = [pieces] if self.packing.is_packed else [[piece] for piece in pieces]
        eos = prompt.tokenizer.eos_token_id
        return [answer for group in groups for answer in padded.beam_search(self.llama_model, group, eos, options)]

    def _packed_logits(self, batch: Batch, positions: Tensor, **cache: Any) -> Tensor:
        """Return the next-token logits after these positions of a packed batch, (len(positions), V)."""
        # Imported here for the same reason as in __init__.
        from emollama.models.attention import unused_mask

        embeddings, rows = self._embed(batch).unsqueeze(0), pad_positions(positions)
        logits: Tensor = self._llm(
            inputs_embeds=embeddings,
            attention_mask=unused_mask(embeddings),
            position_ids=batch.position_ids.unsqueeze(0),
            cu_seqlens=batch.cu_seqlens,
            max_length=batch.max_length,
            lengths=batch.lengths,
            shared=batch.shared,
            **kernels.selection(rows, in_last_layer=self._fused and not cache["use_cache"]),
            **cache,
        ).logits.squeeze(0)
        # A slice, also of all rows, would have a gradient of its own, with memory that is filled with zeros.
        return logits if len(rows) == len(positions) else logits[: len(positions)]

    def _padded_logits(self, batch: Batch, embeddings: Tensor, positions: padded.Positions, cache: Any = None) -> Tensor:
        """Return the next-token logits at positions of a packed batch, which the language model reads padded."""
        sequences = embeddings.split(list(batch.lengths))
        return padded.logits_at(self._llm, sequences, positions, batched=self.packing.batched, cache=cache)

    def _padded_prefill(self, batch: Batch) -> tuple[Tensor, DecodingState]:
        embeddings = self._embed(batch)
        last = padded.Positions.of([[length - 1] for length in batch.lengths], embeddings.device)
        sequences = embeddings.split(list(batch.lengths))
        if self.packing.cache == "sequence":
            logits, state = padded.prefill_sequences(self._llm, sequences)
            return logits.float(), state
        if self.packing.cache == "none":
            logits = self._padded_logits(batch, embeddings, last).float()
            return logits, padded.prefix_state(sequences, batched=self.packing.batched)
        cache = empty_cache()
        logits = self._padded_logits(batch, embeddings, last, cache).float()
        return logits, left_padded_state(cache, batch.lengths)

    def _embed(self, batch: Batch) -> Tensor:
        """Return the input embeddings (T, H): text embeddings, and feature tokens at placeholder ids."""
        text: Tensor = self.llama_model.get_input_embeddings()(batch.input_ids.clamp(min=0))
        tokens = self.fusion({slot: packed.float() for slot, packed in self.features_for_fusion(batch).items()})
        joined = joined_feature_tokens({part: tokens[part] for part in self._parts}, batch.feature_counts)
        with dropout.use_keys(dropout.keys_at(batch.feature_positions)):
            joined = self.dropout(joined.to(text.dtype))
        return text.index_copy(0, batch.feature_positions, joined)
