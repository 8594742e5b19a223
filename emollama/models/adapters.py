"""Separate the LoRA adapters of a checkpoint from its other tensors, and read and write peft's adapter configuration.

Shape letters: r = LoRA rank, I and O = input and output features of an adapted linear layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emollama.errors import UserError
from emollama.json_io import parse_json
from emollama.listing import abbreviated, listing
from emollama.models import checkpoint_names
from emollama.paths import read_text

LLM_PREFIX = "llama_model."  # prefix of the language model's tensors in a checkpoint; peft's own names follow it
LORA_TENSOR_NAME = re.compile(r"llama_model\.base_model\.model\.(.+)\.lora_([AB])\.weight")
# Keys of adapter_config.json that may have any value. All other keys must have the default of LoraConfig.
# fan_in_fan_out says that weights are stored as (I, O), which does not change the adapters.
ALLOWED_PEFT_KEYS = {
    "fan_in_fan_out",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "inference_mode",
    "init_lora_weights",
    "task_type",
}
ALLOWED_PEFT_KEYS |= {"base_model_name_or_path", "revision", "auto_mapping", "peft_version", "peft_type"}


@dataclass(frozen=True)
class Adapters:
    """The LoRA adapters of a checkpoint.

    Attributes:
        layers: name of an adapted layer in the language model -> {"A": (r, I), "B": (O, r)}.
        rank: r, which is the same for all layers.
        rest: name -> tensor, for all other tensors of the checkpoint.
    """

    layers: dict[str, dict[str, Tensor]]
    rank: int
    rest: dict[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """Return the adapters' tensors under peft's names."""
        return {
            f"base_model.model.{layer}.lora_{side}.weight": pair[side] for layer, pair in self.layers.items() for side in "AB"
        }


def split_adapters(tensors: Mapping[str, Tensor], source: str) -> Adapters:
    """Separate the adapters from the other tensors of a checkpoint.

    Args:
        tensors: name in the checkpoint -> tensor.
        source: the checkpoint's name in error messages.

    Raises:
        UserError: If there are no adapters, if a pair is incomplete, if the ranks differ, or if the checkpoint contains
            trained tensors of the language model that are not adapters.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := LORA_TENSOR_NAME.fullmatch(name):
            layers.setdefault(match[1], {})[match[2]] = tensor
        else:
            rest[name] = tensor
    unexpected = [name for name in rest if name.startswith(LLM_PREFIX) and not checkpoint_names.is_unused(name)]
    if not layers:
        hint = " It contains the weights of the language model itself, as train_llm: full saves them." if unexpected else ""
        hint += " Convert them with --to merged or --to transformers." if unexpected else ""
        raise UserError(f"{source} contains no LoRA adapters, so there is nothing to convert.{hint}")
    if unexpected:
        raise UserError(
            f"{source}: only LoRA adapters (lora_A, lora_B) of the language model are supported,"
            f" got {listing(unexpected, 'other tensor')}"
        )
    absent = [f"{layer}.lora_{side}" for layer, pair in layers.items() for side in "AB" if side not in pair]
    if absent:
        raise UserError(f"{source}: each adapter needs both lora_A and lora_B; {listing(absent, 'missing tensor')}")
    ranks = {size for pair in layers.values() for size in (pair["A"].shape[:1], pair["B"].shape[1:])}
    if len(ranks) > 1 or len(next(iter(ranks))) != 1:
        shapes = sorted({f"A {tuple(pair['A'].shape)} B {tuple(pair['B'].shape)}" for pair in layers.values()})
        raise UserError(f"{source}: all adapters must have the same rank, but their shapes are {abbreviated(shapes)}")
    return Adapters(layers, next(iter(ranks))[0], rest)


def target_modules(names: Iterable[str]) -> list[str]:
    """Return peft's ``target_modules`` for these adapted linear layers.

    Short names such as ``q_proj`` are used if every decoder layer of the model contains each of them, otherwise full names.
    """
    names = list(names)
    layers_of: dict[str, list[list[str]]] = {}  # short name -> indices in the full names
    for name in names:
        before, _, last = name.rpartition(".")
        layers_of.setdefault(last, []).append(re.findall(r"\d+", before))
    count = max(map(len, layers_of.values()))
    every_layer = [[str(index)] for index in range(count)]
    uniform = all(sorted(indices, key=lambda index: [int(n) for n in index]) == every_layer for indices in layers_of.values())
    return sorted(layers_of) if uniform else sorted(names)


def peft_config(
    adapters: Adapters, *, alpha: float, dropout: float, base: str | None, layers: AdaptedLayers | None = None
) -> dict[str, Any]:
    """Return the content of adapter_config.json.

    Unset keys are omitted, because older versions of peft reject keys that they do not define.

    Args:
        adapters: the adapters to describe.
        alpha: the output of the adapters is multiplied by alpha / r.
        dropout: dropout probability in training, for users who continue training with peft.
        base: folder of the language model, or None if it is unknown.
        layers: the result of :func:`check_base`, or None if the language model is unknown.
    """
    from peft import LoraConfig

    config: dict[str, Any] = LoraConfig(
        r=adapters.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft's own files contain fractions, too
        lora_dropout=dropout,
        target_modules=target_modules(adapters.layers) if layers is None else layers.targets,
        fan_in_fan_out=layers is not None and layers.transposed == adapters.layers.keys(),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    return {key: value for key, value in config.items() if value or key == "lora_dropout"}


def read_peft_config(path: str) -> dict[str, Any]:
    """Read adapter_config.json.

    Raises:
        UserError: If the file is not JSON, describes adapters other than LoRA, or a variant of LoRA.
    """
    try:
        stored = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(stored, dict) or "peft_type" not in stored:
        raise UserError(f"{path} has no key 'peft_type', so it is not an adapter configuration of peft")
    if stored["peft_type"] != "LORA":
        raise UserError(f"{path}: peft_type is {stored['peft_type']}; only LORA is supported")
    from peft import LoraConfig

    plain = LoraConfig().to_dict()
    extras = [
        f"{key} = {json.dumps(value)}"
        for key, value in stored.items()
        if key not in ALLOWED_PEFT_KEYS and value and value != plain.get(key)
    ]
    initialization = stored.get("init_lora_weights", True)
    # Other initializations, such as PiSSA, also change the base weights, which the adapters alone cannot reproduce.
    if not (isinstance(initialization, bool) or initialization == "gaussian"):
        extras.append(f"init_lora_weights = {json.dumps(initialization)}")
    if extras:
        raise UserError(f"{path}: only plain LoRA is supported; remove {listing(extras, 'unsupported setting')}")
    for key in ("r", "lora_alpha"):
        value = stored.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"{path}: {key} is {value!r}; expected a finite number above 0")
    return stored


@dataclass(frozen=True)
class AdaptedLayers:
    """What the language model's architecture says about adapted layers.

    Attributes:
        targets: peft's ``target_modules``.
        transposed: names of the layers that store their weights as (I, O).
        tied: name of a layer whose weights are also those of another module -> name of the other module.
    """

    targets: list[str]
    transposed: frozenset[str]
    tied: dict[str, str]

    def require_untied(self, source: str) -> None:
        """Check that the adapters can be merged.

        Raises:
            UserError: If weights are tied, because the other module must not get the adapters, too.
        """
        if self.tied:
            layer, other = next(iter(self.tied.items()))
            raise UserError(
                f"{source}: the adapters of {listing(list(self.tied), 'layer')} cannot be merged, because the weights of {layer}"
                f" are tied to those of {other}. Convert with --to peft, or train without adapters on '{layer}'."
            )


def build_base(folder: str, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Build the language model of ``--llama-model`` without adapters; on the meta device it has shapes but no weights.

    Raises:
        UserError: If the folder does not exist, or the model cannot be built. The message starts with ``--llama-model``.
    """
    # Imported here because these modules import transformers, which takes seconds.
    from emollama.models import llm, llm_weights

    options = llm_weights.LLMOptions(
        path=folder,
        train="none",
        lora_r=1,
        lora_alpha=1,
        lora_dropout=0.0,
        lora_targets=None,
        quantize=None,
        recompute_every=0,
        attention="eager",
    )
    try:
        return llm_weights.build(options, llm.read_config(folder), dtype=dtype, device=device)
    except UserError as error:
        raise UserError(f"--llama-model: {str(error).removeprefix('model.llama_model: ')}") from None


def check_base(folder: str, adapters: Adapters, source: str) -> AdaptedLayers:
    """Check that the adapters fit a language model: the same layers, all of them linear, with the same shapes.

    Only the model's config.json is read.

    Args:
        folder: the folder of the language model.
        adapters: the result of :func:`split_adapters`.
        source: the checkpoint's name in error messages.

    Raises:
        UserError: If the folder does not exist or tensors do not fit; the message lists them by name.
    """
    # Imported here because the module imports transformers, which takes seconds.
    from emollama.models import lora_targets

    model = build_base(folder, dtype=torch.float32, device=torch.device("meta"))
    modules, shared, problems = dict(model.named_modules()), lora_targets.shared_weights(model), []
    for layer, pair in adapters.layers.items():
        name = f"base_model.model.{layer}"
        if layer not in modules:
            problems.append(f"{name} is not in this language model")
        elif not lora_targets.is_linear(modules[layer]):
            problems.append(f"{name} is not a linear layer")
        else:
            expected = lora_targets.adapter_shapes(modules[layer], adapters.rank)
            problems += [
                f"{name}.lora_{side}.weight has shape {tuple(tensor.shape)}, expected {expected[side]}"
                for side, tensor in pair.items()
                if tuple(tensor.shape) != expected[side]
            ]
    ends = [target for target in target_modules(adapters.layers) if target not in adapters.layers]
    for names in lora_targets.decoder_layers(model).values():
        for name in names:
            if name not in adapters.layers and any(lora_targets.matches(name, end) for end in ends):
                shapes = lora_targets.adapter_shapes(modules[name], adapters.rank)
                problems += [f"base_model.model.{name}.lora_{side}.weight {shape} is missing" for side, shape in shapes.items()]
    if problems:
        raise UserError(f"{source} does not fit the language model in {folder}: {listing(problems, 'mismatch', 'mismatches')}")
    transposed = frozenset(name for name in adapters.layers if lora_targets.is_transposed(modules[name]))
    tied = {name: shared[name] for name in adapters.layers if name in shared}
    return AdaptedLayers(sorted(lora_targets.shortened(model, list(adapters.layers))), transposed, tied)
