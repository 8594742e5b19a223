"""Typed OmegaConf nodes of configuration blocks, and merging of layers into them."""

from __future__ import annotations

import dataclasses
import functools
import io
import pickle
import types
import typing
import warnings
from dataclasses import field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emollama.config import compat
from emollama.config.blocks import ConfigBlock
from emollama.config.key_hints import key_hint
from emollama.config.layers import Layer, is_plain, leaves
from emollama.config.omegaconf_errors import hints_of, is_type_error, value_problem
from emollama.errors import UserError
from emollama.registration import Registry

TEXT = (str, str | None)
# Two texts, such as 007 and 7, can be the same number in YAML, and a run must not use the folder of another one.
QUOTED = ("run.job_id",)
# The type of a key that configures a component: its value is the component's name, or {type: name, ...}.
COMPONENT = typing.Union[str, dict[str, Any]]  # noqa: UP007


def empty_node(block: ConfigBlock) -> DictConfig:
    """Return a new typed node with the block's selectors and the fields of its Config classes at their defaults."""
    return _structured(tuple(block.configs), tuple(block.selectors.items())).copy()


class _Template:
    """A node that is copied by unpickling, which takes a sixth of the time of ``copy.deepcopy``.

    Types are not pickled but shared by all copies, because classes created by ``make_dataclass`` cannot be imported.
    """

    def __init__(self, node: DictConfig) -> None:
        shared: list[Any] = []

        class Pickler(pickle.Pickler):
            def persistent_id(self, value: Any) -> int | None:
                if not isinstance(value, type | types.GenericAlias | types.UnionType):
                    return None
                shared.append(value)
                return len(shared) - 1

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, index: int) -> Any:
                return shared[index]

        pickled = io.BytesIO()
        Pickler(pickled).dump(node)
        self._pickled, self._unpickler = pickled.getvalue(), Unpickler

    def copy(self) -> DictConfig:
        """Return a copy of the node."""
        return typing.cast("DictConfig", self._unpickler(io.BytesIO(self._pickled)).load())


@functools.lru_cache(maxsize=256)
def _structured(config_classes: tuple[type, ...], selectors: tuple[tuple[str, str | None], ...]) -> _Template:
    """Build the node that :func:`empty_node` copies. Building it takes several times as long as copying it."""
    fields: list[Any] = [(key, str | None, field(default=value)) for key, value in selectors]
    for config_class in config_classes:
        hints = typing.get_type_hints(config_class)
        for item in dataclasses.fields(config_class):
            fields.append((item.name, hints[item.name], field(default=item.default, default_factory=item.default_factory)))
    return _Template(OmegaConf.structured(dataclasses.make_dataclass("Block", fields, kw_only=True)))


def merge_layer(block: ConfigBlock, layer: Layer, blocks: list[ConfigBlock]) -> None:
    """Merge one layer into the block's node and record the sources of its values.

    Raises:
        UserError: If a key is unknown, or a value has the wrong type.
    """
    keys = [str(key) for key in block.node]
    values: dict[str, Any] = {}
    for name, value in layer.tree.items():
        path = f"{block.path}.{name}"
        key_in_file = layer.old_keys.get(path, str(name))
        if name not in keys:
            reason = compat.WITHOUT_EFFECT[block.kind].get(name)
            if reason is None:
                hint = key_hint(key_in_file.rpartition(".")[2], block, blocks)
                raise UserError(f"{layer.name}: unknown key '{block.path}.{key_in_file}'.{hint}")
            block.without_effect[f"{block.path}.{key_in_file}"] = reason
            continue
        if isinstance(value, dict):
            value = _with_earlier_keys(block, name, value)
        elif (text := layer.texts.get(f"{block.path}.{key_in_file}")) and _hints(block).get(name) in TEXT:
            value = text
        elif path in QUOTED and not isinstance(value, str | None):
            problem = f"YAML reads this value as {value!r}, not as text. Write it in quotes, as in {name}: '007'."
            raise UserError(f"{layer.name}: '{path}': {problem}")
        values[name] = value
        block.sources |= dict.fromkeys((key for key, _ in leaves(value, path)), layer.source(path))
    try:
        rest = {name: value for name, value in values.items() if not _assign(block.node, name, value)}
        # All values are merged at once, because every merge visits the whole block.
        if rest:
            block.node.merge_with(rest)
    except (OmegaConfBaseException, TypeError) as error:
        raise _merge_error(block, layer, values, error) from None


def _hints(block: ConfigBlock) -> dict[str, Any]:
    """Return key -> type of the fields of a block's Config classes."""
    return _hints_of(tuple(block.configs))


@functools.lru_cache(maxsize=256)
def _hints_of(config_classes: tuple[type, ...]) -> dict[str, Any]:
    """Return key -> type of the fields of Config classes. Evaluating the annotations takes a fifth of the time of a load."""
    return {key: hint for config_class in config_classes for key, hint in hints_of(config_class).items()}


def _with_earlier_keys(block: ConfigBlock, name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping together with the earlier layers' keys of the same component, if ``name`` configures a component.

    Such a key has the name of a component or ``{type: name, ...}`` as its value. A mapping without ``type`` changes keys of the
    component that earlier layers chose. OmegaConf would replace the whole value.
    """
    if _hints(block)[name] != COMPONENT or "type" in value:
        return value
    earlier = OmegaConf.to_container(block.node, resolve=False)[name]  # type: ignore[call-overload, index]
    return _deep_merge(Registry.block(earlier), value)


def _deep_merge(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    both = {key for key in later if isinstance(earlier.get(key), dict) and isinstance(later[key], dict)}
    return earlier | later | {key: _deep_merge(earlier[key], later[key]) for key in both}


def _assign(node: DictConfig, name: str, value: Any) -> bool:
    """Assign a value if the result is that of merging it, in a fraction of the time; return whether it was assigned."""
    is_open = OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name)
    if isinstance(value, dict) and (is_open or node[name]):
        return False
    if not is_plain(value):
        return False
    if not is_open and type(node[name]) is type(value) and node[name] == value:
        return True  # as most keys of a stored configuration, which has the default values, too
    with warnings.catch_warnings():
        # OmegaConf warns about a value that is converted when it is assigned, but not about one that is merged.
        warnings.simplefilter("error", FutureWarning)
        try:
            node[name] = value
        except FutureWarning:
            return False
    return True


def _merge_error(block: ConfigBlock, layer: Layer, values: dict[str, Any], error: Exception) -> UserError:
    """Return the error for the first value that cannot be merged, which merging the values one by one finds."""
    name = ""
    for key, value in values.items():
        try:
            empty_node(block).merge_with({key: value})
        except (OmegaConfBaseException, TypeError) as key_error:
            name, error = key, key_error
            break
    hints = _hints(block)
    key_in_file = layer.old_keys.get(f"{block.path}.{name}")
    if name not in hints or not is_type_error(error):
        key_in_file = key_in_file or getattr(error, "full_key", None)
    problem = value_problem(hints.get(name), values.get(name), error)
    return UserError(f"{layer.name}: '{block.path}.{key_in_file or name}': {problem}")
