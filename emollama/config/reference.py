"""The reference of configuration keys, made from the components' Config classes and the text under their fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from emollama.config.sections import sections
from emollama.errors import UserError
from emollama.registry import FUSIONS, LR_SCHEDULES, METRICS, TASKS, nearest

INTRODUCTION = """# Configuration

Made by `python -m emollama reference`; edit the texts under the fields of the Config classes instead.

A configuration has the blocks `model`, `encoders`, `datasets`, `evaluation_datasets`, `extraction` and `run`, free values under
`paths` (for `${paths.x}`), and `imports`, a list of Python modules that register components of yours. Layers: defaults <
`preset` < your YAML < `--options a.b=c`. `${oc.env:NAME,default}` reads the environment and stays unresolved in what is written
beside a run.

The key of a block under `encoders`, `datasets` or `evaluation_datasets` is a free label that outputs carry; `type` names the
registered class and defaults to the label. `preset` in `model` or in a dataset's block names a file of
`emollama/config/presets/`. A relative path starts at the current directory; in a dataset's block `annotation_file` and
`image_path` start at `data_root` where it is set, and captions, transcripts and feature folders at the annotation file's folder.
"""

FREE = {  # what is no component's block
    "imports": "A list of Python modules, imported before the configuration is checked: they register components of yours.",
    "paths": "Free values, for ${paths.x} in other keys.",
}


def markdown() -> str:
    """All blocks with their keys, defaults and texts."""
    names = {"fusion": FUSIONS, "lr_sched": LR_SCHEDULES, "task": TASKS, "metric": METRICS}
    listed = "## Names\n\n" + " ".join(f"`{key}`: {_names(registry)}." for key, registry in names.items()) + "\n"
    return "\n".join([INTRODUCTION, *(table for _, table in _tables()), listed])


def _tables() -> Iterator[tuple[str, str]]:
    """(block, table of its keys); what all datasets have is a table of its own."""
    tables = [(section.title, section.block, _rows(section.config)) for section in sections()]
    datasets = [rows for _, block, rows in tables if block == "datasets"]
    shared = [row for row in datasets[0] if all(row in rows for rows in datasets)]
    shared_written = False
    for title, block, rows in tables:
        if block == "datasets" and not shared_written:
            yield block, _table("datasets, of every type", shared)
            shared_written = True
        own = [row for row in rows if block != "datasets" or row not in shared]
        if own:
            yield block, _table(title, own)


def describe(key: str) -> str:
    """The default and text of a key, for each component that has it; or all keys of a block, as Markdown.

    Args:
        key: ``run.metric``. A block's label may be given or left out (``datasets.batch_size``, ``datasets.mine.batch_size``), and
            a name without a block is searched in all of them. The name of a block comes before a key of the same name.

    Raises:
        UserError: no block has this key; names the nearest one.
    """
    if tables := [table for block, table in _tables() if block == key]:
        return "\n".join(tables)
    if key in FREE:
        return f"{key}\n  {FREE[key]}\n"
    block, name = key.split(".")[0] if "." in key else None, key.split(".")[-1]
    components: dict[tuple[str, str], list[str]] = {}
    known: dict[str, None] = {}
    for section in sections():
        blocks = [section.block, "evaluation_datasets"] if section.block == "datasets" else [section.block]
        for item in dataclasses.fields(section.config):
            known |= dict.fromkeys(f"{own}.{item.name}" for own in blocks)
            if item.name == name and block in (None, *blocks):
                text = _field_texts(section.config)[name].replace("\\|", "|")
                shown = f"  default: {_default(item).strip('`')}\n  {text}\n"
                component = section.title.partition(", ")[2].replace("`", "")
                components.setdefault((section.block if block is None else block, shown), []).append(component)
    if not components:
        parent = f"{block}.{key.rpartition('.')[0].rpartition('.')[2]}"
        hint = f" Did you mean '{parent}'?" if parent in known else _nearest_key(name, block, known)
        raise UserError(f"no configuration key '{key}'.{hint} 'emollama reference' prints all keys.")
    return "\n".join(f"{own}.{name} ({'; '.join(names)})\n{shown}" for (own, shown), names in components.items())


def _table(title: str, rows: list[str]) -> str:
    return f"## {title}\n\n| key | default | |\n|---|---|---|\n{''.join(rows)}"


def _names(registry: Any) -> str:
    return ", ".join(f"`{name}`" for name in registry.names())


def _nearest_key(name: str, block: str | None, known: Iterable[str]) -> str:
    """The hint for a key that no block has: the same name in another block, else a similar name, in the own block first.

    Blocks do not count as similar: all keys of a block share its name.
    """
    places: dict[str, str] = {}  # name of a key -> its path, in the own block if it has the name
    for path in known:
        own, _, bare = path.partition(".")
        if bare not in places or own == block:
            places[bare] = path
    inside = [bare for bare, path in places.items() if path.partition(".")[0] == block]
    for names in ([name] if name in places else [], inside, list(places)):
        if near := nearest(name, names):
            return f" Did you mean '{places[near]}'?"
    return ""


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
