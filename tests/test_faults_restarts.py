"""Restarts on several nodes after killed processes and errors, full disks, and checkpoints of which a node has lost its part."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from faulty_nodes import MODES, faulty_config, losses, losses_alone, start_both, variables
from ranks import HANG, ROOT, SERVER, environment
from running import golden_config, read_jsonl
from two_hosts import statuses, train, two_hosts
from workers import host_process

from emollama import checkpoint_parts

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def alone(tmp_path_factory, fork_server):
    return losses_alone(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", ["step", "save", "evaluation"])
def test_a_killed_process_is_started_again_on_both_nodes(moment, mode, tmp_path, alone):
    with two_hosts(tmp_path) as hosts:
        rank = 0 if moment == "save" else 1
        started = start_both(hosts, f"{moment}:{rank}:kill", more=("--max-restarts", "2"), parallel=mode)
        assert statuses(*started, hosts=hosts) == [0, 0], hosts[0].output() + hosts[1].output()
        assert not hosts[0].processes() + hosts[1].processes()
    assert losses(hosts[0].folder) == pytest.approx(alone, rel=1e-5)


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
