"""Reader of the emotion wheels of MERTools: the folder emotion_wheel of MER2025_Track23.

* ``format.csv``, ``name,format``: a word, and a list of its forms.
* ``synonym.xlsx``, pairs of columns ``word_run<n>,synonym_run<n>``: a word that is on a wheel, and a list of its synonyms.
* ``wheel1.xlsx`` to ``wheel5.xlsx``, ``level1,level2,level3``: rings from the inside out; an empty cell repeats the one above.

A form is mapped to its words, and these through the synonyms to words on wheels. On each wheel, the alphabetically first of the
words that it contains determines the cluster, a word of level 1 or level 2.
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from emollama.data.csv_files import read_csv, require_column
from emollama.errors import UserError
from emollama.evaluation.word_lists import normalized_words, split_words
from emollama.listing import abbreviated
from emollama.paths import PATHS, join, path_exists

FORMS, SYNONYMS = "format.csv", "synonym.xlsx"
WHEELS = tuple(f"wheel{number}.xlsx" for number in range(1, 6))
FILES = (FORMS, SYNONYMS, *WHEELS)
RINGS = ("level1", "level2", "level3")
Tree = dict[str, dict[str, list[str]]]  # level 1 -> level 2 -> words of level 3
Clusters = tuple[frozenset[str], ...]  # one set per wheel


@dataclass(frozen=True)
class Wheels:
    """The emotion wheels, as one table per wheel: form of a word -> cluster."""

    clusters: tuple[Mapping[str, str], ...]

    @classmethod
    def read(cls, folder: str, level: int, key: str = "wheel_folder") -> Self:
        """Read the wheels from a folder.

        Args:
            folder: folder with the files that the docstring of this module describes.
            level: 1 (few, broad clusters) or 2.
            key: the configuration key or option, for messages.

        Raises:
            UserError: If files are missing (all are listed), a file is not a workbook or lacks columns, or a word in the sheet of
                synonyms is not on any wheel.
        """
        assert level in (1, 2), level
        missing = [file for file in FILES if not path_exists(PATHS.isfile, join(folder, file), key)]
        if missing:
            raise UserError(f"{key}: '{folder}' lacks {', '.join(missing)}. Specify the folder emotion_wheel of MERTools.")
        trees = [_tree(_sheet(join(folder, file), RINGS)) for file in WHEELS]
        on_wheels = {word for tree in trees for word in _clusters(tree, 1)}
        heads = _heads(join(folder, SYNONYMS), on_wheels)
        heads_by_form = {form: sorted(_follow(words, heads)) for form, words in _forms(join(folder, FORMS), key).items()}
        return cls(tuple(_by_form(heads_by_form, _clusters(tree, level)) for tree in trees))

    def of(self, words: Iterable[str]) -> Clusters:
        """Return the clusters of these words on each wheel."""
        normalized = normalized_words(words)
        return tuple(frozenset(table[word] for word in normalized if word in table) for table in self.clusters)


def _sheet(path: str, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read the first sheet of a workbook.

    Returns:
        Column -> text in lower case ("" for an empty cell), for each row below the header.

    Raises:
        UserError: If the file is not a workbook, or columns are missing.
    """
    import openpyxl

    try:
        with PATHS.open(path, "rb") as file:
            lines = list(openpyxl.load_workbook(file, data_only=True).worksheets[0].iter_rows(values_only=True))
    except (zipfile.BadZipFile, OSError, LookupError, ValueError, TypeError, SyntaxError) as error:
        raise UserError(f"{path}: cannot read an Excel workbook ({error or type(error).__name__})") from None
    texts = [["" if cell is None else str(cell).lower().strip() for cell in line] for line in lines]
    header = texts[0] if texts else []
    if missing := [column for column in columns if column not in header]:
        raise UserError(f"{path}: the first sheet lacks the columns {', '.join(missing)}; it has {abbreviated(header) or 'none'}")
    return [dict(zip(header, line, strict=True)) for line in texts[1:]]


def _tree(rows: Iterable[Mapping[str, str]]) -> Tree:
    tree: Tree = {}
    above = dict.fromkeys(RINGS, "")
    for row in rows:
        above = {ring: row[ring] or above[ring] for ring in RINGS}
        inner, middle, outer = above.values()
        tree.setdefault(inner, {}).setdefault(middle, []).append(outer)
    return tree


def _clusters(tree: Tree, level: int) -> dict[str, str]:
    """Map each word of a wheel to its cluster.

    At level 2, a word of level 1 belongs to the alphabetically first cluster below it. If a word occurs twice on a wheel, its
    last position counts.
    """
    clusters: dict[str, str] = {}
    for inner, branches in tree.items():
        clusters[inner] = inner if level == 1 else min(branches)
        for middle, outer in branches.items():
            clusters |= dict.fromkeys((middle, *outer), inner if level == 1 else middle)
    return clusters


def _heads(path: str, on_wheels: Collection[str]) -> dict[str, set[str]]:
    """Map each word to the words on wheels that are equal to it or have it as a synonym."""
    rows = _sheet(path)
    columns = list(rows[0]) if rows else []
    runs = [column.removeprefix("word_") for column in columns if column.startswith("word_")] or ["run1"]
    if missing := {f"{prefix}_{run}" for prefix in ("word", "synonym") for run in runs} - {*columns}:
        raise UserError(f"{path}: the first sheet lacks the columns {', '.join(sorted(missing))}")
    heads: dict[str, set[str]] = defaultdict(set)
    for number, row in enumerate(rows, 2):
        for run in runs:
            word = row[f"word_{run}"]
            if word and word not in on_wheels:
                raise UserError(f"{path}, row {number}: '{word}' is not on any wheel. Use files of the same version.")
            for synonym in (word, *split_words(row[f"synonym_{run}"])) if word else ():
                heads[synonym].add(word)
    return heads


def _forms(path: str, key: str) -> dict[str, set[str]]:
    """Map each form of a word to the words that have this form."""
    header, rows = read_csv(path, key)
    name, form_column = require_column(path, header, ["name"]), require_column(path, header, ["format"])
    forms: dict[str, set[str]] = defaultdict(set)
    for _, row in rows:
        word = row[name].lower()
        for form in (word, *split_words(row[form_column])):
            forms[form].add(word)
    return forms


def _follow(words: Iterable[str], heads: Mapping[str, set[str]]) -> set[str]:
    return {head for word in words for head in heads.get(word, ())}


def _by_form(heads_by_form: Mapping[str, Sequence[str]], clusters: Mapping[str, str]) -> dict[str, str]:
    """Map each form that leads to a word on the wheel to the cluster of that word."""
    first = {form: next((word for word in words if word in clusters), "") for form, words in heads_by_form.items()}
    return {form: clusters[word] for form, word in first.items() if clusters.get(word)}
