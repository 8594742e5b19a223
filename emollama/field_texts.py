"""The texts below the fields of Config classes, and class docstrings that contain them, so that ``help()`` shows them.

A string literal below a field is a comment for Python. It is read from the source when somebody asks for it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from typing import Any, TypeVar, cast

C = TypeVar("C", bound=type)
WIDTH = 100  # columns of a docstring


def documented(config: C) -> C:
    """Decorate a Config class: its docstring also lists the fields with their texts and defaults.

    Use it above ``@dataclass``. A registry does the same for the ``Config`` of a registered class.
    """
    if not isinstance(vars(config).get("__doc__"), _Docstring):
        config.__doc__ = cast("str", _Docstring(config.__doc__))
    return config


class _Docstring:
    """A docstring that is completed when it is read, because reading the source of all classes takes a while."""

    def __init__(self, summary: str | None) -> None:
        self._summary = summary

    def __get__(self, instance: object, config: type) -> str:
        return _docstring(config, inspect.cleandoc(self._summary or ""))


@functools.cache
def _docstring(config: type, summary: str) -> str:
    wrapper = textwrap.TextWrapper(
        WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False
    )
    texts, lines = field_texts(config), []
    for item in dataclasses.fields(config):
        value = default(item)
        stated = "(required)" if value == "required" else f"(default: {value})"
        lines += wrapper.wrap(" ".join(filter(None, [f"{item.name}:", texts.get(item.name), stated])))
    return "\n".join([summary, "", "Attributes:", *lines] if lines else [summary]).strip()


def default(item: dataclasses.Field[Any]) -> str:
    """Return the default of a field as it is written in YAML; "required" if there is none."""
    value = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    if value in ("???", dataclasses.MISSING):
        return "required"
    shown = {None: "null", True: "True", False: "False"}.get(value) if isinstance(value, bool | None) else None
    return str(shown or value)


def field_texts(config: type) -> dict[str, str]:
    """Return the string literal below each field, from the source of the class that declares the field.

    Fields without a text are left out, and so are those of a class without source code, such as one of an interactive session.
    """
    texts: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if dataclasses.is_dataclass(cls):
            texts |= _own_texts(cast("type", cls))
    return texts


@functools.cache
def _own_texts(config: type) -> dict[str, str]:
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(value))):
                texts[name] = " ".join(value.split())
    return texts
