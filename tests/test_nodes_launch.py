"""``emollama train`` on two hosts with disks of their own (tests/two_hosts.py)."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import pytest
from running import GOLDEN, ROOT, golden_config, read_jsonl
from two_hosts import MASTER, PORT, statuses, train, two_hosts, wait_until

from emollama.errors import Unreachable

pytestmark = pytest.mark.slow
RUN = {"iters_per_epoch": 30, "warmup_steps": 0, "evaluate": False}


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_jsonl(folder / "out/run/log.jsonl")]


def test_a_run_on_two_nodes_that_was_stopped_on_one_resumes_like_an_uninterrupted_run_on_one_node(tmp_path, launch):
    one_node = launch("train.py", "--cfg-path", str(golden_config(tmp_path / "one", run=RUN)), processes=2)
    assert one_node.returncode == 0, one_node.stderr
    with two_hosts(tmp_path) as hosts:
        first, other = hosts
        for host in hosts:
            host.slow_down_link()
        configs = [golden_config(host.folder, run=RUN) for host in hosts]
        started = [host.start(*train(path)) for host, path in zip(hosts, configs, strict=True)]
        wait_until(lambda: len(losses(first.folder)) > 3, *hosts)
        started[1].send_signal(signal.SIGTERM)
        assert statuses(*started, hosts=hosts) == [75, 75], first.output() + other.output()
        for host in hosts:
            last = host.output().splitlines()[-1]
            assert re.fullmatch(r"stopped by SIGTERM after \d+ of 30 steps; to resume, run the same command .*=auto", last), last
        assert not (other.folder / "out").exists()
        started = [host.fork(*train(path, "run.resume_ckpt_path=auto")) for host, path in zip(hosts, configs, strict=True)]
        assert statuses(*started, hosts=hosts) == [0, 0], first.output() + other.output()
        assert f"sending checkpoint_last.pth to {other.name}, where it is missing" in first.output()
        assert not (other.folder / "out").exists() and not first.processes() + other.processes()
    assert losses(first.folder) == losses(tmp_path / "one")


def test_nodes_with_different_data_are_named_on_both_before_weights_are_loaded(tmp_path):
    with two_hosts(tmp_path) as hosts:
        started = []
        for host, label in zip(hosts, ("happy", "sad"), strict=True):
            shutil.copytree(GOLDEN / "data", host.folder / "data")
            path = host.folder / "data/MERR_coarse_grained.txt"
            path.write_text(re.sub(r"(sample_00000104 \d+) \w+", rf"\1 {label}", path.read_text()))
            config = golden_config(host.folder, data={"data_root": str(host.folder / "data")})
            started.append(host.fork(*train(config)))
        assert statuses(*started, hosts=hosts) == [1, 1]
        nodes = [f"node {number} ({host.name})" for number, host in enumerate(hosts)]
        text = f"error: the data of {nodes[1]} differ from those of {nodes[0]}: annotation file and texts of clips (the first"
        for host in hosts:
            assert "(the first one is sample_00000104). Give all nodes the same data." in host.output()
            assert host.output().count("error: ") == 1 and text in host.output() and "loading the language" not in host.output()


def test_nodes_with_different_software_are_named_on_both(tmp_path):
    with two_hosts(tmp_path) as hosts:
        other = hosts[1]
        other.source = other.folder / "clone"
        shutil.copytree(ROOT / "emollama", other.source / "emollama", ignore=shutil.ignore_patterns("__pycache__"))
        with (other.source / "emollama/optim.py").open("a") as file:
            file.write("CHANGED = True\n")
        started = [host.start(*train(golden_config(host.folder, run=RUN))) for host in hosts]
        assert statuses(*started, hosts=hosts) == [1, 1]
        text = f"error: the nodes have different software: node 1 ({other.name}) differs in the source code of emollama ("
        for host in hosts:
            assert text in host.output() and host.output().count("error: ") == 1, host.output()


def test_a_launcher_that_waits_in_vain_says_where_and_how_to_wait_longer(tmp_path):
    with two_hosts(tmp_path) as hosts:
        started = hosts[0].fork(*train(golden_config(tmp_path), more=("--rdzv-conf", "join_timeout=5")))
        assert statuses(started, hosts=hosts) == [Unreachable.STATUS]
        assert f"error: the launchers of 2 nodes cannot meet at {MASTER}:{PORT}. Start the same command" in hosts[0].output()
        assert "join_timeout=SECONDS" in hosts[0].output() and "Traceback" not in hosts[0].output()


def test_the_stores_and_gloo_listen_on_the_chosen_interface_only(tmp_path):
    with two_hosts(tmp_path) as hosts:
        for host in hosts:
            host.fork(*train(golden_config(host.folder, run=RUN | {"iters_per_epoch": 10**6})))
        wait_until(lambda: losses(hosts[0].folder), *hosts)
        for host in hosts:
            assert set(host.listening()) <= {host.address}
        assert hosts[0].listening()
