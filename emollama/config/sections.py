"""All Config classes of the registered components, with the block of a configuration that their keys belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emollama.registry import DATASETS, ENCODERS, EXTRACTORS, JUDGES, MODELS, RUNNERS, TASKS, Registry


@dataclass(frozen=True)
class ConfigSection:
    """The keys of one Config class.

    Attributes:
        block: "model", "datasets", ...: the first part of the keys' dotted names.
        title: the block with the component, as Markdown.
        config: the class.
        choice: the key and value that choose the component, such as ``arch: minigpt_v2``.
        registry: where the component is registered.
        inner: key of the block under which these keys are; "" if they are keys of the block itself.
    """

    block: str
    title: str
    config: Any
    choice: str
    registry: Registry[Any]
    inner: str = ""


def sections() -> list[ConfigSection]:
    """All Config classes, in the order of the reference."""
    evaluation = "evaluation_datasets"
    judges = [(f"type: {name}", JUDGES.config(name)) for name in JUDGES.names()]
    return [
        *_of_blocks("model", "arch", MODELS),
        *_of_blocks("datasets", "type", DATASETS),
        *_of_blocks(evaluation, "task", TASKS, "added by "),
        *(
            ConfigSection(evaluation, f"{evaluation}, scores of `task: {name}`", scoring.Config, f"task: {name}", TASKS)
            for name in TASKS.names()
            for scoring in [TASKS.attribute(name, "scoring")]
        ),
        *(
            ConfigSection(evaluation, f"{evaluation}, `judge: {{{choice}}}`", config, choice, JUDGES, "judge")
            for choice, config in judges
        ),
        *_of_blocks("encoders", "type", ENCODERS),
        *_of_blocks("extraction", "type", EXTRACTORS),
        *_of_blocks("run", "runner", RUNNERS),
    ]


def _of_blocks(block: str, selector: str, registry: Registry[Any], words: str = "") -> Iterator[ConfigSection]:
    for name in registry.names():
        choice = f"{selector}: {name}"
        yield ConfigSection(block, f"{block}, {words}`{choice}`", registry.config(name), choice, registry)
