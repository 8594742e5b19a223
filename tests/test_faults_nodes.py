"""Nodes that fail: a cut network, killed processes and launchers, full disks, restarts (tests/two_hosts.py)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ranks import HANG, ROOT, SERVER, environment
from running import golden_config, read_jsonl
from two_hosts import Host, statuses, train, two_hosts, wait_until
from workers import host_process

from emollama import checkpoint_parts, file_digests
from emollama.errors import Unreachable

pytestmark = pytest.mark.faults
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory, fork_server):
    """Mode -> the losses of an uninterrupted run of one process."""
    from ranks import launch

    folder = tmp_path_factory.mktemp("alone")
    completed = launch("train.py", "--cfg-path", str(faulty_config(folder)), env=os.environ | variables(folder))
    assert completed.returncode == 0, completed.stderr
    return losses(folder)


def resumes_alone(host: Host, launch, expected: dict[int, float]) -> None:
    """Check that all checkpoints are intact, and that one process continues from them like an uninterrupted run."""
    for path in (host.folder / "out/run").glob("*.pth"):
        file_digests.require_intact(path)
    env = os.environ | variables(host.folder)
    completed = launch("train.py", "--cfg-path", str(faulty_config(host.folder)), env=env)
    assert completed.returncode == 0, completed.stderr
    assert losses(host.folder) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("moment", ["step", "save", "evaluation"])
def test_a_node_whose_network_is_cut_ends_the_run_on_both_and_nothing_is_lost(moment, tmp_path, launch, alone):
    """The runs of both modes wait at the same time."""
    with ExitStack() as stack:
        pairs = {mode: stack.enter_context(two_hosts(tmp_path / mode)) for mode in MODES}
        started = {mode: start_both(hosts, f"{moment}:0:pause", parallel=mode) for mode, hosts in pairs.items()}
        uncut = list(pairs.values())

        def all_cut() -> bool:
            for first, other in uncut.copy():
                if (first.folder / "paused").exists():
                    other.set_link("down")
                    uncut.remove((first, other))
            return not uncut

        wait_until(all_cut, *(host for hosts in pairs.values() for host in hosts))
        for mode, (first, other) in pairs.items():
            assert statuses(*started[mode], hosts=(first, other)) == [Unreachable.STATUS] * 2
            text = f"error: node 1 ({other.name}) did not respond for 0.4 minutes (a sixth of run.hang_minutes). The machine"
            assert first.output().count("error: ") == 1 and text in first.output()
            # A node reads the names of the others when it looks for their first sign of life.
            assert re.search(rf"error: node 0 \(({first.name}|unknown host)\) did not respond for", other.output())
            assert not first.processes() + other.processes()
    for first, _ in pairs.values():
        resumes_alone(first, launch, alone)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", ["step", "save", "evaluation"])
def test_a_killed_process_is_started_again_on_both_nodes(moment, mode, tmp_path, alone):
    with two_hosts(tmp_path) as hosts:
        rank = 0 if moment == "save" else 1
        started = start_both(hosts, f"{moment}:{rank}:kill", more=("--max-restarts", "2"), parallel=mode)
        assert statuses(*started, hosts=hosts) == [0, 0], hosts[0].output() + hosts[1].output()
        assert not hosts[0].processes() + hosts[1].processes()
    assert losses(hosts[0].folder) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("moment", ["step", "save", "evaluation"])
def test_processes_end_with_their_killed_launcher_on_both_nodes(moment, tmp_path, launch, alone):
    with two_hosts(tmp_path) as hosts:
        first, other = hosts
        started = start_both(hosts, f"{moment}:0:pause")
        wait_until(lambda: (first.folder / "paused").exists(), *hosts)
        os.kill(started[1].pid, signal.SIGKILL)
        assert statuses(*started, hosts=hosts)[0] == Unreachable.STATUS
        wait_until(lambda: not first.processes() + other.processes(), *hosts)
        assert "lost its connection to another process" in first.output()
    resumes_alone(first, launch, alone)


def test_a_run_continues_on_fewer_nodes_with_the_same_global_batch(tmp_path, alone):
    with two_hosts(tmp_path) as hosts:
        first, other = hosts
        more = ("--max-restarts", "2", "--rdzv-conf", "last_call_timeout=5")
        started = start_both(hosts, "step:0:pause", nodes="1:2", more=more)
        wait_until(lambda: (first.folder / "paused").exists(), *hosts)
        other.set_link("down")
        assert statuses(started[0], hosts=hosts) == [0], first.output()
        assert "1 process on cpu" in first.output() or "devices               cpu" in first.output()
    assert losses(first.folder) == pytest.approx(alone, rel=1e-5)


def test_a_node_that_fails_and_comes_back_takes_part_again_and_nothing_is_repeated(tmp_path, alone):
    with two_hosts(tmp_path) as hosts:
        first, other = hosts
        more = ("--max-restarts", "2", "--rdzv-conf", "last_call_timeout=8")
        lines = [train(faulty_config(host.folder), nodes="1:2", more=more) for host in hosts]
        environ = variables(first.folder, "step:0:pause") | {"NODE_FAULT_SECONDS": "300"}
        started = [first.fork(*lines[0], **environ), other.fork(*lines[1], **variables(other.folder))]
        paused = first.folder / "paused"
        wait_until(paused.exists, *hosts)
        for pid in other.processes():
            os.kill(pid, signal.SIGKILL)
        paused.unlink()
        wait_until(paused.exists, *hosts)  # alone
        started[1] = other.fork(*lines[1], **variables(other.folder))
        assert statuses(*started, hosts=hosts) == [0, 0], first.output() + other.output()
        layouts = re.findall(r"(\d) process(?:es)? x \d accumulated x", first.output())
        assert layouts == ["2", "1", "2"] and first.output().count("loss: ") == len(alone)
    assert losses(first.folder) == pytest.approx(alone, rel=1e-5)


def restarted(path: Path, folder: Path, fault: str = "") -> tuple[int, str]:
    """Run one process that can be restarted nine times; return the exit status and the standard error of its launcher."""
    line = ["-m", "emollama", "train", "--nproc", "1", "--max-restarts", "9", "--cfg-path", str(path)]
    output = folder / "stderr"
    for file in (output, folder / "stdout"):
        file.touch()
    environ = environment() | variables(folder, fault)
    launcher = SERVER.process(host_process.run, "", line, environ, str(ROOT), str(folder))
    launcher.join(HANG)
    return launcher.exitcode, output.read_text()


def test_restarts_without_progress_end_with_the_reason_and_the_error_of_each_attempt(tmp_path):
    status, output = restarted(faulty_config(tmp_path, save_every_iters=None), tmp_path, "step:0:fail")
    assert status == 1 and output.count("RuntimeError: the fault of the test") == 3
    last = output.splitlines()[-1]
    assert "the run was started 3 times from step 0 and failed each time before it saved a later checkpoint" in last


def test_a_run_with_missing_data_is_not_restarted(tmp_path):
    path = faulty_config(tmp_path)
    path.write_text(path.read_text().replace("MERR_coarse_grained.txt", "missing.txt"))
    status, output = restarted(path, tmp_path)
    assert status == 1 and (tmp_path / "starts").read_text() == "0\n"
    assert output.count("error: ") == 1 and "missing.txt" in output.splitlines()[-1], output


def test_a_full_disk_of_a_node_that_needs_the_checkpoint_is_reported_on_both(tmp_path):
    with two_hosts(tmp_path) as hosts:
        first, other = hosts
        assert statuses(*start_both(hosts), hosts=hosts) == [0, 0]
        full = other.folder / "out"
        full.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", full], check=True)
        try:
            assert statuses(*start_both(hosts, max_epoch=2), hosts=hosts) == [1, 1]
        finally:
            subprocess.run(["umount", full], check=True)
        path = f"{full}/run/.fetched/checkpoint_0.pth"
        text = f"error: node 1 ({other.name}) cannot store {path}, the checkpoint to resume from: No space"
        assert text in first.output() and text in other.output()


def test_a_sharded_checkpoint_resumes_on_two_nodes_and_an_earlier_one_if_a_node_has_lost_its_part(tmp_path):
    run = {"parallel": "fsdp", "evaluate": False, "iters_per_epoch": 2, "global_batch": 2, "resume_ckpt_path": "auto"}
    with two_hosts(tmp_path) as hosts:
        first, other = hosts
        folders = [host.folder / "out/run" for host in hosts]

        def train_epochs(number: int) -> str:
            model = {"ckpt": None, "train_llm": "full"}
            paths = [golden_config(host.folder, run=run | {"max_epoch": number}, model=model) for host in hosts]
            started = [host.fork(*train(path)) for host, path in zip(hosts, paths, strict=True)]
            before = len(first.output()) if number > 1 else 0
            assert statuses(*started, hosts=hosts) == [0, 0], first.output() + other.output()
            return first.output()[before:]

        train_epochs(1)
        output = train_epochs(2)
        for rank, host in enumerate((other, first)):
            name = checkpoint_parts.file_name(rank)
            assert re.search(rf"sending {name} to node \d \({host.name}\), where it is missing", output), output
            assert len(list(checkpoint_parts.folders(folders[rank])[0].glob("*.safetensors"))) == 2
        (newest,) = (folder for folder in checkpoint_parts.folders(folders[1]) if folder.name.startswith("4-"))
        (newest / checkpoint_parts.file_name(1)).unlink()
        output = train_epochs(3)
        assert re.search(rf"checkpoint_1.pth is skipped: no node has an intact copy: .*written by {other.name}\)", output)
        assert f"resuming from {folders[0]}/checkpoint_0.pth" in output
        # Nothing that is left of the newer checkpoint is lost.
        assert [len(list((folder / "superseded").rglob("*.safetensors"))) for folder in folders] == [1, 0]
        steps = {folder.name.partition("-")[0] for path in folders for folder in checkpoint_parts.folders(path)}
        assert steps == {"2", "4", "6"} and [row["step"] for row in read_jsonl(folders[0] / "log.jsonl")] == list(range(6))
