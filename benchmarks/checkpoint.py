"""Time saving and loading a checkpoint with its SHA-256, next to torch.save and torch.load and a separate SHA-256.

    python benchmarks/checkpoint.py [--megabytes 400] [--rounds 5] [--background] [--sharded] [--device cpu] [--json]

The checkpoint has the tensors of LoRA adapters and two moments of their optimizer, with random values. It is written to memory
(/dev/shm, if there is one) and read from there. One process runs these in turn, several rounds:

    torch             torch.save and torch.load alone, which detect no flipped bit
    torch + sha256    the same, and the SHA-256 of the file, for which it is read once more
    emollama          emollama.checkpoint.save and read
    auto              the search for the newest checkpoint of a folder (run.resume_ckpt_path: auto), and reading it

The script prints the time of each, its ratio to "torch + sha256", and the bytes that it read, in sizes of the file.

Then it saves in the background (run.async_save), in turn with saving while training waits, and prints how long training waits for
the first and for later copies, relative to the latter. Small training steps, which mostly keep the interpreter busy, run while
files are written by a thread, as in a training, and by another process, as a control without a common interpreter lock: the
script prints the ratio of their durations to that of other steps. With --sharded, the file in the background is the part that one
process writes of a sharded checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emollama import checkpoint, checkpoint_parts
from emollama.runners.checkpoint_writer import CheckpointWriter
from emollama.runners.checkpoints import newest

NAME = "checkpoint_0.pth"


def main() -> None:
    """Time all variants in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="size of the checkpoint (default: 400)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--background", action="store_true", help="only measure saving in the background")
    parser.add_argument("--sharded", action="store_true", help="save a part of a sharded checkpoint in the background")
    parser.add_argument("--device", default="cpu", help="device of the tensors and the steps of the second part (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        values = content(arguments.megabytes * 1_000_000)
        rows = {} if arguments.background else measure(Path(folder), values, arguments.rounds)
        device = torch.device(arguments.device)
        save = sharded_save(Path(folder), values, device) if arguments.sharded else whole_save(Path(folder), values, device)
        background = measure_background(save, arguments.rounds, device)
    if arguments.json:
        sys.stdout.write(json.dumps(rows | {"background": background}) + "\n")
        return
    if rows:
        sys.stdout.write(f"{'':24s}{'s':>8s}{'x torch + sha256':>18s}{'x file read':>13s}\n")
    for name, row in rows.items():
        sys.stdout.write(f"{name:24s}{row['seconds']:8.2f}{row['of_plain']:18.2f}{row['read']:13.2f}\n")
    for name, value in background.items():
        sys.stdout.write(f"{name:56s}{value:8.3f}\n")


def content(size: int) -> dict[str, Any]:
    """Return a checkpoint of about this many bytes: adapters of rank 64 of a hidden size of 4,096, and two moments each."""
    layers = max(1, size // (3 * 2 * 64 * 4096 * 4))
    adapters = {f"layers.{layer}.{name}": torch.randn(64, 4096) for layer in range(layers) for name in ("lora_A", "lora_B")}
    state = {index: {"exp_avg": tensor / 2, "exp_avg_sq": tensor**2} for index, tensor in enumerate(adapters.values())}
    return {"model": adapters, "optimizer": {"state": state}, "step": 1}


def measure(folder: Path, values: dict[str, Any], rounds: int) -> dict[str, dict[str, float]]:
    """Return variant -> its figures."""
    plain, ours = folder / "plain" / NAME, folder / "ours" / NAME
    plain.parent.mkdir()
    works: dict[str, Callable[[], object]] = {
        "save torch": lambda: save_plain(plain, values),
        "save torch + sha256": lambda: (save_plain(plain, values), digest(plain)),
        "save emollama": lambda: checkpoint.save(ours, values),
        "load torch": lambda: torch.load(plain, map_location="cpu", weights_only=True),
        "load torch + sha256": lambda: (digest(plain), torch.load(plain, map_location="cpu", weights_only=True)),
        "load emollama": lambda: checkpoint.read(str(ours), "model.ckpt"),
        "load auto": lambda: newest(ours.parent, {}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    read = {}
    for _ in range(rounds + 1):
        for name, work in works.items():
            before, start = bytes_read(), time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
            read[name] = (bytes_read() - before) / plain.stat().st_size
    # The first round warms up.
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        name: {"seconds": median, "of_plain": median / medians[f"{name.split()[0]} torch + sha256"], "read": read[name]}
        for name, median in medians.items()
    }


@dataclass(frozen=True)
class Save:
    """How a checkpoint is saved.

    Attributes:
        start: starts to save it with a writer.
        write: writes the same file without a writer, for another process.
    """

    start: Callable[[CheckpointWriter], None]
    write: Callable[[], object]


def whole_save(folder: Path, values: dict[str, Any], device: torch.device) -> Save:
    """Return how a checkpoint in one file is saved."""
    path, values = folder / NAME, on_device(values, device)
    return Save(lambda writer: writer.start(path, values), partial(checkpoint.save, path, values))


def sharded_save(folder: Path, values: dict[str, Any], device: torch.device) -> Save:
    """Return how a process saves its part of a sharded checkpoint. It is the only process here, so its part has all values."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    mesh, path = init_device_mesh(device.type, (1,)), folder / "part.safetensors"
    moments = {f"{key}.{index}": moment for index, state in values["optimizer"]["state"].items() for key, moment in state.items()}
    tensors = {
        name: distribute_tensor(tensor.to(device), mesh, [Shard(0)]) for name, tensor in (values["model"] | moments).items()
    }
    own, rows = checkpoint_parts.own_values(tensors)
    return Save(lambda writer: writer.start_part(path, tensors, "host"), partial(checkpoint_parts.write, path, own, rows, "host"))


def measure_background(save: Save, rounds: int, device: torch.device) -> dict[str, float]:
    """Return figure -> value of saving in the background, in turn with saving while training waits."""
    writer, waiting = (CheckpointWriter(in_background=in_background, device=device) for in_background in (True, False))
    step = training_step(device)
    seconds: dict[str, list[float]] = {name: [] for name in ("save", "stall", "writing", "step", "thread", "process")}
    for _ in range(rounds + 1):
        seconds["save"].append(timed(lambda: (save.start(waiting), waiting.finish())))
        seconds["step"] += [timed(step) for _ in range(200)]
        seconds["stall"].append(timed(lambda: save.start(writer)))
        steps = steps_until(writer.is_done, step)
        seconds["writing"].append(sum(steps))
        seconds["thread"] += steps
        writer.finish()
    # Afterwards, because the pages that a fork shares are slow to write. CUDA cannot be used in a fork.
    for _ in range(rounds if device.type == "cpu" else 0):
        process = multiprocessing.get_context("fork").Process(target=save.write)
        process.start()
        seconds["process"] += steps_until(lambda process=process: not process.is_alive(), step)
    quiet = statistics.mean(seconds["step"])
    stalls, writing = (
        [part / whole for part, whole in zip(seconds[name], seconds["save"], strict=True)] for name in ("stall", "writing")
    )
    figures = {
        "seconds of a save for which training waits": statistics.median(seconds["save"]),
        "wait for the first copy, x that save": stalls[0],
        "wait for later copies, x that save": statistics.median(stalls[1:]),
        "writing in the background, x that save": statistics.median(writing),
        "longest step, ms": 1000 * max(seconds["step"]),
    }
    for place in ("thread", "process") if seconds["process"] else ("thread",):
        figures[f"step while a {place} writes, x step (mean)"] = statistics.mean(seconds[place]) / quiet
        figures[f"longest step while a {place} writes, ms"] = 1000 * max(seconds[place])
    return figures


def steps_until(is_done: Callable[[], bool], step: Callable[[], object]) -> list[float]:
    """Run steps until a file is complete; return their durations in seconds."""
    durations = []
    while not is_done():
        durations.append(timed(step))
    return durations


def training_step(device: torch.device) -> Callable[[], object]:
    """Return a function that runs one step of a small network with 20 layers."""
    layers = [layer for _ in range(20) for layer in (torch.nn.Linear(64, 64), torch.nn.GELU())]
    model, inputs = torch.nn.Sequential(*layers).to(device), torch.randn(64, 64, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def on_device(value: Any, device: torch.device) -> Any:
    """Return nested dictionaries with their tensors on a device."""
    if isinstance(value, dict):
        return {name: on_device(item, device) for name, item in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a function takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def save_plain(path: Path, values: dict[str, Any]) -> None:
    """Write a checkpoint to the disk, as checkpoint.save does."""
    with path.open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_read() -> float:
    """Return the bytes that this process has read from files, as Linux counts them; NaN on other systems."""
    try:
        return float(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])
    except OSError:
        return float("nan")


if __name__ == "__main__":
    main()
