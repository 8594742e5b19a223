"""All Config classes of the registered components, each with the configuration block that contains its keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emollama.registration import Registry
from emollama.registry import DATASETS, ENCODERS, EXTRACTORS, JUDGES, MODELS, RUNNERS, TASKS


@dataclass(frozen=True)
class ConfigSection:
    """The keys of one Config class.

    Attributes:
        block: the first part of the keys' dotted names: "model", "datasets", ...
        title: the block and the component, as Markdown.
        config: the Config class.
        choice: the key and value that select the component, such as ``arch: minigpt_v2``.
        registry: the registry of the component.
        inner: key of the sub-block that contains these keys; "" if they are keys of the block itself.
    """

    block: str
    title: str
    config: Any
    choice: str
    registry: Registry[object]
    inner: str = ""


def sections() -> list[ConfigSection]:
    """Return all Config classes in the order of docs/configuration.md."""
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


def _of_blocks(block: str, selector: str, registry: Registry[object], prefix: str = "") -> Iterator[ConfigSection]:
    """Yield a section for each component of a registry; ``prefix`` precedes the component in the title."""
    for name in registry.names():
        choice = f"{selector}: {name}"
        yield ConfigSection(block, f"{block}, {prefix}`{choice}`", registry.config(name), choice, registry)
