"""Parsed source files, which the tests of names and of style share."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path


@cache
def tree_of(path: Path) -> ast.Module:
    """The tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def nodes_of(path: Path) -> dict[type, list]:
    """All nodes of a file by their class."""
    nodes = defaultdict(list)
    for node in ast.walk(tree_of(path)):
        nodes[type(node)].append(node)
    return nodes
