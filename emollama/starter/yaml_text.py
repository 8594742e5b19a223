"""Edits of YAML text that keep its comments and order: shipped configurations with a key on each line.

A path is dotted: ``model.ckpt``. Block mappings only; a flow mapping or list is a value like any other.
"""

from __future__ import annotations

import json
import re
from typing import Any

KEY = re.compile(r"^( *)([\w.+-]+):(?=\s|$)")
PLAIN = re.compile(r"^(?:[A-Za-z_/]|\$\{)[\w./${}+()-]*(?: [\w./${}+()-]+)*$")
NOT_TEXT = re.compile(r"^(?:true|false|yes|no|on|off|null|y|n)$", re.IGNORECASE)
COMMENT = re.compile(r"""^((?:[^"'#]|"(?:[^"\\]|\\.)*"|'[^']*'|(?<=\S)#)*?)\s+#\s?(.*)$""")
NOTE_COLUMN = 42  # where comments of edited lines start, as in the shipped files
STEP = 2  # spaces of a level


def scalar(value: Any) -> str:
    """A value as YAML on one line: text without quotes where that reads back as the same text, else as JSON."""
    if isinstance(value, str):
        return value if PLAIN.match(value) and not NOT_TEXT.match(value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_in_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_in_flow(item) for item in value) + "]"
    return "null" if value is None else json.dumps(value)


def _in_flow(value: Any) -> str:
    """As :func:`scalar`; text with braces needs quotes inside a flow mapping or list."""
    text = scalar(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and re.search(r"[{}\[\],]", value) else text


class YamlText:
    """The lines of a YAML file, changed key by key."""

    def __init__(self, text: str) -> None:
        self.lines = text.rstrip("\n").split("\n")

    def __str__(self) -> str:
        return "\n".join(self.lines).rstrip("\n") + "\n"

    def __contains__(self, path: str) -> bool:
        return self._span(path) is not None

    def get(self, path: str) -> str | None:
        """The text after a key's colon, without its comment; None where the key is absent."""
        span = self._span(path)
        return None if span is None else self._parts(self.lines[span[0]])[1]

    def keys(self, path: str) -> list[str]:
        """The keys of a block in order; empty where there is no such block."""
        span = self._span(path)
        if span is None:
            return []
        found = (KEY.match(line) for line in self.lines[span[0] + 1 : span[1]])
        indent = path.count(".") * STEP + STEP
        return [match[2] for match in found if match and len(match[1]) == indent]

    def set(self, path: str, value: Any, note: str | None = None) -> None:
        """Give a key a value. A new key goes to the end of its block; a note replaces the key's comment."""
        parent, _, name = path.rpartition(".")
        text = f"{' ' * STEP * path.count('.')}{name}: {scalar(value)}"
        span = self._span(path)
        if span is None:
            if parent and self._span(parent) is None:
                self._append_block(parent)
            place = len(self.lines) if not parent else self._span_of(parent)[1]
            self.lines.insert(place, _noted(text, note or ""))
        else:
            old = self._parts(self.lines[span[0]])[2]
            self.lines[span[0] : span[1]] = [_noted(text, old if note is None else note)]

    def note(self, path: str, note: str) -> None:
        """Replace the comment on a key's line."""
        place = self._span_of(path)[0]
        self.lines[place] = _noted(self._parts(self.lines[place])[0], note)

    def rename(self, path: str, name: str) -> None:
        """Give a key another name, its value and comment unchanged."""
        place = self._span_of(path)[0]
        self.lines[place] = re.sub(r"^( *)[\w.+-]+:", rf"\g<1>{name}:", self.lines[place])

    def drop(self, path: str) -> None:
        """Remove a key with everything under it; an absent one is no error."""
        if (span := self._span(path)) is not None:
            del self.lines[span[0] : span[1]]

    def block(self, name: str) -> list[str]:
        """The lines of a top-level block."""
        start, end = self._span_of(name)
        return self.lines[start:end]

    def header(self) -> list[str]:
        """The comment lines at the top, without their ``#``."""
        count = next((i for i, line in enumerate(self.lines) if not line.startswith("#")), len(self.lines))
        return [line.removeprefix("#").removeprefix(" ") for line in self.lines[:count]]

    def set_header(self, header: list[str]) -> None:
        """Replace the comment lines at the top."""
        self.lines[: len(self.header())] = [f"# {line}".rstrip() for line in header]

    def _append_block(self, path: str) -> None:
        self.lines += [*([""] if "." not in path else []), f"{' ' * STEP * path.count('.')}{path.rpartition('.')[2]}:"]

    def _span_of(self, path: str) -> tuple[int, int]:
        span = self._span(path)
        assert span is not None, f"no key {path}"
        return span

    def _span(self, path: str) -> tuple[int, int] | None:
        """Lines [start, end) of a key and what is under it; comments and blank lines behind it are not part of it."""
        start, end = -1, len(self.lines)
        for level, name in enumerate(path.split(".")):
            start = next((i for i in range(start + 1, end) if self._is_key(i, name, level * STEP)), -1)
            if start < 0:
                return None
            end = next((i for i in range(start + 1, end) if self._ends(i, level * STEP)), end)
            while end > start + 1 and (not self.lines[end - 1].strip() or self.lines[end - 1].lstrip().startswith("#")):
                end -= 1
        return start, end

    def _is_key(self, place: int, name: str, indent: int) -> bool:
        match = KEY.match(self.lines[place])
        return match is not None and match[2] == name and len(match[1]) == indent

    def _ends(self, place: int, indent: int) -> bool:
        line = self.lines[place]
        return bool(line.strip()) and not line.lstrip().startswith("#") and len(line) - len(line.lstrip()) <= indent

    @staticmethod
    def _parts(line: str) -> tuple[str, str, str]:
        """A key's line without its comment, its value's text, its comment."""
        match = COMMENT.match(line)
        text, comment = (match[1].rstrip(), match[2]) if match else (line.rstrip(), "")
        return text, text.partition(":")[2].strip(), comment


def _noted(text: str, note: str) -> str:
    return f"{text:<{NOTE_COLUMN}} # {note}" if note else text
