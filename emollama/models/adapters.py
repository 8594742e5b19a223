"""LoRA adapters apart from the rest of a checkpoint, in the format of peft.

Letters: r the rank, I and O the widths of an adapted linear layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.models import checkpoint_names
from emollama.paths import read_text

OWNER = "llama_model."  # the language model within ours; peft's own names begin after it
LORA = re.compile(r"llama_model\.base_model\.model\.(.+)\.lora_([AB])\.weight")
# Keys of adapter_config.json that may have any value. Others must be as in a plain LoraConfig.
FREE_KEYS = {"r", "lora_alpha", "lora_dropout", "target_modules", "inference_mode", "init_lora_weights", "task_type"}
FREE_KEYS |= {"base_model_name_or_path", "revision", "auto_mapping", "peft_version", "peft_type"}


@dataclass(frozen=True)
class Adapters:
    """The adapters of a checkpoint.

    Attributes:
        layers: adapted layer's name in the language model -> {"A": (r, I), "B": (O, r)}.
        rank: r, the same for all.
        rest: name -> tensor, of everything else in the checkpoint.
    """

    layers: dict[str, dict[str, Tensor]]
    rank: int
    rest: dict[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """The adapters' tensors under peft's names."""
        return {
            f"base_model.model.{layer}.lora_{side}.weight": pair[side] for layer, pair in self.layers.items() for side in "AB"
        }


def split_adapters(tensors: Mapping[str, Tensor], source: str) -> Adapters:
    """Part the adapters from the rest.

    Args:
        tensors: name in a checkpoint -> tensor.
        source: the checkpoint, for messages.

    Raises:
        UserError: no adapters, halves of them, several ranks, or trained tensors of the language model that are no adapters.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := LORA.fullmatch(name):
            layers.setdefault(found[1], {})[found[2]] = tensor
        else:
            rest[name] = tensor
    strange = [name for name in rest if name.startswith(OWNER) and not checkpoint_names.is_unused(name)]
    if not layers:
        hint = " It holds the language model itself, as train_llm: full writes it." if strange else ""
        raise UserError(f"{source} holds no LoRA adapters; there is nothing to convert.{hint}")
    if strange:
        raise UserError(f"{source}: tensors of the language model that are no pair lora_A, lora_B: {listing(strange)}")
    halves = [f"{layer}.lora_{side}" for layer, pair in layers.items() for side in "AB" if side not in pair]
    if halves:
        raise UserError(f"{source}: adapters with one half missing, {listing(halves)}")
    ranks = {size for pair in layers.values() for size in (pair["A"].shape[:1], pair["B"].shape[1:])}
    if len(ranks) > 1 or len(next(iter(ranks))) != 1:
        shapes = sorted({f"A {tuple(pair['A'].shape)} B {tuple(pair['B'].shape)}" for pair in layers.values()})
        raise UserError(f"{source}: the adapters have no common rank; their shapes are {abbreviated(shapes)}")
    return Adapters(layers, next(iter(ranks))[0], rest)


def target_modules(layers: Iterable[str]) -> list[str]:
    """What peft's ``target_modules`` names these layers with: last names where each stands in every block, else whole names."""
    layers = list(layers)
    blocks: dict[str, list[list[str]]] = {}
    for layer in layers:
        before, _, last = layer.rpartition(".")
        blocks.setdefault(last, []).append(re.findall(r"\d+", before))
    count = max(map(len, blocks.values()))
    every = [[str(index)] for index in range(count)]
    uniform = all(sorted(found, key=lambda numbers: [int(n) for n in numbers]) == every for found in blocks.values())
    return sorted(blocks) if uniform else sorted(layers)


def peft_config(adapters: Adapters, *, alpha: float, dropout: float, base: str | None) -> dict[str, Any]:
    """The content of adapter_config.json. Keys that are unset are left out, so that older versions of peft know all of them.

    Args:
        adapters: what is described.
        alpha: the adapters' output is multiplied by alpha / r.
        dropout: of the training, for one who goes on with it.
        base: the language model's folder, if it is known.
    """
    from peft import LoraConfig

    config: dict[str, Any] = LoraConfig(
        r=adapters.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft's own files hold fractions too
        lora_dropout=dropout,
        target_modules=target_modules(adapters.layers),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    return {key: value for key, value in config.items() if value or key == "lora_dropout"}


def read_peft_config(path: str) -> dict[str, Any]:
    """Read adapter_config.json.

    Raises:
        UserError: not JSON, another kind of adapter than LoRA, or a variant of LoRA.
    """
    try:
        stored = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(stored, dict) or "peft_type" not in stored:
        raise UserError(f"{path} has no key 'peft_type': it is not what peft writes")
    if stored["peft_type"] != "LORA":
        raise UserError(f"{path}: peft_type is {stored['peft_type']}; LORA is what can be read")
    from peft import LoraConfig

    plain = LoraConfig().to_dict()
    extras = [
        f"{key} = {json.dumps(value)}"
        for key, value in stored.items()
        if key not in FREE_KEYS and value and value != plain.get(key)
    ]
    start = stored.get("init_lora_weights", True)
    if not (isinstance(start, bool) or start == "gaussian"):  # others change the language model's weights
        extras.append(f"init_lora_weights = {json.dumps(start)}")
    if extras:
        raise UserError(f"{path}: only plain LoRA can be read; not supported are {listing(extras)}")
    for key in ("r", "lora_alpha"):
        if isinstance(stored.get(key), bool) or not isinstance(stored.get(key), int | float) or stored[key] <= 0:
            raise UserError(f"{path}: {key} is {stored.get(key)!r}; a number above 0 is needed")
    return stored


def check_base(folder: str, adapters: Adapters, source: str) -> None:
    """Check that the adapters are those of a language model: the same layers, all of them linear, the same shapes.

    Only the model's config.json is read.

    Args:
        folder: the language model's.
        adapters: as :func:`split_adapters` gave them.
        source: their checkpoint, for messages.

    Raises:
        UserError: no such folder, or what does not fit, by name.
    """
    from emollama.models import llm, llm_weights  # here, because they import transformers

    targets = target_modules(adapters.layers)
    options = llm_weights.LLMOptions(folder, "lora", adapters.rank, 1, 0.0, targets, None, False)
    try:
        model = llm_weights.build(options, llm.read_config(folder), dtype=torch.float32, device=torch.device("meta"))
    except UserError as error:
        said = str(error).removeprefix("model.llama_model: ").removeprefix("model.lora_target_modules: ")
        raise UserError(f"--llama-model: {said}") from None
    shapes = {
        checkpoint_names.stored_name(name): tuple(tensor.shape) for name, tensor in model.named_parameters() if ".lora_" in name
    }
    own = {name: tuple(tensor.shape) for name, tensor in adapters.named().items()}
    problems = [
        f"{name} {shape} where {shapes.get(name, 'nothing')} fits" for name, shape in own.items() if shapes.get(name) != shape
    ]
    problems += [f"{name} {shape} is not there" for name, shape in shapes.items() if name not in own]
    problems += [
        f"{name} is no linear layer"
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and type(module.get_base_layer()) is not nn.Linear
    ]
    if problems:
        raise UserError(f"{source} does not belong to the language model in {folder}: {listing(problems)}")
