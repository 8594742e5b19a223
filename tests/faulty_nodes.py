"""Runs of the golden corpus on the two hosts of tests/two_hosts.py, with the faults of tests/workers/node_faults.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ranks import ROOT, launch
from running import golden_config, read_jsonl
from two_hosts import Host, train

from emollama import file_digests

SIX = {"iters_per_epoch": 6, "save_every_iters": 2, "global_batch": 2, "resume_ckpt_path": "auto", "warmup_steps": 0}
QUICK = {"hang_minutes": 2.4}  # a node is lost after 24 seconds
WORKERS = str(ROOT / "tests/workers")
MODES = ["ddp", "fsdp"]


def faulty_config(folder: Path, **run: Any) -> Path:
    """A configuration with tests/workers/node_faults.py."""
    blocks = {"metric": "train_layout.emotion.loss", "evaluate": True}
    path = golden_config(folder, run=SIX | QUICK | blocks | run)
    tree = json.loads(path.read_text())
    del tree["evaluation_datasets"]["upstream"]
    tree["evaluation_datasets"]["train_layout"] |= {"task_pool": ["emotion"], "max_new_tokens": 2}
    path.write_text(json.dumps(tree | {"imports": ["node_faults"]}))
    return path


def variables(folder: Path, fault: str = "") -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{WORKERS}", "NODE_FAULT": fault, "NODE_FAULT_FOLDER": str(folder)}


def start_both(hosts: tuple[Host, Host], fault: str = "", *, nodes: str = "2", more: tuple[str, ...] = (), **run: Any) -> list:
    settings = [(host, faulty_config(host.folder, **run), variables(host.folder, fault)) for host in hosts]
    return [host.fork(*train(path, nodes=nodes, more=more), **environ) for host, path, environ in settings]


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_jsonl(folder / "out/run/log.jsonl")}


def losses_alone(folder: Path) -> dict[int, float]:
    """The losses of an uninterrupted run of one process."""
    completed = launch("train.py", "--cfg-path", str(faulty_config(folder)), env=os.environ | variables(folder))
    assert completed.returncode == 0, completed.stderr
    return losses(folder)


def resumes_alone(host: Host, expected: dict[int, float]) -> None:
    """Check that all checkpoints are intact, and that one process continues from them like an uninterrupted run."""
    for path in (host.folder / "out/run").glob("*.pth"):
        file_digests.require_intact(path)
    assert losses_alone(host.folder) == pytest.approx(expected, rel=1e-5)
