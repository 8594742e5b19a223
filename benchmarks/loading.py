"""Measure the memory of processes that load a language model: whole, or only the parts that FSDP leaves to each of them.

    python benchmarks/loading.py [--megabytes 300] [--processes 1 2 4] [--json]

The files contain a random Llama in bfloat16, in safetensors. The processes are forks of one that has imported the libraries. Each
builds the model of Emotion-LLaMA with it, as a run does, and shards it. Meanwhile, the script reads the memory of each process
from /proc every millisecond, and subtracts what the process needed before:

    loading    RssAnon until the model is built: memory of the process alone, which the system cannot drop
    sharding   RssAnon until the model is sharded and each layer has been gathered once
    trained    bytes of projections and adapters, which every process has; they are part of both
    mapped     RssFile: pages of the files, which all processes of a machine share, and which the system can drop

The rows are the values of run.parallel, with adapters on frozen weights in bfloat16 ("lora"), and with all weights trained in
float32 ("full"). The numbers are the maxima over time and processes, in sizes of the weights in memory. In the process of the
script, glibc returns freed memory to the system at once (MALLOC_MMAP_THRESHOLD_).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
SETTING = "MALLOC_MMAP_THRESHOLD_"
if __name__ == "__main__" and SETTING not in os.environ:
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    os.execve(sys.executable, [sys.executable, *sys.argv], others | {SETTING: "100000"})

import torch  # noqa: E402
import torch.distributed.fsdp  # noqa: E402 (its import takes memory)
from gpu_check_files import CONFIG, LLM_FOLDER, TINY, write_llm  # noqa: E402
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: E402

from emollama.config import load  # noqa: E402
from emollama.distributed import process_group, sharding  # noqa: E402

HIDDEN, ROWS = 512, 32_000
LAYER = 4 * HIDDEN**2 + 3 * HIDDEN * 4 * HIDDEN  # parameters
PHASES = ("loading", "sharding")
COLUMNS = (*PHASES, "trained", "mapped")
TRAINED = {"lora": torch.bfloat16, "full": torch.float32}


def main() -> None:
    """Measure all variants, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300, help="size of the weights in bfloat16 (default: 300)")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4], help="numbers of processes (default: 1 2 4)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    arguments = parser.parse_args()
    layers = max(1, (arguments.megabytes * 1_000_000 - 4 * ROWS * HIDDEN) // (2 * LAYER))
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN, "num_attention_heads": 8, "vocab_size": ROWS}
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        llm = dataclasses.replace(TINY, llm=sizes | {"num_hidden_layers": layers})
        # In a process of its own, so that its memory is not inherited.
        writer = multiprocessing.get_context("fork").Process(target=write_llm, args=(Path(folder, LLM_FOLDER), llm))
        writer.start()
        writer.join()
        for trained, dtype in TRAINED.items():
            for mode, count in [(mode, n) for n in arguments.processes for mode in ("ddp", "fsdp") if n > 1 or mode == "ddp"]:
                figures = measure(Path(folder), trained, mode, count)
                size = dtype.itemsize * (layers * LAYER + 2 * ROWS * HIDDEN)
                results[f"{trained} {mode} {count}"] = {name: figures[name] / size for name in COLUMNS}
    if arguments.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    sys.stdout.write(f"{'':12s}" + "".join(f"{name:>10s}" for name in COLUMNS) + "\n")
    for variant, row in results.items():
        sys.stdout.write(f"{variant:12s}" + "".join(f"{row[name]:10.3f}" for name in COLUMNS) + "\n")


def measure(folder: Path, trained: str, mode: str, count: int) -> dict[str, int]:
    """Return the figures of one row, in bytes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    pairs = [context.Pipe() for _ in range(count)]
    processes = []
    for rank, (_, end) in enumerate(pairs):
        arguments = (folder, trained, mode, (rank, count, store.port), end)
        processes.append(context.Process(target=load_model, args=arguments))
        processes[-1].start()
    ends = [end for end, _ in pairs]
    for end in ends:
        end.recv()
    before = [memory(process.pid) for process in processes]
    peaks = dict.fromkeys(COLUMNS, 0)
    for phase in PHASES:
        for end in ends:
            end.send(phase)
        # A process waits for the next message, so that the memory of each can be read until all have finished.
        while not all(end.poll() for end in ends):
            for process, start in zip(processes, before, strict=True):
                anonymous, mapped = (now - then for now, then in zip(memory(process.pid), start, strict=True))
                peaks[phase], peaks["mapped"] = max(peaks[phase], anonymous), max(peaks["mapped"], mapped)
            time.sleep(0.001)
        peaks["trained"] = max(end.recv() for end in ends)
        peaks["sharding"] = max(peaks[one] for one in PHASES)
    for end in ends:
        end.send("end")
    for process in processes:
        process.join()
    return peaks


def memory(pid: int | None) -> tuple[int, int]:
    """Return the memory of a process: anonymous and mapped, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    values = {name: 1024 * int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return values["RssAnon"], values["RssFile"] + values["RssShmem"]


def load_model(folder: Path, trained: str, mode: str, group: tuple[int, int, int], end: Connection) -> None:
    """In a process of its own: load the model and shard it, each time when the other end says so."""
    rank, count, port = group
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    options = [f"paths.root={folder}", "model.ckpt=null", f"model.train_llm={trained}", f"run.parallel={mode}"]
    config = load(str(ROOT / CONFIG), [*options, "model.use_grad_checkpoint=False", "run.device=cpu"])
    world = process_group.start("cpu")
    mesh = sharding.device_mesh(world, config.run.parallel, config.run.shard_size)
    # As a run does before it loads weights.
    config.model_class(config.model, device=torch.device("meta"), frozen_dtype=TRAINED[trained])
    end.send("ready")
    end.recv()
    weights = "all" if mesh is None else sharding.share_of(mesh)
    model_class: Any = config.model_class  # `weights` is optional for a model
    model = model_class(config.model, device=world.device, frozen_dtype=TRAINED[trained], weights=weights)
    own = sum(weight.nbytes for name, weight in model.named_parameters() if "llama_model" not in name or "lora_" in name)
    end.send(own)
    end.recv()
    if mesh is not None:
        sharding.shard(model, mesh, config.run.reduce_dtype)
    end.send(own)
    end.recv()
    os._exit(0)


if __name__ == "__main__":
    main()
