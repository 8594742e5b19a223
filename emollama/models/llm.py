"""Configuration and tokenizer of a language model, read from its folder without loading weights.

Any Hugging Face causal language model in a local folder works (Llama, Vicuna, Mistral, Qwen, ...). Code that needs the layers
of the model is in :mod:`emollama.models.llm_weights`, which takes seconds to import.
"""

from __future__ import annotations

import os
from typing import Any

from emollama.checkpoint_files import require_language_model
from emollama.errors import UserError


def read_config(path: str) -> Any:
    """Read the model's config.json.

    Raises:
        UserError: If the folder does not exist or contains no configuration that transformers can read.
    """
    require_language_model(path)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model.llama_model: '{path}' is not a Hugging Face model folder: {error}") from None


def embedding_rows(config: Any) -> int:
    """Return the number of rows of the embedding table, which can exceed the size of the tokenizer's vocabulary."""
    return int(config.get_text_config().vocab_size)


def load_tokenizer(path: str) -> Any:
    """Load the tokenizer from a model's folder.

    Raises:
        UserError: If the folder contains no usable tokenizer.
    """
    from transformers import AutoTokenizer

    # Tokenizers that started threads warn, or deadlock, when the data loader forks its workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"model.llama_model: no usable tokenizer in '{path}': {error}") from None
