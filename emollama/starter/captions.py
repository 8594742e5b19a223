"""The block of images with captions in a starter configuration."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from emollama.data.captions import Captioned, read_captioned
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.starter.draft import Draft
from emollama.starter.survey import IMAGE_ENDINGS, MAX_TEXT, image_folders

PUBLISHED = ("flickr_annotations_30k.csv", "dataset_flickr30k.json", "results_20130124.token", "results.csv")


def fill(draft: Draft, path: str) -> list[str] | None:
    """Fill in the block at a path.

    Returns:
        Commands that come before training; None where the folder has neither a caption file nor published annotations.
    """
    place, usual = draft.expected(f"{path}.data_root"), draft.text.get(f"{path}.annotation_file") or ""
    candidates = [place / usual] if place is not None else []
    candidates += draft.survey.named(usual)
    candidates += sorted(draft.survey.ending(".json"), key=lambda file: "train" not in file.name)
    for file in candidates:
        if images := _read(file):
            draft.text.set(f"{path}.data_root", draft.written(file.parent))
            draft.have(f"{path}.annotation_file", file.name, f"{len(images):,} images")
            _image_folder(draft, path, file.parent, images)
            return []
    published = next(iter(draft.survey.named(*PUBLISHED)), None)
    if published is None:
        return None
    draft.text.set(f"{path}.data_root", draft.written(published.parent))
    draft.lack(f"{path}.annotation_file", "no such file yet", f"emollama prepare flickr30k makes it of {published.name}")
    folders = image_folders(draft.survey)
    images_at = folders[0][0] if folders else published.parent / "images"
    if folders:
        value = _relative(published.parent, images_at)
        draft.have(f"{path}.image_path", value, f"{folders[0][1]:,} images")
    else:
        draft.lack(f"{path}.image_path", "no images", "put them there")
    splits = "" if published.name in PUBLISHED[:2] else " --splits FOLDER_OF_SPLITS"
    command = f"emollama prepare flickr30k --annotations {shlex.quote(str(published))} --images {shlex.quote(str(images_at))}"
    return [command + splits]


def _read(file: Path) -> list[Captioned]:
    """The images of a caption file; empty where it is none, or nothing in it has a caption."""
    problems: list[Problem] = []
    try:
        if not file.is_file() or file.stat().st_size > MAX_TEXT:
            return []
        images = read_captioned(str(file), problems.append)
    except (UserError, OSError):
        return []
    return images if any(image.captions for image in images) else []


def _image_folder(draft: Draft, path: str, here: Path, images: list[Captioned]) -> None:
    """The folder with the first image's file; the configured one comes first."""
    key = f"{path}.image_path"
    usual = here / (draft.text.get(key) or "images")
    folders = [usual, *(folder for folder, _ in image_folders(draft.survey))]
    names = [images[0].file, *(f"{images[0].name}{ending}" for ending in IMAGE_ENDINGS)]
    folder = next((folder for folder in folders if any((folder / name).is_file() for name in names)), None)
    if folder is None:
        draft.lack(key, f"no image '{images[0].name}' in any folder", "put the images there")
    else:
        draft.have(key, _relative(here, folder), "images")


def _relative(here: Path, folder: Path) -> str:
    return os.path.relpath(folder, here)
