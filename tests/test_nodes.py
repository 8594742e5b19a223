"""Runs on several nodes: their options, how they meet, and what is compared between them."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from argparse import ArgumentParser
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import kubernetes_validate
import pytest
import torch
import yaml
from running import GOLDEN, ROOT, golden_config
from torch.distributed.elastic import rendezvous
from workers import node_functions as worker

from emollama import entry
from emollama.cli import main
from emollama.config import load
from emollama.distributed import (
    launcher,
    node_launch,
    nodes,
    process_group,
    torchrun_options,
    watchdog,
    worker_errors,
    worker_variables,
)
from emollama.distributed.node_launch import NodeOptions
from emollama.distributed.nodes import Member, Nodes
from emollama.distributed.process_group import World
from emollama.errors import NoProgress, Stopped, Unreachable, UserError
from emollama.optim import trainable
from emollama.precision import Precision
from emollama.runners import fetching, folder_check, restarts
from emollama.runners.build import model_without_weights

FOUR = [Member(group, f"host{group}", {"torch": "2.15.0"}) for group in ("0", "0", "1", "1")]


def test_a_port_in_use_is_an_error_that_says_what_may_use_it():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = f"^--rdzv 127.0.0.1:{port}: Address already in use. Start one launcher per machine with --interface, or"
        with pytest.raises(UserError, match=message):
            node_launch._listening_store("127.0.0.1", port)


# Who is where


def test_nodes_are_numbered_in_the_order_of_ranks():
    four = Nodes.of(FOUR)
    assert [four.place(rank) for rank in range(4)] == ["node 0 (host0)"] * 2 + ["node 1 (host1)"] * 2
    assert [four.is_first(rank) for rank in range(4)] == [True, False, True, False]
    assert Nodes.of([Member("a", "a", {})] * 2).place(1) == "process 1"


def test_the_software_of_nodes_is_compared():
    other = Member("1", "host1", {"torch": "2.14.0"})
    members = [*FOUR[:2], other, other]
    assert nodes.disagreement(FOUR, Nodes.of(FOUR)) == ""
    text = "the nodes have different software: node 1 (host1) differs in torch (2.14.0, node 0 has 2.15.0). Install"
    assert nodes.disagreement(members, Nodes.of(members)).startswith(text)


def test_nodes_with_different_devices_or_a_problem_of_a_device_are_named():
    gpu = [dataclasses.replace(member, device="cuda") for member in FOUR]
    text = (
        "the nodes have different devices: cuda on node 0 (host0), cpu on node 1 (host1). Where it is cpu, PyTorch finds no GPU"
    )
    members = [*gpu[:2], *FOUR[2:]]
    assert nodes.disagreement(members, Nodes.of(members)).startswith(text)
    members[2] = dataclasses.replace(FOUR[2], problem="there is no GPU")
    assert nodes.disagreement(members, Nodes.of(members)) == "node 1 (host1): there is no GPU"


def test_a_device_that_only_another_node_lacks_is_reported_by_all_before_they_form_a_group(monkeypatch):
    from torch.distributed import HashStore

    store = HashStore()
    store.set("attempt_0/process 1", json.dumps(dataclasses.asdict(Member("1", "b", {}, "cpu", "no GPU"))))
    store.set("attempt_0/process 1 knows all", "")
    monkeypatch.setattr(process_group, "open_store", lambda *_: store)
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "GROUP_RANK": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^node 1 \(b\): no GPU$") as caught:
        process_group.start("cpu")
    assert caught.value.is_final


def test_fewer_nodes_than_required_are_reported_even_if_one_process_is_left(monkeypatch):
    """torch starts the processes of the other nodes if it considers one dead, for example because its clock is behind."""
    options = NodeOptions(2, 3, ("a", 1))
    for name, value in (node_launch.node_variables(options) | {"WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=r"^--nnodes requires 2 nodes, but only 1 takes part, .* synchronize the clocks"
    ) as caught:
        process_group.start("cpu")
    assert caught.value.is_final


@pytest.mark.parametrize(
    ("run", "train_llm", "rank", "parts"),
    [
        ({}, "lora", 0, (1, 1)),
        ({}, "lora", 2, (0, 1)),
        ({"parallel": "fsdp"}, "lora", 2, (0, 1)),
        ({"parallel": "fsdp"}, "full", 2, (1, 3)),
        ({"parallel": "fsdp", "sharded_checkpoints": False}, "full", 2, (0, 1)),
        ({"parallel": "hsdp", "shard_size": 1}, "full", 0, (1, 1)),
        ({"parallel": "hsdp", "shard_size": 1}, "full", 2, (0, 1)),
    ],
)
def test_a_node_needs_space_for_what_it_writes_of_a_checkpoint(run, train_llm, rank, parts, tmp_path, monkeypatch):
    config = load(str(golden_config(tmp_path, run=run, model={"ckpt": None, "train_llm": train_llm})))
    model = model_without_weights(config, Precision(torch.device("cpu"), False, "auto"))
    world = World(rank, 3, torch.device("cpu"), Nodes((0, 0, 1), ("a", "b")))
    needed = sum(weight.numel() for weight in trainable(model).values()) * 12 * parts[0] // parts[1]
    for free in {needed, max(0, needed - 1)}:
        monkeypatch.setattr(folder_check.disk, "usage", lambda _, free=free: SimpleNamespace(total=2**40, free=free))
        with pytest.raises(UserError, match=r"^run\.output_dir: the disk of") if free < needed else nullcontext():
            folder_check.require_space(config, tmp_path, model, world)


def test_the_source_code_is_part_of_the_software(tmp_path, monkeypatch):
    before = nodes.software()
    assert {"Python", "emollama", "torch", "transformers", "the source code of emollama"} <= before.keys()
    (tmp_path / "__init__.py").write_text("changed")
    monkeypatch.setattr(nodes.emollama, "__file__", str(tmp_path / "__init__.py"))
    assert [name for name, value in nodes.software().items() if value != before[name]] == ["the source code of emollama"]


def test_processes_that_do_not_connect_are_named(monkeypatch):
    from torch.distributed import HashStore

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"^2 of 3 processes have not connected within \S+ minutes: ranks 0, 2\. Look for an"):
        nodes.meet(HashStore(), 1, 3, FOUR[1], timedelta(milliseconds=1))


def test_a_node_that_waits_for_processes_names_them_once(monkeypatch, capsys):
    """The launcher of a node whose clock is ahead can end with an error while the other nodes wait for its processes."""
    from torch.distributed import HashStore

    store, sleeps = HashStore(), iter(range(3))

    def sleep(_):
        if next(sleeps) == 2:
            store.set("process 1", json.dumps(dataclasses.asdict(FOUR[1])))

    monkeypatch.setattr(nodes, "REPORT_SECONDS", -1)
    monkeypatch.setattr(nodes.time, "sleep", sleep)
    assert nodes.meet(store, 0, 2, FOUR[0]) == FOUR[:2]
    assert capsys.readouterr().out.count("still waiting for rank 1: look for an error in the output of their nodes") == 1


def test_a_process_that_waits_for_others_reacts_to_signals(monkeypatch):
    from torch.distributed import HashStore

    def stopped(*_):
        raise Stopped("by a signal")

    monkeypatch.setattr(nodes.time, "sleep", lambda seconds: signal.raise_signal(signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, stopped)
    try:
        with pytest.raises(Stopped):
            nodes.meet(HashStore(), 0, 2, FOUR[0])
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_store_with_the_processes_of_an_earlier_attempt_is_refused():
    from torch.distributed import HashStore

    store = HashStore()
    store.set("process 0", "earlier")
    with pytest.raises(UserError, match="Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"):
        nodes.meet(store, 0, 1, FOUR[0])


def test_nodes_that_count_their_restarts_differently_meet_in_a_new_store(monkeypatch):
    prefixes = []
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        prefixes.append(worker_variables.attempt())
    assert prefixes[0] == prefixes[1]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert worker_variables.attempt() == "attempt_1"


def test_a_store_that_torchrun_keeps_is_refused_for_several_nodes_with_restarts(monkeypatch):
    numbers = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "1"}
    for name, value in (numbers | {"MASTER_ADDR": "a", "TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"):
        worker_variables.require_group()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    worker_variables.require_group()


def test_the_address_of_an_interface_is_found():
    assert nodes.interface_address("lo") == "127.0.0.1"
    with pytest.raises(UserError, match=r"^--interface eth99: this machine has no network interface .* are .*lo"):
        nodes.interface_address("eth99")


def test_a_launcher_whose_processes_only_lost_their_connections_says_so_without_a_traceback(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    record = worker_errors.error_record(RuntimeError("[gloo/transport] Connection closed by peer [10.0.0.2]"))
    failure = SimpleNamespace(exitcode=1, error_file_data=record)
    error = worker_errors.first_failure({0: failure}, 4)
    assert error.status == Unreachable.STATUS
    assert str(error).startswith("error: process 0 of 4 lost its connection to another process, which was probably killed")


def test_the_status_of_a_command_tells_that_another_attempt_can_succeed(monkeypatch, tmp_path, capsys):
    """The launcher reads the error of a worker from its file: as a failure, or after workers that must not be restarted."""
    path = tmp_path / "attempt_0/0/error.json"
    path.parent.mkdir(parents=True)
    monkeypatch.setenv(worker_errors.ERROR_FILE, str(path))

    def launcher_of(error, read):
        worker_errors.write_error(error)
        raise read()

    def failed():
        return worker_errors.first_failure({0: SimpleNamespace(exitcode=1, error_file_data=json.loads(path.read_bytes()))}, 2)

    for error in (Unreachable("node 1 did not respond"), UserError("clip x is broken")):
        for read in (failed, lambda: worker_errors.read_user_error(tmp_path)):
            assert entry.run(lambda error=error, read=read: launcher_of(error, read)) == error.STATUS
            assert capsys.readouterr().err == f"error: {error}\n"
    assert (UserError.STATUS, Unreachable.STATUS, Stopped.STATUS) == (1, 69, 75)


@pytest.mark.parametrize("name", ["RendezvousTimeoutError", "RendezvousConnectionError", "RendezvousClosedError"])
def test_launchers_that_do_not_meet_or_lose_each_other_can_be_started_again(name):
    error = getattr(rendezvous, name)("the reason")
    assert type(node_launch.no_rendezvous(NodeOptions(2, 2, ("a", 1)), error)) is Unreachable


# Options


def parsed(*argv):
    parser = ArgumentParser()
    launcher.add_launch_arguments(parser)
    node_launch.add_node_arguments(parser)
    return parser.parse_args(argv)


def test_the_options_of_torchrun_are_accepted():
    options = NodeOptions.of(
        parsed(
            "--nnodes", "1:4", "--rdzv", "host:29500", "--max-restarts", "3", "--rdzv-conf", "join_timeout=9,last_call_timeout=1"
        )
    )
    assert (options.least, options.most, options.endpoint, options.max_restarts) == (1, 4, ("host", 29500), 3)
    assert options.settings == {"join_timeout": "9", "last_call_timeout": "1"} and options.several
    assert not NodeOptions.of(parsed()).several


@pytest.mark.parametrize(
    "argv",
    [
        ["--nnodes", "0"],
        ["--nnodes", "3:2"],
        ["--rdzv", "host"],
        ["--rdzv", "host:70000"],
        ["--rdzv-conf", "a"],
        ["--max-restarts", "-1"],
    ],
)
def test_malformed_options_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        parsed(*argv)
    assert argv[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rdzv-conf", "join_timout=9"], "unknown key 'join_timout'. Did you mean 'join_timeout'? Keys: join_timeout, "),
        (["--rdzv-conf", "store_type=file"], "unknown key 'store_type'."),
        (["--rdzv-conf", "join_timeout=soon"], "join_timeout must be a whole number of seconds above 0"),
        (["--rdzv-conf", "join_timeout=0"], "join_timeout must be a whole number of seconds above 0"),
        (["--rdzv-conf", "read_timeout=1.5"], "read_timeout must be a whole number of seconds above 0"),
        (["--rdzv-conf", "close_timeout=99999999999999"], "close_timeout must be a whole number of seconds above 0"),
        (["--rdzv-conf", "keep_alive_max_attempt=no"], "keep_alive_max_attempt must be a whole number above 0"),
        (["--rdzv-conf", "is_host=2"], "is_host must be true or false, not '2'"),
        (["--rdzv-conf", "join_timeout=9,join_timeout=8"], "join_timeout occurs twice, with '9' and '8'"),
        (["--node-rank", "1"], "nodes are numbered in the order of their addresses"),
        (["--node_rank=1"], "nodes are numbered in the order of their addresses"),
        (["--nproc-per-node", "4"], "use --nproc N, or --gpus N"),
        (["--rdzv-endpoint=host:1"], "use --rdzv HOST:PORT"),
    ],
)
def test_rendezvous_settings_and_other_options_of_torchrun_are_checked_before_the_start(argv, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*argv)
    assert message in capsys.readouterr().err


def test_torch_reads_the_accepted_rendezvous_settings():
    from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend, dynamic_rendezvous

    source = inspect.getsource(c10d_rendezvous_backend) + inspect.getsource(dynamic_rendezvous)
    read = set(re.findall(r'params\.get\w*\(\s*"(\w+)"', source))
    read |= {f"{name}_timeout" for name in re.findall(r'_get_timeout\(params, "(\w+)"', source)}
    assert set(torchrun_options.KEYS) <= read


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nnodes", "2"], "--nnodes needs --rdzv: nodes meet at --rdzv HOST:PORT"),
        (["--rdzv", "host:1"], "--rdzv needs --nnodes"),
        (["--interface", "lo"], "--interface is about several nodes. Add --nnodes and --rdzv"),
        (["--rdzv-id", "a"], "--rdzv-id is about several nodes."),
        (["--rdzv-conf", "join_timeout=9"], "--rdzv-conf is about several nodes."),
        (["--nnodes", "2", "--rdzv", "host:1", "--master-port", "9"], "--master-port cannot be used with --nnodes"),
        (
            ["--nnodes", "2", "--rdzv", "host:1", "--interface", "lo", "--rdzv-conf", "is_host=1"],
            "--rdzv-conf is_host cannot be used with --interface",
        ),
        (
            ["--nnodes", "2", "--rdzv", "host:1", "--interface", "eth99"],
            "--interface eth99: this machine has no network interface",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(argv, message):
    with pytest.raises(UserError) as error:
        NodeOptions.of(parsed(*argv))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("argv", "option", "message"),
    [
        (["--nnodes", "2", "--rdzv", "host:1"], "run.job_id=null", "--nnodes needs run.job_id"),
        (["--max-restarts", "2"], "run.job_id=x", "--max-restarts 2 needs run.job_id and run.resume_ckpt_path=auto"),
    ],
)
def test_names_that_all_nodes_and_attempts_need_are_required_before_the_launch(argv, option, message, tmp_path, capfd):
    with pytest.raises(SystemExit):
        main(["train", *argv, "--cfg-path", str(golden_config(tmp_path)), "--options", option])
    assert capfd.readouterr().err.startswith(f"error: {message}")


def test_an_unknown_host_is_reported(monkeypatch):
    monkeypatch.setattr(nodes, "RESOLVE_SECONDS", -1)
    with pytest.raises(UserError, match=r"^--rdzv: the host 'no host' is unknown: "):
        nodes._address("no host")


def test_nccl_uses_the_chosen_interface_only():
    two = NodeOptions(2, 2, ("a", 1), interface="eth1")
    environ = node_launch.node_variables(two)
    assert (environ["NCCL_SOCKET_IFNAME"], environ["GLOO_SOCKET_IFNAME"]) == ("=eth1", "eth1")


def test_a_name_with_a_loopback_address_is_this_node(monkeypatch):
    addresses = {"node1": "127.0.1.1", "node2": "192.0.2.2", "same": "192.0.2.1"}
    monkeypatch.setattr(nodes, "_address", addresses.get)
    monkeypatch.setattr(nodes, "interface_address", lambda _: "192.0.2.1")
    assert [name for name in addresses if nodes.is_this_node(name, "eth1")] == ["node1", "same"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_host_with_an_address_of_this_machine_on_another_network_is_refused(host, monkeypatch):
    real = nodes.interface_address
    monkeypatch.setattr(nodes, "interface_address", lambda name: "192.0.2.1" if name == "eth1" else real(name))
    text = f"^--rdzv: {host} is this machine, but with the address 127.0.0.1, and .* --interface eth1 is 192.0.2.1. Use"
    with pytest.raises(UserError, match=text):
        nodes.is_this_node(host, "eth1")


# What is compared between nodes


@pytest.mark.parametrize("rank", [0, 1])
def test_each_node_checks_its_own_files_and_its_error_reaches_rank_0(ranks, rank):
    text = "no such file" if rank == 0 else "node 1 (b): no such file"
    kinds = ["UserError", "RemoteUserError" if rank == 0 else "UserError"]
    assert ranks(worker.fails_on, rank) == [(kind, text) for kind in kinds]


def test_configurations_may_differ_between_nodes_in_paths_only(ranks, tmp_path, monkeypatch):
    paths = [str(golden_config(tmp_path / name)) for name in "ab"]
    same = ranks(worker.compare_configurations, paths, [["run.num_workers=0"], ["run.num_workers=2"]])
    assert same == [("", "")] * 2
    options = [["run.init_lr=1e-3"], ["run.init_lr=2e-3", "model.ckpt=null"]]
    (kind, text), (other, _) = ranks(worker.compare_configurations, paths, options)
    assert (kind, other) == ("UserError", "UserError")
    assert "the configuration of node 1 (b) differs from that of node 0 (a):" in text
    assert "- run.init_lr: 0.002 on node 1 (b), 0.001 on node 0 (a)" in text and "- model.ckpt: None on node 1 (b)" in text


def test_weights_are_compared_by_content(ranks, tmp_path):
    paths = [str(golden_config(tmp_path / name)) for name in "ab"]
    shutil.copytree(GOLDEN / "llama", tmp_path / "b/llama")
    options = [[], [f"model.llama_model={tmp_path}/b/llama"]]
    assert ranks(worker.compare_weights, paths, options) == [("", "")] * 2
    file = max((tmp_path / "b/llama").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    files = f"model.llama_model ({file.name})"
    text = f"the weights of node 1 (b) differ from those of node 0 (a): {files}. Copy the same files to all nodes."
    assert ranks(worker.compare_weights, paths, options) == [("UserError", text)] * 2


def test_values_that_differ_between_nodes_are_shown_and_names_that_one_lacks_count(ranks):
    first = {"clips of a": 100, "features of a, video": "0" * 16, "tasks": "0" * 16}
    fields = [first, {"clips of a": 99, "tasks": "1" * 16, "model.ckpt": "2" * 16}]
    values = "clips of a (99 instead of 100), tasks, model.ckpt (only on node 1 (b))"
    text = f"the data of node 1 (b) differ from those of node 0 (a): {values}. Copy them."
    assert ranks(worker.require_equal, fields) == [("UserError", text)] * 2


def test_a_dtype_that_means_something_else_on_another_node_is_reported(ranks):
    text = (
        "run.amp_dtype: auto is bf16 on node 0 (a), fp16 on node 1 (b), because not all GPUs have bf16. Set run.amp_dtype: fp16."
    )
    assert ranks(worker.compare_precision, ["bf16", "fp16"]) == [("UserError", text)] * 2
    assert ranks(worker.compare_precision, ["bf16", "bf16"]) == [("", "")] * 2


def test_clocks_that_disagree_are_reported_on_both_nodes(ranks):
    assert ranks(worker.clock_warnings, 0.0) == [[], []]
    (first,), (second,) = ranks(worker.clock_warnings, 3600.0)
    assert first == second and first.startswith("the clock of node 1 (b) differs by +3600 s from that of node 0 (a).")


# The checkpoint to resume from


@pytest.fixture
def folders(tmp_path):
    """The folders of a run on two nodes, of which the first has a checkpoint."""
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "a/checkpoint_0.pth").write_bytes(b"content" * 100)
    return [str(tmp_path / name) for name in "ab"]


def test_a_node_without_the_checkpoint_gets_a_copy_until_it_has_read_it(ranks, folders):
    (own, content, _), (copy, same, left) = ranks(worker.fetch, folders, 0)
    assert (own, copy) == (f"{folders[0]}/checkpoint_0.pth", f"{folders[1]}/.fetched/checkpoint_0.pth")
    assert content == same == b"content" * 100 and not left


def test_nothing_is_sent_if_all_nodes_have_the_checkpoint_but_another_file_of_its_name_is_not_used(ranks, folders, tmp_path):
    (tmp_path / "b/checkpoint_0.pth").write_bytes(b"content" * 100)
    assert [path for path, _, _ in ranks(worker.fetch, folders, 0)] == [f"{folder}/checkpoint_0.pth" for folder in folders]
    (tmp_path / "b/checkpoint_0.pth").write_bytes(b"another" * 100)
    assert [content for _, content, _ in ranks(worker.fetch, folders, 0)] == [b"content" * 100] * 2


def test_a_node_that_cannot_store_the_checkpoint_is_named_on_both(ranks, folders, tmp_path):
    (tmp_path / "b/.fetched").write_text("a file")
    (_, text), (_, same) = ranks(worker.failed_fetch, folders)
    assert text == same and text.startswith(f"node 1 (b) cannot store {folders[1]}/.fetched/checkpoint_0.pth, the checkpoint")


def test_a_checkpoint_that_becomes_shorter_while_it_is_sent_is_reported_on_both_with_its_node(ranks, folders, tmp_path):
    (tmp_path / "a/checkpoint_0.pth").write_bytes(bytes(2**18))
    (_, text), (_, same) = ranks(worker.fetch_of_a_file_that_shrinks, folders)
    assert text == same and text.startswith(f"node 0 (a) cannot read {folders[0]}/checkpoint_0.pth, the checkpoint to resume")
    assert "it has become shorter" in text and not (tmp_path / "b/.fetched").exists()


def test_a_disk_that_reports_only_at_the_end_that_it_is_full_keeps_no_incomplete_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(fetching.os, "fsync", full)
    writer = fetching._ReceivedFile(tmp_path / "part")
    writer.write(bytearray(b"content"))
    with pytest.raises(UserError, match=r"^node 1 cannot store \S+/part, .*: Disk quota exceeded\. Free disk space, because"):
        writer.close("node 1", keep=True)
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize(("steps", "rank"), [((4, 2), 0), ((2, 4), 1), ((4, 4), 0), ((None, 4), 1), ((None, None), None)])
def test_a_run_resumes_from_the_node_with_the_highest_step(ranks, tmp_path, steps, rank):
    import torch

    folders = [tmp_path / name for name in "ab"]
    for folder, step in zip(folders, steps, strict=True):
        folder.mkdir()
        if step is not None:
            torch.save({"step": step}, folder / "checkpoint_last.pth")
    assert ranks(worker.rank_with_newest, list(map(str, folders))) == [rank, rank]


# Nodes that do not respond


def test_without_the_store_only_the_node_that_has_it_is_reported_as_lost(monkeypatch):
    monkeypatch.setenv("GROUP_RANK", "1")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    monkeypatch.setattr(watchdog, "all_joined", lambda: True)
    watched = watchdog._Watchdog(60.0, threading.Event())
    watched._unreachable = True
    assert watched._lost_nodes(5.0) == [] and watched._lost_nodes(60.0) == ["0"]


# Restarts


@pytest.fixture
def restarted(monkeypatch):
    """Make this process look like one that was restarted a number of times."""

    def set_count(count):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "9")

    return set_count


@pytest.mark.parametrize(("steps", "stops"), [([0, 0, 0, 0], True), ([0, 4, 4, 4, 4], True), ([0, 0, 4, 4], False)])
def test_a_run_that_is_restarted_from_the_same_step_three_times_stops(steps, stops, restarted, tmp_path):
    for count, step in enumerate(steps):
        restarted(count)
        if stops and count == len(steps) - 1:
            with pytest.raises(NoProgress, match=f"^the run was started 3 times from step {step} and failed each time"):
                restarts.require_progress(tmp_path, step)
        else:
            restarts.require_progress(tmp_path, step)
            restarts.record_attempt(tmp_path, step)


def test_attempts_of_an_earlier_launcher_do_not_count(restarted, tmp_path):
    for count in (0, 1, 2):
        restarted(count)
        restarts.record_attempt(tmp_path, 0)
    restarted(0)
    restarts.record_attempt(tmp_path, 0)
    assert json.loads((tmp_path / ".attempts.json").read_text()) == {"0": 0}


def test_the_launcher_learns_whether_a_run_can_be_resumed(tmp_path, monkeypatch):
    for attempt, stopped in enumerate([Stopped("stopped by SIGTERM"), NoProgress("again and again")]):
        folder = tmp_path / f"attempt_{attempt}/0"
        folder.mkdir(parents=True)
        monkeypatch.setenv(worker_errors.ERROR_FILE, str(folder / "error.json"))
        assert worker_errors.read_stop(tmp_path) is None
        assert worker_errors.write_stop(stopped)
        read = worker_errors.read_stop(tmp_path)
        assert (type(read), str(read)) == (type(stopped), str(stopped))


# Examples


def test_the_slurm_script_is_valid_and_uses_options_that_exist():
    path = ROOT / "examples/slurm_nodes.sh"
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=False).stderr == b""
    shellcheck = Path(sys.executable).with_name("shellcheck")
    assert subprocess.run([shellcheck, path], capture_output=True, text=True, check=False).stdout == ""
    command = path.read_text().split("emollama train", 1)[1].partition("--options")[0]
    line = command.replace("\\\n", " ").replace('"$ADDRESS:$PORT"', "a:29500").replace('"$SLURM_JOB_NUM_NODES"', "2")
    assert NodeOptions.of(parsed(*line.partition('"$CONFIG"')[2].replace('"$INTERFACE"', "lo").split())).several


def run_slurm_script(folder, srun, requeued_before=0):
    """Run the script with commands of Slurm that are replaced: scontrol prints its arguments below the name of a node."""
    for name, text in {"scontrol": 'echo node1; echo "$@"', "srun": srun}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    numbers = {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_RESTART_COUNT": str(requeued_before),
    }
    environ = numbers | {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)}
    script = ROOT / "examples/slurm_nodes.sh"
    return subprocess.run(["bash", script], env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("address", "status"), [("2: ib0 inet 10.0.0.1/24 scope", 0), ("", 1)])
def test_the_slurm_script_passes_address_port_and_cores_or_says_that_the_interface_is_missing(address, status, tmp_path):
    completed = run_slurm_script(tmp_path, f'case "$*" in *addr*) echo "{address}";; *) echo "$@";; esac')
    assert completed.returncode == status, completed.stderr
    if status:
        assert completed.stderr.startswith("error: node1 has no network interface ib0 with an IPv4 address.")
    else:
        assert "--cpus-per-task=32" in completed.stdout and "--rdzv 10.0.0.1:23456 " in completed.stdout


@pytest.mark.parametrize(
    ("status", "requeued_before", "is_requeued"),
    [(0, 0, False), (1, 0, False), (Stopped.STATUS, 99, True), (Unreachable.STATUS, 49, True), (Unreachable.STATUS, 50, False)],
)
def test_the_slurm_script_requeues_a_job_that_another_attempt_can_complete(status, requeued_before, is_requeued, tmp_path):
    completed = run_slurm_script(
        tmp_path, f'case "$*" in *addr*) echo "2: ib0 inet 10.0.0.1/24";; *) exit {status};; esac', requeued_before
    )
    assert completed.returncode == status, completed.stderr
    assert ("requeue 123456" in completed.stdout) == is_requeued


def test_the_kubernetes_manifest_has_the_fields_of_the_kubernetes_api():
    """The fields of a JobSet itself are not checked, because its API is not part of Kubernetes."""
    jobs, policy = yaml.safe_load_all((ROOT / "examples/kubernetes_jobset.yaml").read_text())
    (replicated,) = jobs["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": replicated["template"]["spec"]}
    for manifest in (job, policy):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    job["spec"]["podFailurePolicie"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="podFailurePolicie"):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_the_kubernetes_manifest_is_safe_and_gives_a_run_time_to_save():
    jobs, policy = yaml.safe_load_all((ROOT / "examples/kubernetes_jobset.yaml").read_text())
    job = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert (jobs["apiVersion"], jobs["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet") and job["completionMode"] == "Indexed"
    (rule,) = job["podFailurePolicy"]["rules"]
    (container_rule,) = jobs["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["containerName"]) == ("FailJob", container["name"])
    assert rule["onExitCodes"]["operator"] == "In" and rule["onExitCodes"]["values"] == [NoProgress.STATUS] == [UserError.STATUS]
    assert (container_rule["action"], container_rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert pod["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert pod["terminationGracePeriodSeconds"] >= launcher.SHUTDOWN_SECONDS
    assert policy["spec"]["podSelector"]["matchLabels"] == job["template"]["metadata"]["labels"]
    first = f"{jobs['metadata']['name']}-node-0-0.{jobs['spec']['network']['subdomain']}:29500"
    arguments = [word for word in container["command"][3:] if not word.startswith("--interface")]
    options = NodeOptions.of(parsed(*arguments[: arguments.index("--options")]))
    assert f"{options.endpoint[0]}:{options.endpoint[1]}" == first
    assert (options.least, options.most) == (job["completions"], job["parallelism"])
