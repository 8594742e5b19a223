"""Helpers for tests of captioned images: drawn images, invented captions, and the published file formats of both."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (230, 210, 40)}
SPLITS = {"11": "train", "12": "train", "13": "val", "14": "test"}
COLUMNS = ("raw", "sentids", "split", "filename", "img_id")


def draw_image(path: Path, colour: str = "red", mode: str = "RGB", size: tuple[int, int] = (40, 30), **options) -> Path:
    """Draw a square on grey, save it and return the path."""
    image = Image.new("RGB", size, (120, 120, 120))
    ImageDraw.Draw(image).rectangle((5, 5, 20, 20), fill=COLOURS[colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path, **options)
    return path


def captions_of(name: str, count: int = 5) -> list[str]:
    """Invented captions; some contain characters that a CSV cell must quote."""
    ways = (
        "A square, number {}.",
        'The "square" {} on grey.',
        "Square {} is painted",
        "There's a square: {}",
        "Een vierkant — {}",
    )
    return [way.format(name) for way in ways[:count]]


def images(folder: Path, names=tuple(SPLITS)) -> Path:
    """A folder of drawn images."""
    for name, colour in zip(names, [*COLOURS] * len(names), strict=False):
        draw_image(folder / f"{name}.jpg", colour)
    return folder


def rows(names=tuple(SPLITS)) -> list[list[str]]:
    """Rows of the published CSV table."""
    return [
        [json.dumps(captions_of(name)), str([5 * n + i for i in range(5)]), SPLITS.get(name, "train"), f"{name}.jpg", str(n)]
        for n, name in enumerate(names)
    ]


def table(path: Path, content: list[list[str]] | None = None, header=COLUMNS, encoding: str = "utf-8") -> Path:
    """Write the CSV table and return its path."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows([header, *(rows() if content is None else content)])
    path.write_bytes(out.getvalue().encode(encoding))
    return path


def karpathy(path: Path, names=tuple(SPLITS)) -> Path:
    """Write a JSON file in Karpathy's format and return its path."""
    entries = [
        {
            "filename": f"{name}.jpg",
            "imgid": number,
            "split": SPLITS[name],
            "sentids": [],
            "sentences": [{"raw": text, "tokens": text.split(), "imgid": number} for text in captions_of(name)],
        }
        for number, name in enumerate(names)
    ]
    path.write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))
    return path


def tokens(path: Path, names=tuple(SPLITS)) -> Path:
    """Write the token file and return its path."""
    lines = [f"{name}.jpg#{number}\t{text}\n" for name in names for number, text in enumerate(captions_of(name))]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def entries(names, *, several: bool = True) -> list[dict]:
    """Entries in MiniGPT-4's format."""
    captioned = [{"image_id": name, "caption": " ".join(captions_of(name)), "captions": captions_of(name)} for name in names]
    return captioned if several else [{key: entry[key] for key in ("image_id", "caption")} for entry in captioned]


def coco(names, extension: str = "jpg") -> dict:
    """COCO's format; ids are numbers unrelated to the names, and the captions of an image are not adjacent."""
    listed = [{"id": number, "file_name": f"{name}.{extension}"} for number, name in enumerate(names)]
    captions = [
        {"id": 10 * turn + number, "image_id": number, "caption": captions_of(name)[turn]}
        for turn in range(5)
        for number, name in enumerate(names)
    ]
    return {"images": listed, "annotations": captions}
