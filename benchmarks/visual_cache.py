"""Time training epochs of minigpt4 with and without model.cache_visual, and compare the losses.

    OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 python benchmarks/visual_cache.py

Both runs train on the same synthetic pictures with the same initial weights, and their epochs alternate in one process. Encoders
and language model have random weights and the sizes of the options. The first epoch fills the cache and is reported separately.
The ratio is smaller for larger language models, whose work the cache does not reduce. The exit status is 1 if a loss differs by
more than 1e-5.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from emollama.config import load
from emollama.demo.drawing_files import TABLE, write_flickr
from emollama.demo.tiny_llama import make_tiny_llama
from emollama.encoders.eva_vit import EvaVit
from emollama.encoders.qformer import QFormer, with_original_names
from emollama.encoders.shapes import EvaShape, QFormerShape
from emollama.runners.runner_base import RunnerBase

CPU = torch.device("cpu")


def main() -> None:
    """Print the median time of an epoch of both runs, their ratio, and the largest difference of the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, what in (
        ("images", 32, "images per epoch"),
        ("batch-size", 8, "images per step"),
        ("rounds", 5, "epochs of each run after the first"),
        ("image-size", 224, "side of an image in pixels"),
        ("vit-width", 704, "width of the image encoder, a multiple of 88; published: 1408"),
        ("vit-depth", 12, "blocks of the image encoder; published: 39"),
        ("llm-width", 256, "width of the language model, a multiple of 16"),
        ("llm-layers", 4, "layers of the language model"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    sizes = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, largest_difference = measure(make_runners(Path(folder), sizes), sizes)
    cached, computed = (median(times[1:]) for times in (seconds["cached"], seconds["computed"]))
    first = f"first epoch {seconds['cached'][0]:.2f} s"
    sys.stdout.write(f"{sizes.images} images, medians of {sizes.rounds} alternating epochs of each run:\n")
    sys.stdout.write(f"cached {cached:.2f} s per epoch ({first}), computed {computed:.2f} s, ratio {computed / cached:.1f}\n")
    sys.stdout.write(f"largest difference of the losses {largest_difference:.1e}\n")
    raise SystemExit(0 if largest_difference <= 1e-5 else 1)


def measure(runners: dict[str, RunnerBase], sizes: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Train both runs. Returns the time of each epoch in seconds, and the largest difference of the losses."""
    batches = {name: runner._step_batches() for name, runner in runners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    losses: dict[str, list[float]] = {name: [] for name in runners}
    steps = sizes.images // sizes.batch_size
    for epoch in range(1 + sizes.rounds):
        for name, runner in runners.items():
            start = time.perf_counter()
            for step in range(epoch * steps, (epoch + 1) * steps):
                losses[name].append(runner._step(step, next(batches[name]))["loss"])
            seconds[name].append(time.perf_counter() - start)
    return seconds, max(abs(one - other) for one, other in zip(*losses.values(), strict=True))


def make_runners(folder: Path, sizes: argparse.Namespace) -> dict[str, RunnerBase]:
    """Build a run with a cache and one without, on the same files."""
    write_flickr(folder, {"train": sizes.images}, seed=1)
    entries = []
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            captions = json.loads(row["raw"])
            entries.append({"image_id": Path(row["filename"]).stem, "caption": " ".join(captions), "captions": captions})
    (folder / "train.json").write_text(json.dumps({"annotations": entries}), encoding="utf-8")
    texts = [entry["caption"] for entry in entries]
    make_tiny_llama(folder / "llm", texts, seed=1, steps=1, batch_size=2, hidden=sizes.llm_width, layers=sizes.llm_layers)
    write_encoders(folder, sizes)
    runners = {}
    for name, is_cached in (("cached", True), ("computed", False)):
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(settings(folder, sizes, name, is_cached)), encoding="utf-8")
        runners[name] = RunnerBase(load(str(path), []))
    return runners


def write_encoders(folder: Path, sizes: argparse.Namespace) -> None:
    """Write an image encoder with the sizes of the options and a Q-Former of the published size, with random weights."""
    torch.manual_seed(1)
    shape = EvaShape(sizes.vit_width, sizes.vit_depth, 4 * sizes.vit_width)
    vit = EvaVit(shape, image_size=sizes.image_size, precision="fp32", device=CPU)
    torch.save(dict(vit.visual_encoder.state_dict()), folder / "eva.pth")
    qformer = QFormer(QFormerShape(vision=sizes.vit_width), device=CPU)
    torch.nn.init.normal_(qformer.query_tokens)
    norm = {f"ln_vision.{name}": value for name, value in vit.ln_vision.state_dict().items()}
    torch.save({"model": norm | with_original_names(qformer.state_dict())}, folder / "q_former.pth")
    for name, module in (("image encoder", vit), ("Q-Former", qformer)):
        sys.stdout.write(f"{name}: {sum(value.numel() for value in module.parameters()) / 1e6:.0f} million weights\n")


def settings(folder: Path, sizes: argparse.Namespace, name: str, is_cached: bool) -> dict[str, Any]:
    """Return the configuration of a run."""
    model = {
        "arch": "minigpt4",
        "llama_model": str(folder / "llm"),
        "vit_weights": str(folder / "eva.pth"),
        "vit_precision": "fp32",
        "q_former_model": str(folder / "q_former.pth"),
        "image_size": sizes.image_size,
        "cache_visual": is_cached,
        "visual_cache_path": str(folder / "cache"),
    }
    captions = {
        "annotation_file": str(folder / "train.json"),
        "image_path": str(folder / "images"),
        "batch_size": sizes.batch_size,
    }
    run = {
        "task": "image_text_pretrain",
        "output_dir": str(folder / "runs"),
        "job_id": name,
        "init_lr": 1e-3,
        "min_lr": 1e-4,
        "warmup_lr": 1e-4,
        "warmup_steps": 1,
        "weight_decay": 0.05,
        "max_epoch": 1 + sizes.rounds,
        "iters_per_epoch": sizes.images // sizes.batch_size,
        "num_workers": 0,
        "seed": 42,
        "device": "cpu",
        "amp": False,
        "evaluate": False,
    }
    return {"model": model, "datasets": {"flickr30k_caption": captions}, "run": run}


if __name__ == "__main__":
    main()
