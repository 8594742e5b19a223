"""Flickr30k in the three forms that it is published in; the file's content tells which it is.

* table: a CSV with :data:`COLUMNS`, a row an image; ``raw`` is a JSON list of its captions in one quoted cell
* Karpathy's: ``{"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "..."}]}]}``
* token file: lines ``1.jpg#0<TAB>caption``, which say nothing of splits
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from emollama.data.captions import texts_of
from emollama.data.clips import read_json, read_rows, safe_name
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.media.pictures import ENDINGS
from emollama.paths import read_text, require_file
from emollama.registry import did_you_mean

COLUMNS = ("raw", "sentids", "split", "filename", "img_id")
NEEDED = ("raw", "split", "filename")
NAMES_SHOWN = 100  # in a refusal
_TOKEN_LINE = re.compile(r"([^\t#]+)#(\d+)\t(.*)")
_SPLIT_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Image:
    """One image of the source.

    Attributes:
        name: its file's path below the folder of images, without the ending.
        file: the same with it.
        captions: at least one.
        split: None where the source says nothing of splits.
    """

    name: str
    file: str
    captions: tuple[str, ...]
    split: str | None


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
    _places: dict[str, str] = field(default_factory=dict)

    def take(self, where: str, make: Callable[[], Image]) -> None:
        """Take what a row gives, or note what is wrong with it; of two images of one name the first is taken."""
        try:
            image = make()
            if image.name in self.images:
                raise ValueError(f"the image '{image.name}' stands in {self._places[image.name]} already. Keep one of the two.")
        except ValueError as error:
            self.problems.append(Problem("row", f"{where}: {error}"))
        else:
            self.images[image.name] = image
            self._places[image.name] = where


def read(path: str) -> Collection:
    """Read a source in whichever form.

    Raises:
        UserError: no such file, a form that is none of the three, or no row.
    """
    text = read_text(require_file(path, "--annotations"))
    begin = text.lstrip()[:1]
    if not begin:
        raise UserError(f"--annotations: {path} is empty")
    collection = Collection()
    if begin in ("{", "["):
        _read_karpathy(path, collection)
    elif any(map(_TOKEN_LINE.match, text.splitlines()[:10])):
        _read_tokens(path, text, collection)
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
        told = f"lacks {', '.join(missing)}" if missing else f"has unknown columns: {', '.join(map(repr, strange))}"
        near = [did_you_mean(column, COLUMNS) for column in strange]
        raise UserError(f"{path}, line 1: the header {told}.{''.join(near)} Expected {','.join(COLUMNS)}.")
    for line, cells in rows:
        collection.take(f"{path}, line {line}", partial(_of_row, cells))


def _of_row(cells: Mapping[str, str]) -> Image:
    raw = cells["raw"]
    try:
        captions = json.loads(raw)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f'the cell raw is no JSON list of captions: {raw[:60]!r}. Expected "[""..."", ""...""]".') from None
    return _image(cells["filename"], captions, cells["split"])


def _read_karpathy(path: str, collection: Collection) -> None:
    table = read_json(path)
    entries = table.get("images") if isinstance(table, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{path}: expected {{"images": [{{"filename", "split", "sentences": [{{"raw"}}]}}]}}')
    for number, entry in enumerate(entries):
        collection.take(f"{path}, images[{number}]", partial(_of_karpathy, entry))


def _of_karpathy(entry: Any) -> Image:
    if not isinstance(entry, dict) or not isinstance(entry.get("sentences"), list):
        raise ValueError(f"expected an object with filename, split and sentences, found {str(entry)[:60]}")
    sentences = entry["sentences"]
    raw = [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences]
    return _image(entry.get("filename"), raw, entry.get("split"))


def _read_tokens(path: str, text: str, collection: Collection) -> None:
    captions: dict[str, dict[int, str]] = {}
    lines: dict[str, int] = {}
    for line, row in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        match = _TOKEN_LINE.fullmatch(row)
        where = f"{path}, line {line}"
        if match is not None:
            file, number = match[1].strip(), int(match[2])
            lines.setdefault(file, line)
            if number in captions.setdefault(file, {}):
                collection.problems.append(Problem("row", f"{where}: a second caption {number} of '{file}'. Keep one."))
            else:
                captions[file][number] = match[3]
        elif row.strip():
            collection.problems.append(Problem("row", f"{where}: {row[:60]!r} is not 'name.jpg#0', a tab and a caption"))
    for file, texts in captions.items():
        ordered = [texts[number] for number in sorted(texts)]
        collection.take(f"{path}, line {lines[file]}", partial(_image, file, ordered, None))


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


def abridged(names: Sequence[str]) -> str:
    """``3: a, b, c``: how many they are, and the first hundred."""
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names):,}: {', '.join(names[:NAMES_SHOWN])}{more}"


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
            text = f"images of the list {split} that the annotations do not have, or not rightly, {abridged(strange)}"
            collection.problems.append(Problem("split", f"{names[strange[0]]}: {text}", strange))
    return {split: [image for name, image in collection.images.items() if name in names] for split, names in splits.items()}
