"""The files of an exported folder other than code: weights, configurations, tokenizer. None of them contains a path."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from emollama.data.prompts.formats import TemplateFormat
from emollama.errors import UserError
from emollama.json_io import parse_json
from emollama.listing import listing
from emollama.models import llm
from emollama.paths import read_text
from emollama.tensor_files import save_tensors

LLM_PREFIX, FUSION_PREFIX = "language_model.", "fusion."  # of the tensors in the exported model
TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json"}
TOKENIZER_FILES |= {"merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"}
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
# Keys of tokenizer files in which libraries store paths of the machine that wrote them, or names of code.
PRIVATE_KEY = re.compile(r".*name_or_path|.*_file|auto_map|processor_class")
# Models of old versions of transformers contain the angles of the rotary embedding, which are computed now.
UNUSED = re.compile(r".*rotary_emb\.inv_freq")


def write_weights(merged: Path, fusion: Mapping[str, Tensor], folder: Path) -> dict[str, str]:
    """Write the tensors under their names in the exported model; return name -> file. One file is in memory at a time."""
    sources = sorted(merged.glob("*.safetensors"))
    files: dict[str, str] = {}
    count, size = len(sources) + 1, 0
    for index in range(count):
        if index < len(sources):
            tensors = {f"{LLM_PREFIX}{name}": tensor for name, tensor in load_file(sources[index]).items()}
            tensors = {name: tensor for name, tensor in tensors.items() if not UNUSED.fullmatch(name)}
            sources[index].unlink()
        else:
            tensors = {f"{FUSION_PREFIX}{name}": tensor.contiguous() for name, tensor in fusion.items()}
        file = f"model-{index + 1:05}-of-{count:05}.safetensors"
        save_tensors(tensors, folder / file, {"format": "pt"})
        files |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": files})
    return files


def write_config(folder: Path, base: str, projections: list[dict[str, Any]], end_symbol: str | None, training: Any) -> None:
    """Write config.json.

    Args:
        folder: the exported folder.
        base: folder of the language model.
        projections: slot, layer, dim and group of each projection, in the order of placeholder ids.
        end_symbol: the text that ends an answer; None if it is the EOS token.
        training: tasks and labels, as JSON values.
    """
    # Imported here because the module imports transformers, which takes seconds.
    from emollama.convert.hub.modeling_emollama import EmollamaConfig

    text_config = llm.read_config(base)
    described = [{key: item[key] for key in ("slot", "layer", "dim", "group")} for item in projections]
    rows = llm.embedding_rows(text_config)
    config = EmollamaConfig(text_config, described, rows, end_symbol, training, tie_word_embeddings=False)
    content = json.loads(config.to_json_string(use_diff=False))
    text = _without_private_keys(content["text_config"])
    content |= {"text_config": text, "architectures": ["EmollamaForCausalLM"], "dtype": text.get("dtype") or "float32"}
    content["auto_map"] = {
        "AutoConfig": "modeling_emollama.EmollamaConfig",
        "AutoModelForCausalLM": "modeling_emollama.EmollamaForCausalLM",
    }
    write_json(folder / "config.json", _without_private_keys(content, but="auto_map"))


def write_generation_config(folder: Path, prompt: TemplateFormat, max_new_tokens: int) -> None:
    """Write generation_config.json: greedy decoding, as in an evaluation."""
    tokenizer = prompt.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    pad = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    content = {**ids, "pad_token_id": pad, "do_sample": False, "max_new_tokens": max_new_tokens}
    write_json(folder / "generation_config.json", content)


def copy_tokenizer(base: Path, folder: Path, tokenizer: Any) -> None:
    """Copy the files of the tokenizer and of the licence. The tokenizer's class must not depend on the type of the model."""
    names = TOKENIZER_FILES | set(type(tokenizer).vocab_files_names.values())
    licences = [path.name for pattern in LICENCE_FILES for path in base.glob(pattern)]
    for name in sorted({*names, *licences} - {llm.TOKENIZER_CONFIG}):
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    content = _without_private_keys(parse_json(read_text(str(base / llm.TOKENIZER_CONFIG))))
    class_name = type(tokenizer).__name__
    content["tokenizer_class"] = "PreTrainedTokenizerFast" if class_name == "TokenizersBackend" else class_name
    write_json(folder / llm.TOKENIZER_CONFIG, content)


def _without_private_keys(content: Mapping[str, Any], but: str = "") -> dict[str, Any]:
    return {key: value for key, value in content.items() if key == but or not PRIVATE_KEY.fullmatch(key)}


def require_names(folder: Path, names: Iterable[str]) -> None:
    """Check that the written names are those of the exported model.

    Raises:
        UserError: If they are not, because transformers stores the language model under other names.
    """
    # Imported here for the same reason as in write_config.
    from emollama.convert.hub.modeling_emollama import EmollamaConfig, EmollamaForCausalLM

    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = EmollamaForCausalLM(EmollamaConfig(**content))
    expected, written = set(model.state_dict()), set(names)
    missing = expected - written - set(model.all_tied_weights_keys)
    if wrong := sorted(missing | (written - expected)):
        raise UserError(
            f"--to transformers: the files of the language model name their tensors in another way than its layers:"
            f" {listing(wrong, 'tensor')}. Convert with --to merged."
        )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
