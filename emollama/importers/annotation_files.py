"""The written form: a new folder with the list, captions, transcripts, open-set words, and a report of the import.

Files (source: the published MERR, MER and EMER files): rows of the list are ``name label``; ``name 0 label valence`` where
valences are known, -10 for none; ``name 0 0`` where there are no labels. The 0 after the name is the count of face images,
which training does not read.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emollama.data.annotations import NO_VALENCE, read_transcripts
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry
from emollama.importers.labels import NO_LABEL
from emollama.listing import abbreviated
from emollama.paths import atomic_write

LIST, COARSE, FINE = "clips.txt", "MERR_coarse_grained.json", "MERR_fine_grained.json"
TRANSCRIPTS, OPENSET, REPORT = "transcription_en_all.csv", "openset.json", "import_report.json"


def read_sentences(path: str, collector: Collector) -> dict[str, str]:
    """What is said by clip, of a transcript file; a clip with two different sentences has none."""
    problems: list[Problem] = []
    sentences = read_transcripts(path, problems.append)
    for problem in problems:
        collector.report(problem)
    contradicted = {name for problem in problems for name in problem.clips}
    return {name: sentence for name, sentence in sentences.items() if name not in contradicted}


def add_sentences(collector: Collector, sentences: Mapping[str, str], path: str) -> None:
    """Give the clips whose source has no sentence theirs from a transcript file.

    Raises:
        UserError: the file has a row for none of the clips.
    """
    if not sentences.keys() & collector.entries.keys():
        theirs, ours = next(iter(sentences), ""), next(iter(collector.entries))
        raise UserError(f"{path}: a row for none of the clips. Its names look like '{theirs}', the clips' like '{ours}'.")
    for name, entry in collector.entries.items():
        if entry.sentence is None:
            collector.entries[name] = replace(entry, sentence=sentences.get(name))


def write(folder: Path, collector: Collector, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write all files.

    Args:
        folder: being written.
        settings: what the import was asked to do, for the report.

    Returns:
        The report.
    """
    entries = list(collector.entries.values())
    report = _report(entries, collector, settings)
    _write_files(folder, entries)
    with atomic_write(folder / REPORT) as file:
        json.dump(report, file, indent=1, ensure_ascii=False)
    return report


def _write_files(folder: Path, entries: Sequence[Entry]) -> None:
    with atomic_write(folder / LIST) as file:
        file.writelines(f"{row}\n" for row in list_rows(entries))
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
        with atomic_write(folder / TRANSCRIPTS) as file:
            csv.writer(file).writerows([("name", "sentence"), *sentences])


def list_rows(entries: Sequence[Entry]) -> list[str]:
    """The rows of the annotation list, all of one width."""
    if any(entry.valence is not None for entry in entries):
        return [f"{e.name} 0 {e.label} {NO_VALENCE if e.valence is None else e.valence}" for e in entries]
    if all(entry.label == NO_LABEL for entry in entries):
        return [f"{entry.name} 0 {NO_LABEL}" for entry in entries]
    return [f"{entry.name} {entry.label}" for entry in entries]


def _report(entries: Sequence[Entry], collector: Collector, settings: Mapping[str, Any]) -> dict[str, Any]:
    known = {
        COARSE: {entry.name for entry in entries if entry.caption is not None},
        FINE: {entry.name for entry in entries if entry.fine is not None},
        OPENSET: {entry.name for entry in entries if entry.openset is not None},
        TRANSCRIPTS: {entry.name for entry in entries if entry.sentence is not None},
    }
    without = {file: [entry.name for entry in entries if entry.name not in names] for file, names in known.items() if names}
    return {
        "settings": dict(settings),
        "clips": len(entries),
        "labels": dict(Counter(entry.label for entry in entries).most_common()),
        "files": {LIST: len(entries)} | {file: len(names) for file, names in known.items() if names},
        "taken_without": {file: names for file, names in without.items() if names},
        "left_out": collector.left_out,
        "problems": [asdict(problem) for problem in collector.problems],
        "notes": collector.notes,
    }


def summary(report: Mapping[str, Any], folder: str) -> str:
    """The report as a table for the terminal; where names are many, the first few."""
    labels = ", ".join(f"{label} {count}" for label, count in report["labels"].items() if label != NO_LABEL)
    lines = [f"{report['clips']} clips taken -> {folder}"]
    lines += [f"{count:8} {file}{f' ({labels})' if file == LIST and labels else ''}" for file, count in report["files"].items()]
    by_kind: dict[str, list[str]] = {}
    for problem in report["problems"]:
        by_kind.setdefault(problem["kind"], []).extend(problem["clips"] or [problem["text"]])
    for title, groups in (
        ("left out", report["left_out"]),
        ("left out because of a problem", by_kind),
        ("taken, but absent from", report["taken_without"]),
    ):
        lines += [f"{title}:"] if groups else []
        lines += [f"{len(names):8} {reason}: {_some(names)}" for reason, names in groups.items()]
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join([*lines, f"All names stand in {REPORT}.\n"])


def _some(names: Sequence[str]) -> str:
    return abbreviated(names, where=REPORT)
