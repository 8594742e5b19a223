"""``videos``: a folder of videos, and a CSV file that says each one's label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from emollama.data.annotations import NAME_COLUMNS, SENTENCE_COLUMNS, column_of
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry
from emollama.importers.sources import Sheet, files_below, rows_by_name
from emollama.listing import abbreviated
from emollama.media.files import ENDINGS


@dataclass(frozen=True)
class Columns:
    """Which columns of the CSV file say what: the first of these that it has.

    Attributes:
        name: the video's name, with or without its ending and folders.
        sentence, caption: may be absent.
    """

    name: tuple[str, ...] = (*NAME_COLUMNS, "filename", "file", "video")
    label: tuple[str, ...] = ("label", "emotion", "discrete")
    sentence: tuple[str, ...] = SENTENCE_COLUMNS
    caption: tuple[str, ...] = ("caption",)


def read(folder: str, table: str, columns: Columns, collector: Collector) -> None:
    """Take the videos that have a row. A clip's name is its path below the folder, without the ending.

    Raises:
        UserError: no such folder, no video below it, or a table without a name or label column.
    """
    found = _videos(folder, collector)
    sheet = Sheet.read(table, collector)
    label_column = column_of(table, sheet.header, columns.label)
    sentence, caption = (next((c for c in known if c in sheet.header), None) for known in (columns.sentence, columns.caption))
    wanted = [column for column in (label_column, sentence, caption) if column is not None]
    names = _VideoNames(found)
    rows = rows_by_name(sheet, wanted, collector, name_columns=columns.name, name_of=names.of)
    for name, (where, cells) in rows.items():
        if name not in found:
            collector.report(Problem("video", f"{where}: {names.miss(name)}", (name,)))
            continue
        label = collector.label(cells[label_column], name, where)
        if label is not None:
            said = None if sentence is None else cells[sentence]
            shown = None if caption is None else cells[caption] or None
            collector.take(Entry(name, label, sentence=said, caption=shown))
    told = {name for problem in collector.problems for name in problem.clips}
    for name in found:
        if name not in rows and name not in told:
            collector.leave_out(f"videos without a row of their own in {table}", name)


def _videos(folder: str, collector: Collector) -> list[str]:
    """Names of the videos below a folder."""
    paths: dict[str, list[Path]] = {}
    for path in files_below(folder, collector):
        if path.suffix.lower() in ENDINGS:
            paths.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if not paths:
        raise UserError(f"{folder}: no video anywhere below it (endings: {' '.join(ENDINGS)})")
    for name, same in list(paths.items()):
        if len(same) > 1:
            text = f"'{name}' is the name of {len(same)} videos: {abbreviated(map(str, same))}. Rename all but one."
            collector.report(Problem("repeated", text, (name,)))
        elif same[0].is_file():
            continue
        else:
            collector.report(Problem("file", f"{same[0]}: a link that leads nowhere", (name,)))
        del paths[name]
    return list(paths)


class _VideoNames:
    """Finds the video that a table means, by the end of its path."""

    def __init__(self, found: Iterable[str]) -> None:
        self._by_last: dict[str, list[str]] = {}
        for name in found:
            self._by_last.setdefault(PurePosixPath(name).name, []).append(name)

    def of(self, written: str) -> str:
        """The video's name; where none or several fit, the name as written without its ending."""
        name = written.replace("\\", "/")
        name = name[: name.rindex(".")] if name.lower().endswith(ENDINGS) else name
        fitting = self._fitting(name)
        return fitting[0] if len(fitting) == 1 else name

    def miss(self, name: str) -> str:
        """Why a name leads to no video."""
        fitting = self._fitting(name)
        several = f"'{name}' fits several videos: {abbreviated(fitting)}. Write the folder too."
        return several if fitting else f"no video is called '{name}'"

    def _fitting(self, name: str) -> list[str]:
        near = self._by_last.get(PurePosixPath(name).name, [])
        if name in near:
            return [name]
        return [other for other in near if f"/{name}".endswith(f"/{other}") or other.endswith(f"/{name}")]
