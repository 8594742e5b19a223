"""Names that a YAML file may use, and the classes behind them.

A registry returns classes; building one is ``cls(cfg, **runtime)`` in plain sight. The modules that register the built-in
components are listed here and imported at the first lookup; a user's own modules come through ``imports:`` in the YAML.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from emollama.errors import UserError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` (with a leading space) for the nearest known name, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


class Registry(Generic[T]):
    """Classes (or functions) of one kind by name.

    Args:
        kind: what the names stand for, as error messages say it ("model").
        modules: imported at the first lookup; importing them registers the built-in components.
        needs_config: each registered class must hold a dataclass named ``Config``.
    """

    def __init__(self, kind: str, modules: tuple[str, ...], *, needs_config: bool = True) -> None:
        self.kind = kind
        self._modules = modules
        self._needs_config = needs_config
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that enters a class under ``name``.

        Raises:
            ValueError: the name is taken, or the class has no dataclass ``Config``.
        """

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {self._entries[name]!r} and {entry!r}")
            if self._needs_config and not dataclasses.is_dataclass(getattr(entry, "Config", None)):
                raise ValueError(f"{self.kind} '{name}' ({entry!r}) has no @dataclass named Config inside it")
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str, key: str | None = None) -> T:
        """The class registered under ``name``; ``key`` is the configuration key that gave it, for the message.

        Raises:
            UserError: nothing has this name; the message holds the nearest one and all that are registered.
        """
        known = self.names()
        if name not in self._entries:
            hint = did_you_mean(name, known)
            where = f"{key}: " if key else ""
            raise UserError(f"{where}Unknown {self.kind} '{name}'.{hint} Registered: {', '.join(known)}")
        return self._entries[name]

    def configured(self, block: Mapping[str, Any], key: str) -> tuple[Any, Any]:
        """A class and its Config, of a block of keys inside another component's: ``{type: name, ...keys of its Config}``.

        Args:
            block: the keys; ``type`` chooses the class.
            key: the block's name, for messages.

        Raises:
            UserError: no type, an unknown one, a key that its Config does not have or lacks, or what it refuses.
        """
        if "type" not in block:
            raise UserError(f"{key}: 'type' is missing. Registered: {', '.join(self.names())}")
        chosen: Any = self.get(str(block["type"]), f"{key}.type")
        fields = dataclasses.fields(chosen.Config)
        known = [item.name for item in fields]
        given = {str(name): value for name, value in block.items() if name != "type"}
        for name in given:
            if name not in known:
                raise UserError(f"unknown key '{key}.{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")
        for item in fields:
            if item.name not in given and item.default is item.default_factory is dataclasses.MISSING:
                raise UserError(f"'{key}.{item.name}' is missing: {block['type']} needs it")
        try:
            return chosen, chosen.Config(**given)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None

    def built(self, block: Mapping[str, Any], key: str) -> Any:
        """A component of such a block; see :meth:`configured`."""
        chosen, cfg = self.configured(block, key)
        return chosen(cfg)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self.in_order())

    def in_order(self) -> list[str]:
        """All registered names in the order of registration."""
        for module in self._modules:
            importlib.import_module(module)
        return list(self._entries)


MODELS: Registry[Any] = Registry("model", ("emollama.models.minigpt_v2", "emollama.models.minigpt4"))
FUSIONS: Registry[Any] = Registry("fusion", ("emollama.models.fusion",), needs_config=False)
_DATASETS = ("feature_face_caption", "mer2024_caption", "dfew", "emer", "custom", "flickr30k_caption")
DATASETS: Registry[Any] = Registry("dataset", tuple(f"emollama.datasets.{name}" for name in _DATASETS))
TASKS: Registry[Any] = Registry("task", ("emollama.tasks.image_text_pretrain",))
RUNNERS: Registry[Any] = Registry("runner", ("emollama.runners.runner_base",))
LR_SCHEDULES: Registry[Any] = Registry("LR schedule", ("emollama.optim",), needs_config=False)
_ENCODERS = ("eva", "mae", "videomae", "hubert")
ENCODERS: Registry[Any] = Registry("encoder", tuple(f"emollama.encoders.{name}" for name in _ENCODERS))
EXTRACTORS: Registry[Any] = Registry("extractor", ("emollama.extraction.videos",))
_METRICS = ("losses", "recognition", "openset", "wheels", "emer", "captions.metrics")
METRICS: Registry[Any] = Registry("metric", tuple(f"emollama.evaluation.{name}" for name in _METRICS), needs_config=False)
JUDGES: Registry[Any] = Registry("judge", ("emollama.evaluation.judges.lexical", "emollama.evaluation.judges.openai"))
