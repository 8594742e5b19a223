"""Output of ``emollama prepare flickr30k``: one JSON file per split in MiniGPT-4's format, and a report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from emollama.data.problems import Problem
from emollama.disk import remedy
from emollama.errors import UserError
from emollama.importers.collector import OnProblem
from emollama.importers.flickr30k import Collection, Image
from emollama.listing import abbreviated, listing
from emollama.logs.console import track
from emollama.media.image_files import image_files, probe_image, read_image
from emollama.media.source import UnusableMedia
from emollama.paths import atomic_write, require_writable
from emollama.text_encoding import escaped

CheckImages = Literal["headers", "all", "none"]
CAPTIONS = 5  # captions per image in the published data
REPORT = "prepare_report.json"
READERS = 16

Splits = Mapping[str, Sequence[Image]]


def require_output_folder(folder: Path, images: str) -> None:
    """Check that the output folder is writable and not inside the folder of images.

    Raises:
        UserError: If the folder is not writable, or it is inside the folder of images.
    """
    if folder.resolve().is_relative_to(Path(images).resolve()):
        raise UserError(f"--output: '{folder}' is inside --images '{images}', which must not be changed. Specify another folder.")
    require_writable(folder, "--output")


def require_new(folder: Path, splits: Splits) -> None:
    """Check that no file would be replaced.

    Raises:
        UserError: If the folder already contains an output file.
    """
    existing = [name for name in (*map(_file, splits), REPORT) if os.path.lexists(folder / name)]
    if existing:
        raise UserError(f"--output: '{folder}' already contains {', '.join(existing)}. Specify another folder, or delete them.")


def select_splits(splits: Splits, names: Sequence[str] | None, source: str) -> dict[str, Sequence[Image]]:
    """Return the splits with these names, in this order; all splits if ``names`` is None.

    Args:
        splits: split -> images.
        names: values of ``--split``.
        source: where the splits come from, for messages.

    Raises:
        UserError: If a split does not exist.
    """
    unknown = [name for name in names or () if name not in splits]
    if unknown:
        raise UserError(f"--split: no split '{unknown[0]}' in {source}. Its splits: {abbreviated(splits) or 'none'}.")
    return {name: splits[name] for name in names or splits}


def with_readable_images(splits: Splits, folder: str, check: CheckImages, collection: Collection) -> dict[str, list[Image]]:
    """Return the images whose files exist and can be read; record the others as problems.

    Args:
        splits: split -> images.
        folder: the folder of image files, which are searched for as the dataset does.
        check: open each file (``headers``), decode it (``all``), or only check that it exists (``none``).
        collection: problems are added to it.

    Returns:
        Split -> images.

    Raises:
        UserError: If the folder does not exist, or contains none of the images.
    """
    images = [image for members in splits.values() for image in members]
    present = image_files(folder, [image.name for image in images], "--images")
    if images and not present:
        what = f"none of the {len(images):,} images, such as {images[0].file}, is in '{folder}'"
        raise UserError(f"--images: {what}. Specify the folder that directly contains the image files.")
    missing = tuple(image.file for image in images if image.name not in present)
    if missing:
        collection.problems.append(
            Problem("missing image", f"--images: {folder} does not contain {listing(missing, 'image')}", missing)
        )
    look = {"headers": probe_image, "all": read_image, "none": None}[check]
    paths = {name: Path(folder, file) for name, file in present.items()}
    faults = _faults(list(paths.values()), look) if look else {}
    for name, path in paths.items():
        if path in faults:
            collection.problems.append(Problem("unreadable image", f"{path}: {faults[path]}", (present[name],)))
    usable = {name for name, path in paths.items() if path not in faults}
    return {split: [image for image in members if image.name in usable] for split, members in splits.items()}


def _faults(paths: Sequence[Path], look: Any) -> dict[Path, str]:
    """Return path -> what is wrong with the image, for the images that ``look`` cannot read."""

    def fault(path: Path) -> str | None:
        try:
            look(path)
        except UnusableMedia as error:
            return str(error)
        return None

    with ThreadPoolExecutor(READERS) as pool:
        reasons = track(pool.map(fault, paths), len(paths), "checking images", unit="images")
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason is not None}


def require_usable(collection: Collection, splits: Splits, on_problem: OnProblem) -> None:
    """Check that there are no problems, or that ``--on-problem skip`` leaves at least one image.

    Raises:
        UserError: If there are problems (one message lists all of them), or no image is left.
    """
    texts = [problem.text for problem in collection.problems]
    details = "\n  " + abbreviated(texts, "\n  ") if texts else ""
    if texts and on_problem == "error":
        remedy = "Correct them, or leave these images out with --on-problem skip"
        raise UserError(f"nothing was written; problems: {len(texts)}. {remedy}.{details}")
    if not any(splits.values()):
        left = "".join(f"\n  {len(names)} left out: {reason}" for reason, names in collection.left_out.items())
        raise UserError(f"nothing was written; no image is left{details}{left}")


def write(folder: Path, splits: Splits, collection: Collection, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write one file for each split that has images, and the report. If one file cannot be written, remove the others.

    Args:
        folder: the output folder, which need not exist.
        splits: split -> images.
        collection: the problems and the images that are left out, for the report.
        settings: options of the command, for the report.

    Returns:
        The content of the report.

    Raises:
        UserError: If a file cannot be written.
    """
    report = _report(splits, collection, settings)
    tables = {_file(split): {"annotations": list(map(_entry, images))} for split, images in splits.items() if images}
    finished = []
    try:
        for name, table in {**tables, REPORT: report}.items():
            with atomic_write(folder / name) as file:
                # In the report, names of images that are left out may contain lone surrogates.
                file.write(escaped(json.dumps(table, indent=1, ensure_ascii=False)))
            finished.append(folder / name)
    except OSError as error:
        for path in finished:
            path.unlink()
        text = f"--output: cannot write to '{folder}': {error.strerror or error}. {remedy(error, 'specify another folder')}"
        raise UserError(text) from None
    return report


def _report(splits: Splits, collection: Collection, settings: Mapping[str, Any]) -> dict[str, Any]:
    everything = [image for images in splits.values() for image in images]
    return {
        "settings": dict(settings),
        "splits": {split: len(images) for split, images in splits.items()},
        "captions": {split: sum(len(image.captions) for image in images) for split, images in splits.items()},
        "other_number_of_captions": {i.name: len(i.captions) for i in everything if len(i.captions) != CAPTIONS},
        "left_out": collection.left_out | _left_out_for_problems(collection),
        "problems": [asdict(problem) for problem in collection.problems],
    }


def _left_out_for_problems(collection: Collection) -> dict[str, list[str]]:
    """Return reason -> files that are left out because of problems.

    A problem of a row without a file name is listed by its text. A file is not left out if another row describes it.
    """
    left_out: dict[str, list[str]] = {}
    usable = {image.file for image in collection.images.values()}
    for problem in collection.problems:
        is_row = problem.kind == "row"
        names = [name for name in problem.clips if not (is_row and name in usable)] if problem.clips else [problem.text]
        if names:
            left_out.setdefault(f"problem: {problem.kind}", []).extend(names)
    return left_out


def _file(split: str) -> str:
    return f"flickr30k_{split}.json"


def _entry(image: Image) -> dict[str, Any]:
    return {"image_id": image.name, "caption": " ".join(image.captions), "captions": list(image.captions)}


def summary(report: Mapping[str, Any], folder: Path) -> str:
    """Format the report for the terminal. Long lists of names are shortened."""
    splits, captions = report["splits"], report["captions"]
    lines = [f"{sum(splits.values()):,} images -> {folder}"]
    for split, count in splits.items():
        contents = f"({captions[split]:,} captions)" if count else "was not written: no image is left"
        lines.append(f"{count:8,} {_file(split)} {contents}")
    other = [f"{name} ({count})" for name, count in report["other_number_of_captions"].items()]
    lines += [f"{len(other):8,} do not have {CAPTIONS} captions: {_some(other)}"] if other else []
    row_problems = [problem["text"] for problem in report["problems"] if problem["kind"] == "row"]
    groups = {reason: names for reason, names in report["left_out"].items() if reason != "problem: row"}
    lines += ["left out:"] if groups or row_problems else []
    lines += [f"{len(names):8,} {reason}: {_some(names)}" for reason, names in groups.items()]
    lines += [f"{len(row_problems):8,} problem: row"] if row_problems else []
    lines += [f"{'':9}" + abbreviated(row_problems, f"\n{'':9}", where=REPORT)] if row_problems else []
    return "\n".join([*lines, f"{REPORT} contains all names.\n"])


def _some(names: Sequence[str]) -> str:
    return abbreviated(names, where=REPORT)
