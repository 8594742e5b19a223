"""Typed layers merged into one resolved tree. The only file that sees OmegaConf.

Each registered component holds its own ``@dataclass class Config``. A run's configuration is built from four layers::

    dataclass defaults  <  preset (emollama/configs/)  <  the user's YAML  <  --options a.b=c

Each layer is checked and merged in turn, so that an error names the layer and the key. ``${oc.env:NAME}`` and
``${paths.x}`` work everywhere; the tree that is written beside a run keeps them unresolved.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from emollama.errors import UserError
from emollama.paths import PATHS
from emollama.registry import DATASETS, MODELS, RUNNERS, TASKS, did_you_mean

__all__ = ["MISSING", "EvaluationBlock", "RunConfig", "load", "resolved", "write_yaml"]

PRESETS = Path(__file__).parent / "configs"
TOP_LEVEL = ("imports", "paths", "model", "datasets", "evaluation_datasets", "run")

# Old name -> our name, by kind of block. Giving both is an error.
OTHER_NAMES = {
    "evaluation_datasets": {"eval_file_path": "annotation_file", "img_path": "image_path"},
    "run": {"save_path": "output_dir"},
}


@dataclass(frozen=True)
class EvaluationBlock:
    """A block under ``evaluation_datasets``: the dataset's own keys, and the task's (how answers are generated)."""

    dataset: Any
    task: Any


@dataclass(frozen=True)
class RunConfig:
    """The resolved configuration: a Config object for each component, and the tree that they came from.

    Attributes:
        model: Config of the class ``model_class``.
        datasets: label -> Config of the block's dataset class.
        evaluation_datasets: label -> :class:`EvaluationBlock`.
        run: Config of the runner class.
        classes: block path ("model", "datasets.x", "run") -> registered class; "run.task" -> task class.
        tree: everything as it was configured, defaults included, interpolations unresolved.
    """

    model: Any
    datasets: dict[str, Any]
    evaluation_datasets: dict[str, EvaluationBlock]
    run: Any
    classes: dict[str, Any]
    tree: DictConfig

    def plain(self) -> dict[str, Any]:
        """The tree as plain dicts, lists and scalars, interpolations unresolved (no secret leaves the environment)."""
        return typing.cast("dict[str, Any]", OmegaConf.to_container(self.tree, resolve=False))


@dataclass(frozen=True)
class _Layer:
    name: str
    tree: dict[str, Any]


@dataclass
class _Block:
    """One component's block of keys while its layers are merged."""

    path: str
    kind: str
    classes: list[Any]
    selectors: dict[str, str | None]
    node: DictConfig = field(default_factory=OmegaConf.create)


def load(cfg_path: str, options: list[str] | None = None) -> RunConfig:
    """Read a YAML file and ``--options``, check every key and value, and build the components' Config objects.

    Args:
        cfg_path: the YAML file.
        options: ``a.b=c`` pairs that override it.

    Raises:
        UserError: an unknown key, component, preset, a wrong type, a missing value: names layer, key, nearest known key.
    """
    layers = [_Layer(cfg_path, _read_yaml(cfg_path)), _Layer("--options", _read_options(options or []))]
    for layer in layers:
        _check_top_level(layer)
    _import_user_modules(layers)
    blocks = list(_blocks(layers))
    tree = OmegaConf.create({})
    for name in ("imports", "paths"):
        OmegaConf.update(tree, name, _merged_plain(layers, name), force_add=True)
    for block in blocks:
        for layer in _block_layers(block, layers):
            _merge_layer(block, layer)
        OmegaConf.update(tree, block.path, block.node, force_add=True)
    return _resolved(tree, blocks)


def write_yaml(config: RunConfig, path: Path) -> None:
    """Write the tree beside a run: a valid ``--cfg-path`` that gives the same run again."""
    path.write_text(OmegaConf.to_yaml(config.tree, resolve=False), encoding="utf-8")


def resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """A plain tree with its interpolations resolved in this environment; as it is, where this environment lacks a variable."""
    node = OmegaConf.create(tree)
    try:
        return typing.cast("dict[str, Any]", OmegaConf.to_container(node, resolve=True))
    except OmegaConfBaseException:
        return tree


def _read_yaml(path: str) -> dict[str, Any]:
    if not PATHS.isfile(path):
        raise UserError(f"--cfg-path: no file '{path}'")
    try:
        loaded = OmegaConf.load(PATHS.get_local_path(path))
    except Exception as error:  # YAML's and OmegaConf's own families of errors; the text names line and column
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: a configuration is a mapping with the keys {', '.join(TOP_LEVEL)}")
    return typing.cast("dict[str, Any]", OmegaConf.to_container(loaded, resolve=False))


def _read_options(options: list[str]) -> dict[str, Any]:
    for option in options:
        if "=" not in option or option.startswith("="):
            raise UserError(f"--options: '{option}' is not of the form a.b=c")
    try:
        return typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.from_dotlist(options), resolve=False))
    except Exception as error:
        raise UserError(f"--options: {error}") from None


def _check_top_level(layer: _Layer) -> None:
    for key, value in layer.tree.items():
        if key not in TOP_LEVEL:
            raise UserError(f"{layer.name}: unknown key '{key}'.{did_you_mean(key, TOP_LEVEL)} Known: {', '.join(TOP_LEVEL)}")
        if value is None:
            layer.tree[key] = [] if key == "imports" else {}
        elif key == "imports" and not isinstance(value, list):
            raise UserError(f"{layer.name}: 'imports' is a list of Python module names")
        elif key != "imports" and not isinstance(value, dict):
            raise UserError(f"{layer.name}: '{key}' is a mapping, not {value!r}")
    for group in ("datasets", "evaluation_datasets"):
        for label, value in layer.tree.get(group, {}).items():
            if not isinstance(value, dict):
                raise UserError(f"{layer.name}: '{group}.{label}' is a block of keys, not {value!r}")
            if "/" in str(label) or "." in str(label):
                raise UserError(f"{layer.name}: the label '{label}' under '{group}' names files: no '/' or '.' in it")


def _import_user_modules(layers: list[_Layer]) -> None:
    if "" not in sys.path:
        sys.path.insert(0, "")
    for name in _merged_plain(layers, "imports"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"imports: cannot import '{name}': {error}") from error


def _merged_plain(layers: list[_Layer], name: str) -> Any:
    merged: Any = [] if name == "imports" else {}
    for layer in layers:
        if name in layer.tree:
            merged = layer.tree[name] if name == "imports" else {**merged, **layer.tree[name]}
    return merged


def _select(layers: list[_Layer], keys: list[str], default: str | None) -> str | None:
    """The value that the last layer gives to a key which chooses a component or a preset."""
    chosen = default
    for layer in layers:
        node: Any = layer.tree
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        chosen = chosen if node is None else str(node)
    return chosen


def _blocks(layers: list[_Layer]) -> Iterator[_Block]:
    arch = _select(layers, ["model", "arch"], None)
    if arch is None:
        raise UserError(f"{layers[0].name}: 'model.arch' is missing. Registered: {', '.join(MODELS.names())}")
    preset = _select(layers, ["model", "preset"], None)
    yield _Block("model", "model", [_look_up(MODELS, arch, "model.arch")], {"arch": arch, "preset": preset})
    runner = typing.cast("str", _select(layers, ["run", "runner"], "runner_base"))
    task = typing.cast("str", _select(layers, ["run", "task"], "image_text_pretrain"))
    task_class = _look_up(TASKS, task, "run.task")
    for group in ("datasets", "evaluation_datasets"):
        labels = dict.fromkeys(label for layer in layers for label in layer.tree.get(group, {}))
        for label in labels:
            name = typing.cast("str", _select(layers, [group, label, "type"], label))
            classes = [_look_up(DATASETS, name, f"{group}.{label}.type")]
            if group == "evaluation_datasets":
                classes.append(task_class)
            preset = _select(layers, [group, label, "preset"], None)
            yield _Block(f"{group}.{label}", group, classes, {"type": name, "preset": preset})
    runner_class = _look_up(RUNNERS, runner, "run.runner")
    yield _Block("run", "run", [runner_class], {"runner": runner, "task": task})


def _look_up(registry: Any, name: str, key: str) -> Any:
    try:
        return registry.get(name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _block_layers(block: _Block, layers: list[_Layer]) -> Iterator[_Layer]:
    block.node = OmegaConf.structured(_schema(block))
    preset = block.selectors.get("preset")
    if preset is not None:
        folder = PRESETS / ("models" if block.kind == "model" else "datasets")
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        if preset not in known:
            hint = did_you_mean(preset, known)
            raise UserError(f"{block.path}.preset: unknown preset '{preset}'.{hint} Known: {', '.join(known)}")
        path = str(folder / f"{preset}.yaml")
        yield _Layer(f"preset {preset} ({path})", _read_yaml(path))
    group, _, label = block.path.partition(".")
    for layer in layers:
        keys = layer.tree.get(group, {})
        yield _Layer(layer.name, keys.get(label, {}) if label else keys)


def _schema(block: _Block) -> type:
    """One dataclass with the block's selecting keys and the fields of all its Config classes."""
    fields: list[Any] = [(key, str | None, field(default=value)) for key, value in block.selectors.items()]
    for cls in block.classes:
        hints = typing.get_type_hints(cls.Config)
        for item in dataclasses.fields(cls.Config):
            fields.append((item.name, hints[item.name], field(default=item.default, default_factory=item.default_factory)))
    return dataclasses.make_dataclass(f"Block_{block.path.replace('.', '_')}", fields, kw_only=True)


def _merge_layer(block: _Block, layer: _Layer) -> None:
    names = OTHER_NAMES.get(block.kind, {})
    known = [str(key) for key in block.node]
    keys: dict[str, Any] = {}
    for key, value in layer.tree.items():
        name = str(names.get(key, key))
        if name in keys:
            raise UserError(f"{layer.name}: '{block.path}.{key}' and another name of '{name}' are both given. Keep one.")
        if name not in known:
            hint = did_you_mean(str(key), [*known, *names])
            raise UserError(f"{layer.name}: unknown key '{block.path}.{key}'.{hint}")
        keys[name] = value
    for name, value in keys.items():
        try:
            block.node = typing.cast("DictConfig", OmegaConf.merge(block.node, {name: value}))
        except OmegaConfBaseException as error:
            first_line = str(error).partition("\n")[0]
            raise UserError(f"{layer.name}: '{block.path}.{error.full_key or name}': {first_line}") from None


def _resolved(tree: DictConfig, blocks: list[_Block]) -> RunConfig:
    objects: dict[str, list[Any]] = {}
    for block in blocks:
        values = _container(tree, block)
        objects[block.path] = [_build(cls.Config, values, block.path) for cls in block.classes]
    classes = {block.path: block.classes[0] for block in blocks}
    classes["run.task"] = TASKS.get(tree.run.task)
    by_group: dict[str, dict[str, Any]] = {"datasets": {}, "evaluation_datasets": {}}
    for block in blocks:
        group, _, label = block.path.partition(".")
        if label:
            made = objects[block.path]
            by_group[group][label] = made[0] if group == "datasets" else EvaluationBlock(*made)
    return RunConfig(objects["model"][0], **by_group, run=objects["run"][0], classes=classes, tree=tree)


def _container(tree: DictConfig, block: _Block) -> dict[str, Any]:
    try:
        node = OmegaConf.select(tree, block.path)
        return typing.cast("dict[str, Any]", OmegaConf.to_container(node, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise UserError(f"'{error.full_key}' is missing: give it a value in the YAML or by --options") from None
    except InterpolationResolutionError as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"'{error.full_key}': {first_line}. Set the variable, or write the value itself.") from None
    except OmegaConfBaseException as error:
        raise UserError(f"'{error.full_key or block.path}': {str(error).partition(chr(10))[0]}") from None


def _build(config_class: Any, values: dict[str, Any], path: str) -> Any:
    own = {item.name: values[item.name] for item in dataclasses.fields(config_class)}
    try:
        return config_class(**own)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
