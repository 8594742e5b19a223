"""Nodes that are lost: a cut network, killed launchers, fewer nodes, a node that comes back (tests/two_hosts.py)."""

from __future__ import annotations

import os
import re
import signal
from contextlib import ExitStack

import pytest
from faulty_nodes import MODES, faulty_config, losses, losses_alone, resumes_alone, start_both, variables
from two_hosts import statuses, train, two_hosts, wait_until

from emollama.errors import Unreachable

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def alone(tmp_path_factory, fork_server):
    return losses_alone(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("moment", ["step", "save", "evaluation"])
def test_a_node_whose_network_is_cut_ends_the_run_on_both_and_nothing_is_lost(moment, tmp_path, alone):
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
        resumes_alone(first, alone)


@pytest.mark.parametrize("moment", ["step", "save", "evaluation"])
def test_processes_end_with_their_killed_launcher_on_both_nodes(moment, tmp_path, alone):
    with two_hosts(tmp_path) as hosts:
        first, other = hosts
        started = start_both(hosts, f"{moment}:0:pause")
        wait_until(lambda: (first.folder / "paused").exists(), *hosts)
        os.kill(started[1].pid, signal.SIGKILL)
        assert statuses(*started, hosts=hosts)[0] == Unreachable.STATUS
        wait_until(lambda: not first.processes() + other.processes(), *hosts)
        assert "lost its connection to another process" in first.output()
    resumes_alone(first, alone)


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
