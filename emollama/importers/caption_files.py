"""The written form of images with captions: a JSON file a split, of MiniGPT-4's form, and a report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import OnProblem
from emollama.importers.flickr30k import Collection, Image
from emollama.listing import abbreviated, listing
from emollama.logs.console import track
from emollama.media.image_files import image_files, probe_picture, read_picture
from emollama.media.source import UnusableMedia
from emollama.paths import atomic_write, require_writable

CheckImages = Literal["headers", "all", "none"]
CAPTIONS = 5  # of an image, as published
REPORT = "prepare_report.json"
READERS = 16

Splits = Mapping[str, Sequence[Image]]


def require_output_folder(folder: Path, images: str) -> None:
    """Check that files can be written to a folder, which does not lie in that of the images.

    Raises:
        UserError: they cannot, or it does.
    """
    if folder.resolve().is_relative_to(Path(images).resolve()):
        raise UserError(f"--output: '{folder}' lies in --images '{images}', which is not changed. Name another folder.")
    require_writable(folder, "--output")


def require_new(folder: Path, splits: Splits) -> None:
    """Check that nothing would be replaced.

    Raises:
        UserError: files of these splits are there.
    """
    taken = [name for name in (*map(_file, splits), REPORT) if os.path.lexists(folder / name)]
    if taken:
        raise UserError(f"--output: in '{folder}' there is {', '.join(taken)} already. Name another folder, or delete them.")


def chosen(splits: Splits, wanted: Sequence[str] | None, source: str) -> dict[str, Sequence[Image]]:
    """The wanted splits, in this order; None takes all.

    Raises:
        UserError: a split that there is not.
    """
    strange = [name for name in wanted or () if name not in splits]
    if strange:
        raise UserError(f"--split: no split '{strange[0]}' in {source}. It has: {abbreviated(splits) or 'none'}.")
    return {name: splits[name] for name in wanted or splits}


def with_images(splits: Splits, folder: str, check: CheckImages, collection: Collection) -> dict[str, list[Image]]:
    """The images whose files are there, as the dataset looks for them, and can be read; the others are problems.

    Args:
        splits: split -> images.
        folder: of their files.
        check: whether files are opened, decoded, or only looked for.
        collection: told of the problems.

    Raises:
        UserError: no such folder, or one that holds none of the images.
    """
    images = [image for members in splits.values() for image in members]
    present = image_files(folder, [image.name for image in images], "--images")
    if images and not present:
        found = f"none of the {len(images):,} images, such as {images[0].file}, is in '{folder}'"
        raise UserError(f"--images: {found}. Name the folder that holds the files themselves.")
    missing = tuple(image.file for image in images if image.name not in present)
    if missing:
        collection.problems.append(
            Problem("missing image", f"--images: no file in {folder} of these images, {listing(missing)}", missing)
        )
    look = {"headers": probe_picture, "all": read_picture, "none": None}[check]
    paths = {name: Path(folder, file) for name, file in present.items()}
    faults = _faults(list(paths.values()), look) if look else {}
    for name, path in paths.items():
        if path in faults:
            collection.problems.append(Problem("unreadable image", f"{path}: {faults[path]}", (present[name],)))
    usable = {name for name, path in paths.items() if path not in faults}
    return {split: [image for image in members if image.name in usable] for split, members in splits.items()}


def _faults(paths: Sequence[Path], look: Any) -> dict[Path, str]:
    """Path -> what is wrong with its image."""

    def fault(path: Path) -> str | None:
        try:
            look(path)
        except UnusableMedia as error:
            return str(error)
        return None

    with ThreadPoolExecutor(READERS) as pool:
        reasons = track(pool.map(fault, paths), len(paths), "checking images", unit="images")
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason is not None}


def settle(collection: Collection, splits: Splits, on_problem: OnProblem) -> None:
    """Let the problems stop the command, unless they are to be skipped.

    Raises:
        UserError: all problems at once; or no image is left.
    """
    told = [problem.text for problem in collection.problems]
    shown = "\n  " + abbreviated(told, "\n  ") if told else ""
    if told and on_problem == "error":
        remedy = "Mend them, or leave these images out with --on-problem skip"
        raise UserError(f"nothing was written; problems: {len(told)}. {remedy}.{shown}")
    if not any(splits.values()):
        left = "".join(f"\n  {len(names)} left out: {reason}" for reason, names in collection.left_out.items())
        raise UserError(f"nothing was written; no image is left{shown}{left}")


def write(folder: Path, splits: Splits, collection: Collection, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write a file of each split that has images, and the report; or nothing where the disk refuses.

    Args:
        folder: need not exist yet.
        splits: split -> images.
        collection: what is wrong or left out, for the report.
        settings: what the command was asked to do, for the report.

    Returns:
        The report.

    Raises:
        UserError: the disk refuses.
    """
    report = _report(splits, collection, settings)
    tables = {_file(split): {"annotations": list(map(_entry, images))} for split, images in splits.items() if images}
    made = []
    try:
        for name, table in {**tables, REPORT: report}.items():
            with atomic_write(folder / name) as file:
                json.dump(table, file, indent=1, ensure_ascii=False)
            made.append(folder / name)
    except OSError as error:
        for path in made:
            path.unlink()
        text = f"--output: cannot write to '{folder}': {error.strerror or error}"
        raise UserError(f"{text}. Make room, or name another folder.") from None
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
    """Reason -> files; or what is wrong with a row that names none. A file that another row gives is not left out."""
    left_out: dict[str, list[str]] = {}
    taken = {image.file for image in collection.images.values()}
    for problem in collection.problems:
        is_row = problem.kind == "row"
        names = [name for name in problem.clips if not (is_row and name in taken)] if problem.clips else [problem.text]
        if names:
            left_out.setdefault(f"problem: {problem.kind}", []).extend(names)
    return left_out


def _file(split: str) -> str:
    return f"flickr30k_{split}.json"


def _entry(image: Image) -> dict[str, Any]:
    return {"image_id": image.name, "caption": " ".join(image.captions), "captions": list(image.captions)}


def summary(report: Mapping[str, Any], folder: Path) -> str:
    """The report for the terminal; where names are many, the first few."""
    splits, captions = report["splits"], report["captions"]
    lines = [f"{sum(splits.values()):,} images -> {folder}"]
    for split, count in splits.items():
        told = f"({captions[split]:,} captions)" if count else "is not written: no image is left"
        lines.append(f"{count:8,} {_file(split)} {told}")
    other = [f"{name} ({count})" for name, count in report["other_number_of_captions"].items()]
    lines += [f"{len(other):8,} have other than {CAPTIONS} captions: {_some(other)}"] if other else []
    rows = [problem["text"] for problem in report["problems"] if problem["kind"] == "row"]
    groups = {reason: names for reason, names in report["left_out"].items() if reason != "problem: row"}
    lines += ["left out:"] if groups or rows else []
    lines += [f"{len(names):8,} {reason}: {_some(names)}" for reason, names in groups.items()]
    lines += [f"{len(rows):8,} problem: row"] if rows else []
    lines += [f"{'':9}" + abbreviated(rows, f"\n{'':9}", where=REPORT)] if rows else []
    return "\n".join([*lines, f"All names stand in {REPORT}.\n"])


def _some(names: Sequence[str]) -> str:
    return abbreviated(names, where=REPORT)
