"""Configuration and tokenizer of a language model, read from its folder without loading weights.

Any Hugging Face causal language model in a local folder works (Llama, Vicuna, Mistral, Qwen, ...). Code that needs the layers
of the model is in :mod:`emollama.models.llm_weights`, which takes seconds to import. Python code in the folder is never executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emollama.checkpoint_files import require_language_model
from emollama.data.prompts.tokenizer_check import LLMVocabulary
from emollama.errors import UserError
from emollama.json_io import read_object

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
KEY = "model.llama_model"
NEEDS_CODE = (
    "needs Python code from its folder (auto_map), which is never executed. Use a version of the model that transformers"
    " implements itself, or another language model."
)


def read_config(path: str) -> Any:
    """Read the model's config.json.

    Raises:
        UserError: If the folder does not exist or contains no configuration that transformers can read.
    """
    require_language_model(path)
    file = Path(path, CONFIG)
    content = _read_content(file)
    import transformers

    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        if content.get("auto_map"):
            raise UserError(f"{KEY}: the language model in '{path}' {NEEDS_CODE}")
        if not isinstance(kind, str) or not kind:
            raise UserError(f"{KEY}: '{file}' has no model_type. Set the folder of a Hugging Face causal language model.")
        raise UserError(
            f"{KEY}: '{file}': transformers {transformers.__version__} has no model of the type '{kind}'. Upgrade transformers,"
            " or use another language model."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises errors of many classes for wrong values
        raise UserError(f"{KEY}: '{file}' cannot be used: {_short(error)}. Download it again.") from None
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        if "AutoModelForCausalLM" in (content.get("auto_map") or {}):
            raise UserError(f"{KEY}: the language model in '{path}' {NEEDS_CODE}")
        raise UserError(f"{KEY}: '{file}': models of the type '{kind}' are not causal language models. Use another model.")
    return config


def embedding_rows(config: Any) -> int:
    """Return the number of rows of the embedding table, which can exceed the size of the tokenizer's vocabulary.

    Raises:
        UserError: If the model has no vocabulary, so that it is not a language model.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        raise UserError(
            f"{KEY}: models of the type '{config.model_type}' have no vocabulary (vocab_size in {CONFIG}). Use a causal"
            " language model."
        )
    return rows


def position_limit(config: Any) -> int | None:
    """Return the number of tokens above which a model encodes all positions of a forward pass differently; None without a limit.

    This is so for the rotary embeddings of the types longrope and dynamic, in which a long sample would change the positions of
    a shorter one in the same micro-batch, and those of tokens in a key-value cache.

    Args:
        config: the result of :func:`read_config`.
    """
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    groups = [parameters] if "rope_type" in parameters else [group for group in parameters.values() if isinstance(group, dict)]
    limits = [group.get("original_max_position_embeddings") for group in groups if group.get("rope_type") == "longrope"]
    limits += [text.max_position_embeddings for group in groups if group.get("rope_type") == "dynamic"]
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def vocabulary(path: str, config: Any) -> LLMVocabulary:
    """Return what the files of a model say about its tokens.

    Args:
        path: the folder of the model.
        config: the result of :func:`read_config`.
    """
    rows, configs = embedding_rows(config), (config, config.get_text_config())
    bos, eos = (
        tuple(dict.fromkeys(token for each in configs for token in _ids(getattr(each, name, None), rows)))
        for name in ("bos_token_id", "eos_token_id")
    )
    generation = read_object(Path(path, GENERATION_CONFIG), [])
    return LLMVocabulary(path, rows, bos, eos, tuple(_ids(generation.get("eos_token_id"), rows)))


def load_tokenizer(path: str) -> Any:
    """Load the tokenizer from a model's folder.

    Raises:
        UserError: If the folder contains no usable tokenizer.
    """
    from transformers import AutoTokenizer

    # Tokenizers that started threads warn, or deadlock, when the data loader forks its workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise errors of many classes for wrong files
        problem = _short(error)
    else:
        if tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():
            return tokenizer
        # Without the file of a vocabulary, transformers returns a tokenizer that has only special tokens.
        problem = "it has no vocabulary"
    if read_object(Path(path, TOKENIZER_CONFIG), []).get("auto_map"):
        raise UserError(f"{KEY}: the tokenizer in '{path}' {NEEDS_CODE}")
    raise UserError(
        f"{KEY}: no usable tokenizer in '{path}': {problem}. Put the tokenizer files of the model there (tokenizer.json or"
        f" tokenizer.model, and {TOKENIZER_CONFIG})."
    )


def float16_warning(config: Any, frozen_dtype: Any) -> list[str]:
    """Return a line if a model that was trained in bfloat16 is run in float16, whose range is smaller.

    Args:
        config: the result of :func:`read_config`.
        frozen_dtype: dtype of the frozen weights of the run.
    """
    dtypes = [str(getattr(each, "dtype", None)) for each in (config, config.get_text_config())]
    if str(frozen_dtype) != "torch.float16" or not any(dtype.endswith("bfloat16") for dtype in dtypes):
        return []
    return [
        f"run.amp_dtype: the language model was trained in bfloat16 (dtype in {CONFIG}), but this run computes in float16, and"
        " the values of the model may exceed its range. Set run.amp_dtype: bf16, or run.amp: False."
    ]


def _read_content(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{KEY}: '{file.parent}' contains no {CONFIG}. Set the folder of a Hugging Face causal language model.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{KEY}: '{file}' cannot be read as JSON: {_short(error)}. Download it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{KEY}: '{file}' is not a JSON object. Download it again.")
    return content


def _ids(value: Any, rows: int) -> Iterator[int]:
    """Yield the ids in an entry such as ``eos_token_id``, which is a number, a list or null. Ids without a row are defaults."""
    for token in value if isinstance(value, list | tuple) else [value]:
        if isinstance(token, int) and 0 <= token < rows:
            yield token


def _short(error: Exception) -> str:
    """Return the message of an exception in one line of at most 200 characters."""
    text = " ".join(str(error).split()).rstrip(". ") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
