"""``videos``: a folder of videos and a CSV file with their labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from emollama.data.annotations import NAME_COLUMNS, SENTENCE_COLUMNS, padded_name
from emollama.data.csv_files import require_column
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry
from emollama.importers.sources import Sheet, files_below, rows_by_clip
from emollama.listing import abbreviated
from emollama.media.files import EXTENSIONS, not_videos


@dataclass(frozen=True)
class Columns:
    """Possible columns of the CSV file for each value; the first one in the header is used.

    Attributes:
        name: name of the video, with or without its folders and extension.
        label: its emotion label.
        sentence: the spoken text; the file need not have such a column.
        caption: its description; the file need not have such a column.
    """

    name: tuple[str, ...] = (*NAME_COLUMNS, "filename", "file", "video")
    label: tuple[str, ...] = ("label", "emotion", "discrete")
    sentence: tuple[str, ...] = SENTENCE_COLUMNS
    caption: tuple[str, ...] = ("caption",)


def read(folder: str, table: str, columns: Columns, collector: Collector, digits: int = 0) -> None:
    """Read the videos that have a row. The name of a clip is the path of its video in the folder, without the extension.

    Args:
        folder: the folder of videos.
        table: the CSV file.
        columns: its columns.
        collector: clips and problems are added to it.
        digits: numbers in the table also mean videos whose names are the same number padded with zeros to this number of digits.

    Raises:
        UserError: If the folder does not exist or contains no video, or the table has no column of names or labels.
    """
    videos = _video_names(folder, table, collector)
    sheet = Sheet.read(table, collector)
    label_column = require_column(table, sheet.header, columns.label)
    sentence_column = next((column for column in columns.sentence if column in sheet.header), None)
    caption_column = next((column for column in columns.caption if column in sheet.header), None)
    used_columns = [column for column in (label_column, sentence_column, caption_column) if column is not None]
    finder = _VideoFinder(videos, digits)
    rows = rows_by_clip(sheet, used_columns, collector, name_columns=columns.name, name_of=finder.find)
    for name, (where, cells) in rows.items():
        if name not in videos:
            collector.report(Problem("video", f"{where}: {finder.explain(name)}", (name,)))
            continue
        label = collector.label(cells[label_column], name, where)
        if label is not None:
            sentence = None if sentence_column is None else cells[sentence_column]
            caption = None if caption_column is None else cells[caption_column] or None
            collector.add(Entry(name, label, sentence=sentence, caption=caption))
    reported = {name for problem in collector.problems for name in problem.clips}
    for name in videos:
        if name not in rows and name not in reported:
            collector.leave_out(f"videos without a row of their own in {table}", name)


def _video_names(folder: str, table: str, collector: Collector) -> list[str]:
    """Return the names of the videos in a folder and its subfolders; report unusable ones, and files other than the table."""
    paths: dict[str, list[Path]] = {}
    others: list[Path] = []
    for path in files_below(folder, collector):
        if path.suffix.lower() in EXTENSIONS:
            paths.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
        else:
            others.append(path)
    if not paths:
        content = f"it contains {not_videos(others)}" if others else f"extensions: {' '.join(EXTENSIONS)}"
        raise UserError(f"{folder}: contains no video, also in subfolders ({content})")
    for path in others:
        if path.resolve() != Path(table).resolve():
            collector.leave_out("files that are not videos", str(path))
    for name, same_name in list(paths.items()):
        if len(same_name) > 1:
            text = f"{len(same_name)} videos have the name '{name}': {abbreviated(map(str, same_name))}. Rename all but one."
            collector.report(Problem("repeated", text, (name,)))
        elif same_name[0].is_file():
            continue
        else:
            collector.report(Problem("file", f"{same_name[0]}: the target of this link does not exist", (name,)))
        del paths[name]
    return list(paths)


class _VideoFinder:
    """Finds the video that a name in a table refers to, by the end of its path.

    Args:
        videos: names of the videos.
        digits: as in :func:`read`.
    """

    def __init__(self, videos: Iterable[str], digits: int) -> None:
        self._digits = digits
        # The path in a table may have more or fewer folders than the path in the folder of videos, but ends alike.
        self._by_last_part: dict[str, list[str]] = {}
        for name in videos:
            self._by_last_part.setdefault(PurePosixPath(name).name, []).append(name)

    def find(self, text: str) -> str:
        """Return the name of the video that a text in the table refers to.

        If no video or several videos match, return the text itself without its extension.
        """
        name = text.replace("\\", "/")
        name = name[: name.rindex(".")] if name.lower().endswith(EXTENSIONS) else name
        matches = self._matches(name)
        return matches[0] if len(matches) == 1 else name

    def explain(self, name: str) -> str:
        """Return why a name refers to no video."""
        matches = self._matches(name)
        several = f"'{name}' matches several videos: {abbreviated(matches)}. Add the folder to the name."
        padded = self._padded(name)
        return several if matches else f"no video has the name '{name}'{f' or {padded!r}' if padded != name else ''}"

    def _padded(self, name: str) -> str:
        path = PurePosixPath(name)
        return str(path.with_name(padded_name(path.name, self._digits))) if path.name else name

    def _matches(self, name: str) -> list[str]:
        return self._ending_alike(name) or self._ending_alike(self._padded(name))

    def _ending_alike(self, name: str) -> list[str]:
        candidates = self._by_last_part.get(PurePosixPath(name).name, [])
        if name in candidates:
            return [name]
        return [other for other in candidates if f"/{name}".endswith(f"/{other}") or other.endswith(f"/{name}")]
