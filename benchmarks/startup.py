"""Measure the start of a training: the checks of its clips, the memory of their texts and names, and the time to the first step.

    python benchmarks/startup.py [--clips 1000 28000 200000] [--rounds 5] [--json]

For each number of clips, the script writes MERR's files to memory (EVA features of 448 pixels, sparse, and three utterance
features), and measures in one process, in CPU time per clip:

    stat       os.stat of the four files
    headers    opens the four files and reads their headers with numpy
    new        checks the features of clips for the first time (emollama's start, ``--dry-run`` and ``check-data``)
    seen       checks them again
    memory     bytes that the data set holds, without the UTF-8 bytes of names and texts

It then starts these processes in turn, several rounds, and compares their CPU time. Compiled Python files are cached.

    plain      imports torch, transformers and peft, and builds a Llama with adapters and projections from its folder
    emollama   trains the same model, up to the first step; an earlier run has cached the results of checks
    first      the same without cached results
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from gpu_check_files import CONFIG, FULL, LLM_FOLDER, TINY_LLAMA, write_files  # noqa: E402

from emollama.config import load  # noqa: E402
from emollama.datasets.feature_face_caption import FeatureFaceCaption  # noqa: E402
from emollama.runners.datasets import slot_shapes_of_run, training_blocks  # noqa: E402

UTTERANCES = ("mae_340_UTT", "maeV_399_UTT", "HL-UTT")
FOLDERS = ("eva", *UTTERANCES)
HIDDEN, LAYERS = 512, 8
PLAIN = f"""
import os, sys, torch, transformers, peft
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
adapters = peft.LoraConfig(r=64, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
peft.get_peft_model(model, adapters)
projections = [torch.nn.Linear(size, {HIDDEN}) for size in (5632, 1408, 1024, 1024, 1024)]
os._exit(0)
"""
OURS = """
import os, sys
from emollama.cli import main
from emollama.runners.runner_base import RunnerBase
RunnerBase._step = lambda *arguments, **options: os._exit(0)
main(sys.argv[1:])
raise SystemExit("the training has not reached a step")
"""


def main() -> None:
    """Measure everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="*", default=[1000, 28_000, 200_000], help="numbers of clips")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the processes (default: 5)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for count in arguments.clips:
        with memory_folder() as folder:
            results[str(count)] = measure_clips(Path(folder), count)
    if arguments.rounds:
        with memory_folder() as folder:
            results["start"] = measure_start(Path(folder), arguments.rounds)
    if arguments.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    for name, row in results.items():
        cells = (f"{key} {value:.2f}" for key, value in row.items())
        sys.stdout.write(f"{name}: {', '.join(cells)}\n")


def memory_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder in memory, if there is one."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def measure_clips(folder: Path, count: int) -> dict[str, float]:
    """Return the figures of the checks, in microseconds and bytes per clip."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    names = write_clips(folder / "MERR", count)
    paths = [f"{folder}/MERR/{kind}/{name}.npy" for name in names for kind in FOLDERS]
    stat = cpu_time(lambda: [os.stat(path).st_size for path in paths])
    headers = cpu_time(lambda: [read_header(path) for path in paths])
    config = load(str(ROOT / CONFIG), [f"paths.root={folder}", "model.ckpt=null"])
    ((path, (_, cfg)),) = training_blocks(config).items()
    shapes = slot_shapes_of_run(config)

    def build() -> FeatureFaceCaption:
        return FeatureFaceCaption(cfg, slot_shapes=shapes, block_path=path)

    new, seen = (cpu_time(partial(require_no_problems, build())) for _ in range(2))
    tracemalloc.start()
    dataset = build()
    require_no_problems(dataset)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sentences = (dataset.table.sentences or {}).values()
    captions = [caption for texts in dataset.table.captions.values() for caption in texts.values()]
    held -= sum(len(text.encode()) for text in (*names, *sentences, *captions))
    micro = 1e6 / count
    ratios = {"new / headers": new / headers, "seen / stat": seen / stat, "memory": held / count}
    return {"stat": stat * micro, "headers": headers * micro, "new": new * micro, "seen": seen * micro, **ratios}


def write_clips(folder: Path, count: int) -> list[str]:
    """Write the files of a data set; return the names of its clips."""
    names = [f"sample_{index:08d}" for index in range(count)]
    folder.mkdir()
    (folder / "MERR_coarse_grained.txt").write_text("".join(f"{name} 10 happy\n" for name in names), encoding="utf-8")
    captions = {name: {"caption": f"the man of {name} smiles"} for name in names}
    (folder / "MERR_coarse_grained.json").write_text(json.dumps(captions), encoding="utf-8")
    rows = "".join(f"{name},what they say in {name}\n" for name in names)
    (folder / "transcription_en_all.csv").write_text(f"name,sentence\n{rows}", encoding="utf-8")
    utterance = np.random.default_rng(0).standard_normal(1024).astype(np.float16)
    for kind in FOLDERS:
        (folder / kind).mkdir()
    for name in names:
        for kind in UTTERANCES:
            np.save(folder / kind / f"{name}.npy", utterance)
        with (folder / "eva" / f"{name}.npy").open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (1025, 1408)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + 2 * 1025 * 1408)
    return names


def read_header(path: str) -> object:
    """Read the header of a .npy file with numpy."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        return np.lib.format.read_array_header_1_0(file)


def require_no_problems(dataset: FeatureFaceCaption) -> None:
    """Check all clips."""
    if problems := dataset.problems():
        raise SystemExit(problems[0].text)


def cpu_time(work: Callable[[], object]) -> float:
    """Return the seconds of CPU time of a function."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure_start(folder: Path, rounds: int) -> dict[str, float]:
    """Return the medians of the processes' CPU time in seconds, and the median ratios to the plain process of a round."""
    llm = TINY_LLAMA | {"hidden_size": HIDDEN, "intermediate_size": 1376, "num_hidden_layers": LAYERS, "num_attention_heads": 8}
    write_files(folder, dataclasses.replace(FULL, llm=llm))
    options = [f"paths.root={folder}", f"run.output_dir={folder / 'out'}", "model.ckpt=null", "run.amp=False", "run.device=cpu"]
    train = [OURS, "train", "--cfg-path", str(ROOT / CONFIG), "--options", *options, "run.num_workers=0"]
    works = {"plain": [PLAIN, str(folder / LLM_FOLDER)], "emollama": train, "first": train}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, arguments in works.items():
            cache = folder / ("new_cache" if name == "first" else "cache")
            seconds[name].append(process_time(folder, arguments, cache))
        shutil.rmtree(folder / "new_cache")
    # The first round compiles the Python files.
    plain, *own = (times[1:] for times in seconds.values())
    ratios = [statistics.median(mine / other for mine, other in zip(times, plain, strict=True)) for times in own]
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return medians | {"ratio": ratios[0], "ratio of first": ratios[1]}


def process_time(folder: Path, arguments: list[str], cache: Path) -> float:
    """Return the CPU time of a Python process that runs some code, with a folder for the results of checks."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(folder / "pyc"), "XDG_CACHE_HOME": str(cache)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", *arguments], env=environment, cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
