"""Read Flickr30k in each of its published formats, which are recognized by the content of the file.

* CSV with :data:`COLUMNS` and one row per image; ``raw`` is a JSON list of its captions in one quoted cell
* Karpathy's JSON: ``{"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "..."}]}]}``
* token file: lines ``1.jpg#0<TAB>caption``, without splits
* token table: a header ``image_name| comment_number| comment`` and lines ``1.jpg| 0| caption``, without splits
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from emollama.data.annotations import read_json, safe_name
from emollama.data.captions import parse_captions
from emollama.data.csv_files import read_csv
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.json_io import parse_json
from emollama.listing import abbreviated, listing
from emollama.media.image_files import EXTENSIONS
from emollama.paths import read_text, require_file
from emollama.suggestions import did_you_mean

COLUMNS = ("raw", "sentids", "split", "filename", "img_id")
NEEDED = ("raw", "split", "filename")
SPLITS = ("train", "val", "test", "restval")  # the published names
MISSPELLED_RATIO = 0.8  # similarity (difflib) from which a name is considered a misspelled published name
_TOKEN_LINE = re.compile(r"([^\t#]+)#(\d+)\t(.*)")
# The second bar is optional, because one row of the published table lacks it.
_TOKEN_ROW = re.compile(r"([^|]+?)\s*\|\s*(\d+)(?:\s*\|\s*|\s+)(.*)")
_TOKEN_HEADER = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment\s*")
_SPLIT_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Image:
    """One image of the source.

    Attributes:
        name: path of its file relative to the folder of images, without the extension.
        file: the path with its extension.
        captions: its captions, at least one.
        split: its split; None if the source has no splits.
        img_id: its id in the table; empty if there is no id.
    """

    name: str
    file: str
    captions: tuple[str, ...]
    split: str | None
    img_id: str = ""


@dataclass
class Collection:
    """Images and problems of a source.

    Attributes:
        images: name -> image, in the order of the file.
        problems: problems that stop the command; with ``--on-problem skip``, their images are left out.
        left_out: reason -> names that are left out on purpose.
    """

    images: dict[str, Image] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    _first_uses: dict[tuple[str, str], str] = field(default_factory=dict)  # (kind of name, name) -> file and line

    def add(self, where: str, file: Any, parse: Callable[[], Image]) -> None:
        """Add the image of a row, or record a problem. Of two images with the same name or img_id, the first one is added.

        Args:
            where: file and line of the row, for messages.
            file: name of the image file as written in the row.
            parse: returns the image; raises ValueError if the row is not valid.
        """
        try:
            image = parse()
            keys = [(what, value) for what, value in (("image", image.name), ("img_id", image.img_id)) if value]
            for key in keys:
                if key in self._first_uses:
                    raise ValueError(f"the {key[0]} '{key[1]}' is already in {self._first_uses[key]}. Keep one of the two.")
        except ValueError as error:
            self.problems.append(Problem("row", f"{where}: {error}", (file,) if isinstance(file, str) and file else ()))
        else:
            self.images[image.name] = image
            self._first_uses |= dict.fromkeys(keys, where)


def read(path: str) -> Collection:
    """Read a source in any of the formats.

    Raises:
        UserError: If the file does not exist, has an unexpected format, or contains no image.
    """
    text = read_text(require_file(path, "--annotations"))
    first_character = text.lstrip()[:1]
    if not first_character:
        raise UserError(f"--annotations: {path} is empty")
    collection = Collection()
    if first_character in ("{", "["):
        _read_karpathy(path, collection)
    elif any(map(_TOKEN_LINE.match, text.splitlines()[:10])):
        _read_tokens(path, text, _TOKEN_LINE, collection)
    elif _TOKEN_HEADER.fullmatch(text.lstrip().splitlines()[0]):
        _read_tokens(path, text, _TOKEN_ROW, collection)
    else:
        _read_table(path, collection)
    if not collection.images and not collection.problems:
        raise UserError(f"--annotations: {path} contains no image")
    return collection


def _read_table(path: str, collection: Collection) -> None:
    problems: list[Problem] = []
    header, rows = read_csv(path, "--annotations", problems.append)
    collection.problems += [Problem("row", problem.text) for problem in problems]
    unknown = [column for column in header if column not in COLUMNS]
    missing = [column for column in NEEDED if column not in header]
    if unknown or missing:
        what = f"lacks {', '.join(missing)}" if missing else f"has unknown columns: {abbreviated(map(repr, unknown))}"
        suggestions = [did_you_mean(column, COLUMNS) for column in unknown]
        raise UserError(f"{path}, line 1: the header {what}.{''.join(suggestions)} Expected {','.join(COLUMNS)}.")
    for line, cells in rows:
        collection.add(f"{path}, line {line}", cells["filename"], partial(_image_of_row, cells))


def _image_of_row(cells: Mapping[str, str]) -> Image:
    raw = cells["raw"]
    try:
        captions = parse_json(raw)
    except ValueError:
        raise ValueError(f'the cell raw is not a JSON list of captions: {raw[:60]!r}. Expected "[""..."", ""...""]".') from None
    return replace(_image(cells["filename"], captions, cells["split"]), img_id=cells.get("img_id", "").strip())


def _read_karpathy(path: str, collection: Collection) -> None:
    table = read_json(path, lone_surrogates_allowed=True)
    entries = table.get("images") if isinstance(table, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{path}: expected {{"images": [{{"filename", "split", "sentences": [{{"raw"}}]}}]}}')
    for number, entry in enumerate(entries):
        file = entry.get("filename") if isinstance(entry, dict) else None
        collection.add(f"{path}, images[{number}]", file, partial(_image_of_karpathy, entry))


def _image_of_karpathy(entry: Any) -> Image:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object with filename, split and sentences, got {str(entry)[:60]}")
    sentences, image = entry.get("sentences"), f"(image '{entry.get('filename')}')"
    if not isinstance(sentences, list):
        what = f"is {str(sentences)[:60]!r}" if "sentences" in entry else "is missing"
        raise ValueError(f'"sentences" {what}; expected a list of {{"raw": "a caption"}} {image}')
    for number, sentence in enumerate(sentences):
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
            raise ValueError(f'sentences[{number}] is {str(sentence)[:60]}; expected {{"raw": "a caption"}} {image}')
    return _image(entry.get("filename"), [sentence["raw"] for sentence in sentences], entry.get("split") or "")


def _read_tokens(path: str, text: str, pattern: re.Pattern[str], collection: Collection) -> None:
    captions: dict[str, dict[int, str]] = {}
    lines: dict[str, int] = {}
    for line, row in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        match = pattern.fullmatch(row)
        where = f"{path}, line {line}"
        if match is not None:
            file, number = match[1].strip(), int(match[2])
            lines.setdefault(file, line)
            if number in captions.setdefault(file, {}):
                what = f"caption {number} of '{file}' is repeated. Keep one."
                collection.problems.append(Problem("row", f"{where}: {what}", (file,)))
            else:
                captions[file][number] = match[3]
        elif row.strip() and not _TOKEN_HEADER.fullmatch(row.strip()):
            expected = "'name.jpg#0', a tab and a caption" if pattern is _TOKEN_LINE else "'name.jpg| 0| a caption'"
            collection.problems.append(Problem("row", f"{where}: expected {expected}, got {row[:60]!r}"))
    for file, texts in captions.items():
        ordered = [texts[number] for number in sorted(texts)]
        collection.add(f"{path}, line {lines[file]}", file, partial(_image, file, ordered, None))


def _image(file: Any, captions: Any, split: Any) -> Image:
    """Check the values of a row and return its image.

    Raises:
        ValueError: If the file name points outside the folder or does not have the extension of an image, the captions are not a
            list of texts, or the name of the split is not valid.
    """
    if not isinstance(file, str) or not file.strip():
        raise ValueError("the row has no file name")
    name, extension = os.path.splitext(safe_name(file.strip()))
    if extension.lower() not in EXTENSIONS:
        raise ValueError(f"the file '{file}' has none of the extensions {' '.join(EXTENSIONS)}")
    if split is not None and (not isinstance(split, str) or not _SPLIT_NAME.fullmatch(split)):
        raise ValueError(f"the split of '{file}' is {split!r}; expected a name such as train, val or test")
    try:
        return Image(name, file.strip(), parse_captions(captions), split)
    except ValueError as error:
        raise ValueError(f"{error} (image '{name}')") from None


def without_misspelled(collection: Collection, splits: Mapping[str, list[Image]], source: str) -> dict[str, list[Image]]:
    """Empty the splits whose names are misspelled names of :data:`SPLITS`, and record them as problems.

    Args:
        collection: problems are added to it.
        splits: split -> images.
        source: where the names come from, for messages.

    Returns:
        Split -> images.
    """
    intended = {split: _intended_split(split) for split in splits}
    for split, published in intended.items():
        if published:
            files = tuple(image.file for image in splits[split])
            text = f"{source}: a split is named '{split}' ({listing(files, 'image')}). Did you mean '{published}'?"
            collection.problems.append(Problem("split", text, files))
    return {split: [] if intended[split] else images for split, images in splits.items()}


def _intended_split(split: str) -> str | None:
    """Return the published split whose misspelled name this is; None for published and other names, such as trainval or dev."""
    lower = split.lower()
    anagrams = [published for published in SPLITS if sorted(published) == sorted(lower)]
    similar = anagrams or get_close_matches(lower, SPLITS, 1, MISSPELLED_RATIO)
    # A longer name that contains a published one, such as trainval, is not a misspelled name.
    is_valid = split in SPLITS or (lower not in SPLITS and any(published in lower for published in SPLITS))
    return similar[0] if similar and not is_valid else None


def read_splits(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """Read lists of images, with one image name or file name per line.

    Args:
        paths: text files that are named after their splits, or folders of such files.

    Returns:
        Split -> image name -> file and line of the name.

    Raises:
        UserError: If a file does not exist, a folder contains no lists, two lists have the same name, or an image is listed
            twice.
    """
    splits: dict[str, dict[str, str]] = {}
    first_uses: dict[str, str] = {}
    repeated = []
    for path in _list_files(paths):
        split = os.path.splitext(os.path.basename(path))[0]
        if split in splits or not _SPLIT_NAME.fullmatch(split):
            raise UserError(f"--splits: {path}: the file name must be the name of its split, such as train.txt, and unique")
        lines = read_text(require_file(path, "--splits")).split("\n")
        names = [(_without_ending(text.strip()), f"{path}, line {line}") for line, text in enumerate(lines, 1) if text.strip()]
        splits[split] = dict(names)
        for name, where in names:
            if (first := first_uses.setdefault(name, where)) != where:
                repeated.append(f"{where}: '{name}' is already in {first}")
    if repeated:
        raise UserError("--splits: an image must be in one split only, and once. Remove:\n  " + "\n  ".join(repeated))
    return splits


def _list_files(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        names = sorted(name for name in os.listdir(path) if name.endswith(".txt") and not name.startswith("."))
        if not names:
            raise UserError(f"--splits: the folder '{path}' contains no list (.txt). Expected train.txt, val.txt, test.txt.")
        yield from (os.path.join(path, name) for name in names)


def _without_ending(name: str) -> str:
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in EXTENSIONS else name


def assign_splits(collection: Collection, splits: Mapping[str, Mapping[str, str]]) -> dict[str, list[Image]]:
    """Assign the images to the splits of :func:`read_splits`.

    Images that no list contains are left out. Listed names without a valid row are added to the problems of the collection.
    """
    listed = {name for names in splits.values() for name in names}
    for name in collection.images:
        if name not in listed:
            collection.left_out.setdefault("in no list of --splits", []).append(name)
    for split, names in splits.items():
        unknown = tuple(name for name in names if name not in collection.images)
        if unknown:
            text = f"the annotations have no valid row for {listing(unknown, 'image')} of the list {split}"
            collection.problems.append(Problem("split", f"{names[unknown[0]]}: {text}", unknown))
    return {split: [image for name, image in collection.images.items() if name in names] for split, names in splits.items()}
