"""Registries: the names of components in a YAML file, and the classes that they stand for.

A registry returns a class, and the caller builds it with ``cls(cfg, **runtime)``. The tables below list built-in components as
"module:Class"; a look-up imports only that module. The Config of a class that needs torch is in a separate module without torch
(:class:`BuiltIn`), so that a configuration can be checked without importing torch. A user's modules are named under ``imports:``
in the YAML file, and register their classes with a decorator.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from emollama.errors import UserError
from emollama.listing import abbreviated

T = TypeVar("T")
PREFIX = 3  # minimum length of a name for suggesting names that start with it


def did_you_mean(name: str, valid_names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `` Did you mean 'x'?`` (with a leading space) with the nearest valid name, or "" if none is similar.

    Args:
        name: the unknown name.
        valid_names: the valid names.
        cutoff: minimum similarity, as difflib measures it, from 0 to 1.
    """
    suggestion = nearest(name, valid_names, cutoff)
    return "" if suggestion is None else f" Did you mean '{suggestion}'?"


def nearest(name: str, valid_names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the valid name that was probably meant, or None.

    Args:
        name: the unknown name.
        valid_names: the valid names. Those that start with ``name`` are preferred.
        cutoff: minimum similarity of other names, as difflib measures it, from 0 to 1.
    """
    names = list(valid_names)
    longer = [registered for registered in names if registered.startswith(name)] if len(name) >= PREFIX else []
    matches = difflib.get_close_matches(name, longer or names, n=1, cutoff=0.0 if longer else cutoff)
    return matches[0] if matches else None


@dataclass(frozen=True)
class BuiltIn:
    """The location of a built-in component.

    Attributes:
        target: "module:Class".
        light: attribute of the class -> "module:name" of the same object in a module that does not import torch.
    """

    target: str
    light: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Registry(Generic[T]):
    """Classes or functions of one kind by name.

    Args:
        kind: name of the kind in error messages, such as "model".
        built_in: name -> location of the built-in component, whose module is imported by a look-up.
        needs_config: require that each registered class contains a dataclass named ``Config``.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str | BuiltIn] | None = None, *, needs_config: bool = True) -> None:
        self.kind = kind
        self._built_in = {
            name: BuiltIn(location) if isinstance(location, str) else location for name, location in (built_in or {}).items()
        }
        self._needs_config = needs_config
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class under ``name``.

        Raises:
            ValueError: If the name is already registered, or the class has no dataclass ``Config``.
        """

        def decorate(entry: T) -> T:
            existing = self._entries.get(name, self._built_in.get(name))
            if existing is not None:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {existing!r} and {entry!r}")
            if self._needs_config and not dataclasses.is_dataclass(getattr(entry, "Config", None)):
                raise ValueError(f"{self.kind} '{name}' ({entry!r}) must contain a @dataclass named Config")
            self._entries[name] = entry
            return entry

        return decorate

    def require(self, name: str, key: str | None = None) -> None:
        """Check that a name is registered, without importing its module; see :meth:`get`."""
        if name not in self._entries and name not in self._built_in:
            hint = did_you_mean(name, self.names())
            where = f"{key}: " if key else ""
            raise UserError(f"{where}Unknown {self.kind} '{name}'.{hint} {self.registered()}")

    def get(self, name: str, key: str | None = None) -> T:
        """Return the class registered under ``name``.

        Args:
            name: a registered name.
            key: the configuration key with the name, for messages.

        Raises:
            UserError: If the name is not registered; the message contains a suggestion and all registered names.
        """
        self.require(name, key)
        return self._entries[name] if name in self._entries else cast("T", _import(self._built_in[name].target))

    def attribute(self, name: str, attribute: str, key: str | None = None) -> Any:
        """Return an attribute of the class registered under ``name``, if possible without importing the class."""
        self.require(name, key)
        if name not in self._entries and attribute in self._built_in[name].light:
            return _import(self._built_in[name].light[attribute])
        return getattr(self.get(name), attribute)

    def config(self, name: str, key: str | None = None) -> Any:
        """Return the Config of the class registered under ``name``, if possible without importing torch; see :meth:`get`."""
        return self.attribute(name, "Config", key)

    def configured(self, block: Mapping[str, Any], key: str) -> tuple[Any, Any]:
        """Return class and Config of a component from a nested block: ``{type: name, ...keys of its Config}``.

        Args:
            block: the keys and values; ``type`` is the registered name.
            key: the path of the block, or its command-line option, for messages.

        Raises:
            UserError: If ``type`` is missing or unknown, keys are unknown or missing, or a value is invalid.
        """
        if "type" not in block:
            raise UserError(f"{key}: 'type' is missing. {self.registered()}")
        component: Any = self.get(str(block["type"]), key)
        fields = dataclasses.fields(component.Config)
        names = [item.name for item in fields]
        values = {str(name): value for name, value in block.items() if name != "type"}
        for name in values:
            if name not in names:
                valid = f"Keys of {block['type']}: {abbreviated(names) or 'none'}"
                raise UserError(f"{key}: unknown key '{name}'.{did_you_mean(name, names)} {valid}")
        for item in fields:
            if item.name not in values and item.default is item.default_factory is dataclasses.MISSING:
                raise UserError(f"{key}: '{item.name}' is missing, which {block['type']} requires")
        try:
            return component, component.Config(**values)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None

    def built(self, block: Mapping[str, Any], key: str) -> Any:
        """Build the component of a nested block; see :meth:`configured`.

        Raises:
            UserError: If :meth:`configured` or the class raises it; the message starts with the key.
        """
        component, cfg = self.configured(block, key)
        try:
            return component(cfg)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        return sorted(self.in_order())

    def registered(self) -> str:
        """Return the names for messages: ``Registered: a, b``."""
        return f"Registered: {abbreviated(self.names())}"

    def in_order(self) -> list[str]:
        """Return all registered names: built-in names in the table's order, then the user's in the order of registration."""
        return list(self._built_in | self._entries)


def _import(location: str) -> Any:
    """Import the object at "module:name"."""
    module, _, name = location.partition(":")
    if module not in sys.modules:
        logging.getLogger("emollama").debug("importing %s", module)
    return getattr(importlib.import_module(module), name)


def _with_config(package: str, classes: Mapping[str, str]) -> dict[str, str | BuiltIn]:
    """Return built-in components of a package, whose Config is ``<Class>Config`` in the package's module ``configs``."""
    return {
        name: BuiltIn(f"{package}.{location}", {"Config": f"{package}.configs:{location.partition(':')[2]}Config"})
        for name, location in classes.items()
    }


MODELS: Registry[Any] = Registry(
    "model", _with_config("emollama.models", {"minigpt_v2": "minigpt_v2:MiniGPTv2", "minigpt4": "minigpt4:MiniGPT4"})
)
FUSIONS: Registry[Any] = Registry("fusion", {"linear": "emollama.models.fusion:LinearFusion"}, needs_config=False)
_DATASETS = {
    "feature_face_caption": "feature_face_caption:FeatureFaceCaption",
    "mer2024_caption": "mer2024_caption:MER2024Caption",
    "dfew": "dfew:DFEW",
    "emer": "emer:EMER",
    "custom": "custom:Custom",
    "flickr30k_caption": "flickr30k_caption:Flickr30kCaption",
}
DATASETS: Registry[Any] = Registry("dataset", _with_config("emollama.datasets", _DATASETS))
_IMAGE_TEXT = {
    "Config": "emollama.tasks.configs:ImageTextPretrainConfig",
    "scoring": "emollama.evaluation.scoring:Scoring",
}
TASKS: Registry[Any] = Registry(
    "task", {"image_text_pretrain": BuiltIn("emollama.tasks.image_text_pretrain:ImageTextPretrain", _IMAGE_TEXT)}
)
_RUN_CONFIG = {"Config": "emollama.runners.run_config:RunnerConfig"}
RUNNERS: Registry[Any] = Registry("runner", {"runner_base": BuiltIn("emollama.runners.runner_base:RunnerBase", _RUN_CONFIG)})
_LR_SCHEDULES = ("linear_warmup_cosine_lr", "linear_warmup_step_lr")
LR_SCHEDULES: Registry[Any] = Registry(
    "LR schedule", {name: f"emollama.lr_schedules:{name}" for name in _LR_SCHEDULES}, needs_config=False
)
_ENCODERS = {"eva": "eva:Eva", "mae": "mae:Mae", "videomae": "videomae:VideoMae", "hubert": "hubert:Hubert"}
ENCODERS: Registry[Any] = Registry("encoder", _with_config("emollama.encoders", _ENCODERS))
EXTRACTORS: Registry[Any] = Registry("extractor", _with_config("emollama.extraction", {"videos": "videos:VideoExtraction"}))
_METRICS = {
    "loss": "losses:LOSS",
    "war": "recognition:WAR",
    "waf": "recognition:WAF",
    "uar": "recognition:UAR",
    "macro_f1": "recognition:MACRO_F1",
    "precision": "recognition:PRECISION",
    "recall": "recognition:RECALL",
    "hit_rate": "recognition:HIT_RATE",
    "invalid_rate": "recognition:INVALID_RATE",
    "ov_precision": "openset:OV_PRECISION",
    "ov_recall": "openset:OV_RECALL",
    "ov": "openset:OV",
    "ew_precision": "wheels:EW_PRECISION",
    "ew_recall": "wheels:EW_RECALL",
    "ew": "wheels:EW",
    "clue_overlap": "emer:CLUE_OVERLAP",
    "label_overlap": "emer:LABEL_OVERLAP",
    "bleu_1": "captions.metrics:BLEU_1",
    "bleu_2": "captions.metrics:BLEU_2",
    "bleu_3": "captions.metrics:BLEU_3",
    "bleu_4": "captions.metrics:BLEU_4",
    "rouge_l": "captions.metrics:ROUGE_L",
    "cider_d": "captions.metrics:CIDER_D",
    "meteor": "captions.metrics:METEOR",
    "spice": "captions.metrics:SPICE",
}
METRICS: Registry[Any] = Registry(
    "metric", {name: f"emollama.evaluation.{location}" for name, location in _METRICS.items()}, needs_config=False
)
_JUDGES = {"lexical": "lexical:LexicalJudge", "openai": "openai:OpenAIJudge"}
JUDGES: Registry[Any] = Registry("judge", {name: f"emollama.evaluation.judges.{location}" for name, location in _JUDGES.items()})
