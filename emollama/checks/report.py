"""The printed report of a data check: tables of each block, then the findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from emollama.checks.findings import ArrayCounts, BlockSummary, CheckReport, Finding, LengthSummary, TrainingForecast
from emollama.listing import abbreviated
from emollama.logs.console import aligned
from emollama.memory import GIB

FINDINGS_SHOWN = 5  # printed findings of one kind in one block
JSON = "--json lists all"
TEXT_SHOWN = 600  # printed characters of a finding
LABELS_SHOWN = 12


def text_of(report: CheckReport) -> str:
    """Return the report as text, with long lists abbreviated. The last line contains the numbers of problems and notes."""
    lines: list[str] = []
    for block in report.blocks:
        lines += [*_block(block), ""]
    if report.training:
        lines += [*_training(report.training), ""]
    for path, names in report.unlisted_arrays.items():
        text = f"{path}: {len(names):,} arrays belong to clips that no annotation file contains"
        lines += [f"{text}: {abbreviated(names, where=JSON)}", ""]
    for heading, findings in (("Problems", report.of_level("problem")), ("Notes", report.of_level("note"))):
        if findings:
            lines += [heading, *_findings(findings), ""]
    return "\n".join([*lines, report.summary, ""])


def _block(block: BlockSummary) -> Iterator[str]:
    """Yield the lines about one block."""
    listed = f" of {block.listed:,} listed" if block.listed != block.clips else ""
    source = f", {block.list_file}" if block.list_file else ""
    yield f"{block.label} ({block.type}{source}): {block.clips:,} clips{listed}"
    if block.labels:
        shown = [f"{label} {count:,}" for label, count in list(block.labels.items())[:LABELS_SHOWN]]
        if len(block.labels) > LABELS_SHOWN:
            shown.append(f"and {len(block.labels) - LABELS_SHOWN} more labels")
        ratio = f" (largest : smallest {block.imbalance:.1f} : 1)" if block.imbalance else ""
        yield f"  labels     {', '.join(shown)}{ratio}"
    if block.answers:
        yield f"  answers    {_counts(block.answers)}"
    if block.other_answers:
        yield f"             for tasks outside task_pool: {_counts(block.other_answers)}"
    if block.sentences is not None:
        yield f"  sentences  {_counts(block.sentences)}"
    if block.arrays:
        yield from _table(["features", "clips", "missing", "unusable", "values read", "MiB", "kinds"], map(_arrays, block.arrays))
    if block.reading:
        reading = block.reading
        yield (
            f"  reading    about {_time(reading.seconds_all_clips)} to read all clips once with one reader (measured on"
            f" {reading.clips_measured} clips, {1000 * reading.seconds_a_clip:.2f} ms each; files read recently may be in memory)"
        )
    if block.lengths:
        heads = [
            "tokens" if block.lengths[0].exact else "tokens, estimated",
            "texts",
            "min",
            "median",
            "95%",
            "max",
            "limit",
            "cut",
        ]
        yield from _table(heads, map(_lengths, block.lengths))


def _training(training: TrainingForecast) -> Iterator[str]:
    """Yield the lines about training and its checkpoints."""
    passes = ", ".join(f"{label} {count:,.2f}" for label, count in training.passes.items())
    yield f"training with one process: {training.steps:,} steps of {training.samples_a_step:,} samples; passes over {passes}"
    free = f"{training.free_bytes / GIB:,.1f} GiB are free"
    if training.checkpoint_bytes is None:
        unknown = "unknown size, because the language model's config.json cannot be read"
        yield f"  checkpoints  {unknown}; {free} in {training.output_dir}"
        return
    size, all_files = training.checkpoint_bytes / GIB, training.checkpoint_bytes * training.checkpoints / GIB
    yield (
        f"  checkpoints  about {size:,.3f} GiB each ({training.trained_parameters:,} trained parameters with AdamW's moments),"
        f" at most {training.checkpoints} files, {all_files:,.3f} GiB; {free} in {training.output_dir}"
    )


def _arrays(row: ArrayCounts) -> list[str]:
    numbers = [row.present, row.missing, row.unusable, row.values_read]
    kinds = [f"{count:,} {kind}" for kind, count in row.kinds.items()]
    return [
        " + ".join(row.slots),
        *(f"{number:,}" for number in numbers),
        f"{row.bytes / 2**20:,.1f}",
        abbreviated(kinds, where=JSON),
    ]


def _lengths(row: LengthSummary) -> list[str]:
    numbers = [row.texts, row.minimum, row.median, row.percentile_95, row.maximum, row.limit, row.cut]
    return [row.what, *(f"{number:,.0f}" for number in numbers)]


def _table(heads: list[str], rows: Iterator[list[str]] | map[list[str]]) -> Iterator[str]:
    """Yield the lines of an aligned table, with the first column and the column of kinds to the left."""
    left = [0, *(index for index, head in enumerate(heads) if head == "kinds")]
    yield from (f"  {line}" for line in aligned([heads, *rows], left=left))


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a heading for each kind in each block, with the number of clips, followed by its first findings."""
    in_order = sorted(findings, key=lambda finding: (finding.block, finding.kind))
    for (block, kind), group in groupby(in_order, key=lambda finding: (finding.block, finding.kind)):
        members = list(group)
        clips = len({name for finding in members for name in finding.clips})
        where = f"{block}: " if block else ""
        yield f"  {where}{kind}" + (f", {clips:,} clip{'s' * (clips > 1)}" if clips else "")
        yield from (f"    - {_shown(finding)}" for finding in members[:FINDINGS_SHOWN])
        if len(members) > FINDINGS_SHOWN:
            yield f"    - and {len(members) - FINDINGS_SHOWN:,} more of this kind ({JSON})"


def _shown(finding: Finding) -> str:
    """Return the text of a finding with the names of its first clips."""
    if finding.names_clips:
        text = finding.text
    else:
        text = f"{finding.text}: {abbreviated(finding.details or finding.clips, where=JSON)}" if finding.clips else finding.text
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]} ... ({JSON})"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
