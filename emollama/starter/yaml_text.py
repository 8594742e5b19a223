"""A YAML file that is edited key by key; comments and the order of keys stay (ruamel.yaml's round trip).

A path is dotted: ``model.ckpt``. Comments on the line of a key and at the top of the file are kept, others are not.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from typing import Any

import yaml

from emollama.paths import require_utf8

INTERPOLATION = re.compile(r"(?<!\\)\$\{")
NAME_WITH_BRACE = re.compile(rf"{INTERPOLATION.pattern}(?!paths\.root\}}|oc\.env:)")  # the starters use no other interpolation
NOTE_COLUMN = 43  # where comments of edited lines start, as in the shipped files


def shown(value: Any) -> str:
    """A value in a message."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def unescaped(text: str) -> str:
    """A text as OmegaConf reads it: ``${`` is what the names of some files contain, rather than an interpolation."""
    return text.replace("\\${", "${")


class YamlText:
    """The text of a YAML file whose top level is a mapping.

    Args:
        text: of the file.

    Attributes:
        header: the comment lines at the top, without their ``#``.
        tree: the mappings of ruamel.yaml.
    """

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        comments = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
        self.header = [line.removeprefix("#").removeprefix(" ") for line in comments]
        self.tree = _round_trip().load("\n".join(lines[len(comments) :]))
        _keep_comments_of_keys(self.tree)

    def __str__(self) -> str:
        stream = io.StringIO()
        _round_trip().dump(self.tree, stream)
        header = "".join(f"# {_one_line(line)}".rstrip() + "\n" for line in self.header)
        return header + re.sub(r"^(?=\w)", "\n", stream.getvalue(), flags=re.MULTILINE)  # a blank line before each block

    def __contains__(self, path: str) -> bool:
        return _last(path) in self._block(path)

    def get(self, path: str, default: Any = None) -> Any:
        """The value of a key; the default where the key is absent or null."""
        value = self._block(path).get(_last(path))
        return default if value is None else value

    def set(self, path: str, value: Any, note: str | None = None) -> None:
        """Give a key a value. A new key goes to the end of its block; a note replaces the key's comment.

        Raises:
            UserError: the value is the name of a file, or contains one, that is not UTF-8.
        """
        block = self.tree
        for name in path.split(".")[:-1]:
            block = block.setdefault(name, type(block)())
        block[_last(path)] = _node(value, path)
        if note is not None:
            self.note(path, note)

    def note(self, path: str, note: str) -> None:
        """Replace the comment on a key's line."""
        self._block(path).yaml_add_eol_comment(_one_line(note), _last(path), column=NOTE_COLUMN)

    def rename(self, path: str, name: str) -> None:
        """Give a key another name; its place and value stay."""
        block, old = self._block(path), _last(path)
        block.insert(list(block).index(old), name, block.pop(old))

    def drop(self, path: str) -> None:
        """Remove a key with everything under it; an absent one is no error."""
        self._block(path).pop(_last(path), None)

    def _block(self, path: str) -> Any:
        """The mapping that a key belongs to; an empty one where there is none."""
        block = self.tree
        for name in path.split(".")[:-1]:
            block = block.get(name) or {}
        return block


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _round_trip() -> Any:
    """ruamel.yaml's reader and writer, which is imported only here and below."""
    from ruamel.yaml import YAML

    parser: Any = YAML()
    parser.preserve_quotes = True
    parser.width = 2**20  # lines are not wrapped
    parser.boolean_representation = ["False", "True"]
    return parser


def _node(value: Any, path: str) -> Any:
    """A value as ruamel.yaml writes it: mappings and lists on one line, text in quotes where YAML 1.1 would misread it."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, str):
        value = NAME_WITH_BRACE.sub(r"\\${", require_utf8(value, path))
        return value if _read(value) == value else DoubleQuotedScalarString(value)
    if isinstance(value, dict):
        node: Any = CommentedMap({key: _node(item, path) for key, item in value.items()})
    elif isinstance(value, list | tuple):
        node = CommentedSeq(_node(item, path) for item in value)
    else:
        return value
    node.fa.set_flow_style()
    return node


def _one_line(text: str) -> str:
    """A comment, in which a line break and other characters that YAML does not allow are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # ruamel.yaml puts it in quotes


def _keep_comments_of_keys(node: Any) -> None:
    """Remove blank lines and comments between keys, which would move with the key before them."""
    for key, value in node.items():
        comment = (node.ca.items.pop(key, None) or [None] * 3)[2]
        if comment is not None and comment.value.startswith("#"):
            comment.value = comment.value.partition("\n")[0]
            node.ca.items[key] = [None, None, comment, None]
        if isinstance(value, dict):
            _keep_comments_of_keys(value)
