"""Flickr30k in the forms that it is published in; the file's content tells which it is.

* table: a CSV with :data:`COLUMNS`, a row an image; ``raw`` is a JSON list of its captions in one quoted cell
* Karpathy's: ``{"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "..."}]}]}``
* token file: lines ``1.jpg#0<TAB>caption``, which say nothing of splits
* table of tokens: a header ``image_name| comment_number| comment`` and lines ``1.jpg| 0| caption``, nothing of splits either
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from emollama.data.annotations import read_json, read_rows, safe_name
from emollama.data.captions import texts_of
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.media.image_files import ENDINGS
from emollama.paths import read_text, require_file
from emollama.registry import did_you_mean

COLUMNS = ("raw", "sentids", "split", "filename", "img_id")
NEEDED = ("raw", "split", "filename")
SPLITS = ("train", "val", "test", "restval")  # as published
NEAR = 0.8  # ratio of difflib from which another name is one of these, misspelt
_TOKEN_LINE = re.compile(r"([^\t#]+)#(\d+)\t(.*)")
_TOKEN_ROW = re.compile(r"([^|]+?)\s*\|\s*(\d+)(?:\s*\|\s*|\s+)(.*)")  # one row of the published table lacks its second bar
_TOKEN_HEADER = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment\s*")
_SPLIT_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Image:
    """One image of the source.

    Attributes:
        name: its file's path below the folder of images, without the ending.
        file: the same with it.
        captions: at least one.
        split: None where the source says nothing of splits.
        img_id: of the table; empty where it has none.
    """

    name: str
    file: str
    captions: tuple[str, ...]
    split: str | None
    img_id: str = ""


@dataclass
class Collection:
    """What is taken of a source and what is wrong with the rest.

    Attributes:
        images: name -> image, in the order of the file.
        problems: what stops the command, or is left out with ``--on-problem skip``.
        left_out: reason -> names; by the user's word.
    """

    images: dict[str, Image] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    _places: dict[tuple[str, str], str] = field(default_factory=dict)

    def take(self, where: str, file: Any, make: Callable[[], Image]) -> None:
        """Take what a row about a file gives, or note what is wrong; of two images of one name or img_id the first is taken."""
        try:
            image = make()
            keys = [(what, value) for what, value in (("image", image.name), ("img_id", image.img_id)) if value]
            for key in keys:
                if key in self._places:
                    raise ValueError(f"the {key[0]} '{key[1]}' stands in {self._places[key]} already. Keep one of the two.")
        except ValueError as error:
            self.problems.append(Problem("row", f"{where}: {error}", (file,) if isinstance(file, str) and file else ()))
        else:
            self.images[image.name] = image
            self._places |= dict.fromkeys(keys, where)


def read(path: str) -> Collection:
    """Read a source in whichever form.

    Raises:
        UserError: no such file, a form that is none of these, or no row.
    """
    text = read_text(require_file(path, "--annotations"))
    begin = text.lstrip()[:1]
    if not begin:
        raise UserError(f"--annotations: {path} is empty")
    collection = Collection()
    if begin in ("{", "["):
        _read_karpathy(path, collection)
    elif any(map(_TOKEN_LINE.match, text.splitlines()[:10])):
        _read_tokens(path, text, _TOKEN_LINE, collection)
    elif _TOKEN_HEADER.fullmatch(text.lstrip().splitlines()[0]):
        _read_tokens(path, text, _TOKEN_ROW, collection)
    else:
        _read_table(path, collection)
    if not collection.images and not collection.problems:
        raise UserError(f"--annotations: {path} holds no image")
    return collection


def _read_table(path: str, collection: Collection) -> None:
    faults: list[Problem] = []
    header, rows = read_rows(path, "--annotations", faults.append)
    collection.problems += [Problem("row", problem.text) for problem in faults]
    strange = [column for column in header if column not in COLUMNS]
    missing = [column for column in NEEDED if column not in header]
    if strange or missing:
        told = f"lacks {', '.join(missing)}" if missing else f"has unknown columns: {abbreviated(map(repr, strange))}"
        near = [did_you_mean(column, COLUMNS) for column in strange]
        raise UserError(f"{path}, line 1: the header {told}.{''.join(near)} Expected {','.join(COLUMNS)}.")
    for line, cells in rows:
        collection.take(f"{path}, line {line}", cells["filename"], partial(_of_row, cells))


def _of_row(cells: Mapping[str, str]) -> Image:
    raw = cells["raw"]
    try:
        captions = json.loads(raw)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f'the cell raw is no JSON list of captions: {raw[:60]!r}. Expected "[""..."", ""...""]".') from None
    return replace(_image(cells["filename"], captions, cells["split"]), img_id=cells.get("img_id", "").strip())


def _read_karpathy(path: str, collection: Collection) -> None:
    table = read_json(path)
    entries = table.get("images") if isinstance(table, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{path}: expected {{"images": [{{"filename", "split", "sentences": [{{"raw"}}]}}]}}')
    for number, entry in enumerate(entries):
        file = entry.get("filename") if isinstance(entry, dict) else None
        collection.take(f"{path}, images[{number}]", file, partial(_of_karpathy, entry))


def _of_karpathy(entry: Any) -> Image:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object with filename, split and sentences, found {str(entry)[:60]}")
    sentences, of = entry.get("sentences"), f"(image '{entry.get('filename')}')"
    if not isinstance(sentences, list):
        found = f"is {str(sentences)[:60]!r}" if "sentences" in entry else "is missing"
        raise ValueError(f'"sentences" {found}; expected a list of {{"raw": "a caption"}} {of}')
    for number, sentence in enumerate(sentences):
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
            raise ValueError(f'sentences[{number}] is {str(sentence)[:60]}; expected {{"raw": "a caption"}} {of}')
    return _image(entry.get("filename"), [sentence["raw"] for sentence in sentences], entry.get("split") or "")


def _read_tokens(path: str, text: str, form: re.Pattern[str], collection: Collection) -> None:
    captions: dict[str, dict[int, str]] = {}
    lines: dict[str, int] = {}
    for line, row in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        match = form.fullmatch(row)
        where = f"{path}, line {line}"
        if match is not None:
            file, number = match[1].strip(), int(match[2])
            lines.setdefault(file, line)
            if number in captions.setdefault(file, {}):
                collection.problems.append(Problem("row", f"{where}: a second caption {number} of '{file}'. Keep one.", (file,)))
            else:
                captions[file][number] = match[3]
        elif row.strip() and not _TOKEN_HEADER.fullmatch(row.strip()):
            expected = "'name.jpg#0', a tab and a caption" if form is _TOKEN_LINE else "'name.jpg| 0| a caption'"
            collection.problems.append(Problem("row", f"{where}: {row[:60]!r} is not {expected}"))
    for file, texts in captions.items():
        ordered = [texts[number] for number in sorted(texts)]
        collection.take(f"{path}, line {lines[file]}", file, partial(_image, file, ordered, None))


def _image(file: Any, captions: Any, split: Any) -> Image:
    """What a row says, checked.

    Raises:
        ValueError: a file's name that is unsafe or no image's, captions that are no list of texts, or a split without a name.
    """
    if not isinstance(file, str) or not file.strip():
        raise ValueError("the row names no file")
    name, ending = os.path.splitext(safe_name(file.strip()))
    if ending.lower() not in ENDINGS:
        raise ValueError(f"the file '{file}' ends with none of {' '.join(ENDINGS)}")
    if split is not None and (not isinstance(split, str) or not _SPLIT_NAME.fullmatch(split)):
        raise ValueError(f"the split of '{file}' is {split!r}; expected a name such as train, val or test")
    try:
        return Image(name, file.strip(), texts_of(captions), split)
    except ValueError as error:
        raise ValueError(f"{error} (image '{name}')") from None


def rightly_spelt(collection: Collection, splits: Mapping[str, list[Image]], source: str) -> dict[str, list[Image]]:
    """The splits, empty where the name is one of :data:`SPLITS` misspelt, which is a problem, told as one of the source."""
    meant = {split: _meant(split) for split in splits}
    for split, usual in meant.items():
        if usual:
            files = tuple(image.file for image in splits[split])
            text = f"{source}: a split called '{split}' (images {listing(files)}). Did you mean '{usual}'?"
            collection.problems.append(Problem("split", text, files))
    return {split: [] if meant[split] else images for split, images in splits.items()}


def _meant(split: str) -> str | None:
    """The published split that a name is, misspelt; None for one of them, and for names of their own such as trainval or dev."""
    lower = split.lower()
    alike = [usual for usual in SPLITS if sorted(usual) == sorted(lower)] or get_close_matches(lower, SPLITS, 1, NEAR)
    own = split in SPLITS or (lower not in SPLITS and any(usual in lower for usual in SPLITS))
    return alike[0] if alike and not own else None


def read_splits(places: Iterable[str]) -> dict[str, dict[str, str]]:
    """split -> image's name -> where it stands, of lists of names or file names, one a line.

    Args:
        places: text files called after their splits, or folders of them.

    Raises:
        UserError: no such file, a folder without lists, two lists of one split, or an image that stands twice.
    """
    splits: dict[str, dict[str, str]] = {}
    owners: dict[str, str] = {}
    faults = []
    for path in _lists(places):
        split = os.path.splitext(os.path.basename(path))[0]
        if split in splits or not _SPLIT_NAME.fullmatch(split):
            raise UserError(f"--splits: {path}: a list is called after its split, such as train.txt, each by another name")
        rows = read_text(require_file(path, "--splits")).split("\n")
        given = [(_without_ending(row.strip()), f"{path}, line {line}") for line, row in enumerate(rows, 1) if row.strip()]
        splits[split] = dict(given)
        for name, where in given:
            if (first := owners.setdefault(name, where)) != where:
                faults.append(f"{where}: '{name}' stands in {first} already")
    if faults:
        raise UserError("--splits: an image belongs to one split, and stands there once. Remove:\n  " + "\n  ".join(faults))
    return splits


def _lists(places: Iterable[str]) -> Iterator[str]:
    for place in places:
        if not os.path.isdir(place):
            yield place
            continue
        found = sorted(name for name in os.listdir(place) if name.endswith(".txt") and not name.startswith("."))
        if not found:
            raise UserError(f"--splits: no list (.txt) in the folder '{place}'. Expected train.txt, val.txt, test.txt.")
        yield from (os.path.join(place, name) for name in found)


def _without_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in ENDINGS else name


def by_splits(collection: Collection, splits: Mapping[str, Mapping[str, str]]) -> dict[str, list[Image]]:
    """split -> its images, of lists; images of no list are left out, and names that the source does not have are a problem."""
    listed = {name for names in splits.values() for name in names}
    for name in collection.images:
        if name not in listed:
            collection.left_out.setdefault("in no list of --splits", []).append(name)
    for split, names in splits.items():
        strange = tuple(name for name in names if name not in collection.images)
        if strange:
            text = f"images of the list {split} that the annotations do not have, or not rightly, {listing(strange)}"
            collection.problems.append(Problem("split", f"{names[strange[0]]}: {text}", strange))
    return {split: [image for name, image in collection.images.items() if name in names] for split, names in splits.items()}
