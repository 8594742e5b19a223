"""``mer-factory``: what MER-Factory writes, one ``<name>_merr_data.json`` a clip.

Source: MER-Factory's pipeline and its example files. The emotions of a peak stand in the order of their strength.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emollama.data.annotations import read_json
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry
from emollama.importers.labels import SKIP
from emollama.importers.sources import Sheet, files_below, rows_by_name
from emollama.listing import abbreviated

SUFFIX = "_merr_data.json"
DESCRIPTIONS = ("visual_expression", "visual_objective", "audio_analysis", "video_content")
CAPTIONS = ("final_summary", *DESCRIPTIONS)
PEAKS = ("overall", "overall-or-first")
UNKNOWN = "unknown"  # the raw label where no peak stands at the time of the strongest frame
SAME_TIME = 0.05  # seconds between a peak, written with two decimals, and the strongest frame
_PEAK = re.compile(r"Peak at\s+(\d+(?:\.\d+)?)\s*s\s*:\s*([^\s,(][^,(]*)")


def read(folder: str, collector: Collector, *, caption: Sequence[str], peak: str, overrides: str | None) -> None:
    """Take the clips below a folder.

    The label is the override's; else the ground truth that MER-Factory was given; else the strongest emotion of the peak that
    stands at the overall peak's time. Where none stands there it is "unknown", or the first peak's with ``overall-or-first``.

    Args:
        caption: which of :data:`CAPTIONS` make the coarse caption, joined by a space.
        peak: one of :data:`PEAKS`.
        overrides: a CSV file ``name,label``.

    Raises:
        UserError: no such folder, or no such file below it.
    """
    found: dict[str, list[Path]] = {}
    for path in files_below(folder, collector):
        if path.name.endswith(SUFFIX):
            found.setdefault(path.name.removesuffix(SUFFIX), []).append(path)
    if not found:
        raise UserError(f"{folder}: no file named <clip>{SUFFIX} anywhere below it. It is the output folder of MER-Factory.")
    said = _overrides(overrides, found, collector) if overrides else {}
    for name, paths in found.items():
        if len(paths) > 1:
            text = f"'{name}' is the name of {len(paths)} clips: {abbreviated(map(str, paths))}. Rename all but one."
            collector.report(Problem("repeated", text, (name,)))
        elif collector.is_usable(name, str(paths[0])):
            record = _record(paths[0], name, collector)
            label = None if record is None else _label(record, paths[0], name, said, peak, collector)
            if record is not None and label is not None:
                collector.take(_entry(name, label, record, caption))


def _overrides(path: str, found: Mapping[str, Any], collector: Collector) -> dict[str, str]:
    said = {}
    for name, row in rows_by_name(Sheet.read(path, collector), ["label"], collector).items():
        word = row.cells.get("label", "")
        label = SKIP if word == SKIP else collector.labels.word(word)
        if label is None:
            known = abbreviated(collector.labels.labels)
            raise UserError(f"{row.where}: the column 'label' says {word!r}; expected one of {known}, or {SKIP}")
        if name in found:
            said[name] = label
        else:
            collector.report(Problem("override", f"{row.where}: no clip is called '{name}'", (name,)))
    return said


def _record(path: Path, name: str, collector: Collector) -> dict[str, Any] | None:
    try:
        record = read_json(str(path))
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        text = f"{path}: holds half of a character (a surrogate alone), which no text file can"
    except (OSError, UserError) as error:
        text = str(error)
    else:
        peaks = record.get("chronological_emotion_peaks") if isinstance(record, dict) else None
        if isinstance(peaks, list) and all(isinstance(peak, str) for peak in peaks):
            return dict(record)
        text = f"{path}: no record of MER-Factory's MER pipeline: 'chronological_emotion_peaks' is no list of texts"
    collector.report(Problem("file", text, (name,)))
    return None


def _label(
    record: Mapping[str, Any], path: Path, name: str, said: Mapping[str, str], peak: str, collector: Collector
) -> str | None:  # fmt: skip
    if name in said:
        if said[name] == SKIP:
            collector.leave_out("the overrides say skip", name)
        return None if said[name] == SKIP else said[name]
    truth = record.get("ground_truth_label")
    raw = truth if isinstance(truth, str) and truth.strip() else raw_label(record, peak)
    if raw is None:
        return collector.label(UNKNOWN, name, f"{path} (no peak at the time of the overall peak)")
    return collector.label(raw, name, str(path))


def raw_label(record: Mapping[str, Any], peak: str) -> str | None:
    """The emotion that a record's peaks give, in MER-Factory's words; None where they give none.

    A clip without any peak has the one word "neutral" in place of peaks.
    """
    peaks: list[str] = record["chronological_emotion_peaks"]
    timed = [(float(match[1]), match[2].strip()) for match in map(_PEAK.search, peaks) if match]
    if not timed:
        return peaks[0].strip() if len(peaks) == 1 and peaks[0].strip() and ":" not in peaks[0] else None
    strongest = _mapping(record.get("overall_peak_frame_info")).get("timestamp")
    if isinstance(strongest, int | float):
        time, label = min(timed, key=lambda peak: abs(peak[0] - strongest))
        if abs(time - strongest) <= SAME_TIME:
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
