"""A very small captioning setup: a few drawn images with captions in every format, and random encoders."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers import GOLDEN

from emollama.demo.drawing_files import TABLE, write_flickr, write_prompts, write_second
from emollama.demo.tiny_vision import IMAGE_SIZE, QFORMER, TinyVision

LLM_WIDTH = 64  # of the golden Llama
COUNTS = {"train": 12, "val": 3, "test": 6}


@dataclass(frozen=True)
class FlickrWorld:
    """Paths of the files.

    Attributes:
        images: folder of ``<id>.jpg``.
        table: the CSV as Flickr30k is published, of :data:`COUNTS`.
        train, val, test: JSON in MiniGPT-4's format; ``caption`` is all of them joined, ``captions`` the five.
        second, second_images: six more images with captions in COCO's format.
        eva: an EVA transformer under the original names.
        q_former: query_tokens, Qformer.bert.* and ln_vision.* in one file ``{"model": ...}``.
        projection: a MiniGPT-4 checkpoint, ``{"model": {llama_proj.weight, llama_proj.bias}}``.
        prompts: four lines with ``<ImageHere>``.
        llama: the golden Llama's folder.
    """

    images: Path
    table: Path
    train: Path
    val: Path
    test: Path
    second: Path
    second_images: Path
    eva: Path
    q_former: Path
    projection: Path
    prompts: Path
    llama: Path

    def model(self, **changes: Any) -> dict[str, Any]:
        """A model block that uses these files."""
        return {
            "arch": "minigpt4",
            "llama_model": str(self.llama),
            "ckpt": str(self.projection),
            "vit_weights": str(self.eva),
            "q_former_model": str(self.q_former),
            "image_size": IMAGE_SIZE,
            "num_query_token": QFORMER.queries,
            "query_width": QFORMER.width,
            "vit_precision": "fp32",
            "prompt_path": str(self.prompts),
            "prompt_template": "[INST] {} [/INST] ",
            "end_sym": "</s>",
            "max_txt_len": 64,
        } | changes


def make_flickr_world(folder: Path, *, seed: int = 1) -> FlickrWorld:
    """Write the files. The same seed gives the same files, and torch's global generator does not change."""
    world = FlickrWorld(
        images=folder / "images",
        table=folder / TABLE,
        train=folder / "train.json",
        val=folder / "val.json",
        test=folder / "test.json",
        second=folder / "second/captions.json",
        second_images=folder / "second/images",
        eva=folder / "eva.pth",
        q_former=folder / "q_former.pth",
        projection=folder / "projection.pth",
        prompts=folder / "prompts.txt",
        llama=GOLDEN / "llama",
    )
    write_flickr(folder, COUNTS, seed=seed)
    write_second(folder / "second", 6, seed=seed)
    for split in COUNTS:
        _write_json(folder, split)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        TinyVision().save(world.eva, world.q_former)
        weight = torch.randn(LLM_WIDTH, QFORMER.width) / QFORMER.width**0.5
        weights = {"llama_proj.weight": weight, "llama_proj.bias": torch.zeros(LLM_WIDTH)}
        torch.save({"model": weights}, world.projection)
    write_prompts(world.prompts)
    return world


def _write_json(folder: Path, split: str) -> None:
    entries = []
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == split:
                captions = json.loads(row["raw"])
                entries.append({"image_id": Path(row["filename"]).stem, "caption": " ".join(captions), "captions": captions})
    (folder / f"{split}.json").write_text(json.dumps({"annotations": entries}, indent=1), encoding="utf-8")
