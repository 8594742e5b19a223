"""Convert published data of other projects to the annotation files, captions and transcripts that the datasets read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emollama.data.annotations import DFEW_DIGITS, SENTENCE_COLUMNS
from emollama.data.label_map import DATASET_LABELS, LABELS, SKIP, LabelMap
from emollama.importers import annotation_files, emer, mer, mer_factory, videos
from emollama.importers.collector import Collector
from emollama.importers.labels import read_label_map, require_vocabulary
from emollama.importers.names import EXAMPLE as NAME_EXAMPLE
from emollama.importers.names import NameFormat
from emollama.logs.console import write_plain
from emollama.paths import new_folder

HELP = "convert data of other projects to annotation files, captions and transcripts"
EXAMPLE = "emollama import mertools labels.npz --split train --output mer"
DOCS = "docs/data.md#import"

SOURCES = {  # kind -> (usage of its source, description)
    "mer-factory": ("FOLDER", "a folder of MER-Factory's <clip>_merr_data.json files"),
    "mertools": ("FILE --split SPLIT", "a label file of MERTools (.npz)"),
    "emer": (
        "FILE",
        "a table of EMER with the columns names,emotions,subtitles,reasons or name,chinese,english or names,chi_reasons",
    ),
    "mer2024": ("FILE ...", "tables of MER2024 with the columns name,discrete[,valence] or name,openset"),
    "mer2025": ("FILE ...", "tables of MER2025 with the columns name,discrete[,valence] or name,openset or name,reason or name"),
    "videos": ("FOLDER TABLE", "a folder of videos and a table of their labels (DFEW: --label-map dfew)"),
}
VIDEO_COLUMNS = ("name", "label", "sentence", "caption")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a sub-command for each kind of source."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, (source, text) in SOURCES.items():
        # The source comes first in the usage, because an option with several values would include it.
        usage = f"%(prog)s {source} --output FOLDER [options]"
        subparser = kinds.add_parser(kind, help=text, description=f"Import {text}.", usage=usage)
        _add_source(subparser, kind, text)
        subparser.add_argument("--output", required=True, metavar="FOLDER", help="the new folder to write")
        stop = "error: report all problems and write nothing (default). skip: leave out clips with problems"
        subparser.add_argument("--on-problem", choices=("error", "skip"), default="error", help=stop)
        columns = " or ".join(f"name,{column}" for column in SENTENCE_COLUMNS)
        subparser.add_argument("--transcripts", metavar="CSV", help=f"spoken sentences, with the columns {columns}")
        if kind != "emer":
            labels = f"allowed labels (default: {' '.join(LABELS)})"
            subparser.add_argument("--labels", nargs="+", default=list(LABELS), metavar="LABEL", help=labels)
            maps = f"YAML or JSON files that rename labels, with entries 'source label: label' or 'source label: {SKIP}'"
            also = f", or built-in maps: {', '.join(DATASET_LABELS)}; several maps are applied in order"
            subparser.add_argument("--label-map", nargs="+", default=[], metavar="MAP", help=maps + also)


def _add_source(parser: argparse.ArgumentParser, kind: str, text: str) -> None:
    """Add the arguments that only one kind of source has; ``text`` describes the source."""
    if kind == "mer-factory":
        parser.add_argument("source", metavar="FOLDER", help=text)
        overrides = f"a table with the columns name,label that replaces labels of the files; the label '{SKIP}' leaves a clip out"
        parser.add_argument("--overrides", metavar="CSV", help=overrides)
        texts = f"fields joined to the coarse caption: {', '.join(mer_factory.CAPTIONS)} (default: final_summary)"
        parser.add_argument(
            "--caption", nargs="+", choices=mer_factory.CAPTIONS, default=["final_summary"], metavar="FIELD", help=texts
        )
        peak = (
            "peak whose emotion is the label. overall: the peak at the overall peak frame; without one, the label is"
            f" '{mer_factory.UNKNOWN}' (default). overall-or-first: without one, the first peak"
        )
        parser.add_argument("--peak", choices=mer_factory.PEAKS, default="overall", help=peak)
    elif kind == "videos":
        parser.add_argument("source", metavar="FOLDER", help="the folder of videos")
        table = "CSV with the name and label of each video, and optional columns for the sentence and the caption"
        parser.add_argument("table", metavar="TABLE", help=table)
        for column in VIDEO_COLUMNS[1:]:
            usual = " or ".join(getattr(videos.Columns, column))
            parser.add_argument(f"--{column}-column", metavar="COLUMN", help=f"column of the {column} (default: {usual})")
    elif kind in ("mer2024", "mer2025"):
        joined = "tables, joined by name; if there is a table of labels, only its clips are imported"
        parser.add_argument("source", nargs="+", metavar="FILE", help=joined)
    else:
        parser.add_argument("source", metavar="FILE", help=text)
    if kind not in ("mer-factory", "mertools"):
        _add_name(parser, kind)
    if kind == "mertools":
        splits = "splits to import: train, test1, test2 or test3 (the entry <split>_corpus of the file)"
        parser.add_argument("--split", nargs="+", required=True, metavar="NAME", help=splits)


def _add_name(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the arguments that say where the names of clips in a table are."""
    names = parser.add_mutually_exclusive_group()
    template = f"names composed of several columns: a format string over the columns, such as '{NAME_EXAMPLE}' for MELD"
    names.add_argument("--name", metavar="FORMAT", help=template.replace("%", "%%"))
    if kind == "videos":
        usual = " or ".join(videos.Columns.name)
        names.add_argument("--name-column", metavar="COLUMN", help=f"column of the name (default: {usual})")


def run(arguments: argparse.Namespace) -> None:
    """Read the source, write the folder, and print how many clips were imported and left out."""
    is_folder = arguments.kind in ("mer-factory", "videos")
    with new_folder(arguments.output, [arguments.source] if is_folder else []) as folder:
        report = _imported(arguments, folder)
    write_plain(annotation_files.summary(report, arguments.output))


def _imported(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    labels = () if arguments.kind == "emer" else arguments.labels
    maps = () if arguments.kind == "emer" else [read_label_map(path) for path in arguments.label_map]
    require_vocabulary(labels)
    template = getattr(arguments, "name", None)
    collector = Collector(LabelMap(labels, maps), None if template is None else NameFormat(template))
    _read(arguments, collector)
    sentences = annotation_files.read_sentences(arguments.transcripts, collector) if arguments.transcripts else {}
    collector.finish(arguments.on_problem)
    if arguments.transcripts:
        annotation_files.add_sentences(collector, sentences, arguments.transcripts)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("run", "command")}
    return annotation_files.write(folder, collector, settings)


def _read(arguments: argparse.Namespace, collector: Collector) -> None:
    source = arguments.source
    if arguments.kind == "mer-factory":
        mer_factory.read(source, collector, caption=arguments.caption, peak=arguments.peak, overrides=arguments.overrides)
    elif arguments.kind == "mertools":
        # Imported here, because it imports NumPy, which the help does not need.
        from emollama.importers import mertools

        mertools.read(source, arguments.split, collector)
    elif arguments.kind == "emer":
        emer.read(source, collector)
    elif arguments.kind == "videos":
        names = {column: getattr(arguments, f"{column}_column") for column in VIDEO_COLUMNS}
        columns = videos.Columns(**{column: (name,) for column, name in names.items() if name})
        videos.read(source, arguments.table, columns, collector, DFEW_DIGITS if "dfew" in arguments.label_map else 0)
    else:
        mer.read(source, collector)
