"""``mer-factory``: the output of MER-Factory, one ``<name>_merr_data.json`` per clip.

Source: MER-Factory's pipeline and its example files. The emotions of a peak are sorted by strength.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from emollama.data.annotations import read_json
from emollama.data.label_map import SKIP
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry
from emollama.importers.sources import Sheet, files_below, rows_by_clip
from emollama.listing import abbreviated

SUFFIX = "_merr_data.json"
DESCRIPTIONS = ("visual_expression", "visual_objective", "audio_analysis", "video_content")
CAPTIONS = ("final_summary", *DESCRIPTIONS)
PEAKS = ("overall", "overall-or-first")
UNKNOWN = "unknown"  # the raw label if there is no peak at the time of the strongest frame
# Peak times are rounded to two decimals, so they may differ from the time of the strongest frame by this much (seconds).
TIME_TOLERANCE = 0.05
_PEAK = re.compile(r"Peak at\s+(\d+(?:\.\d+)?)\s*s\s*:\s*([^\s,(][^,(]*)")


def read(folder: str, collector: Collector, *, caption: Sequence[str], peak: str, overrides: str | None) -> None:
    """Read the clips of a folder and its subfolders.

    The label of a clip is its override; otherwise the ground truth in its file; otherwise the strongest emotion of the peak at
    the time of the overall peak. If there is no peak at this time, the label is "unknown", or that of the first peak with
    ``overall-or-first``.

    Args:
        folder: the output folder of MER-Factory.
        collector: clips and problems are added to it.
        caption: the parts of the coarse caption, from :data:`CAPTIONS`; they are joined by spaces.
        peak: one of :data:`PEAKS`.
        overrides: a CSV file ``name,label``, or None.

    Raises:
        UserError: If the folder does not exist or contains no file of MER-Factory, or an override is not a label.
    """
    paths_by_name: dict[str, list[Path]] = {}
    for path in files_below(folder, collector):
        if path.name.endswith(SUFFIX):
            paths_by_name.setdefault(path.name.removesuffix(SUFFIX), []).append(path)
    if not paths_by_name:
        raise UserError(f"{folder}: no file <clip>{SUFFIX}, also in subfolders. Specify the output folder of MER-Factory.")
    override_labels = _read_overrides(overrides, paths_by_name, collector) if overrides else {}
    for name, paths in paths_by_name.items():
        if len(paths) > 1:
            text = f"{len(paths)} clips have the name '{name}': {abbreviated(map(str, paths))}. Rename all but one."
            collector.report(Problem("repeated", text, (name,)))
        elif collector.is_usable(name, str(paths[0])):
            record = _read_record(paths[0], name, collector)
            label = None if record is None else _label(record, paths[0], name, override_labels, peak, collector)
            if record is not None and label is not None:
                collector.add(_entry(name, label, record, caption))


def _read_overrides(path: str, clip_names: Container[str], collector: Collector) -> dict[str, str]:
    override_labels = {}
    for name, row in rows_by_clip(Sheet.read(path, collector), ["label"], collector).items():
        cell = row.cells.get("label", "")
        label = SKIP if cell == SKIP else collector.labels.label_or_synonym(cell)
        if label is None:
            labels = abbreviated(collector.labels.labels)
            raise UserError(f"{row.where}: the column 'label' contains {cell!r}; expected one of {labels}, or {SKIP}")
        if name in clip_names:
            override_labels[name] = label
        else:
            collector.report(Problem("override", f"{row.where}: no clip has the name '{name}'", (name,)))
    return override_labels


def _read_record(path: Path, name: str, collector: Collector) -> dict[str, Any] | None:
    try:
        record = read_json(str(path))
    except (OSError, UserError) as error:
        text = str(error)
    else:
        peaks = record.get("chronological_emotion_peaks") if isinstance(record, dict) else None
        if isinstance(peaks, list) and all(isinstance(peak, str) for peak in peaks):
            return dict(record)
        text = f"{path}: not an output of MER-Factory's MER pipeline: 'chronological_emotion_peaks' is not a list of texts"
    collector.report(Problem("file", text, (name,)))
    return None


def _label(
    record: Mapping[str, Any], path: Path, name: str, override_labels: Mapping[str, str], peak: str, collector: Collector
) -> str | None:  # fmt: skip
    override = override_labels.get(name)
    if override is not None:
        if override == SKIP:
            collector.leave_out("skipped by --overrides", name)
        return None if override == SKIP else override
    stated_label = record.get("ground_truth_label")
    raw = stated_label if isinstance(stated_label, str) and stated_label.strip() else raw_label(record, peak)
    if raw is None:
        return collector.label(UNKNOWN, name, f"{path} (no peak at the time of the overall peak)")
    return collector.label(raw, name, str(path))


def raw_label(record: Mapping[str, Any], peak: str) -> str | None:
    """Return the emotion of a record's peaks as MER-Factory wrote it; None if no peak qualifies.

    A clip without peaks has the single word "neutral" in place of peaks.

    Args:
        record: the content of a file of MER-Factory.
        peak: one of :data:`PEAKS`.
    """
    peaks: list[str] = record["chronological_emotion_peaks"]
    timed = [(float(match[1]), match[2].strip()) for match in map(_PEAK.search, peaks) if match]
    if not timed:
        return peaks[0].strip() if len(peaks) == 1 and peaks[0].strip() and ":" not in peaks[0] else None
    strongest = _mapping(record.get("overall_peak_frame_info")).get("timestamp")
    if isinstance(strongest, int | float):
        time, label = min(timed, key=lambda peak: abs(peak[0] - strongest))
        if abs(time - strongest) <= TIME_TOLERANCE:
            return label
    return timed[0][1] if peak == "overall-or-first" else None


def _entry(name: str, label: str, record: Mapping[str, Any], caption: Sequence[str]) -> Entry:
    texts = {**_mapping(record.get("coarse_descriptions_at_peak")), "final_summary": record.get("final_summary")}
    texts = {key: text.strip() for key, text in texts.items() if isinstance(text, str) and text.strip() not in ("", "N/A")}
    frame = _mapping(record.get("overall_peak_frame_info"))
    fine = {
        "smp_reason_caption": texts.get("final_summary"),
        "peak_index": str(frame.get("frame_number", "")),
        "peak_AU_list": [unit.removesuffix("_r") for unit in _mapping(frame.get("top_aus_intensities"))],
        "visual_prior_list": [texts[key] for key in ("visual_expression", "visual_objective") if key in texts],
        "audio_prior_list": texts.get("audio_analysis", ""),
        "pseu_emotion": label,
    }
    coarse = " ".join(texts[key] for key in caption if key in texts)
    return Entry(name, label, caption=coarse or None, fine=fine if fine["smp_reason_caption"] else None)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
