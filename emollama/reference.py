"""The reference of configuration keys, made from the components' Config classes and the text under their fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from emollama.registry import DATASETS, ENCODERS, EXTRACTORS, FUSIONS, JUDGES, LR_SCHEDULES, METRICS, MODELS, RUNNERS, TASKS

INTRODUCTION = """# Configuration

Made by `python -m emollama reference`; edit the texts under the fields of the Config classes instead.

A configuration has the blocks `model`, `encoders`, `datasets`, `evaluation_datasets`, `extraction` and `run`, free values under
`paths` (for `${paths.x}`), and `imports`, a list of Python modules that register components of yours. Layers: defaults <
`preset` < your YAML < `--options a.b=c`. `${oc.env:NAME,default}` reads the environment and stays unresolved in what is written
beside a run.

The key of a block under `encoders`, `datasets` or `evaluation_datasets` is a free label that outputs carry; `type` names the
registered class and defaults to the label. `preset` in `model` or in a dataset's block names a file of `emollama/configs/`. A
relative path starts at the current directory; in a dataset's block `annotation_file` and `image_path` start at `data_root` where
it is set, and captions, transcripts and feature folders at the annotation file's folder.
"""


def markdown() -> str:
    """All blocks with their keys, defaults and texts."""
    datasets = {name: _rows(DATASETS.config(name)) for name in DATASETS.names()}
    shared = [row for row in next(iter(datasets.values())) if all(row in rows for rows in datasets.values())]
    sections = [
        *((f"model, `arch: {name}`", _rows(MODELS.config(name))) for name in MODELS.names()),
        ("datasets, of every type", shared),
        *((f"datasets, `type: {name}`", [row for row in rows if row not in shared]) for name, rows in datasets.items()),
        *((f"evaluation_datasets, added by `task: {name}`", _rows(TASKS.config(name))) for name in TASKS.names()),
        *(
            (f"evaluation_datasets, scores of `task: {name}`", _rows(TASKS.attribute(name, "scoring").Config))
            for name in TASKS.names()
        ),
        *((f"evaluation_datasets, `judge: {{type: {name}}}`", _rows(JUDGES.config(name))) for name in JUDGES.names()),
        *((f"encoders, `type: {name}`", _rows(ENCODERS.config(name))) for name in ENCODERS.names()),
        *((f"extraction, `type: {name}`", _rows(EXTRACTORS.config(name))) for name in EXTRACTORS.names()),
        *((f"run, `runner: {name}`", _rows(RUNNERS.config(name))) for name in RUNNERS.names()),
    ]
    parts = [INTRODUCTION]
    parts += [f"## {title}\n\n| key | default | |\n|---|---|---|\n{''.join(rows)}" for title, rows in sections if rows]
    names = {"fusion": FUSIONS, "lr_sched": LR_SCHEDULES, "task": TASKS, "metric": METRICS}
    parts.append("## Names\n\n" + " ".join(f"`{key}`: {_names(registry)}." for key, registry in names.items()) + "\n")
    return "\n".join(parts)


def _names(registry: Any) -> str:
    return ", ".join(f"`{name}`" for name in registry.names())


def _rows(config: Any) -> list[str]:
    texts = _field_texts(config)
    return [f"| `{item.name}` | {_default(item)} | {texts[item.name]} |\n" for item in dataclasses.fields(config)]


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    if value in ("???", dataclasses.MISSING):
        return "required"
    shown = {None: "null", True: "True", False: "False"}.get(value) if isinstance(value, bool | None) else None
    return f"`{shown or value}`"


def _field_texts(config: Any) -> dict[str, str]:
    """field -> the string literal that follows it in the class's source, or in that of the class it is inherited from."""
    texts: dict[str, str] = {}
    for cls in reversed([cls for cls in config.__mro__ if dataclasses.is_dataclass(cls)]):
        texts |= _own_texts(cls)
    return texts


def _own_texts(config: Any) -> dict[str, str]:
    (body,) = (node for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(config)))) if isinstance(node, ast.ClassDef))
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant), f"{field.target.id} has no text"
            texts[field.target.id] = " ".join(str(text.value.value).split()).replace("|", "\\|")
    return texts
