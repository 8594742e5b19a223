"""Readable messages for the errors of PyYAML and OmegaConf, and for the types of configuration keys."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable
from typing import Any

import yaml
from omegaconf.errors import (
    ConfigTypeError,
    GrammarParseError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    InterpolationValidationError,
    KeyValidationError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
    ValidationError,
)

from emollama.suggestions import did_you_mean

# The exceptions that reading invalid YAML raises. Other exceptions are not caused by the file.
UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError)


# Type of a key -> its description as a single value, and in the plural for lists and mappings.
TYPES = {
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    types.NoneType: ("null", "null"),
}


def hints_of(config_class: type) -> dict[str, Any]:
    """Return key -> type of a Config class. ``Annotated`` adds a description of the values, for keys with several types."""
    return typing.get_type_hints(config_class, include_extras=True)


def describe_type(hint: Any, *, plural: bool = False) -> str:
    """Describe the type of a key, such as ``a list of numbers or null`` for ``list[float] | None``."""
    arguments, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is typing.Annotated:
        return str(arguments[-1])
    if origin is typing.Literal:
        return f"{'the values' if plural else 'one of'} {', '.join(map(str, arguments))}"
    if origin in (types.UnionType, typing.Union):
        choices = " or ".join(describe_type(argument, plural=plural) for argument in arguments).split(" or ")
        return " or ".join([", ".join(choices[:-1]), choices[-1]])
    if origin in (list, dict):
        kind = ("list of", "lists of") if origin is list else ("mapping to", "mappings to")
        kinds = kind[1] if plural else f"a {kind[0]}"
        return kinds.rpartition(" ")[0] if arguments[-1] is Any else f"{kinds} {describe_type(arguments[-1], plural=True)}"
    return TYPES.get(hint, ("any value", "any values"))[plural]


def is_type_error(error: Exception) -> bool:
    """Return whether an error of OmegaConf means that a value has the wrong type."""
    return isinstance(error, ValidationError | ConfigTypeError | TypeError) and not isinstance(error, KeyValidationError)


def value_problem(hint: Any, value: Any, error: Exception, *, shows_value: bool = True) -> str:
    """Return why OmegaConf does not accept the value of a key.

    Args:
        hint: type of the key, which the message about a wrong type contains; None if it is unknown.
        value: the value.
        error: the error that the value raised.
        shows_value: whether the message about a wrong type contains the value.
    """
    if hint is None or not is_type_error(error):
        return first_line(error) + (". Write the key in quotes." if isinstance(error, KeyValidationError) else "")
    if not shows_value:
        return f"expected {describe_type(hint)}"
    choices = map(str, typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else ()
    shown = "null" if value is None else repr(value)
    return f"expected {describe_type(hint)}, got {shown}.{did_you_mean(str(value), choices)}"


def first_line(error: Exception) -> str:
    """Return OmegaConf's message without the lines about its internal types."""
    return str(error).partition("\n")[0]


def yaml_problem(error: Exception) -> str:
    """Return why a text is not valid YAML, with line and column if the parser reports them."""
    if isinstance(error, GrammarParseError):
        key = f" of '{error.full_key}'" if error.full_key else ""
        return f"the interpolation{key} is invalid ({first_line(error)}). Write ${{oc.env:NAME}} or ${{paths.x}}."
    if isinstance(error, OmegaConfBaseException):
        return first_line(error)
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def unresolved(error: OmegaConfBaseException, config_keys: Iterable[str]) -> str:
    """Return why an interpolation cannot be resolved, and how to fix it.

    Args:
        error: an InterpolationResolutionError.
        config_keys: the dotted keys of the configuration, for a suggestion.
    """
    text = first_line(error)
    if variable := re.search(r"Environment variable '(.*)' not found", text):
        return f"the environment variable '{variable[1]}' is not set. Set the variable, or write the value itself."
    if isinstance(error, InterpolationKeyError):
        name = text.partition("'")[2].partition("'")[0]
        return (
            f"'${{{name}}}' is not a key of the configuration.{did_you_mean(name, config_keys)}"
            " Correct it, or write the value itself."
        )
    if "Recursive interpolation" in text:
        return "the value refers to itself, directly or through other keys. Write the value itself."
    if isinstance(error, InterpolationToMissingValueError):
        return f"it refers to '{text.rpartition(': ')[2]}', which has no value. Set that key."
    if isinstance(error, UnsupportedInterpolationType):
        return f"unknown interpolation '{text.rpartition(' ')[2]}:'. Write ${{oc.env:NAME}} or ${{paths.x}}."
    if isinstance(error, InterpolationValidationError):
        return f"the interpolated value is invalid: {text}. Correct it, or write the value itself."
    reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    return f"the interpolation cannot be resolved: {reason}. Correct it, or write the value itself."
