"""The class of a registry: registration of classes by name, and look-ups that import only the module of one class."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from emollama.errors import UserError
from emollama.field_texts import documented
from emollama.interface_check import missing_keys, missing_members
from emollama.listing import abbreviated
from emollama.suggestions import did_you_mean

T_co = TypeVar("T_co", covariant=True)  # type of the registered objects
E = TypeVar("E")
Instance = TypeVar("Instance")


@dataclass(frozen=True)
class BuiltIn:
    """The location of a built-in component.

    Attributes:
        target: "module:Class".
        light: attribute of the class -> "module:name" of the same object in a module that does not import torch.
    """

    target: str
    light: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Registry(Generic[T_co]):
    """Classes or functions of one kind by name.

    Args:
        kind: name of the kind in error messages, such as "model".
        built_in: name -> location of the built-in component, whose module is imported by a look-up.
        needs_config: require that each registered class contains a dataclass named ``Config``.
        interface: "module:Class" of the Protocol, or of the class, whose members a user's component must have.
        config_interface: the same for its ``Config``.
        shows_values: whether messages about the types of values in a nested block contain the values.
    """

    def __init__(
        self,
        kind: str,
        built_in: Mapping[str, str | BuiltIn] | None = None,
        *,
        needs_config: bool = True,
        interface: str | None = None,
        config_interface: str | None = None,
        shows_values: bool = True,
    ) -> None:
        self.kind = kind
        self._interface, self._config_interface = interface, config_interface
        self._built_in = {
            name: BuiltIn(location) if isinstance(location, str) else location for name, location in (built_in or {}).items()
        }
        self._needs_config, self._shows_values = needs_config, shows_values
        self._entries: dict[str, T_co] = {}
        self._locations: dict[str, str] = {}  # name of a user's component -> file and line

    def register(self, name: str) -> Callable[[E], E]:
        """Return a decorator that registers a class under ``name``.

        Raises:
            UserError: If the name is already registered, or the class has no dataclass ``Config``.
        """
        caller = sys._getframe(1)
        location = f"{caller.f_code.co_filename}, line {caller.f_lineno}"

        def decorate(entry: E) -> E:
            if name in self._entries or name in self._built_in:
                remedy = f"Register {_described(entry)} under another name."
                raise UserError(f"{self.kind} '{name}' is already registered by {self._location(name)}. {remedy}")
            if self._needs_config and not dataclasses.is_dataclass(getattr(entry, "Config", None)):
                raise UserError(f"{self.kind} '{name}': {_described(entry)} must contain a @dataclass named Config")
            if self._needs_config:
                documented(entry.Config)  # type: ignore[attr-defined]
            self._entries[name], self._locations[name] = cast("T_co", entry), location
            return entry

        return decorate

    def require(self, name: str, key: str | None = None) -> None:
        """Check that a name is registered and that a user's component has the members of its interface; see :meth:`get`.

        It does not import the module of a built-in component.
        """
        self._require_name(name, key)
        # mypy checks the built-in components.
        if name not in self._entries:
            return
        if self._interface is not None:
            self._refuse(name, missing_members(self._entries[name], _import(self._interface)), self._interface, key)
        if self._config_interface is not None:
            missing = missing_keys(self.config(name), _import(self._config_interface))
            self._refuse(name, [f"Config.{member}" for member in missing], self._config_interface, key)

    def _require_name(self, name: str, key: str | None) -> None:
        if name not in self._entries and name not in self._built_in:
            hint = did_you_mean(name, self.names())
            where = f"{key}: " if key else ""
            raise UserError(f"{where}Unknown {self.kind} '{name}'.{hint} {self.registered()}")

    def get(self, name: str, key: str | None = None) -> T_co:
        """Return the class registered under ``name``.

        Args:
            name: a registered name.
            key: the configuration key with the name, for messages.

        Raises:
            UserError: If the name is not registered; the message contains a suggestion and all registered names. If a user's
                component lacks members of the interface; the message contains their names.
        """
        self.require(name, key)
        return self._entries[name] if name in self._entries else cast("T_co", _import(self._built_in[name].target))

    def _location(self, name: str) -> str:
        """Return file and line where a user's component was registered, or the module of a built-in one."""
        if name in self._built_in:
            return self._built_in[name].target.partition(":")[0]
        return self._locations.get(name, "unknown file")

    def _refuse(self, name: str, missing: list[str], interface: str, key: str | None) -> None:
        """Raise an error about missing members of a user's component, if there are any."""
        if missing:
            where = f"{key}: " if key else ""
            module, _, described_in = interface.partition(":")
            component = f"{self.kind} '{name}' ({_described(self._entries[name])}, {self._location(name)})"
            remedy = f"Add what {described_in} in {module} describes, or derive the class from a registered one."
            raise UserError(f"{where}{component} has no {abbreviated(missing)}. {remedy}")

    def attribute(self, name: str, attribute: str, key: str | None = None) -> Any:
        """Return an attribute of the class registered under ``name``, if possible without importing the class."""
        self._require_name(name, key)
        if name in self._entries:
            return getattr(self._entries[name], attribute)
        built_in = self._built_in[name]
        return _import(built_in.light[attribute]) if attribute in built_in.light else getattr(_import(built_in.target), attribute)

    def config(self, name: str, key: str | None = None) -> Any:
        """Return the Config of the class registered under ``name``, if possible without importing torch; see :meth:`get`."""
        return self.attribute(name, "Config", key)

    @staticmethod
    def block(value: str | Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of a key that configures a component, a name or a block with ``type``, as a block."""
        return {"type": value} if isinstance(value, str) else dict(value)

    def nested_config(self, value: str | Mapping[str, Any], key: str) -> Any:
        """Return the Config of a component from the value of a key: a name, or a block ``{type: name, ...keys of its Config}``.

        Args:
            value: the registered name, or the keys and values, with interpolations resolved. Values are converted to the types
                of the Config's fields.
            key: the path of the key, or its command-line option, for messages.

        Raises:
            UserError: If ``type`` is missing or unknown, keys are unknown or missing, or a value is invalid.
        """
        block = self.block(value)
        if "type" not in block:
            raise UserError(f"{key}: 'type' is missing. {self.registered()}")
        self.require(str(block["type"]), key)
        config_class = self.config(str(block["type"]), key)
        fields = dataclasses.fields(config_class)
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
            return config_class(**self._converted(config_class, values))
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None

    def _converted(self, config_class: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Convert the values of a nested block to the types of the fields of a Config."""
        if not values:
            return {}
        # Importing OmegaConf takes a while, and the command ``score`` otherwise does not need it.
        from emollama.config.nested import converted

        return converted(config_class, values, shows_values=self._shows_values)

    def configured(self, value: str | Mapping[str, Any], key: str) -> tuple[T_co, Any]:
        """Return class and Config of a component from the value of a key; see :meth:`nested_config`."""
        cfg = self.nested_config(value, key)
        return self.get(str(self.block(value)["type"])), cfg

    def built(self: Registry[Callable[[Any], Instance]], value: str | Mapping[str, Any], key: str) -> Instance:
        """Build the component that the value of a key configures; see :meth:`configured`.

        Raises:
            UserError: If :meth:`configured` or the class raises it; the message starts with the key.
        """
        component, cfg = self.configured(value, key)
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


def _described(entry: object) -> str:
    """Return the name of a class or function, or the text of another object."""
    return str(getattr(entry, "__qualname__", repr(entry)))


def _import(location: str) -> Any:
    """Import the object at "module:name"."""
    module, _, name = location.partition(":")
    if module not in sys.modules:
        logging.getLogger("emollama").debug("importing %s", module)
    return getattr(importlib.import_module(module), name)
