"""Captions of images, any number of each, as JSON files hold them.

Forms (source: the published data of MiniGPT-4 and of COCO; the file tells which it is):

* ``{"annotations": [{"image_id": "7", "caption": "...", "captions": ["...", ...]}]}``, or the list alone: an entry an image,
  whose file is called ``<image_id>.jpg``. ``captions`` are optional; ``caption`` is all that is said in one text.
* ``{"images": [{"id": 7, "file_name": "x.jpg"}], "annotations": [{"image_id": 7, "caption": "..."}, ...]}``: an entry a caption.

Entry by entry, what is wrong goes to ``report``, and the reader goes on without the entry. An image may come without captions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emollama.data.annotations import read_json, safe_name
from emollama.data.problems import Problem, Report, refuse
from emollama.errors import UserError
from emollama.listing import listing
from emollama.paths import require_file

FORM = '{"annotations": [{"image_id": "...", "caption": "...", "captions": ["...", ...]}]}, or COCO\'s with "images" beside'
FAULTS_TOLD = 10  # of a kind, each by itself


@dataclass(frozen=True)
class Captioned:
    """One image and what is said about it.

    Attributes:
        name: its file's path below the folder of images, without the ending.
        file: its file below that folder, with the ending where the caption file tells it.
        captions: each alone; empty where the file has the image and says nothing about it.
        joined: all in one text.
    """

    name: str
    file: str
    captions: tuple[str, ...]
    joined: str


def read_captioned(path: str, report: Report = refuse) -> list[Captioned]:
    """Read the images of a caption file in order.

    Args:
        path: the JSON file.
        report: told of entries that are of no use, unsafe and repeated names, and captions of images that are not listed.

    Raises:
        UserError: no such file, not JSON, another form, annotations without captions, or no usable entry.
    """
    table = read_json(require_file(path, "annotation_file"))
    problems: list[Problem] = []
    if isinstance(table, dict) and isinstance(table.get("images"), list):
        if not isinstance(table.get("annotations"), list):
            karpathy = any(isinstance(entry, dict) and "sentences" in entry for entry in table["images"])
            remedy = " Captions stand among its images: emollama prepare flickr30k splits such a file." if karpathy else ""
            raise UserError(f'{path}: it has "images" and no list "annotations". Expected {FORM}.{remedy}')
        found = list(_of_coco(path, table, problems.append))
    else:
        entries = table.get("annotations") if isinstance(table, dict) else table
        if not isinstance(entries, list):
            raise UserError(f"{path}: expected {FORM}")
        found = list(_of_entries(path, entries, problems.append))
    if not found:
        first = f" The first problem: {problems[0].text}" if problems else ""
        raise UserError(f"{path}: no image in it, or no entry that is usable; expected {FORM}.{first}")
    for problem in _first_of_each_kind(path, problems):
        report(problem)
    return found


def _first_of_each_kind(path: str, problems: list[Problem]) -> Iterator[Problem]:
    """The problems; of each kind the first few, then one for all others."""
    for kind in dict.fromkeys(problem.kind for problem in problems):
        alike = [problem for problem in problems if problem.kind == kind]
        yield from alike[:FAULTS_TOLD]
        if others := alike[FAULTS_TOLD:]:
            names = tuple(name for problem in others for name in problem.clips)
            yield Problem(kind, f"{path}: {len(others):,} more entries that are of no use, down to: {others[-1].text}", names)


def texts_of(value: Any) -> tuple[str, ...]:
    """The captions of a list, white space at their ends dropped.

    Raises:
        ValueError: no list of texts, an empty one, or one with a text that is empty or cannot be written as UTF-8.
    """
    if not isinstance(value, list):
        raise ValueError("the captions are no list of texts")
    if not value:
        raise ValueError("the list of captions is empty")
    return tuple(_text_of(text) for text in value)


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the caption {str(value)[:40]!r} is no text")
    text = value.strip()
    if not text:
        raise ValueError("a caption is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the caption {text[:40]!a} holds half of a character (a lone surrogate)") from None
    return text


class _ImageNames:
    """Names of images, each of which may stand in a file once."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def entered(self, name: str, where: str, remedy: str) -> str:
        safe_name(name)
        if (first := self._places.setdefault(name, where)) != where:
            raise ValueError(f"the image '{name}' stands in {first} already. {remedy}")
        return name


def _of_entries(path: str, entries: list[Any], report: Report) -> Iterator[Captioned]:
    names, remedy = _ImageNames(), "Keep one entry, with all captions in its list 'captions'."
    if repeated := _repeated(entries):
        text = f"{path}: image_ids that stand in it more than once, {listing(repeated)}. It looks like COCO's form without its"
        report(Problem("caption", f'{text} "images": add them, or make one entry an image, with a list "captions".', repeated))
    for number, entry in enumerate(entries):
        if repeated and str(entry.get("image_id") if isinstance(entry, dict) else "") in names:
            continue
        where = f"annotations[{number}]"
        try:
            given = _fields(entry, "image_id")
            name = names.entered(_name_of(given["image_id"]), where, remedy)
            joined = _text_of(given["caption"]) if given.get("caption") else None
            captions = texts_of(given["captions"]) if given.get("captions") else (joined,) if joined else ()
            yield Captioned(name, name, captions, joined or " ".join(captions))
        except ValueError as error:
            told = str(entry.get("image_id", "")) if isinstance(entry, dict) else ""
            report(Problem("caption", f"{path}, {where}: {error}", (told,) if told else ()))


def _repeated(entries: list[Any]) -> tuple[str, ...]:
    """The images that have several entries, in a file whose entries have one caption each."""
    given = [entry for entry in entries if isinstance(entry, dict)]
    if any("captions" in entry for entry in given):
        return ()
    counts = Counter(str(entry["image_id"]) for entry in given if "image_id" in entry)
    return tuple(name for name, count in counts.items() if count > 1)


def _of_coco(path: str, table: dict[str, Any], report: Report) -> Iterator[Captioned]:
    files: dict[str, str] = {}
    faulty: set[str] = set()  # ids of images that are of no use; "" where one has none
    names = _ImageNames()
    for number, entry in enumerate(table["images"]):
        where = f"images[{number}]"
        try:
            given = _fields(entry, "id", "file_name")
            file, key = given["file_name"], _name_of(given["id"])
            if not isinstance(file, str) or not os.path.splitext(file)[1]:
                raise ValueError(f"the file_name {file!r} is no name of a file with an ending")
            names.entered(os.path.splitext(file)[0], where, "Names without their endings must differ.")
            if key in files:
                raise ValueError(f"the id {key} is that of '{files[key]}' already. Give each image its own.")
            files[key] = file
        except ValueError as error:
            report(Problem("list", f"{path}, {where}: {error}"))
            faulty.add(str(entry.get("id", "")) if isinstance(entry, dict) else "")
    captions = _captions_by_id(path, table["annotations"], report)
    strange = [key for key in captions if key not in files and key not in faulty]
    if strange and "" not in faulty:
        text = f'{path}: captions of images that its "images" do not list, image_id {listing(strange)}. Add them, or take'
        report(Problem("caption", f"{text} the captions out.", tuple(strange)))
    for key, file in files.items():
        texts = tuple(captions.get(key, ()))
        yield Captioned(os.path.splitext(file)[0], file, texts, " ".join(texts))


def _captions_by_id(path: str, entries: list[Any], report: Report) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    if entries and not any(isinstance(entry, dict) and "caption" in entry for entry in entries):
        told = f'none of its {len(entries):,} "annotations" has a "caption", as in the files of objects ("instances") of COCO'
        raise UserError(f"{path}: {told}. Name the file of captions.")
    for number, entry in enumerate(entries):
        try:
            given = _fields(entry, "image_id", "caption")
            captions.setdefault(_name_of(given["image_id"]), []).append(_text_of(given["caption"]))
        except ValueError as error:
            report(Problem("caption", f"{path}, annotations[{number}]: {error}"))
    return captions


def _fields(entry: Any, *needed: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict) or not all(key in entry for key in needed):
        raise ValueError(f"expected an object with {' and '.join(needed)}, found {str(entry)[:60]}")
    return entry


def _name_of(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise ValueError(f"{value!r} is no image's name or number")
    return str(value)
