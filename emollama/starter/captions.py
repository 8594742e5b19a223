"""Fill in the dataset block of a starter configuration for images with captions."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from emollama.data.captions import CaptionedImage, read_captioned_images
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.starter.draft import Draft
from emollama.starter.survey import IMAGE_EXTENSIONS, MAX_TEXT, image_folders

PUBLISHED = ("flickr_annotations_30k.csv", "dataset_flickr30k.json", "results_20130124.token", "results.csv")


def fill(draft: Draft, path: str) -> list[str] | None:
    """Fill in a block.

    Args:
        draft: the configuration.
        path: dotted path of the block.

    Returns:
        Commands to run before training; None if the folder has neither a caption file nor published annotations.
    """
    data_root, usual = draft.configured_path(f"{path}.data_root"), draft.text.get(f"{path}.annotation_file") or ""
    candidates = [data_root / usual] if data_root is not None else []
    candidates += draft.survey.files_named(usual)
    candidates += sorted(draft.survey.files_with_extension(".json"), key=lambda file: "train" not in file.name)
    for file in candidates:
        if images := _read(file):
            draft.text.set(f"{path}.data_root", draft.config_path(file.parent))
            draft.set_found(f"{path}.annotation_file", file.name, f"{len(images):,} images")
            _image_folder(draft, path, file.parent, images)
            return []
    published = next(iter(draft.survey.files_named(*PUBLISHED)), None)
    if published is None:
        return None
    draft.text.set(f"{path}.data_root", draft.config_path(published.parent))
    draft.mark_missing(
        f"{path}.annotation_file", "no such file yet", f"emollama prepare flickr30k converts {published.name} to it"
    )
    folders = image_folders(draft.survey)
    images_at = folders[0][0] if folders else published.parent / "images"
    if folders:
        value = _relative(published.parent, images_at)
        draft.set_found(f"{path}.image_path", value, f"{folders[0][1]:,} images")
    else:
        draft.mark_missing(f"{path}.image_path", "no images", "put the images there")
    splits = "" if published.name in PUBLISHED[:2] else " --splits FOLDER_OF_SPLITS"
    command = f"emollama prepare flickr30k --annotations {shlex.quote(str(published))} --images {shlex.quote(str(images_at))}"
    return [command + splits]


def _read(file: Path) -> list[CaptionedImage]:
    """Read the images of a caption file; return an empty list if it is not a caption file or contains no captions."""
    problems: list[Problem] = []
    try:
        if not file.is_file() or file.stat().st_size > MAX_TEXT:
            return []
        images = read_captioned_images(str(file), problems.append)
    except (UserError, OSError):
        return []
    return images if any(image.captions for image in images) else []


def _image_folder(draft: Draft, path: str, here: Path, images: list[CaptionedImage]) -> None:
    """Set ``image_path`` to the folder that contains the first image; the configured folder is tried first."""
    key = f"{path}.image_path"
    usual = here / (draft.text.get(key) or "images")
    folders = [usual, *(folder for folder, _ in image_folders(draft.survey))]
    names = [images[0].file, *(f"{images[0].name}{extension}" for extension in IMAGE_EXTENSIONS)]
    folder = next((folder for folder in folders if any((folder / name).is_file() for name in names)), None)
    if folder is None:
        draft.mark_missing(key, f"no image '{images[0].name}' in any folder", "put the images there")
    else:
        draft.set_found(key, _relative(here, folder), "images")


def _relative(here: Path, folder: Path) -> str:
    return os.path.relpath(folder, here)
