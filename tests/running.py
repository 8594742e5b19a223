"""Configurations of the golden corpus, and real processes that run them (those of ranks.py are faster)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers import GOLDEN, NINE, golden_block
from ranks import ROOT, SERVER, Launched, environment, start
from workers import host_process


def golden_config(folder: Path, *, run: dict | None = None, model: dict | None = None, data: dict | None = None) -> Path:
    """Write a YAML file that trains on the golden corpus like the reference; the dicts override blocks.

    The file contains JSON, which is YAML, because a dumper of YAML writes anchors for shared lists, which are slow to load.
    """
    block = golden_block() | {"prompt_labels": NINE}
    evaluated = block | {"task_pool": ["emotion", "reason", "reason_v2"], "max_new_tokens": 20, "batch_size": 4}
    tree = {
        "model": {
            "arch": "minigpt_v2",
            "llama_model": str(GOLDEN / "llama"),
            "ckpt": str(GOLDEN / "checkpoint_slim.pth"),
            "lora_r": 4,
            "lora_dropout": 0.0,
            "slot_dims": {"image": 176},
            "image_size": 112,
            **(model or {}),
        },
        "datasets": {"clips": block | {"task_pool": ["emotion"], "shuffle": False} | (data or {})},
        "evaluation_datasets": {"train_layout": evaluated, "upstream": evaluated | {"prompt_layout": "upstream_eval"}},
        "run": {
            "init_lr": 1e-3,
            "min_lr": 1e-6,
            "warmup_lr": 1e-6,
            "warmup_steps": 3,
            "max_epoch": 1,
            "iters_per_epoch": 8,
            "num_workers": 0,
            "amp": False,
            "log_freq": 1,
            "output_dir": str(folder / "out"),
            "job_id": "run",
            **(run or {}),
        },
    }
    path = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1))
    return path


def command(script: str, *arguments: str, processes: int = 1) -> list[str]:
    """The command line of a script; several processes use torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *launcher, script, *arguments]


def run(script: str, *arguments: str, processes: int = 1, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script to its end in the repository's root and capture its output."""
    line = command(script, *arguments, processes=processes)
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout, check=False)


def start_launcher(*arguments: str, env: dict[str, str] | None = None) -> Launched:
    """Start ``python <arguments>``, a launcher, as a fork whose workers are forks, too: torchrun itself, without three imports.

    The variables that /proc shows are those of the fork server, so ``emollama train`` does not pass signals on to its workers.
    """
    folder = tempfile.mkdtemp()
    for name in ("stdout", "stderr"):
        Path(folder, name).touch()
    line = list(arguments)
    process = SERVER.process(host_process.run, "", line, environment() if env is None else env, str(ROOT), folder)
    return Launched(line, [process], Path(folder), None)


def family_of(pid: int) -> Callable[[], list[int]]:
    """A function that lists the running processes among this one and all that it has started, also after its end.

    Call it once while the process runs: those that start after its last call are not found once the process has ended.
    """
    found = {pid}

    def living() -> list[int]:
        listed = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
        running = {int(child): int(parent) for child, parent, state in map(str.split, listed.splitlines()) if state[0] != "Z"}
        while more := {child for child, parent in running.items() if parent in found} - found:
            found.update(more)
        return sorted(found & running.keys())

    return living


def kill_after_step(step: int, config: Path, *options: str) -> None:
    """Train in a new process and kill it and its data workers with SIGKILL after a number of logged steps."""
    more = ["--options", *options] if options else []
    training = start(str(Path(__file__).parent / "workers/killed_training.py"), str(step), "--cfg-path", str(config), *more)
    session = training.pids[0]
    completed = training.wait()
    assert completed.returncode == -signal.SIGKILL, completed.stderr
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Load the objects of a JSON Lines file, except for an incomplete last line."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
