"""Reading of the user's layers, a YAML file and ``--options``, as plain trees."""

from __future__ import annotations

import io
import re
import typing
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._yaml import get_yaml_loader

from emollama.config.layers import TOP_LEVEL, is_plain
from emollama.config.omegaconf_errors import UNREADABLE, yaml_problem
from emollama.config.packaged import find_shipped
from emollama.disk import unreadable
from emollama.errors import UserError
from emollama.paths import read_text

NULL = ("null", "Null", "NULL", "~")
YAML_SYNTAX = "'\"!&*|>"  # first characters of values whose text is not what they mean


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML file as a plain tree with unresolved interpolations.

    Args:
        path: a path for :func:`find_shipped`.

    Raises:
        UserError: If the file does not exist, cannot be read, is not valid YAML, or is not a mapping.
    """
    existing_path = find_shipped(path, "--cfg-path")
    try:
        text = read_text(existing_path)
    except OSError as error:
        raise unreadable(path, "--cfg-path", error) from None
    keys = f"A configuration is a YAML mapping with the keys {', '.join(TOP_LEVEL)}."
    try:
        tree = yaml.load(io.StringIO(text), Loader=get_yaml_loader())
        # Only files with interpolations, unusual values or YAML anchors need OmegaConf, which is slower.
        if isinstance(tree, dict) and tree and is_plain(tree) and "&" not in text:
            return tree
        loaded = OmegaConf.load(io.StringIO(text))
        if not loaded and yaml.safe_load(text) is None:
            raise UserError(f"{path}: the file is empty{' except for comments' if text.strip() else ''}. {keys}")
    except UserError:
        raise
    # OmegaConf raises an OSError for a document that is a number or a date.
    except OSError:
        raise UserError(f"{path}: the file is not a mapping. {keys}") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not valid YAML: {yaml_problem(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: the file is not a mapping. {keys}")
    return typing.cast("dict[str, Any]", OmegaConf.to_container(loaded, resolve=False))


def read_options(options: list[str]) -> dict[str, Any]:
    """Read ``a.b=c`` pairs with YAML values as a plain tree. If a key occurs several times, its last value counts.

    Raises:
        UserError: If an option is not such a pair. The message quotes it and suggests a correction.
    """
    for index, option in enumerate(options):
        if "=" not in option or option.startswith("="):
            suggestion = _assignment(options, index)
            raise UserError(f"--options: '{option}' is not of the form a.b=c. Write {suggestion}, without spaces around '='.")
    for option in options:
        _check_option(option)
    try:
        return typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.from_dotlist(options), resolve=False))
    except UNREADABLE as error:
        raise UserError(f"--options: {yaml_problem(error)}") from None


def option_texts(options: list[str]) -> dict[str, str]:
    """Return dotted key -> text for the options in which YAML reads something else than the text, such as 7 for ``007``.

    Args:
        options: pairs that :func:`read_options` accepts.
    """
    texts: dict[str, str] = {}
    for key, _, value in (option.partition("=") for option in options):
        texts = {other: text for other, text in texts.items() if other != key and not other.startswith(f"{key}.")}
        text = value.strip()
        parsed = yaml.load(value, Loader=get_yaml_loader())
        if parsed != text and text not in NULL and text[0] not in YAML_SYNTAX and not isinstance(parsed, dict | list):
            texts[key] = text
    return texts


def option_of(key: str, value: str) -> str:
    """Return ``key=value`` for ``--options``, with quotes around a text that YAML would read as something else."""
    try:
        is_plain_text = yaml.load(value, Loader=get_yaml_loader()) == value
    except yaml.YAMLError:
        is_plain_text = False
    quoted = value.replace("'", "''")
    return f"{key}={value}" if is_plain_text else f"{key}='{quoted}'"


def _check_option(option: str) -> None:
    """Check one ``a.b=c`` pair.

    Raises:
        UserError: If the key has an empty part, surrounding spaces or brackets, or the value is empty or not valid YAML.
    """
    key, _, value = option.partition("=")
    parts = [part.strip() for part in re.split(r"[.\[\]]", key)]
    if key != ".".join(filter(None, parts)):
        meant = f"{'.'.join(filter(None, parts)) or 'a.b'}={value}"
        # An entry of a list cannot be set alone.
        if re.search(r"\[\d+\]", key):
            meant = f"the whole list: {key.partition('[')[0]}=[{value},...]"
        raise UserError(f"--options: '{option}': '{key}' is not of the form a.b. Write {meant}")
    if not value.strip():
        raise UserError(f"--options: '{option}' has no value. Write {key}=null for none, or {key}='\"\"' for an empty text.")
    try:
        OmegaConf.from_dotlist([option])
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        remedy = f"Write text with special characters in quotes: '{key}=\"TEXT\"'"
        raise UserError(f"--options: '{option}': the value is not valid YAML: {problem}. {remedy}") from None
    except UNREADABLE as error:
        raise UserError(f"--options: '{option}': {yaml_problem(error)}") from None


def _assignment(options: list[str], index: int) -> str:
    """Return the pair ``a.b=c`` that was probably meant by the option at ``index`` and its neighbours."""
    begin = index - 1 if index and (options[index - 1].endswith("=") or options[index].startswith("=")) else index
    key, *rest = [options[begin].strip("=:- "), *options[begin + 1 : begin + 3]]
    if options[begin].startswith("="):
        return f"a.b={key}"
    if ":" in key:
        key, _, value = key.partition(":")
    else:
        values = [text.strip("=") for text in rest if text.strip("=")]
        value = values[0] if values and "=" not in values[0] else "VALUE"
    return f"{key}={value}"
