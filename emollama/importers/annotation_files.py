"""Output of an import: a new folder with annotation file, captions, transcripts, open-set words, and a report.

Formats (source: the published MERR, MER and EMER files): a line of the annotation file is ``name label``. With valences, it is
``name 0 label valence``, where -10 means no valence. Without labels, it is ``name 0 0``. The 0 after the name is the number of
face images, which training does not use.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emollama.data.annotations import NO_VALENCE, RowReader, column_reader, read_transcripts
from emollama.data.csv_files import write_csv
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry
from emollama.importers.labels import NO_LABEL
from emollama.listing import abbreviated
from emollama.paths import atomic_write
from emollama.text_encoding import escaped

LIST, COARSE, FINE = "clips.txt", "MERR_coarse_grained.json", "MERR_fine_grained.json"
TRANSCRIPTS, OPENSET, REPORT = "transcription_en_all.csv", "openset.json", "import_report.json"


def read_sentences(path: str, collector: Collector) -> dict[str, str]:
    """Read a transcript file; report its problems to the collector.

    The collector's name format builds the names of clips if the file has its columns.

    Returns:
        Clip name -> sentence, without the clips that have two different sentences.
    """

    def name_reader(path: str, header: Sequence[str], columns: Sequence[str]) -> RowReader:
        needed = collector.name_format.columns if collector.name_format else ()
        return (collector.name_reader if {*needed} <= {*header} else column_reader)(path, header, columns)

    problems: list[Problem] = []
    sentences = read_transcripts(path, problems.append, name_reader)
    for problem in problems:
        collector.report(problem)
    contradicted = {name for problem in problems for name in problem.clips}
    return {name: sentence for name, sentence in sentences.items() if name not in contradicted}


def add_sentences(collector: Collector, sentences: Mapping[str, str], path: str) -> None:
    """Add sentences of a transcript file to the clips whose source has no sentence.

    Args:
        collector: contains the clips.
        sentences: clip name -> sentence.
        path: the transcript file, for messages.

    Raises:
        UserError: If the file has no row for any of the clips.
    """
    if not sentences.keys() & collector.entries.keys():
        examples = f"Its names look like '{next(iter(sentences), '')}', the clip names like '{next(iter(collector.entries))}'"
        raise UserError(f"{path}: no row matches any of the clips. {examples}. Use the same names in both.")
    for name, entry in collector.entries.items():
        if entry.sentence is None:
            collector.entries[name] = replace(entry, sentence=sentences.get(name))


def write(folder: Path, collector: Collector, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write all files of an import.

    Args:
        folder: an existing folder.
        collector: the clips to write and the problems to report.
        settings: options of the command, for the report.

    Returns:
        The content of the report.
    """
    entries = list(collector.entries.values())
    report = _report(entries, collector, settings)
    _write_files(folder, entries)
    with atomic_write(folder / REPORT) as file:
        # Names of clips that are left out may contain lone surrogates.
        file.write(escaped(json.dumps(report, indent=1, ensure_ascii=False)))
    return report


def _write_files(folder: Path, entries: Sequence[Entry]) -> None:
    with atomic_write(folder / LIST) as file:
        file.writelines(f"{line}\n" for line in annotation_lines(entries))
    tables: dict[str, dict[str, Any]] = {
        COARSE: {entry.name: {"caption": entry.caption} for entry in entries if entry.caption is not None},
        FINE: {entry.name: entry.fine for entry in entries if entry.fine is not None},
        OPENSET: {entry.name: entry.openset for entry in entries if entry.openset is not None},
    }
    for name, table in tables.items():
        if table:
            with atomic_write(folder / name) as file:
                json.dump(table, file, indent=1, ensure_ascii=False)
    sentences = [(entry.name, entry.sentence) for entry in entries if entry.sentence is not None]
    if sentences:
        # Datasets, and other programs that use MERR, read the sentences as they are.
        write_csv(folder / TRANSCRIPTS, [("name", "sentence"), *sentences], escape=False)


def annotation_lines(entries: Sequence[Entry]) -> list[str]:
    """Return the lines of the annotation file, all with the same number of fields."""
    if any(entry.valence is not None for entry in entries):
        return [f"{e.name} 0 {e.label} {NO_VALENCE if e.valence is None else e.valence}" for e in entries]
    if all(entry.label == NO_LABEL for entry in entries):
        return [f"{entry.name} 0 {NO_LABEL}" for entry in entries]
    return [f"{entry.name} {entry.label}" for entry in entries]


def _report(entries: Sequence[Entry], collector: Collector, settings: Mapping[str, Any]) -> dict[str, Any]:
    names_by_file = {
        COARSE: {entry.name for entry in entries if entry.caption is not None},
        FINE: {entry.name for entry in entries if entry.fine is not None},
        OPENSET: {entry.name for entry in entries if entry.openset is not None},
        TRANSCRIPTS: {entry.name for entry in entries if entry.sentence is not None},
    }
    written = {file: names for file, names in names_by_file.items() if names}
    without = {file: [entry.name for entry in entries if entry.name not in names] for file, names in written.items()}
    return {
        "settings": dict(settings),
        "clips": len(entries),
        "labels": dict(Counter(entry.label for entry in entries).most_common()),
        "files": {LIST: len(entries)} | {file: len(names) for file, names in written.items()},
        "taken_without": {file: names for file, names in without.items() if names},
        "left_out": collector.left_out,
        "problems": [asdict(problem) for problem in collector.problems],
        "notes": collector.notes,
    }


def summary(report: Mapping[str, Any], folder: str) -> str:
    """Format the report as a table for the terminal. Long lists of names are shortened."""
    labels = ", ".join(f"{label} {count}" for label, count in report["labels"].items() if label != NO_LABEL)
    lines = [f"{report['clips']} clips imported -> {folder}"]
    lines += [f"{count:8} {file}{f' ({labels})' if file == LIST and labels else ''}" for file, count in report["files"].items()]
    by_kind: dict[str, list[str]] = {}
    for problem in report["problems"]:
        by_kind.setdefault(problem["kind"], []).extend(problem["clips"] or [problem["text"]])
    for title, groups in (
        ("left out", report["left_out"]),
        ("left out because of a problem", by_kind),
        ("imported, but missing in", report["taken_without"]),
    ):
        lines += [f"{title}:"] if groups else []
        lines += [f"{len(names):8} {reason}: {_some(names)}" for reason, names in groups.items()]
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join([*lines, f"{REPORT} contains all names.\n"])


def _some(names: Sequence[str]) -> str:
    return abbreviated(names, where=REPORT)
