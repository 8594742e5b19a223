"""The prompt format of a model, built from the outputs of its fusion module and its tokenizer, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emollama.data.fusion_layout import FusionLayout
from emollama.data.prompts import tokenizer_check
from emollama.data.prompts.prompt import FeatureTokenLayout, PromptFormat
from emollama.data.prompts.prompt_style import LossAverage
from emollama.errors import UserError
from emollama.models import llm
from emollama.models.configs import LLMConfig
from emollama.registry import PROMPT_FORMATS

KEY = "model.prompt_format"


def build(
    cfg: LLMConfig,
    value: str | Mapping[str, Any],
    layout: FusionLayout,
    loss_average: LossAverage,
) -> PromptFormat:
    """Return the prompt format of a ``model`` block. It reads the language model's folder, but not its weights.

    Args:
        cfg: the ``model`` block.
        value: the value of ``model.prompt_format``.
        layout: names and numbers of the feature tokens.
        loss_average: how the loss of a sample is averaged.

    Raises:
        UserError: If the folder is not that of a language model, or contains the tokenizer of another model, or the format does
            not fit its tokenizer or the outputs.
    """
    format_class, format_cfg = PROMPT_FORMATS.configured(value, KEY)
    vocabulary = llm.vocabulary(cfg.llama_model, llm.read_config(cfg.llama_model))
    tokenizer, style = llm.load_tokenizer(cfg.llama_model), cfg.style()
    tokenizer_check.require_same_model(tokenizer, vocabulary)
    feature_tokens = FeatureTokenLayout(layout, vocabulary.rows)
    try:
        return format_class(
            format_cfg, tokenizer=tokenizer, style=style, feature_tokens=feature_tokens, loss_average=loss_average
        )
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None
