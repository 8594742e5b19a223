"""All texts of a dataset in arrays, with the interface of the lists and dictionaries that readers of annotation files return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from emollama.data.annotations import Clip, Table
from emollama.data.text_columns import NameColumn, Names, TextColumn, TextsByName


@dataclass(frozen=True, eq=False)
class ClipColumns:
    """The rows of an annotation file.

    Attributes:
        names: the names of all rows; the first ones are those of the annotation file, others have only texts.
        lines: (n,) int64 line numbers.
        label_ids: (n,) int32 index of each label in ``labels``.
        labels: the labels as they are in the file.
        columns: name -> the other cells.
    """

    names: NameColumn
    lines: np.ndarray
    label_ids: np.ndarray
    labels: list[str]
    columns: Mapping[str, TextColumn]


class ClipRows(Sequence[Clip]):
    """Some rows of an annotation file, each of which becomes a ``Clip`` when it is used.

    Attributes:
        source: all rows.
        rows: (n,) the rows.
        labels: the labels of ``source``, mapped or as they are.
    """

    def __init__(self, source: ClipColumns, rows: np.ndarray, labels: Sequence[str]) -> None:
        self.source, self.rows, self.labels = source, rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> ClipRows: ...
    def __getitem__(self, index: int | slice) -> Clip | ClipRows:
        if isinstance(index, slice):
            return self.at(self.rows[index])
        source, row = self.source, int(self.rows[index])
        cells = {column: text for column, texts in source.columns.items() if (text := texts.get(row)) is not None}
        label = self.labels[int(source.label_ids[row])]
        return Clip(str(source.names.texts.get(row)), label, int(source.lines[row]), cells)

    def __iter__(self) -> Iterator[Clip]:
        for index in range(len(self)):
            yield self[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def names(self) -> Names:
        """The names of the clips."""
        return Names(self.source.names, self.rows)

    def at(self, rows: np.ndarray) -> ClipRows:
        """Return other rows with the same labels."""
        return ClipRows(self.source, rows, self.labels)


def in_arrays(table: Table) -> Table:
    """Return the same texts in arrays. Names that are not in the annotation file come last."""
    if isinstance(table.clips, ClipRows):
        return table
    mappings = [*([] if table.sentences is None else [table.sentences]), *table.captions.values()]
    listed = [clip.name for clip in table.clips]
    others = dict.fromkeys(name for texts in mappings for name in texts)
    for name in listed:
        others.pop(name, None)
    all_names = [*listed, *others]
    names = NameColumn.of(all_names)
    labels = {label: index for index, label in enumerate(dict.fromkeys(clip.label for clip in table.clips))}
    keys = dict.fromkeys(key for clip in table.clips for key in clip.columns)
    count = len(table.clips)
    source = ClipColumns(
        names,
        np.fromiter((clip.line for clip in table.clips), np.int64, count),
        np.fromiter((labels[clip.label] for clip in table.clips), np.int32, count),
        list(labels),
        {key: TextColumn.of(clip.columns.get(key) for clip in table.clips) for key in keys},
    )
    # Several tasks may have the same captions.
    by_id = {id(texts): TextsByName(names, TextColumn.of(map(texts.get, all_names))) for texts in mappings}
    return replace(
        table,
        clips=ClipRows(source, np.arange(count, dtype=np.uint32), source.labels),
        sentences=None if table.sentences is None else by_id[id(table.sentences)],
        captions={task: by_id[id(texts)] for task, texts in table.captions.items()},
    )


def to_arrays(table: Table) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a table in arrays as values for JSON, and as arrays by name."""
    assert isinstance(table.clips, ClipRows)
    source = table.clips.source
    columns: dict[str, TextColumn] = {f"column {index}": texts for index, texts in enumerate(source.columns.values())}
    columns["names"] = source.names.texts
    mappings = {f"captions {task}": texts for task, texts in table.captions.items()}
    if table.sentences is not None:
        mappings["sentences"] = table.sentences
    same: dict[int, str] = {}
    for name, texts in mappings.items():
        assert isinstance(texts, TextsByName)
        if same.setdefault(id(texts.column), name) == name:
            columns[name] = texts.column
    arrays = {f"{name}, starts": column.starts for name, column in columns.items()}
    arrays |= {f"{name}, content": column.content for name, column in columns.items()}
    arrays |= {"lines": source.lines, "label ids": source.label_ids}
    arrays |= {"checksums": source.names.checksums, "order": source.names.order}
    description = {
        "labels": source.labels,
        "columns": list(source.columns),
        "mappings": {name: same[id(texts.column)] for name, texts in mappings.items() if isinstance(texts, TextsByName)},
    }
    return description, arrays


def from_arrays(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[Table, ClipRows]:
    """Return the table of which :func:`to_arrays` returned these values, and its clips."""

    def column(name: str) -> TextColumn:
        return TextColumn(arrays[f"{name}, starts"], arrays[f"{name}, content"])

    names = NameColumn(column("names"), arrays["checksums"], arrays["order"])
    cells = {key: column(f"column {index}") for index, key in enumerate(description["columns"])}
    source = ClipColumns(names, arrays["lines"], arrays["label ids"], description["labels"], cells)
    mappings = {name: TextsByName(names, column(stored)) for name, stored in description["mappings"].items()}
    captions = {name.removeprefix("captions "): texts for name, texts in mappings.items() if name.startswith("captions ")}
    clips = ClipRows(source, np.arange(len(source.lines), dtype=np.uint32), source.labels)
    return Table(clips, mappings.get("sentences"), captions), clips
