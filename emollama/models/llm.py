"""The language model's folder: its configuration and its tokenizer, without its weights.

Any Hugging Face causal language model in a local folder (Llama, Vicuna, Mistral, Qwen, ...). What needs its layers is in
:mod:`emollama.models.llm_weights`, which takes seconds to import.
"""

from __future__ import annotations

import os
from typing import Any

from emollama.checkpoint_files import require_language_model
from emollama.errors import UserError


def read_config(path: str) -> Any:
    """The model's config.json.

    Raises:
        UserError: no such folder, or nothing usable in it.
    """
    require_language_model(path)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model.llama_model: '{path}' is not a Hugging Face model folder: {error}") from None


def embedding_rows(config: Any) -> int:
    """Rows of the embedding table; a tokenizer can be shorter."""
    return int(config.get_text_config().vocab_size)


def width(config: Any) -> int:
    """The LLM's hidden size."""
    return int(config.get_text_config().hidden_size)


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model's folder.

    Raises:
        UserError: the folder has none.
    """
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data workers are forked
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"model.llama_model: no usable tokenizer in '{path}': {error}") from None
