"""The layers that a user gives, as plain trees: a YAML file, and ``--options``."""

from __future__ import annotations

import io
import re
import typing
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from emollama.config.layers import TOP_LEVEL
from emollama.config.omegaconf_errors import UNREADABLE, yaml_problem
from emollama.config.packaged import find_shipped
from emollama.errors import UserError
from emollama.paths import read_text


def read_yaml(path: str) -> dict[str, Any]:
    """The tree of a YAML file, interpolations unresolved.

    Args:
        path: as find_shipped takes it.

    Raises:
        UserError: no file, one that cannot be read, or one that is no mapping.
    """
    found = find_shipped(path, "--cfg-path")
    try:
        text = read_text(found)
    except OSError as error:
        raise UserError(f"--cfg-path: cannot read '{path}': {error.strerror or error}.") from None
    keys = f"A configuration is a mapping with the keys {', '.join(TOP_LEVEL)}."
    try:
        loaded = OmegaConf.load(io.StringIO(text))
        if not loaded and yaml.safe_load(text) is None:
            raise UserError(f"{path}: the file is empty{' except for comments' if text.strip() else ''}. {keys}")
    except UserError:
        raise
    except OSError:  # OmegaConf's error for a document that is a number or a date
        raise UserError(f"{path}: the file is no mapping. {keys}") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not valid YAML: {yaml_problem(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: the file is no mapping. {keys}")
    return typing.cast("dict[str, Any]", OmegaConf.to_container(loaded, resolve=False))


def read_options(options: list[str]) -> dict[str, Any]:
    """The tree of ``a.b=c`` pairs, whose values are YAML; the last of several for a key counts.

    Raises:
        UserError: one that is no such pair; the message quotes it, and says what to write.
    """
    for place, option in enumerate(options):
        if "=" not in option or option.startswith("="):
            written = _assignment(options, place)
            raise UserError(f"--options: '{option}' is not of the form a.b=c. Write {written}, without spaces around '='.")
    for option in options:
        _check_option(option)
    try:
        return typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.from_dotlist(options), resolve=False))
    except UNREADABLE as error:
        raise UserError(f"--options: {yaml_problem(error)}") from None


def _check_option(option: str) -> None:
    """Refuse a pair whose key has an empty part, a space at its edge or brackets, or whose value is empty or not YAML."""
    key, _, value = option.partition("=")
    parts = [part.strip() for part in re.split(r"[.\[\]]", key)]
    if key != ".".join(filter(None, parts)):
        meant = f"{'.'.join(filter(None, parts)) or 'a.b'}={value}"
        if re.search(r"\[\d+\]", key):  # an entry of a list
            meant = f"the whole list: {key.partition('[')[0]}=[{value},...]"
        raise UserError(f"--options: '{option}': '{key}' is not of the form a.b. Write {meant}")
    if not value.strip():
        raise UserError(f"--options: '{option}' has no value. Write {key}=null for none, or {key}='\"\"' for an empty text.")
    try:
        OmegaConf.from_dotlist([option])
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        remedy = f"Put a text with special characters in quotes: '{key}=\"TEXT\"'"
        raise UserError(f"--options: '{option}': the value is not valid YAML: {problem}. {remedy}") from None
    except UNREADABLE as error:
        raise UserError(f"--options: '{option}': {yaml_problem(error)}") from None


def _assignment(options: list[str], place: int) -> str:
    """The pair ``a.b=c`` that was probably meant by the option at a place and those beside it."""
    begin = place - 1 if place and (options[place - 1].endswith("=") or options[place].startswith("=")) else place
    key, *rest = [options[begin].strip("=:- "), *options[begin + 1 : begin + 3]]
    if options[begin].startswith("="):
        return f"a.b={key}"
    if ":" in key:
        key, _, value = key.partition(":")
    else:
        values = [text.strip("=") for text in rest if text.strip("=")]
        value = values[0] if values and "=" not in values[0] else "VALUE"
    return f"{key}={value}"
