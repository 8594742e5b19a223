"""A language model with projections of feature vectors (face, audio, video, ...) into its prompt; exported by emollama.

Usage::

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    inputs = processor({"face": face, "audio": audio}, text="I knew it!", task="emotion")
    answer = processor.answers(model.generate(**inputs, tokenizer=processor.tokenizer))[0]

Shape letters: B = samples, T = tokens of the longest prompt, n = feature vectors of a slot in the whole batch, D = their size,
H = hidden size of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)


class EmollamaConfig(PretrainedConfig):
    """Configuration of the model; the texts of prompts are in processor_config.json.

    Args:
        text_config: configuration of the language model.
        projections: linear layers in the order of their placeholder ids. Each has ``slot``, ``layer`` (its name in the weights),
            ``dim`` (D) and ``group``, the number of neighbouring feature vectors that are concatenated into one.
        first_placeholder: first id outside the embedding table; ``first_placeholder + i`` is the position of one feature token
            of projection i.
        end_symbol: the text that ends an answer; None if it is the EOS token.
        training: tasks with their instructions, and labels.
        kwargs: further arguments of PretrainedConfig.
    """

    model_type = "emollama"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: Any = None,
        projections: Any = (),
        first_placeholder: int = 0,
        end_symbol: str | None = None,
        training: Any = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, Mapping):
            text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config)
        self.text_config = text_config
        self.projections = list(projections)
        self.first_placeholder = first_placeholder
        self.end_symbol = end_symbol
        self.training = training or {}
        super().__init__(**kwargs)


class EmollamaForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model and the projections."""

    config_class = EmollamaConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["fusion"]  # noqa: RUF012

    def __init__(self, config: EmollamaConfig) -> None:
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        width = self.language_model.get_input_embeddings().weight.shape[1]
        layers = {item["layer"]: nn.Linear(item["dim"] * item["group"], width) for item in config.projections}
        self.fusion = nn.ModuleDict(layers)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding table of the language model."""
        return self.language_model.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        """Return the head of the language model."""
        return self.language_model.get_output_embeddings()  # type: ignore[no-any-return]

    def embed(self, input_ids: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return input embeddings (B, T, H): those of the tokens, and projected feature vectors at placeholder ids.

        Args:
            input_ids: (B, T) ids of the processor.
            features: slot -> feature vectors (n, D) of all samples, in their order.
        """
        table: Any = self.get_input_embeddings()
        first = self.config.first_placeholder
        input_ids = input_ids.to(table.weight.device)
        embeddings: Tensor = table(input_ids.where(input_ids < first, 0))
        for index, item in enumerate(self.config.projections):
            positions = input_ids == first + index
            layer: Any = self.fusion[item["layer"]]
            vectors = torch.zeros(0, item["dim"]) if features is None else features[item["slot"]]
            vectors = vectors.to(layer.weight).reshape(-1, item["dim"] * item["group"])
            if len(vectors) != int(positions.sum()):
                raise ValueError(
                    f"{int(positions.sum())} placeholder ids of the slot {item['slot']} need as many feature tokens, but its"
                    f" features give {len(vectors)}. Pass input_ids and features of the same call of the processor."
                )
            embeddings = embeddings.masked_scatter(positions[..., None], layer(vectors).to(embeddings))
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the output of the language model.

        Args:
            input_ids: (B, T) ids of the processor.
            features: slot -> feature vectors (n, D) of all samples, in their order.
            inputs_embeds: (B, T, H) the result of :meth:`embed`, in place of ids and features.
            kwargs: further arguments of the language model, such as ``attention_mask`` and ``labels``.
        """
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, features)
        return self.language_model(inputs_embeds=inputs_embeds, **kwargs)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, input_ids: Tensor, features: Mapping[str, Tensor] | None = None, tokenizer: Any = None, **kwargs: Any
    ) -> Any:
        """Generate answers; greedy by default. Only the new ids are returned, (B, new tokens).

        Args:
            input_ids: (B, T) ids of the processor, padded on the left.
            features: slot -> feature vectors (n, D) of all samples, in their order.
            tokenizer: the tokenizer, to stop at an end symbol that is not the EOS token. Without it, such answers continue up to
                ``max_new_tokens``; the processor cuts them at the end symbol in any case.
            kwargs: arguments of ``generate`` of transformers.
        """
        criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
        if self.config.end_symbol is not None and tokenizer is not None:
            criteria.append(EndSymbol(self.config.end_symbol, tokenizer))
        self.language_model.generation_config = self.generation_config
        embeddings = self.embed(input_ids, features)
        return self.language_model.generate(inputs_embeds=embeddings, stopping_criteria=criteria, **kwargs)


class EndSymbol(StoppingCriteria):
    """Stops a sequence whose last tokens contain the text of the end symbol.

    Args:
        text: the end symbol.
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, text: str, tokenizer: Any) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.length = len(text.encode()) + 1  # a tokenizer splits it at most into the bytes of its characters

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return for each sequence whether it is finished, (B,) bool."""
        ends = [self.text in self.tokenizer.decode(ids) for ids in input_ids[:, -self.length :].tolist()]
        return torch.tensor(ends, device=input_ids.device)
