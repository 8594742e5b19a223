"""Names that a YAML file may use, and the classes behind them.

A registry returns classes; building one is ``cls(cfg, **runtime)`` in plain sight. The built-in components are listed in the
tables below as "module:Class", and a look-up imports only the module that it needs. Where a class needs torch, its Config lives
in a torch-free module of its own (:class:`BuiltIn`), so that a configuration is checked without torch. A user's own modules come
through ``imports:`` in the YAML; they register their classes with a decorator.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from emollama.errors import UserError
from emollama.listing import abbreviated

T = TypeVar("T")
PREFIX = 3  # least number of characters that suggest the names that start with them


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`` Did you mean 'x'?`` (with a leading space) for the nearest known name, or nothing if none is near.

    Args:
        name: the unknown name.
        known: the known ones.
        cutoff: least similarity, as difflib measures it, from 0 to 1.
    """
    near = nearest(name, known, cutoff)
    return "" if near is None else f" Did you mean '{near}'?"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that was probably meant, or None: one that starts with ``name`` is preferred to a similar one.

    Args:
        name: the unknown name.
        known: the known ones.
        cutoff: least similarity of a name that does not start with ``name``, as difflib measures it, from 0 to 1.
    """
    names = list(known)
    longer = [each for each in names if each.startswith(name)] if len(name) >= PREFIX else []
    found = difflib.get_close_matches(name, longer or names, n=1, cutoff=0.0 if longer else cutoff)
    return found[0] if found else None


@dataclass(frozen=True)
class BuiltIn:
    """Where a built-in component is defined.

    Attributes:
        target: "module:Class".
        light: attribute of the class -> "module:name" of the same object in a module without torch.
    """

    target: str
    light: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Registry(Generic[T]):
    """Classes (or functions) of one kind by name.

    Args:
        kind: what the names stand for, as error messages say it ("model").
        built_in: name -> where the built-in component is; its module is imported when the component is looked up.
        needs_config: each registered class must hold a dataclass named ``Config``.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str | BuiltIn] | None = None, *, needs_config: bool = True) -> None:
        self.kind = kind
        given = built_in or {}
        self._built_in = {name: BuiltIn(place) if isinstance(place, str) else place for name, place in given.items()}
        self._needs_config = needs_config
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that enters a class under ``name``.

        Raises:
            ValueError: the name is taken, or the class has no dataclass ``Config``.
        """

        def enter(entry: T) -> T:
            taken = self._entries.get(name, self._built_in.get(name))
            if taken is not None:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {taken!r} and {entry!r}")
            if self._needs_config and not dataclasses.is_dataclass(getattr(entry, "Config", None)):
                raise ValueError(f"{self.kind} '{name}' ({entry!r}) has no @dataclass named Config inside it")
            self._entries[name] = entry
            return entry

        return enter

    def require(self, name: str, key: str | None = None) -> None:
        """Check that a name is registered, without importing anything; arguments and errors as for :meth:`get`."""
        if name not in self._entries and name not in self._built_in:
            hint = did_you_mean(name, self.names())
            where = f"{key}: " if key else ""
            raise UserError(f"{where}Unknown {self.kind} '{name}'.{hint} {self.registered()}")

    def get(self, name: str, key: str | None = None) -> T:
        """The class registered under ``name``; ``key`` is the configuration key that gave it, for the message.

        Raises:
            UserError: nothing has this name; the message holds the nearest one and all that are registered.
        """
        self.require(name, key)
        return self._entries[name] if name in self._entries else cast("T", _imported(self._built_in[name].target))

    def attribute(self, name: str, attribute: str, key: str | None = None) -> Any:
        """An attribute of the class registered under ``name``, without importing the class where the table says how."""
        self.require(name, key)
        if name not in self._entries and attribute in self._built_in[name].light:
            return _imported(self._built_in[name].light[attribute])
        return getattr(self.get(name), attribute)

    def config(self, name: str, key: str | None = None) -> Any:
        """The Config of the class registered under ``name``, from its torch-free module; see :meth:`get`."""
        return self.attribute(name, "Config", key)

    def configured(self, block: Mapping[str, Any], key: str) -> tuple[Any, Any]:
        """A class and its Config, of a block of keys inside another component's: ``{type: name, ...keys of its Config}``.

        Args:
            block: the keys; ``type`` chooses the class.
            key: the path of the block, or the option that it comes from, for messages.

        Raises:
            UserError: no type, an unknown one, a key that its Config does not have or lacks, or what it refuses.
        """
        if "type" not in block:
            raise UserError(f"{key}: 'type' is missing. {self.registered()}")
        chosen: Any = self.get(str(block["type"]), key)
        fields = dataclasses.fields(chosen.Config)
        known = [item.name for item in fields]
        given = {str(name): value for name, value in block.items() if name != "type"}
        for name in given:
            if name not in known:
                raise UserError(f"{key}: unknown key '{name}'.{did_you_mean(name, known)} Known: {abbreviated(known) or 'none'}")
        for item in fields:
            if item.name not in given and item.default is item.default_factory is dataclasses.MISSING:
                raise UserError(f"{key}: '{item.name}' is missing: {block['type']} needs it")
        try:
            return chosen, chosen.Config(**given)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None

    def built(self, block: Mapping[str, Any], key: str) -> Any:
        """A component of such a block; see :meth:`configured`.

        Raises:
            UserError: as :meth:`configured`, or raised by the class itself, with the key before its message.
        """
        chosen, cfg = self.configured(block, key)
        try:
            return chosen(cfg)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self.in_order())

    def registered(self) -> str:
        """The names, for messages: ``Registered: a, b``."""
        return f"Registered: {abbreviated(self.names())}"

    def in_order(self) -> list[str]:
        """All registered names: the built-in ones in the table's order, then the user's in the order of registration."""
        return list(self._built_in | self._entries)


class Components(Mapping[str, Any]):
    """Block path -> registered class. A look-up imports the class's module; nothing is imported before.

    Args:
        chosen: block path -> (registry, name in it).
    """

    def __init__(self, chosen: Mapping[str, tuple[Registry[Any], str]]) -> None:
        self._chosen = dict(chosen)

    def __getitem__(self, path: str) -> Any:
        registry, name = self._chosen[path]
        return registry.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    if module not in sys.modules:
        logging.getLogger("emollama").debug("importing %s", module)
    return getattr(importlib.import_module(module), name)


def _with_config(package: str, classes: Mapping[str, str]) -> dict[str, str | BuiltIn]:
    """name -> "module:Class" below a package, whose Config is ``<Class>Config`` in the package's module ``configs``."""
    return {
        name: BuiltIn(f"{package}.{place}", {"Config": f"{package}.configs:{place.partition(':')[2]}Config"})
        for name, place in classes.items()
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
    "metric", {name: f"emollama.evaluation.{place}" for name, place in _METRICS.items()}, needs_config=False
)
_JUDGES = {"lexical": "lexical:LexicalJudge", "openai": "openai:OpenAIJudge"}
JUDGES: Registry[Any] = Registry("judge", {name: f"emollama.evaluation.judges.{place}" for name, place in _JUDGES.items()})
