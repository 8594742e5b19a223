"""``emollama import``: clips that others published, as the lists, captions and transcripts that the datasets read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emollama.data.annotations import LABELS, SENTENCE_COLUMNS
from emollama.importers import annotation_files, emer, mer, mer_factory, videos
from emollama.importers.collector import Collector
from emollama.importers.labels import BUILT_IN, SKIP, LabelMap, read_label_map
from emollama.logs.console import write_plain
from emollama.paths import new_folder

HELP = "convert data of other projects into lists, captions and transcripts"
EXAMPLE = "emollama import mertools labels.npz --split train --output mer"
DOCS = "docs/data.md#import"

SOURCES = {  # kind -> (how its source is given, what it is)
    "mer-factory": ("FOLDER", "a folder of MER-Factory's <clip>_merr_data.json files"),
    "mertools": ("FILE --split SPLIT", "a label file of MERTools (.npz)"),
    "emer": ("FILE", "a table of EMER: names,emotions,subtitles,reasons, name,chinese,english, or predictions names,chi_reasons"),
    "mer2024": ("FILE ...", "tables of MER2024: name,discrete[,valence] or name,openset"),
    "mer2025": ("FILE ...", "tables of MER2025: name,discrete[,valence], name,openset, name,reason, or name"),
    "videos": ("FOLDER TABLE", "a folder of videos and a table of their labels (DFEW: --label-map dfew)"),
}
VIDEO_COLUMNS = ("name", "label", "sentence", "caption")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A sub-command a kind, each with its source, ``--output`` and what labels and problems mean."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, (given, text) in SOURCES.items():
        usage = f"%(prog)s {given} --output FOLDER [options]"  # source first: options of several values would swallow it
        one = kinds.add_parser(kind, help=text, description=f"Import {text}.", usage=usage)
        _add_source(one, kind)
        one.add_argument("--output", required=True, metavar="FOLDER", help="the new folder to write")
        stop = "stop, or leave out the clips that have problems (default: error)"
        one.add_argument("--on-problem", choices=("error", "skip"), default="error", help=stop)
        sentences = " or ".join(f"name,{column}" for column in SENTENCE_COLUMNS)
        one.add_argument("--transcripts", metavar="CSV", help=f"what is said: {sentences}")
        if kind != "emer":
            one.add_argument("--labels", nargs="+", default=list(LABELS), help=f"the vocabulary (default: {' '.join(LABELS)})")
            maps = f"what the source's labels are called here: a YAML or JSON file 'theirs: ours' or 'theirs: {SKIP}'"
            also = f"; or {', '.join(BUILT_IN)}; several are applied one after another"
            one.add_argument("--label-map", nargs="+", default=[], metavar="MAP", help=maps + also)


def _add_source(parser: argparse.ArgumentParser, kind: str) -> None:
    if kind == "mer-factory":
        parser.add_argument("source", metavar="FOLDER")
        parser.add_argument("--overrides", metavar="CSV", help=f"name,label: labels (or '{SKIP}') that win over the files'")
        texts = "texts that make the coarse caption (default: final_summary)"
        parser.add_argument("--caption", nargs="+", choices=mer_factory.CAPTIONS, default=["final_summary"], help=texts)
        peak = f"whose emotion is the label; where no peak stands at the overall peak: '{mer_factory.UNKNOWN}', or the first's"
        parser.add_argument("--peak", choices=mer_factory.PEAKS, default="overall", help=peak)
    elif kind == "videos":
        parser.add_argument("source", metavar="FOLDER")
        parser.add_argument("table", metavar="TABLE", help="CSV: the video's name, its label; sentence and caption if there are")
        for column in VIDEO_COLUMNS:
            usual = " or ".join(getattr(videos.Columns, column))
            parser.add_argument(f"--{column}-column", metavar="COLUMN", help=f"default: {usual}")
    elif kind in ("mer2024", "mer2025"):
        joined = "several are joined by name; a table of labels says which clips are taken"
        parser.add_argument("source", nargs="+", metavar="FILE", help=joined)
    else:
        parser.add_argument("source", metavar="FILE")
    if kind == "mertools":
        parser.add_argument("--split", nargs="+", required=True, help="train, test1, test2, test3: entries <split>_corpus")


def run(arguments: argparse.Namespace) -> None:
    """Read the source, write the folder, print what was taken and what was not."""
    is_folder = arguments.kind in ("mer-factory", "videos")
    with new_folder(arguments.output, [arguments.source] if is_folder else []) as folder:
        report = _imported(arguments, folder)
    write_plain(annotation_files.summary(report, arguments.output))


def _imported(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    labels = () if arguments.kind == "emer" else arguments.labels
    maps = () if arguments.kind == "emer" else [read_label_map(path) for path in arguments.label_map]
    collector = Collector(LabelMap(labels, maps))
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
        from emollama.importers import mertools  # here, because it imports NumPy

        mertools.read(source, arguments.split, collector)
    elif arguments.kind == "emer":
        emer.read(source, collector)
    elif arguments.kind == "videos":
        given = {column: getattr(arguments, f"{column}_column") for column in VIDEO_COLUMNS}
        columns = videos.Columns(**{column: (name,) for column, name in given.items() if name})
        videos.read(source, arguments.table, columns, collector)
    else:
        mer.read(source, collector)
