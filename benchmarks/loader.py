"""Time the data loader up to collated batches, next to reading the same arrays and doing nothing with them.

    python benchmarks/loader.py [--samples 64] [--batch-size 4] [--rounds 5] [--workers 1] [--json]

The samples have the features of stage 1 (EVA of 448 pixels in float16: 1,025 x 1,408, and three utterance features) with random
values, in the page cache. One process reads them in turn, several rounds:

    arrays    reads the .npy files with numpy
    folder    samples from folders of .npy files, tokenized and collated
    packed    the same from packed stores in float16 (``emollama pack``)
    int8      the same from packed stores in int8

Each row "with workers" is the training loader with data workers, which are started in each round and load four times as many
samples. The script prints samples per second, their ratio to "arrays", CPU milliseconds of a sample in all processes, and the
bytes of a collated sample. On a machine with a GPU, the batches are also copied to page-locked memory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_check_files import FULL, SAMPLES, TINY_LLAMA, make_runner, write_files

from emollama.cli import main as emollama
from emollama.data.batch import Batch, collate
from emollama.data.loader import BatchLayout, WorkerOptions, step_batches, training_loader
from emollama.runners.runner_base import RunnerBase

FEATURES = {
    "image_feature_path": "eva",
    "face_feature_path": "mae_340_UTT",
    "video_feature_path": "maeV_399_UTT",
    "audio_feature_path": "HL-UTT",
}
PASSES = 4  # over the samples with workers, so that their start is a small part of the time


def main() -> None:
    """Write the samples, time the variants in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"samples of a round (default: {SAMPLES})")
    parser.add_argument("--batch-size", type=int, default=4, help="samples per batch (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--workers", type=int, default=1, help="data workers of the rows with workers (default: 1)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        results = measure(Path(folder), arguments)
    if arguments.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    sys.stdout.write(f"{'':22s}{'samples/s':>11s}{'x arrays':>10s}{'CPU ms/sample':>15s}{'MB/sample':>11s}\n")
    for name, row in results.items():
        sys.stdout.write(f"{name:22s}{row['samples_s']:11.0f}{row['of_arrays']:10.2f}{row['cpu_ms']:15.2f}{row['mb']:11.2f}\n")


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return variant -> its figures."""
    sizes = dataclasses.replace(FULL, llm=TINY_LLAMA, options=("run.num_workers=0", "run.amp=False"))
    write_files(folder, sizes)
    runners = {"folder": make_runner(folder, sizes)}
    for name, values in (("packed", "float16"), ("int8", "int8")):
        options = pack(folder, values)
        runners[name] = make_runner(folder, dataclasses.replace(sizes, options=(*sizes.options, *options)))
    names = sorted(path.stem for path in (folder / "MERR/eva").iterdir())[: arguments.samples]
    works: dict[str, Callable[[], float]] = {"arrays": lambda: read_arrays(folder, names)}
    works |= {name: loading(runner, len(names), arguments.batch_size) for name, runner in runners.items()}
    works |= {f"{name} with workers": loading_with_workers(runner, len(names), arguments) for name, runner in runners.items()}
    counts = {name: len(names) * (PASSES if "workers" in name else 1) for name in works}
    for work in works.values():
        work()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    size = {}
    for _ in range(arguments.rounds):
        for name, work in works.items():
            start, cpu = time.perf_counter(), cpu_seconds()
            size[name] = work()
            times[name].append((time.perf_counter() - start, cpu_seconds() - cpu))
    rows = {}
    for name, count in counts.items():
        seconds, cpu = (statistics.median(column) for column in zip(*times[name], strict=True))
        rows[name] = {"samples_s": count / seconds, "cpu_ms": 1e3 * cpu / count, "mb": size[name] / count / 1e6}
    return {name: row | {"of_arrays": row["samples_s"] / rows["arrays"]["samples_s"]} for name, row in rows.items()}


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def pack(folder: Path, values: str) -> list[str]:
    """Pack all features; return the options of the configuration that reads them."""
    options = []
    for key, kind in FEATURES.items():
        target = folder / f"{values}_{kind}"
        with contextlib.redirect_stdout(io.StringIO()):
            emollama(["pack", "--source", str(folder / "MERR" / kind), "--output", str(target), "--dtype", values, "--quiet"])
        options.append(f"datasets.feature_face_caption.{key}={target}")
    return options


def read_arrays(folder: Path, names: list[str]) -> float:
    """Read all arrays of these samples; return their bytes."""
    return float(sum(np.load(folder / "MERR" / kind / f"{name}.npy").nbytes for name in names for kind in FEATURES.values()))


def loading(runner: RunnerBase, count: int, batch_size: int) -> Callable[[], float]:
    """Return a function that loads and collates the first samples of a run, and returns the bytes of their features."""

    def load() -> float:
        total = 0
        for start in range(0, count, batch_size):
            batch: Batch = collate([runner.samples[index] for index in range(start, min(count, start + batch_size))])
            if torch.cuda.is_available():
                batch = batch.pin_memory()
            total += sum(packed.values.nbytes for packed in batch.slots.values())
        return float(total)

    return load


def loading_with_workers(runner: RunnerBase, count: int, arguments: argparse.Namespace) -> Callable[[], float]:
    """Return a function that loads samples of a run with its data workers, and returns the bytes of their features."""
    layout = BatchLayout(arguments.batch_size, accumulate=1, world=1, rank=0)
    options = WorkerOptions(arguments.workers, pin_memory=torch.cuda.is_available())

    def load() -> float:
        end = PASSES * count // arguments.batch_size
        loader = training_loader(runner.samples, layout, options, first_step=0, end_step=end)
        steps = step_batches(loader, layout.loads_per_step)
        total = sum(packed.values.nbytes for batches in steps for batch in batches for packed in batch.slots.values())
        runner.samples.reports.close()
        return float(total)

    return load


if __name__ == "__main__":
    main()
