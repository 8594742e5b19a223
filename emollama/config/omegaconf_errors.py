"""Errors of YAML and OmegaConf in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterable

import yaml
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    InterpolationValidationError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from emollama.registry import did_you_mean

# What reading YAML raises for a text that is none. Other exceptions are not the file's fault.
UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError)
NEAR = 0.8  # least similarity of a suggested key: all keys of a block resemble each other


def first_line(error: Exception) -> str:
    """OmegaConf's message without the lines about its own types."""
    return str(error).partition("\n")[0]


def yaml_problem(error: Exception) -> str:
    """What is wrong with a text that is not valid YAML, with line and column where they are known."""
    if isinstance(error, GrammarParseError):
        key = f" of '{error.full_key}'" if error.full_key else ""
        return f"the interpolation{key} cannot be read ({first_line(error)}). The form is ${{oc.env:NAME}} or ${{paths.x}}."
    if isinstance(error, OmegaConfBaseException):
        return first_line(error)
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def unresolved(error: OmegaConfBaseException, known: Iterable[str]) -> str:
    """Why an interpolation has no value, and the remedy.

    Args:
        error: an InterpolationResolutionError.
        known: the dotted keys of the configuration.
    """
    text = first_line(error)
    if variable := re.search(r"Environment variable '(.*)' not found", text):
        return f"the environment variable '{variable[1]}' is not set. Set the variable, or write the value itself."
    if isinstance(error, InterpolationKeyError):
        name = text.partition("'")[2].partition("'")[0]
        return (
            f"'${{{name}}}' names no key of the configuration.{did_you_mean(name, known)} Correct it, or write the value itself."
        )
    if "Recursive interpolation" in text:
        return "the value refers to itself, directly or through other keys. Write the value itself."
    if isinstance(error, InterpolationToMissingValueError):
        return f"it refers to '{text.rpartition(': ')[2]}', which has no value. Give that key a value."
    if isinstance(error, UnsupportedInterpolationType):
        return f"unknown interpolation '{text.rpartition(' ')[2]}:'. The form is ${{oc.env:NAME}} or ${{paths.x}}."
    if isinstance(error, InterpolationValidationError):
        return f"the value that the interpolation gives does not fit: {text}. Correct it, or write the value itself."
    reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    return f"the interpolation cannot be resolved: {reason}. Correct it, or write the value itself."
