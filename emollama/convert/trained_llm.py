"""A language model that was trained as a whole (``train_llm: full``): its weights take the place of those in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from emollama.convert.weights import Weights
from emollama.errors import UserError
from emollama.listing import listing
from emollama.models import adapters, checkpoint_names, merging


def is_in(weights: Weights) -> bool:
    """Return whether a checkpoint contains weights of the language model, and no adapters."""
    names = [name for name in weights.tensors if name.startswith(adapters.LLM_PREFIX) and not checkpoint_names.is_unused(name)]
    return bool(names) and not any(adapters.LORA_TENSOR_NAME.fullmatch(name) for name in names)


def others(weights: Weights) -> dict[str, Tensor]:
    """Return all other tensors of a checkpoint with their values."""
    return weights.values(name for name in weights.tensors if not name.startswith(adapters.LLM_PREFIX))


def write(weights: Weights, base: str, target: Path) -> None:
    """Write a copy of a language model's folder with the trained weights, in the dtypes of the folder.

    The trained weights are read one at a time, so that memory is needed for one file of the folder.

    Args:
        weights: a checkpoint for which :func:`is_in` is True.
        base: the folder from which the training started, with weights in safetensors.
        target: an empty folder.

    Raises:
        UserError: If the weights do not fit the folder; the message lists them by name.
    """
    # Imported here because the module imports transformers, which takes seconds.
    from emollama.models.lora_targets import shared_weights

    model = adapters.build_base(base, dtype=torch.float32, device=torch.device("meta"))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _require_fitting(weights, expected, base)
    changes = {name: _Trained(weights, f"{adapters.LLM_PREFIX}{name}", shape) for name, shape in expected.items()}
    shared = {f"{name}.weight": f"{other}.weight" for name, other in shared_weights(model).items()}
    aliases = {name: other for name, other in shared.items() if name not in expected}
    merging.copy_changed(Path(base), changes, target, aliases)


def _require_fitting(weights: Weights, expected: Mapping[str, tuple[int, ...]], base: str) -> None:
    prefix = adapters.LLM_PREFIX
    trained = {name.removeprefix(prefix): tensor for name, tensor in weights.tensors.items() if name.startswith(prefix)}
    problems = []
    for name, tensor in trained.items():
        if name in expected and tuple(tensor.shape) != expected[name]:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
        elif name not in expected and not checkpoint_names.is_unused(f"{prefix}{name}"):
            problems.append(f"{name} is not in this language model")
    problems += [f"{name} {shape} is missing" for name, shape in expected.items() if name not in trained]
    if problems:
        raise UserError(
            f"{weights.source} contains weights of the language model itself, as train_llm: full saves them, but they do not fit"
            f" the language model in {base}: {listing(problems, 'mismatch', 'mismatches')}. Specify the one of the training with"
            " --llama-model."
        )


@dataclass(frozen=True)
class _Trained:
    """A trained weight."""

    weights: Weights
    stored_name: str
    shape: tuple[int, ...]

    def applied_to(self, name: str, weight: Tensor) -> Tensor:
        """Return the trained values in the weight's dtype."""
        merging.require_changeable(name, weight, self.shape)
        values = self.weights.values([self.stored_name])[self.stored_name]
        # safetensors does not save two names of the same memory.
        return values.to(weight.dtype, copy=True, memory_format=torch.contiguous_format)
