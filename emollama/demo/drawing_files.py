"""Drawn pictures with their captions on disk: as Flickr30k is published, and a second set in the form of COCO's captions."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emollama.demo.drawing_captions import CAPTIONS, PROMPTS, SECOND, captions
from emollama.demo.drawings import Split, draw_picture, draw_scene
from emollama.paths import atomic_write

HEADER = ("raw", "sentids", "split", "filename", "img_id")
TABLE = "flickr_annotations_30k.csv"
FIRST_ID = 7_000_000_000  # of the images: numbers like Flickr's
QUALITY = 92  # of the JPEG files
README = (
    "Everything in this folder is invented by a program (seed {seed}). flickr30k/ and second/ hold drawings of coloured shapes\n"
    "and sentences about them, in the forms of Flickr30k and of COCO's captions; flickr30k/shuffled/ holds the test images\n"
    "under each other's names. encoders/ hold the real architectures, very small, trained on other such drawings; llm/ is a\n"
    "tiny language model that has read invented texts; projection.pth has learnt to name the shapes. Results on it say that the\n"
    "machinery works, and nothing about real data.\n"
)


def write_drawings(folder: Path, *, seed: int) -> None:
    """Write ``flickr30k/``, ``second/`` and ``prompts.txt``, the data of the captioning demo."""
    write_flickr(folder / "flickr30k", {"train": 600, "val": 60, "test": 100}, seed=seed)
    write_second(folder / "second", 60, seed=seed)
    write_prompts(folder / "prompts.txt")
    (folder / "README.txt").write_text(README.format(seed=seed), encoding="utf-8")


def write_prompts(path: Path) -> None:
    """Write what images are asked with, a line each."""
    path.write_text("".join(f"<Img><ImageHere></Img> {prompt}\n" for prompt in PROMPTS), encoding="utf-8")


def write_flickr(folder: Path, counts: Mapping[Split, int], *, seed: int) -> None:
    """Write ``flickr_annotations_30k.csv``, ``images/<id>.jpg`` and ``shuffled/``; the same arguments give the same files.

    In ``shuffled`` each image of the test split has the name of another one.

    Args:
        folder: where to write.
        counts: split -> its pictures. No pair of coloured shapes is in two splits.
        seed: of everything random.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, str, int]] = []
    for index, split in enumerate(split for split, count in counts.items() for _ in range(count)):
        rng = np.random.default_rng([seed, 0, index])
        scene, name = draw_scene(rng, split), f"{FIRST_ID + 7919 * index}.jpg"
        draw_picture(rng, scene).save(folder / "images" / name, quality=QUALITY)
        numbers = list(range(CAPTIONS * index, CAPTIONS * (index + 1)))
        rows.append((json.dumps(captions(rng, scene)), json.dumps(numbers), split, name, index))
    with atomic_write(folder / TABLE) as file:
        csv.writer(file).writerows([HEADER, *rows])
    tested = [row[3] for row in rows if row[2] == "test"]
    (folder / "shuffled").mkdir(exist_ok=True)
    for name, other in zip(tested, tested[1:] + tested[:1], strict=True):
        shutil.copyfile(folder / "images" / other, folder / "shuffled" / name)


def write_second(folder: Path, count: int, *, seed: int) -> None:
    """Write ``captions.json``, in the form of COCO's, and ``images/``: pictures of the test split, told in another manner."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(count):
        rng = np.random.default_rng([seed, 1, index])
        scene, name = draw_scene(rng, "test"), f"drawing_{index:012d}.jpg"
        draw_picture(rng, scene).save(folder / "images" / name, quality=QUALITY)
        images.append({"id": index + 1, "file_name": name})
        for text in captions(rng, scene, SECOND):
            annotations.append({"image_id": index + 1, "id": len(annotations) + 1, "caption": text})
    with atomic_write(folder / "captions.json") as file:
        json.dump({"images": images, "annotations": annotations}, file, indent=1)
