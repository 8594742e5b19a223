"""Averages of checkpoints, and conversion between checkpoints, PEFT folders and merged language models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from emollama import checkpoint, checkpoint_average, file_digests
from emollama.convert import trained_llm
from emollama.convert.inspection import layout_difference
from emollama.convert.weights import ADAPTERS, ADAPTERS_CONFIG, PROJECTORS, Weights, read
from emollama.errors import UserError
from emollama.listing import listing
from emollama.models import adapters, merging
from emollama.paths import new_folder, require_new_file, sha256
from emollama.stores.manifest import differences
from emollama.tensor_files import save_tensors


def average(sources: list[str], output: str) -> None:
    """Write the mean of several checkpoints as a checkpoint without training state.

    The matrices A and B of LoRA adapters are averaged separately, which is suitable for checkpoints of the same run. The output
    contains the epochs of the sources and the provenance of their features.

    Args:
        sources: two or more files or folders that :func:`read` accepts.
        output: the file to write.

    Raises:
        UserError: If there is only one source, the output exists, or the sources differ in names, shapes, dtypes, alpha or
            features. The message lists all differences.
    """
    output_path = require_new_file(output)
    if len(sources) < 2:
        raise UserError("an average needs at least two checkpoints. Name more sources.")
    first = read(sources[0], "average")
    epochs = [first.entries.get("epoch")]
    features = dict(first.entries.get("features") or {})

    def parts() -> Iterator[dict[str, Tensor]]:
        yield first.tensors
        for source in sources[1:]:
            other = read(source, "average")
            _require_same_layout(first, other, features)
            features.update(other.entries.get("features") or {})
            epochs.append(other.entries.get("epoch"))
            yield other.tensors

    content: dict[str, Any] = {"model": checkpoint_average.mean(parts()), "epoch": epochs, "averaged": list(sources)}
    content |= _entries(first, "config")
    if features:
        content["features"] = features
    checkpoint.save(output_path, content)


def _require_same_layout(first: Weights, other: Weights, features: dict[str, Any]) -> None:
    """Check that two checkpoints can be averaged.

    Args:
        first: the first source.
        other: another source.
        features: provenance of the features of all sources before ``other``.

    Raises:
        UserError: If layouts or features differ. The message lists all differences.
    """
    layout = layout_difference(first, other)
    sides = (first.source, layout["only_in_first"]), (other.source, layout["only_in_second"])
    problems = [f"only in {source}: {listing(names, 'tensor')}" for source, names in sides if names]
    for key in ("shapes", "dtypes"):
        problems += [f"{name} {one} and {another}" for name, (one, another) in layout[key].items()]
    if layout["lora_alpha"]:
        problems.append("lora_alpha {} and {}".format(*layout["lora_alpha"]))
    for slot, provenance in (other.entries.get("features") or {}).items():
        different = differences(features.get(slot, provenance), provenance)
        problems += [f"{slot} features differ, {difference}" for difference in different]
    if problems:
        raise UserError(f"cannot average {first.source} and {other.source}: {'; '.join(problems)}")


def to_pth(weights: Weights, output: str) -> None:
    """Write a checkpoint with weights, configuration and the provenance of features, and a file with its digest.

    Raises:
        UserError: If the output exists or cannot be written.
    """
    path = require_new_file(output)
    checkpoint.save(path, {"model": _own_memory(weights.whole().tensors), **_entries(weights, "epoch", "config", "features")})


def to_peft(weights: Weights, output: str, alpha: float | None, llama_model: str | None) -> None:
    """Write adapters as a folder for peft; all other tensors are written to projectors.safetensors in that folder.

    Args:
        weights: tensors with LoRA adapters.
        output: the folder to write.
        alpha: alpha of the adapters, if ``weights`` does not contain it.
        llama_model: folder of the language model, which is written to adapter_config.json after a check that the adapters fit.
            With None, the configuration names no language model.

    Raises:
        UserError: If alpha is missing or contradicts the stored one, adapters are incomplete or do not fit, or the output exists.
    """
    adapters.split_adapters(weights.tensors, weights.source)  # before all values are read
    parts = adapters.split_adapters(weights.whole().tensors, weights.source)
    layers = None if llama_model is None else adapters.check_base(llama_model, parts, weights.source)
    dropout = weights.setting("lora_dropout") or 0.0
    config = adapters.peft_config(parts, alpha=alpha_of(weights, alpha), dropout=dropout, base=llama_model, layers=layers)
    with new_folder(output) as folder:
        (folder / ADAPTERS_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _save_tensors(parts.named(), folder / ADAPTERS)
        if parts.rest:
            _save_tensors(parts.rest, folder / PROJECTORS)


def to_merged(weights: Weights, output: str, alpha: float | None, llama_model: str) -> None:
    """Write a trained language model; all other tensors are written to projectors.safetensors.

    Args:
        weights: tensors with LoRA adapters, which are merged into the language model, or with all of its weights.
        output: the folder to write.
        alpha: alpha of the adapters, if ``weights`` does not contain it.
        llama_model: folder of the language model in safetensors. The merged weights have the same dtype.

    Raises:
        UserError: As in :func:`to_peft`, or if the language model cannot be read or is quantized.
    """
    with new_folder(output) as folder:
        rest = write_language_model(weights, alpha, llama_model, folder)
        if rest:
            _save_tensors(rest, folder / PROJECTORS)
            merging.write_index(folder)


def write_language_model(weights: Weights, alpha: float | None, llama_model: str, target: Path) -> dict[str, Tensor]:
    """Write a trained language model into an empty folder; return all other tensors.

    Raises:
        UserError: As in :func:`to_merged`.
    """
    if trained_llm.is_in(weights):
        trained_llm.write(weights, llama_model, target)
        return trained_llm.others(weights)
    whole = weights.whole()
    parts = adapters.split_adapters(whole.tensors, weights.source)
    layers = adapters.check_base(llama_model, parts, weights.source)
    layers.require_untied(weights.source)
    scale = alpha_of(weights, alpha) / parts.rank
    merging.copy_changed(Path(llama_model), merging.merged(parts, layers, scale), target)
    return parts.rest


def alpha_of(weights: Weights, option: float | None) -> float:
    """Return the stored alpha, or else the value of ``--lora-alpha``.

    Raises:
        UserError: If there is no alpha, the two differ, or the value is not a positive finite number.
    """
    stored = weights.lora_alpha
    if stored is None and option is None:
        raise UserError(
            f"{weights.source} does not contain the lora_alpha of its training. Pass it with --lora-alpha (16 for the released"
            " Emotion-LLaMA and MiniGPT-v2)."
        )
    if stored is not None and option is not None and stored != option:
        raise UserError(f"--lora-alpha is {option:g}, but {weights.source} was trained with {stored:g}. Leave the option out.")
    value = option if stored is None else stored
    assert value is not None
    if not 0 < value < float("inf"):
        raise UserError(f"{'lora_alpha' if option is None else '--lora-alpha'} is {value:g}; it must be above 0 and finite.")
    return int(value) if value == int(value) else value


def _entries(weights: Weights, *names: str) -> dict[str, Any]:
    return {name: weights.entries[name] for name in names if name in weights.entries}


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies of tensors."""
    # safetensors saves contiguous tensors only, and torch.save would save the whole storage of a view.
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, and its digest to a file next to it."""
    try:
        save_tensors(_own_memory(tensors), path, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    file_digests.digest_path(path).write_text(f"{sha256(path)}  {path.name}\n", encoding="utf-8")
