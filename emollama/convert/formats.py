"""Checkpoints made from checkpoints: averages, PEFT folders, files from PEFT folders, merged language models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from emollama import checkpoint
from emollama.convert.inspection import layout_difference
from emollama.convert.weights import ADAPTERS, ADAPTERS_CONFIG, PROJECTORS, Weights, read
from emollama.errors import UserError
from emollama.listing import listing
from emollama.models import adapters, merging
from emollama.paths import new_folder, require_new_file, sha256
from emollama.stores.manifest import differences
from emollama.tensor_files import save_tensors


def average(sources: list[str], output: str) -> None:
    """Write the mean of checkpoints as one that holds weights only, and lists their epochs.

    The halves of adapters are averaged each, which suits
    checkpoints of one run. How their features were made goes along.

    Args:
        sources: two or more of what :func:`read` reads.
        output: the file to write.

    Raises:
        UserError: other names, shapes, dtypes, alphas or features made otherwise, all of them by name; one checkpoint only; an
            output that is there.
    """
    place = require_new_file(output)
    if len(sources) < 2:
        raise UserError("an average is made of at least two checkpoints")
    first = read(sources[0], "average")
    epochs = [first.facts.get("epoch")]
    features = dict(first.facts.get("features") or {})

    def parts() -> Iterator[dict[str, Tensor]]:
        yield first.tensors
        for source in sources[1:]:
            other = read(source, "average")
            _require_same_layout(first, other, features)
            features.update(other.facts.get("features") or {})
            epochs.append(other.facts.get("epoch"))
            yield other.tensors

    means = checkpoint.mean(parts())
    told = {"features": features} if features else {}
    checkpoint.save(place, {"model": means, "epoch": epochs, "averaged": list(sources), **_entries(first, "config"), **told})


def _require_same_layout(first: Weights, other: Weights, features: dict[str, Any]) -> None:
    """Compare layouts, and how the features of the slots were made of which both sides tell."""
    found = layout_difference(first, other)
    sides = (first.source, found["only_in_first"]), (other.source, found["only_in_second"])
    problems = [f"only in {source}, {listing(names)}" for source, names in sides if names]
    for key in ("shapes", "dtypes"):
        problems += [f"{name} {one} and {another}" for name, (one, another) in found[key].items()]
    if found["lora_alpha"]:
        problems.append("lora_alpha {} and {}".format(*found["lora_alpha"]))
    for slot, facts in (other.facts.get("features") or {}).items():
        problems += [f"{slot} features made otherwise, {told}" for told in differences(features.get(slot, facts), facts)]
    if problems:
        raise UserError(f"{first.source} and {other.source} have no average: {'; '.join(problems)}")


def to_pth(weights: Weights, output: str) -> None:
    """Write a checkpoint file that holds weights, configuration and how the features were made, with its digest.

    Raises:
        UserError: the output is there already, or cannot be written.
    """
    place = require_new_file(output)
    checkpoint.save(place, {"model": _own_memory(weights.tensors), **_entries(weights, "epoch", "config", "features")})


def to_peft(weights: Weights, output: str, alpha: float | None, llama_model: str | None) -> None:
    """Write a folder that peft loads upon the language model, with everything that is no adapter in projectors.safetensors.

    Args:
        weights: with LoRA adapters.
        output: the folder to write.
        alpha: where none is stored.
        llama_model: the language model's folder, to check that the adapters fit and to be named in adapter_config.json; None
            leaves that out.

    Raises:
        UserError: no alpha or two, adapters that are incomplete or do not fit, an output that is there already.
    """
    parts = adapters.split_adapters(weights.tensors, weights.source)
    if llama_model is not None:
        adapters.check_base(llama_model, parts, weights.source)
    config = adapters.peft_config(
        parts, alpha=_alpha(weights, alpha), dropout=weights.setting("lora_dropout") or 0.0, base=llama_model
    )
    with new_folder(output) as folder:
        (folder / ADAPTERS_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _save_tensors(parts.named(), folder / ADAPTERS)
        if parts.rest:
            _save_tensors(parts.rest, folder / PROJECTORS)


def to_merged(weights: Weights, output: str, alpha: float | None, llama_model: str) -> None:
    """Write the language model's folder with the adapters merged in, and the rest in projectors.safetensors.

    Args:
        weights: with LoRA adapters.
        output: the folder to write.
        alpha: where none is stored.
        llama_model: the language model's folder, weights in safetensors. The merged weights have their dtype.

    Raises:
        UserError: as :func:`to_peft`, or weights that cannot be read or are quantized.
    """
    parts = adapters.split_adapters(weights.tensors, weights.source)
    adapters.check_base(llama_model, parts, weights.source)
    scale = _alpha(weights, alpha) / parts.rank
    with new_folder(output) as folder:
        merging.merge(Path(llama_model), parts, scale, folder)
        if parts.rest:
            _save_tensors(parts.rest, folder / PROJECTORS)


def _alpha(weights: Weights, given: float | None) -> float:
    stored = weights.lora_alpha
    if stored is None and given is None:
        raise UserError(
            f"{weights.source} does not say with which lora_alpha it was trained. Give it by --lora-alpha (16 for the released"
            " Emotion-LLaMA and MiniGPT-v2)."
        )
    if stored is not None and given is not None and stored != given:
        raise UserError(f"--lora-alpha is {given:g}, but {weights.source} was trained with {stored:g}. Leave the option out.")
    value = given if stored is None else stored
    assert value is not None
    if not 0 < value < float("inf"):
        raise UserError(f"{'lora_alpha' if given is None else '--lora-alpha'} is {value:g}; it must be above 0, and finite")
    return int(value) if value == int(value) else value


def _entries(weights: Weights, *names: str) -> dict[str, Any]:
    return {name: weights.facts[name] for name in names if name in weights.facts}


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies: safetensors takes no others, and of a view its whole storage would be saved."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file with its digest beside it."""
    try:
        save_tensors(_own_memory(tensors), path, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    checkpoint.digest_path(path).write_text(f"{sha256(path)}  {path.name}\n", encoding="utf-8")
