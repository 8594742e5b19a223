"""Loading of configurations: layers are checked, merged and converted to Config objects. Only this package imports OmegaConf.

Each registered component has its own ``@dataclass class Config``. A configuration is merged from these layers; later layers
take precedence::

    dataclass defaults  <  model_type of MiniGPT-4  <  preset (emollama/config/presets/)  <  the user's YAML  <  --options a.b=c

Layers are merged one at a time, so that an error can name the layer and the key, and the source of every value is recorded.
``${oc.env:NAME}`` and ``${paths.x}`` work everywhere. The config.yaml in a run folder contains them unresolved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from emollama.config import aliases, compat, minigpt
from emollama.config.blocks import ConfigBlock, chosen_blocks
from emollama.config.key_hints import top_level_hint
from emollama.config.layers import (
    GROUPS,
    Layer,
    check_top_level,
    copied,
    drop_removed,
    is_plain,
    leaves,
    merged_plain,
)
from emollama.config.merging import empty_node, merge_layer
from emollama.config.omegaconf_errors import first_line, unresolved
from emollama.config.reading import option_texts, read_options, read_yaml
from emollama.config.user_modules import import_user_modules
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.paths import atomic_write
from emollama.registry import DATASETS, ENCODERS, EXTRACTORS, MODELS, RUNNERS, TASKS
from emollama.suggestions import did_you_mean

if TYPE_CHECKING:
    # Only types: a configuration is checked without importing torch.
    from emollama.components import Model, Task
    from emollama.data.dataset import DatasetConfig, SampleDataset
    from emollama.encoders.encoder import Encoder
    from emollama.extraction.extractor import Extractor
    from emollama.runners.run_config import RunnerConfig
    from emollama.runners.runner import Runner

__all__ = ["MISSING", "EvaluationBlock", "RunConfig", "from_dict", "load", "write_yaml"]

PRESETS = Path(__file__).parent / "presets"
FREE = ("imports", "paths")  # top-level keys that do not configure a component


@dataclass(frozen=True)
class EvaluationBlock:
    """A block under ``evaluation_datasets``: the Config objects of its dataset, its task (how to answer) and its scoring."""

    dataset: DatasetConfig
    task: Any
    scoring: Any


@dataclass(frozen=True)
class RunConfig:
    """The resolved configuration: a Config object for each component, and the tree from which they were built.

    Attributes:
        model: Config of the model class; None in a configuration that only extracts features.
        encoders: block name -> Config of the block's encoder class.
        datasets: block name -> Config of the block's dataset class.
        evaluation_datasets: block name -> :class:`EvaluationBlock`.
        extraction: Config of the extractor class; None without an ``extraction`` block.
        run: Config of the runner class.
        names: block path ("model", "datasets.x", "run") -> registered name of its class; "run.task" -> name of the task.
        tree: the merged configuration, including defaults, with unresolved interpolations. It must not be changed.
        plain_tree: the tree as plain dicts, lists and scalars. Use :meth:`plain`, which returns a copy.
        sources: dotted key of every value in the tree -> its source: "default", or the name of a layer.
        warnings: at most one warning, about keys of Emotion-LLaMA and MiniGPT-4 without effect.

    The classes are looked up when they are needed, because most of their modules import torch.
    """

    model: Any
    encoders: dict[str, Any]
    datasets: dict[str, DatasetConfig]
    evaluation_datasets: dict[str, EvaluationBlock]
    extraction: Any
    run: RunnerConfig
    names: Mapping[str, str]
    tree: DictConfig
    plain_tree: dict[str, Any]
    sources: dict[str, str]
    warnings: list[str]

    @property
    def model_class(self) -> type[Model]:
        """The class of the model."""
        return MODELS.get(self.names["model"], "model.arch")

    @property
    def runner_class(self) -> type[Runner]:
        """The class of the runner."""
        return RUNNERS.get(self.names["run"], "run.runner")

    @property
    def task_class(self) -> type[Task]:
        """The class of the task (``run.task``)."""
        return TASKS.get(self.names["run.task"], "run.task")

    @property
    def extractor_class(self) -> type[Extractor]:
        """The class of the extractor."""
        return EXTRACTORS.get(self.names["extraction"], "extraction.type")

    def dataset_class(self, path: str) -> type[SampleDataset]:
        """Return the class of the dataset of a block, such as "datasets.x" or "evaluation_datasets.x"."""
        return DATASETS.get(self.names[path], f"{path}.type")

    def encoder_class(self, path: str) -> type[Encoder]:
        """Return the class of the encoder of a block, such as "encoders.mae"."""
        return ENCODERS.get(self.names[path], f"{path}.type")

    def default_block(self, dataset: DatasetConfig) -> EvaluationBlock:
        """Return the evaluation block of a dataset with the default values of the task and its scoring."""
        task = self.names["run.task"]
        return EvaluationBlock(dataset, TASKS.config(task)(), TASKS.attribute(task, "scoring").Config())

    def unresolved(self) -> dict[str, Any]:
        """Return the tree as plain dicts, lists and scalars; unresolved interpolations keep secrets in the environment."""
        return typing.cast("dict[str, Any]", copied(self.plain_tree))

    def resolved(self) -> dict[str, Any]:
        """Return the tree as plain values of the declared types, with interpolations resolved in this environment.

        A value under ``paths`` that cannot be resolved is returned unresolved, because no block uses it.
        """
        tree = self.unresolved()
        # OmegaConf takes several milliseconds, and blocks without interpolations do not need it.
        for name in tree.keys() - set(FREE):
            if not is_plain(tree[name]):
                tree[name] = OmegaConf.to_container(self.tree[name], resolve=True)
        for key in tree["paths"]:
            with contextlib.suppress(OmegaConfBaseException):
                value = self.tree.paths[key]
                tree["paths"][key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        return tree


def load(cfg_path: str, options: list[str] | None = None, *, needs_model: bool = True) -> RunConfig:
    """Read a YAML file and ``--options``, check every key and value, and build the components' Config objects.

    Args:
        cfg_path: the YAML file.
        options: ``a.b=c`` pairs that override values of the file.
        needs_model: whether the ``model`` block is required. The extraction of features does not need it.

    Raises:
        UserError: If a key, component or preset is unknown, a value has the wrong type, or a required value is missing. The
            message names the layer and the key and suggests a similar name.
    """
    command_line = Layer("--options", read_options(options or []), texts=option_texts(options or []))
    return _merged([Layer(cfg_path, read_yaml(cfg_path)), command_line], needs_model)


def _merged(untranslated: list[Layer], needs_model: bool = True) -> RunConfig:
    """Check layers, merge them in order and build the Config objects."""
    layers = [compat.translated(layer) for layer in untranslated]
    drop_removed(layers)
    for layer in layers:
        check_top_level(layer, top_level_hint)
        logging.getLogger("emollama").debug("configuration layer %s: %s", layer.name, ", ".join(layer.tree) or "empty")
    import_user_modules(merged_plain(layers, "imports"))
    blocks = list(chosen_blocks(layers, needs_model))
    tree = OmegaConf.create({}, flags={"no_deepcopy_set_nodes": True})
    for name in FREE:
        OmegaConf.update(tree, name, merged_plain(layers, name), force_add=True)
    for block in blocks:
        for layer in _block_layers(block, layers):
            merge_layer(block, layer, blocks)
        OmegaConf.update(tree, block.path, block.node, force_add=True)
    return _resolved(tree, blocks, layers)


def write_yaml(config: RunConfig, path: Path) -> None:
    """Write the tree to a YAML file that, used as ``--cfg-path``, reproduces the run."""
    with atomic_write(path) as file:
        file.write(OmegaConf.to_yaml(config.tree, resolve=False))


def from_dict(tree: dict[str, Any], name: str) -> RunConfig:
    """Build a configuration from a stored plain tree, with the checks of a YAML file; messages call the tree ``name``."""
    return _merged([Layer(name, tree)])


def _block_layers(block: ConfigBlock, layers: list[Layer]) -> Iterator[Layer]:
    """Yield the layers of one block in order of precedence: implied keys of MiniGPT-4, the preset, then the others."""
    block.node = empty_node(block)
    fields = {item.name for config in block.configs for item in dataclasses.fields(config)}
    if implied := minigpt.implied_layer(layers, block.path, block.name, fields):
        yield implied
    preset = block.selectors.get("preset")
    if preset is not None:
        folder = PRESETS / ("models" if block.kind == "model" else "datasets")
        presets = sorted(path.stem for path in folder.glob("*.yaml"))
        if preset not in presets:
            hint = did_you_mean(preset, presets)
            raise UserError(f"{block.path}.preset: unknown preset '{preset}'.{hint} Presets: {abbreviated(presets)}")
        path = str(folder / f"{preset}.yaml")
        yield aliases.with_current_keys(Layer(f"preset {preset} ({path})", read_yaml(path)), block.path, fields)
    group, _, block_name = block.path.partition(".")
    for layer in layers:
        keys = layer.tree.get(group, {})
        own = Layer(layer.name, keys.get(block_name, {}) if block_name else keys, layer.old_keys, layer.texts)
        yield aliases.with_current_keys(own, block.path, fields)


def _resolved(tree: DictConfig, blocks: list[ConfigBlock], layers: list[Layer]) -> RunConfig:
    """Build the Config objects from the merged tree."""
    plain = typing.cast("dict[str, Any]", OmegaConf.to_container(tree, resolve=False))
    values = {block.path: _container(tree, plain, block) for block in blocks}
    objects = {block.path: [_build(keys, values[block.path], block) for keys in block.configs] for block in blocks}
    by_group: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for path, configs in objects.items():
        group, _, block_name = path.partition(".")
        if block_name:
            by_group[group][block_name] = EvaluationBlock(*configs) if group == "evaluation_datasets" else configs[0]
    without_effect = {key: reason for block in blocks for key, reason in block.without_effect.items()}
    return RunConfig(
        model=objects.get("model", [None])[0],
        **by_group,
        extraction=objects.get("extraction", [None])[0],
        run=objects["run"][0],
        names={block.path: block.name for block in blocks} | {"run.task": tree.run.task},
        tree=tree,
        plain_tree=plain,
        sources=_sources(plain, blocks, layers),
        warnings=compat.warning(layers, without_effect, values),
    )


def _sources(plain: dict[str, Any], blocks: list[ConfigBlock], layers: list[Layer]) -> dict[str, str]:
    """Return dotted key -> source for every value in the tree."""
    sources = {key: source for block in blocks for key, source in block.sources.items()}
    for layer in layers:
        free = {name: value for name, value in layer.tree.items() if name in FREE}
        sources |= dict.fromkeys((key for key, _ in leaves(free)), layer.name)
    return {key: sources.get(key, "default") for key, _ in leaves(plain)}


def _container(tree: DictConfig, plain: dict[str, Any], block: ConfigBlock) -> dict[str, Any]:
    """Return the resolved values of a block.

    Raises:
        UserError: If a required value is missing, or an interpolation cannot be resolved.
    """
    group, _, block_name = block.path.partition(".")
    values = plain[group].get(block_name) if block_name else plain[group]
    if isinstance(values, dict) and is_plain(values):
        return typing.cast("dict[str, Any]", copied(values))
    try:
        node = OmegaConf.select(tree, block.path)
        return typing.cast("dict[str, Any]", OmegaConf.to_container(node, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise UserError(f"'{error.full_key}' is missing. Set it in the YAML file or with --options.") from None
    except InterpolationResolutionError as error:
        keys = [key for key, _ in leaves(plain)]
        raise UserError(f"'{error.full_key}': {unresolved(error, keys)}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"'{error.full_key or block.path}': {first_line(error)}") from None


def _build(config_class: Any, values: dict[str, Any], block: ConfigBlock) -> Any:
    """Build a Config object; its __post_init__ reports invalid values as a ValueError without the path of the block."""
    own = {item.name: values[item.name] for item in dataclasses.fields(config_class)}
    try:
        return config_class(**own)
    except ValueError as error:
        raise UserError(f"{block.source_of(str(error))}{block.path}: {error}") from None
