"""Reader of JSON files with images and their captions.

Two formats are recognized by their content. They are those of the published data of MiniGPT-4 and of COCO:

* ``{"annotations": [{"image_id": "7", "caption": "...", "captions": ["...", ...]}]}``, or the list alone: one entry per image,
  whose file is ``<image_id>.jpg``. ``captions`` is optional; ``caption`` is the text of all captions.
* ``{"images": [{"id": 7, "file_name": "x.jpg"}], "annotations": [{"image_id": 7, "caption": "..."}, ...]}``: one entry per
  caption.

The reader passes problems of single entries to its ``report`` argument and skips the entry. An image may have no captions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emollama.data.annotations import read_json, safe_name
from emollama.data.problems import Problem, Report, raise_problem
from emollama.errors import UserError
from emollama.listing import listing
from emollama.paths import require_file
from emollama.text_encoding import LONE_SURROGATE, is_encodable

EXPECTED = (
    'expected {"annotations": [{"image_id": "...", "caption": "...", "captions": ["...", ...]}]},'
    ' or COCO\'s "images" and "annotations"'
)
MAX_PROBLEMS = 10  # number of problems of one kind that are reported one by one


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its captions.

    Attributes:
        name: path of the image below the image folder, without the extension.
        file: path of the image below the image folder, with the extension if the caption file contains it.
        captions: the separate captions; empty if the caption file lists the image without captions.
        joined: all captions as one text.
    """

    name: str
    file: str
    captions: tuple[str, ...]
    joined: str


def read_captioned_images(path: str, report: Report = raise_problem, key: str = "annotation_file") -> list[CaptionedImage]:
    """Read the images of a caption file in order.

    Args:
        path: the JSON file.
        report: receives invalid entries, unsafe and repeated names, and captions of images that are not listed.
        key: the configuration key of the path, for messages.

    Raises:
        UserError: If the file does not exist, is not JSON, has an unexpected format, or contains no usable entry.
    """
    table = read_json(require_file(path, key), lone_surrogates_allowed=True)
    problems: list[Problem] = []
    if isinstance(table, dict) and isinstance(table.get("images"), list):
        if not isinstance(table.get("annotations"), list):
            karpathy = any(isinstance(entry, dict) and "sentences" in entry for entry in table["images"])
            remedy = ' The captions are in "images": convert the file with emollama prepare flickr30k.' if karpathy else ""
            raise UserError(f'{path}: the file has "images" but no list "annotations"; {EXPECTED}.{remedy}')
        images = list(_from_coco(path, table, problems.append))
    else:
        entries = table.get("annotations") if isinstance(table, dict) else table
        if not isinstance(entries, list):
            raise UserError(f"{path}: {EXPECTED}")
        images = list(_from_entries(path, entries, problems.append))
    if not images:
        first = f" The first problem: {problems[0].text}" if problems else ""
        raise UserError(f"{path}: the file has no image or no usable entry; {EXPECTED}.{first}")
    for problem in first_of_each_kind(path, problems):
        report(problem)
    return images


def first_of_each_kind(path: str, problems: list[Problem]) -> Iterator[Problem]:
    """Yield the first few problems of each kind, then one problem that stands for all others of this kind.

    Args:
        path: path of the captions, for messages.
        problems: the problems of single entries.
    """
    for kind in dict.fromkeys(problem.kind for problem in problems):
        same_kind = [problem for problem in problems if problem.kind == kind]
        yield from same_kind[:MAX_PROBLEMS]
        if others := same_kind[MAX_PROBLEMS:]:
            names = tuple(name for problem in others for name in problem.clips)
            yield Problem(kind, f"{path}: {len(others):,} more invalid entries, the last one: {others[-1].text}", names)


def parse_captions(value: Any) -> tuple[str, ...]:
    """Return the stripped captions of a list.

    Raises:
        ValueError: If the value is not a list or is empty, or if a caption is not text, is empty or cannot be encoded as UTF-8.
    """
    if not isinstance(value, list):
        raise ValueError("the captions must be a list of texts")
    if not value:
        raise ValueError("the list of captions is empty")
    return tuple(parse_caption(text) for text in value)


def parse_caption(value: Any) -> str:
    """Return a stripped caption.

    Raises:
        ValueError: If the value is not text, is empty, or cannot be encoded as UTF-8.
    """
    if not isinstance(value, str):
        raise ValueError(f"a caption must be text, got {str(value)[:40]!r}")
    text = value.strip()
    if not text:
        raise ValueError("a caption is empty")
    if not is_encodable(text):
        raise ValueError(f"the caption {text[:40]!a} contains {LONE_SURROGATE}")
    return text


class _ImageNames:
    """The names of the images of a file, which must be unique."""

    def __init__(self) -> None:
        self._entries: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def add(self, name: str, entry: str, remedy: str) -> str:
        safe_name(name)
        if (first := self._entries.setdefault(name, entry)) != entry:
            raise ValueError(f"{first} already has the image '{name}'. {remedy}")
        return name


def _from_entries(path: str, entries: list[Any], report: Report) -> Iterator[CaptionedImage]:
    names, remedy = _ImageNames(), "Merge the two entries into one, with all captions in the list 'captions'."
    if repeated := _repeated(entries):
        text = f"{path}: several entries for {listing(repeated, 'image_id')}. The file seems to have COCO's format, but no"
        report(Problem("caption", f'{text} "images". Add them, or write one entry per image, with a list "captions".', repeated))
    for index, entry in enumerate(entries):
        if repeated and str(entry.get("image_id") if isinstance(entry, dict) else "") in names:
            continue
        where = f"annotations[{index}]"
        try:
            fields = _require_fields(entry, "image_id")
            name = names.add(_parse_id(fields["image_id"]), where, remedy)
            joined = parse_caption(fields["caption"]) if fields.get("caption") else None
            captions = parse_captions(fields["captions"]) if fields.get("captions") else (joined,) if joined else ()
            yield CaptionedImage(name, name, captions, joined or " ".join(captions))
        except ValueError as error:
            image_id = str(entry.get("image_id", "")) if isinstance(entry, dict) else ""
            report(Problem("caption", f"{path}, {where}: {error}", (image_id,) if image_id else ()))


def _repeated(entries: list[Any]) -> tuple[str, ...]:
    """Return the image_ids with several entries, if the entries have one caption each."""
    objects = [entry for entry in entries if isinstance(entry, dict)]
    if any("captions" in entry for entry in objects):
        return ()
    counts = Counter(str(entry["image_id"]) for entry in objects if "image_id" in entry)
    return tuple(name for name, count in counts.items() if count > 1)


def _from_coco(path: str, table: dict[str, Any], report: Report) -> Iterator[CaptionedImage]:
    files: dict[str, str] = {}
    invalid: set[str] = set()  # ids of invalid images; "" for an image without an id
    names = _ImageNames()
    for index, entry in enumerate(table["images"]):
        where = f"images[{index}]"
        try:
            fields = _require_fields(entry, "id", "file_name")
            file, key = fields["file_name"], _parse_id(fields["id"])
            if not isinstance(file, str) or not os.path.splitext(file)[1]:
                raise ValueError(f"file_name must be the name of a file with an extension, got {file!r}")
            names.add(os.path.splitext(file)[0], where, "Names without their extensions must differ.")
            if key in files:
                raise ValueError(f"the id {key} already belongs to '{files[key]}'. Each image must have its own id.")
            files[key] = file
        except ValueError as error:
            report(Problem("list", f"{path}, {where}: {error}"))
            invalid.add(str(entry.get("id", "")) if isinstance(entry, dict) else "")
    captions = _captions_by_id(path, table["annotations"], report)
    unlisted = [key for key in captions if key not in files and key not in invalid]
    # A caption of an invalid image is not a second problem. If such an image has no id, no caption can be judged.
    if unlisted and "" not in invalid:
        text = f'{path}: captions refer to {listing(unlisted, "image_id")}, which "images" does not list. Add the images, or'
        report(Problem("caption", f"{text} remove the captions.", tuple(unlisted)))
    for key, file in files.items():
        texts = tuple(captions.get(key, ()))
        yield CaptionedImage(os.path.splitext(file)[0], file, texts, " ".join(texts))


def _captions_by_id(path: str, entries: list[Any], report: Report) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    if entries and not any(isinstance(entry, dict) and "caption" in entry for entry in entries):
        text = f'none of the {len(entries):,} "annotations" has a "caption", as in COCO\'s files of objects ("instances")'
        raise UserError(f"{path}: {text}. Set annotation_file to the file with the captions.")
    for index, entry in enumerate(entries):
        try:
            fields = _require_fields(entry, "image_id", "caption")
            captions.setdefault(_parse_id(fields["image_id"]), []).append(parse_caption(fields["caption"]))
        except ValueError as error:
            report(Problem("caption", f"{path}, annotations[{index}]: {error}"))
    return captions


def _require_fields(entry: Any, *keys: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict) or not all(key in entry for key in keys):
        raise ValueError(f"expected an object with {' and '.join(keys)}, got {str(entry)[:60]}")
    return entry


def _parse_id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise ValueError(f"expected the name or number of an image, got {value!r}")
    return str(value)
