"""The blocks of a configuration and the registered component that each block configures."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from emollama.config import compat, minigpt
from emollama.config.layers import Layer, selected
from emollama.errors import UserError
from emollama.registration import Registry
from emollama.registry import DATASETS, ENCODERS, EXTRACTORS, MODELS, RUNNERS, TASKS


@dataclass
class ConfigBlock:
    """The keys of one component while its layers are merged.

    Attributes:
        path: dotted name of the block, such as "datasets.mine".
        kind: first part of the path: "model", "run", or a group of labelled blocks.
        name: registered name of the component.
        configs: Config classes whose fields are the block's keys. An evaluation block has several: dataset, task and scoring.
        selectors: key that selects the component or a preset -> its value.
        node: the merged keys, an OmegaConf node.
        sources: dotted key -> the layer that set its value.
        without_effect: dotted key of Emotion-LLaMA or MiniGPT-4 -> why it has no effect.
    """

    path: str
    kind: str
    name: str
    configs: list[Any]
    selectors: dict[str, str | None]
    node: Any = None
    sources: dict[str, str] = field(default_factory=dict)
    without_effect: dict[str, str] = field(default_factory=dict)

    def source_of(self, error: str) -> str:
        """Return ``layer: `` for an error about the block, whose text starts with a key; "" unless one layer set the key."""
        keys = re.findall(r"^[\w.]*", error)[0].rstrip(".").split(".")
        while keys:
            prefix = ".".join([self.path, *keys, ""])
            if sources := {source for key, source in self.sources.items() if f"{key}.".startswith(prefix)}:
                return f"{sources.pop()}: " if len(sources) == 1 else ""
            keys.pop()
        return ""


def chosen_blocks(layers: list[Layer], needs_model: bool) -> Iterator[ConfigBlock]:
    """Yield the blocks that the layers configure, each with its selected component.

    Args:
        layers: layers with translated keys.
        needs_model: whether a configuration without a model is rejected.

    Raises:
        UserError: If the model is missing, or a component is unknown. The message names the key and a similar component.
    """
    if needs_model or any(layer.tree.get("model") for layer in layers):
        arch = selected(layers, ["model", "arch"], None)
        if arch is None:
            raise UserError(f"{layers[0].name}: 'model.arch' is missing. {MODELS.registered()}")
        preset = selected(layers, ["model", "preset"], None)
        yield _block("model", (MODELS, arch, "model.arch"), {"arch": arch, "preset": preset})
    for block_name in dict.fromkeys(block_name for layer in layers for block_name in layer.tree.get("encoders", {})):
        name = typing.cast("str", selected(layers, ["encoders", block_name, "type"], block_name))
        yield _block(f"encoders.{block_name}", (ENCODERS, name, f"encoders.{block_name}.type"), {"type": name})
    if any(layer.tree.get("extraction") for layer in layers):
        name = typing.cast("str", selected(layers, ["extraction", "type"], "videos"))
        yield _block("extraction", (EXTRACTORS, name, "extraction.type"), {"type": name})
    runner = typing.cast("str", selected(layers, ["run", "runner"], "runner_base"))
    task = typing.cast("str", selected(layers, ["run", "task"], "image_text_pretrain"))
    TASKS.require(task, "run.task")
    labelled = list(_dataset_blocks(layers))
    undecided = [
        f"{group}.{block_name}" for group, block_name, name in labelled if name == block_name and name not in DATASETS.names()
    ]
    minigpt.require_known_datasets(layers[0].name, undecided)
    for group, block_name, name in labelled:
        preset = selected(layers, [group, block_name, "preset"], None)
        block = _block(f"{group}.{block_name}", (DATASETS, name, f"{group}.{block_name}.type"), {"type": name, "preset": preset})
        if group == "evaluation_datasets":
            block.configs += [TASKS.config(task), TASKS.attribute(task, "scoring").Config]
        yield block
    yield _block("run", (RUNNERS, runner, "run.runner"), {"runner": runner, "task": task})


def _dataset_blocks(layers: list[Layer]) -> Iterator[tuple[str, str, str]]:
    """Yield (group, block name, name of the dataset class) for each dataset block. A block's name is the default of its type."""
    for group in ("datasets", "evaluation_datasets"):
        block_names = dict.fromkeys(block_name for layer in layers for block_name in layer.tree.get(group, {}))
        unused = compat.processor_blocks(layers) if group == "datasets" else []
        for block_name in (block_name for block_name in block_names if block_name not in unused):
            default = block_name if block_name in DATASETS.names() else minigpt.DATASET_TYPES.get(block_name, block_name)
            yield group, block_name, typing.cast("str", selected(layers, [group, block_name, "type"], default))


def _block(path: str, chosen: tuple[Registry[object], str, str], selectors: dict[str, str | None]) -> ConfigBlock:
    """Return a component's block; ``chosen`` is its registry, its name there and the key that selected it."""
    registry, name, key = chosen
    registry.require(name, key)
    return ConfigBlock(path, path.partition(".")[0], name, [registry.config(name, key)], selectors)
