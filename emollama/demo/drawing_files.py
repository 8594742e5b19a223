"""Write drawn pictures with captions: in the format of Flickr30k, and a second data set in the format of COCO."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emollama.data.csv_files import write_csv
from emollama.demo.drawing_captions import CAPTIONS, PROMPTS, SECOND, captions
from emollama.demo.drawings import Split, draw_picture, draw_scene
from emollama.paths import atomic_write

HEADER = ("raw", "sentids", "split", "filename", "img_id")
TABLE = "flickr_annotations_30k.csv"
FIRST_ID = 7_000_000_000  # image ids look like Flickr's
QUALITY = 92  # of the JPEG files
README = (
    "A program invented everything in this folder (seed {seed}). flickr30k/ and second/ contain drawings of coloured shapes\n"
    "and sentences about them, in the formats of Flickr30k and of COCO's captions. In flickr30k/shuffled/, the test images\n"
    "have each other's names. encoders/ contains the real architectures at a tiny size, trained on other drawings. llm/ is a\n"
    "tiny language model that was trained on invented texts. projection.pth was trained to name the shapes. Results on this\n"
    "data show that the programs work, but nothing about real data.\n"
)


def write_drawings(folder: Path, *, seed: int) -> None:
    """Write ``flickr30k/``, ``second/`` and ``prompts.txt``, the data of the captioning demo."""
    write_flickr(folder / "flickr30k", {"train": 600, "val": 60, "test": 100}, seed=seed)
    write_second(folder / "second", 60, seed=seed)
    write_prompts(folder / "prompts.txt")
    (folder / "README.txt").write_text(README.format(seed=seed), encoding="utf-8")


def write_prompts(path: Path) -> None:
    """Write the prompts, one per line."""
    path.write_text("".join(f"<Img><ImageHere></Img> {prompt}\n" for prompt in PROMPTS), encoding="utf-8")


def write_flickr(folder: Path, counts: Mapping[Split, int], *, seed: int) -> None:
    """Write ``flickr_annotations_30k.csv``, ``images/<id>.jpg`` and ``shuffled/``. The same arguments give the same files.

    In ``shuffled``, each image of the test split has the name of another one.

    Args:
        folder: the folder to write to.
        counts: split -> number of pictures. Each pair of coloured shapes occurs in one split only.
        seed: seed of all random draws.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, str, int]] = []
    for index, split in enumerate(split for split, count in counts.items() for _ in range(count)):
        rng = np.random.default_rng([seed, 0, index])
        scene, name = draw_scene(rng, split), f"{FIRST_ID + 7919 * index}.jpg"
        draw_picture(rng, scene).save(folder / "images" / name, quality=QUALITY)
        numbers = list(range(CAPTIONS * index, CAPTIONS * (index + 1)))
        rows.append((json.dumps(captions(rng, scene)), json.dumps(numbers), split, name, index))
    write_csv(folder / TABLE, [HEADER, *rows], escape=False)
    test_files = [row[3] for row in rows if row[2] == "test"]
    (folder / "shuffled").mkdir(exist_ok=True)
    for name, other in zip(test_files, test_files[1:] + test_files[:1], strict=True):
        shutil.copyfile(folder / "images" / other, folder / "shuffled" / name)


def write_second(folder: Path, count: int, *, seed: int) -> None:
    """Write ``captions.json`` in the format of COCO and ``images/``: scenes of the test split, with captions in another manner.

    Args:
        folder: the folder to write to.
        count: number of pictures.
        seed: seed of all random draws.
    """
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
