"""Measure the start of a training for up to a million clips: time to the first batch, and memory of processes and data workers.

    python benchmarks/scale_of_data.py [--clips 1000 28000 200000 1000000] [--samples 4000] [--package FOLDER] [--json]

For each number of clips, the script writes MERR's annotation files (a list, captions as JSON, transcripts as CSV) and a packed
store of small arrays to memory, and starts these processes one after the other:

    minimum   reads the captions with json, the transcripts with csv, and splits the lines of the list
    first     rank 0 at its first start: builds and checks the dataset, prepares order and digests, and loads a batch
    next      rank 0 at the next start
    other     another rank at the next start, which does not check files

Each of the last three has data workers, which load ``--samples`` samples in total. The table has, for each process, the CPU time
from the opening of the dataset to the first batch of its workers; the private memory that the dataset adds to the process; and
the private memory that a data worker has at the end beyond what it has with the smallest number of clips. "per clip" compares the
largest number of clips with the smallest. Private memory (/proc/PID/smaps_rollup) is that which processes do not share.
``--package`` measures the package in another folder.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "train_configs/Emotion-LLaMA_finetune.yaml"
DIM = 8
WORKERS = 2
PER_BATCH = 50
STARTS = {"first": True, "next": True, "other": False}
TEXT = "the man lowers his brows and shouts while a woman looks out of the window with raised cheeks so she seems worried"
SENTENCE = "they say that it is not what they want"


def main() -> None:
    """Measure all numbers of clips, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 28_000, 200_000, 1_000_000], help="numbers of clips")
    parser.add_argument("--samples", type=int, default=4000, help="samples that the data workers load (default: 4000)")
    parser.add_argument("--without-checks", action="store_true", help="no process checks the arrays")
    parser.add_argument("--package", default=str(ROOT), help="folder that contains the package (default: this repository)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--process", nargs=2, metavar=("FOLDER", "START"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.package)
    if arguments.process:
        folder, start = arguments.process
        checks = STARTS[start] and not arguments.without_checks
        sys.stdout.write(json.dumps(measure_start(folder, checks=checks, samples=arguments.samples)))
        return
    results = {}
    for count in arguments.clips:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as temporary:
            results[count] = measure_clips(temporary, count, arguments)
    if arguments.json:
        sys.stdout.write(json.dumps(results) + "\n")
    else:
        print_table(results)


def measure_clips(folder: str, count: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return process -> its figures, for one number of clips."""
    write_corpus(Path(folder, "MERR"), count)
    # Files that have just been written could change again without a new time.
    time.sleep(3)
    rows = {"minimum": {"cpu_s": read_plainly(Path(folder, "MERR"))}}
    options = ["--samples", str(arguments.samples), "--package", arguments.package]
    options += ["--without-checks"] if arguments.without_checks else []
    environment = os.environ | {"XDG_CACHE_HOME": f"{folder}/cache", "PYTHONPATH": arguments.package}
    for start in STARTS:
        command = [sys.executable, __file__, *options, "--process", folder, start]
        process = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        rows[start] = json.loads(process.stdout.splitlines()[-1])
    return rows


def write_corpus(folder: Path, count: int) -> None:
    """Write the annotation files and the features of a dataset."""
    from emollama.stores.shard_writers import PackedWriter

    names = [f"sample_{index:08d}" for index in range(count)]
    (folder / "audio").mkdir(parents=True)
    (folder / "MERR_coarse_grained.txt").write_text("".join(f"{name} 10 happy\n" for name in names), encoding="utf-8")
    captions = {name: {"caption": f"{name}: {TEXT}"} for name in names}
    for kind in ("MERR_coarse_grained.json", "MERR_fine_grained.json"):
        (folder / kind).write_text(json.dumps(captions).replace('"caption"', f'"{FIELDS[kind]}"'), encoding="utf-8")
    rows = "".join(f"{name},{SENTENCE} {name}\n" for name in names)
    (folder / "transcription_en_all.csv").write_text(f"name,sentence\n{rows}", encoding="utf-8")
    writer = PackedWriter(folder / "audio", 1 << 26)
    values = np.random.default_rng(0).standard_normal(DIM).astype(np.float16)
    for name in names:
        writer.add(name, (values,))
    writer.finish()


FIELDS = {"MERR_coarse_grained.json": "caption", "MERR_fine_grained.json": "smp_reason_caption"}


def read_plainly(folder: Path) -> float:
    """Return the CPU time of a process that reads the annotation files and keeps nothing."""
    code = """
import csv, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
[line.split() for line in (folder / "MERR_coarse_grained.txt").read_text().splitlines()]
for path in folder.glob("*.json"):
    json.loads(path.read_text())
with open(folder / "transcription_en_all.csv", newline="") as file:
    list(csv.reader(file))
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_start(folder: str, *, checks: bool, samples: int) -> dict[str, float]:
    """Start a training up to its batches; return its figures."""
    from emollama.config import load
    from emollama.data.loader import BatchLayout, TrainingSamples, WorkerOptions, step_batches, training_loader
    from emollama.data.sampling import MixtureSampler
    from emollama.runners.datasets import build_datasets, training_blocks

    block = "datasets.feature_face_caption"
    features = f"{{image: null, face: null, video: null, audio: {folder}/MERR/audio}}"
    config = load(
        str(ROOT / CONFIG),
        [
            *(f"paths.root={folder}", "model.ckpt=null", f"model.llama_model={ROOT}/tests/golden/llama", "run.amp=False"),
            *(
                f"model.slots={{audio: {{dim: {DIM}}}}}",
                f"{block}.features={features}",
                f"{block}.task_pool=[emotion,reason]",
                f"{block}.image_path=null",
            ),
        ],
    )
    prompt = config.model_class.prompt_format(config.model, config.run.loss_average)
    blocks = training_blocks(config)
    memory, start, cpu = private_bytes("self"), time.perf_counter(), time.process_time()
    datasets = build_datasets(config, blocks, training=True, check=checks)
    samplings = [dataset.sampling() for dataset in datasets.values()]
    for dataset, sampling in zip(datasets.values(), samplings, strict=True):
        dataset.digest(), sampling.digest()
    sampler = MixtureSampler(0, tuple(samplings))
    training = TrainingSamples(list(datasets.values()), prompt, sampler)
    loader = training_loader(
        training, BatchLayout(PER_BATCH, 1, 1, 0), WorkerOptions(WORKERS), first_step=0, end_step=samples // PER_BATCH
    )
    figures: dict[str, float] = {}
    for _ in step_batches(loader, 1):
        if not figures:
            figures = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - start}
        workers = [private_bytes(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    training.reports.close()
    figures["rank_bytes"] = private_bytes("self") - memory
    figures["worker_bytes"] = max(workers)
    return figures


def private_bytes(process: str) -> int:
    """Return the memory of a process that no other process shares; this process first returns what it does not use."""
    if process == "self":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # the process has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private"))


def print_table(results: dict[int, dict[str, dict[str, Any]]]) -> None:
    """Print a row for each number of clips and process."""
    smallest, largest = min(results), max(results)
    sys.stdout.write(
        f"{'clips':>10s} {'process':8s}{'CPU s':>8s}{'s':>8s}{'x minimum':>11s}{'rank MiB':>10s}{'worker MiB':>12s}\n"
    )
    for count, rows in results.items():
        for name, row in rows.items():
            ratio = row["cpu_s"] / rows["minimum"]["cpu_s"]
            sys.stdout.write(f"{count:10,d} {name:8s}{row['cpu_s']:8.2f}{row.get('wall_s', 0):8.2f}{ratio:11.2f}")
            if name != "minimum":
                worker = row["worker_bytes"] - results[smallest][name]["worker_bytes"]
                sys.stdout.write(f"{row['rank_bytes'] / 2**20:10.1f}{worker / 2**20:12.1f}")
            sys.stdout.write("\n")
    for name in STARTS if largest > smallest else ():
        rank, worker = (
            (results[largest][name][key] - results[smallest][name][key]) / (largest - smallest)
            for key in ("rank_bytes", "worker_bytes")
        )
        sys.stdout.write(f"{name}: {rank:.0f} bytes per clip and rank, {worker:.0f} per clip and data worker\n")


if __name__ == "__main__":
    main()
