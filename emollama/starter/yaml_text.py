"""Edit a YAML file key by key with ruamel.yaml's round trip, which preserves the order of keys and their comments.

Keys are dotted paths such as ``model.ckpt``. Only comments on the line of a key and at the top of the file are preserved.
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
# "${" in the name of a file is not an interpolation. The starters use only ${paths.root} and ${oc.env:...}.
NAME_WITH_BRACE = re.compile(rf"{INTERPOLATION.pattern}(?!paths\.root\}}|oc\.env:)")
NOTE_COLUMN = 43  # where comments of edited lines start, as in the shipped files


def as_text(value: Any) -> str:
    """Return a value as it is printed in a message."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def unescaped(text: str) -> str:
    r"""Return a text as OmegaConf reads it: ``\${`` is ``${`` in the name of a file, not an interpolation."""
    return text.replace("\\${", "${")


class YamlText:
    """The text of a YAML file whose top level is a mapping.

    Args:
        text: content of the file.

    Attributes:
        header: the comment lines at the top, without ``#``.
        tree: the content as ruamel.yaml's mappings.
    """

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        comments = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
        self.header = [line.removeprefix("#").removeprefix(" ") for line in comments]
        self.tree = _round_trip().load("\n".join(lines[len(comments) :]))
        _remove_comments_between_keys(self.tree)

    def __str__(self) -> str:
        stream = io.StringIO()
        _round_trip().dump(self.tree, stream)
        header = "".join(f"# {_one_line(line)}".rstrip() + "\n" for line in self.header)
        return header + re.sub(r"^(?=\w)", "\n", stream.getvalue(), flags=re.MULTILINE)  # a blank line before each block

    def __contains__(self, path: str) -> bool:
        return _last(path) in self._block(path)

    def get(self, path: str, default: Any = None) -> Any:
        """Return the value of a key, or the default if the key is absent or null."""
        value = self._block(path).get(_last(path))
        return default if value is None else value

    def set(self, path: str, value: Any, note: str | None = None) -> None:
        """Set a key. A new key is added to the end of its block.

        Args:
            path: dotted path of the key.
            value: its value.
            note: a comment that replaces the comment of the key.

        Raises:
            UserError: If a file name in the value is not UTF-8.
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
        """Rename a key without changing its position and value."""
        block, old = self._block(path), _last(path)
        block.insert(list(block).index(old), name, block.pop(old))

    def drop(self, path: str) -> None:
        """Remove a key and everything under it. Do nothing if the key is absent."""
        self._block(path).pop(_last(path), None)

    def _block(self, path: str) -> Any:
        """Return the mapping that contains a key; an empty one if it does not exist."""
        block = self.tree
        for name in path.split(".")[:-1]:
            block = block.get(name) or {}
        return block


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _round_trip() -> Any:
    """Return ruamel.yaml's reader and writer."""
    from ruamel.yaml import YAML

    parser: Any = YAML()
    parser.preserve_quotes = True
    parser.width = 2**20  # lines are not wrapped
    parser.boolean_representation = ["False", "True"]
    return parser


def _node(value: Any, path: str) -> Any:
    """Convert a value for ruamel.yaml: mappings and lists on one line, quotes around text that YAML 1.1 would misread."""
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
    """Escape line breaks and other characters that a YAML comment must not contain."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # ruamel.yaml adds the quotes


def _remove_comments_between_keys(node: Any) -> None:
    """Remove blank lines and comments between keys: ruamel.yaml attaches them to the key before, and they would move with it."""
    for key, value in node.items():
        comment = (node.ca.items.pop(key, None) or [None] * 3)[2]
        if comment is not None and comment.value.startswith("#"):
            comment.value = comment.value.partition("\n")[0]
            node.ca.items[key] = [None, None, comment, None]
        if isinstance(value, dict):
            _remove_comments_between_keys(value)
