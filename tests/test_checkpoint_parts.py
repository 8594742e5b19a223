"""Sharded checkpoints: their files, what is read from them, and what is reported if one is missing or damaged."""

from __future__ import annotations

import argparse
import itertools
import shutil
from pathlib import Path

import pytest
import torch
from ranks import start
from running import golden_config
from workers import sharded_training as worker

from emollama import checkpoint, checkpoint_parts
from emollama.commands import checkpoint as commands
from emollama.commands.checkpoint import _file_of
from emollama.convert.consolidation import consolidate
from emollama.convert.inspection import inspect
from emollama.convert.weights import read
from emollama.errors import UserError
from emollama.file_digests import DamagedError
from emollama.runners.checkpoints import folders_of_parts, newest, set_aside_later

KEY = "model.ckpt"
WHOLE = torch.arange(10.0).reshape(5, 2)
ROWS = (0, 3, 5)  # of the two parts


def write(folder: Path, step: int = 1, name: str = "checkpoint_0.pth") -> Path:
    """Write a sharded checkpoint of two processes as a run does; the values of its tensors are multiples of the step."""
    parts = []
    for rank, (first, end) in enumerate(itertools.pairwise(ROWS)):
        path = folder / checkpoint_parts.FOLDER / f"{step}-0" / checkpoint_parts.file_name(rank)
        tensors = {"model.a": step * WHOLE[first:end], "optimizer.state.0.exp_avg": -step * WHOLE[first:end]}
        parts.append(checkpoint_parts.write(path, tensors, dict.fromkeys(tensors, first), f"host{rank}"))
    meta = torch.empty(5, 2, device="meta")
    state = {0: {"exp_avg": meta, "step": torch.tensor(7.0)}}
    content = {"model": {"a": meta, "b": torch.ones(2)}, "optimizer": {"state": state, "param_groups": []}, "step": step}
    checkpoint.save(folder / name, content | {"parts": checkpoint_parts.entry(f"{step}-0", parts)})
    return folder / name


def part(folder: Path, step: int = 1, rank: int = 1) -> Path:
    return folder / checkpoint_parts.FOLDER / f"{step}-0" / checkpoint_parts.file_name(rank)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_changed_part_is_named_and_nothing_is_loaded(tmp_path):
    path = write(tmp_path)
    damage(part(tmp_path))
    with pytest.raises(DamagedError, match=f"{KEY}: {part(tmp_path)} was changed after it was saved: its SHA-256 differs from"):
        checkpoint.read(str(path), KEY)


@pytest.mark.parametrize("truncated", [True, False])
def test_a_missing_or_truncated_part_is_named_with_the_machine_that_wrote_it(tmp_path, truncated):
    path = write(tmp_path)
    part(tmp_path).write_bytes(b"{") if truncated else part(tmp_path).unlink()
    with pytest.raises(
        DamagedError, match=rf"its file {part(tmp_path)} \(\d+ bytes, written by host1\) is missing or incomplete"
    ):
        checkpoint.read(str(path), KEY)


def test_files_that_a_checkpoint_does_not_name_are_not_read(tmp_path):
    path = write(tmp_path)
    folder = part(tmp_path).parent
    checkpoint_parts.write(folder / checkpoint_parts.file_name(8), {"model.a": torch.zeros(5, 2)}, {"model.a": 0}, "host9")
    (folder / f"._{part(tmp_path).name}").write_bytes(b"of another system")
    assert torch.equal(checkpoint.read(str(path), KEY)["model"]["a"], WHOLE)


def test_files_without_all_values_are_an_error_that_names_their_checkpoint(tmp_path):
    path = write(tmp_path)
    content = torch.load(path, weights_only=True)
    content["parts"]["files"].pop()
    checkpoint.save(path, content)
    with pytest.raises(UserError, match=rf"^{path}: its files in .* do not have the values of all tensors"):
        checkpoint.read(str(path), KEY)


def test_a_link_to_a_checkpoint_has_its_parts(tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links/linked.pth"
    link.symlink_to(write(tmp_path))
    assert torch.equal(checkpoint.read(str(link), KEY)["model"]["a"], WHOLE)


def test_a_file_does_not_say_where_its_parts_are(tmp_path):
    path = write(tmp_path)
    content = torch.load(path, weights_only=True)
    content["parts"][checkpoint_parts.COPIED_TO] = str(tmp_path / "elsewhere")
    checkpoint.save(path, content)
    assert torch.equal(checkpoint.read(str(path), KEY)["model"]["a"], WHOLE)


def test_a_checkpoint_with_another_name_keeps_its_parts(tmp_path):
    write(tmp_path).rename(tmp_path / "good.pth")
    write(tmp_path, step=2)
    (tmp_path / checkpoint_parts.FOLDER / "mine-2-0").mkdir()
    shutil.copytree(part(tmp_path).parent, tmp_path / checkpoint_parts.FOLDER / "3-0")
    checkpoint_parts.remove_other_folders(tmp_path, folders_of_parts(tmp_path))
    torch.save(torch.ones(1), tmp_path / "of_another_program.pth")
    assert folders_of_parts(tmp_path) is None
    assert sorted(path.name for path in (tmp_path / checkpoint_parts.FOLDER).iterdir()) == ["1-0", "2-0", "mine-2-0"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ".hidden", "a/b"])
def test_a_name_that_leads_out_of_the_folder_of_the_parts_is_rejected(name):
    entry = {"folder": "1-0", "files": [{"name": name, "sha256": "", "bytes": 1, "host": ""}]}
    with pytest.raises(UserError, match="x.pth: the entry 'parts' of this checkpoint is invalid"):
        checkpoint_parts.parts_of({"parts": entry}, "x.pth")


def test_a_run_resumes_from_an_earlier_checkpoint_if_a_part_of_the_newest_is_missing(tmp_path):
    write(tmp_path, 1, "checkpoint_0.pth"), write(tmp_path, 2, "checkpoint_1.pth")
    part(tmp_path, 2).unlink()
    problems = {}
    assert newest(tmp_path, problems)["step"] == 1
    assert "is missing" in problems.pop(tmp_path / "checkpoint_1.pth") and not problems


def test_a_checkpoint_that_is_set_aside_keeps_its_parts(tmp_path):
    write(tmp_path, 1, "checkpoint_0.pth"), write(tmp_path, 2, "checkpoint_1.pth")
    set_aside_later(tmp_path, 1)
    moved = str(tmp_path / "superseded/1_checkpoint_1.pth")
    for path in (moved, str(tmp_path / "checkpoint_0.pth")):
        checkpoint_parts.parts_of(checkpoint.read(path, KEY, values=False), path).require_intact(KEY)


def test_an_ordinary_checkpoint_is_not_consolidated(tmp_path):
    checkpoint.save(tmp_path / "a.pth", {"model": {"a": WHOLE}})
    with pytest.raises(UserError, match="a.pth is not sharded: it is a single file already"):
        consolidate(str(tmp_path / "a.pth"), str(tmp_path / "b.pth"))


@pytest.mark.parametrize(("spoil", "state"), [(damage, "changed"), (Path.unlink, "missing")])
def test_an_inspection_names_parts_that_are_missing_or_changed(tmp_path, capsys, spoil, state):
    write(tmp_path)
    spoil(part(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        commands.run(argparse.Namespace(action="inspect", source=str(tmp_path / "checkpoint_0.pth"), all=False, json=False))
    sharded, spoiled = capsys.readouterr().out.splitlines()[2:4]
    assert f"2 files in {part(tmp_path).parent}, " in sharded and "only 1 of them intact" in sharded
    assert spoiled.split()[:2] == [state, part(tmp_path).name] and spoiled.endswith("bytes, written by host1)")


# With PyTorch's reader


@pytest.mark.slow
def test_an_inspection_reads_the_values_of_intact_parts(tmp_path):
    (tmp_path / "a.pth").symlink_to(write(tmp_path))
    report = inspect(read(str(tmp_path / "a.pth"), "inspect", values=False))
    size = sum(path.stat().st_size for path in part(tmp_path).parent.glob("*.safetensors"))
    assert (report["parts"]["bytes"], report["parts"]["intact"], report["not_finite"]) == (size, 2, [])


@pytest.mark.slow
def test_weights_are_read_whole_for_commands(tmp_path):
    write(tmp_path)
    weights = read(_file_of(str(tmp_path / "checkpoint_0.pth")), "inspect")
    assert weights.tensors["a"].equal(WHOLE) and weights.tensors["b"].equal(torch.ones(2))


@pytest.mark.slow
def test_a_consolidated_checkpoint_is_an_ordinary_one(tmp_path):
    consolidate(str(write(tmp_path)), str(tmp_path / "single.pth"))
    content = checkpoint.read(str(tmp_path / "single.pth"), KEY)
    assert content.keys() == {"model", "optimizer", "step"} and content["step"] == 1
    assert content["model"]["a"].equal(WHOLE) and content["model"]["b"].equal(torch.ones(2))
    state = content["optimizer"]["state"][0]
    assert state["exp_avg"].equal(-WHOLE) and state["step"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["part", "disk"])
def test_a_failed_consolidation_leaves_no_file(tmp_path, monkeypatch, broken):
    path = write(tmp_path)
    if broken == "part":
        damage(part(tmp_path))
    else:
        monkeypatch.setattr("os.posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="was changed" if broken == "part" else "No space left on device. Free disk space"):
        consolidate(str(path), str(tmp_path / "single.pth"))
    assert not [file for file in tmp_path.iterdir() if "single" in file.name]


# Runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ranks):
    """A run of two processes with sharded checkpoints, of which only the last one is kept; what each process wrote."""
    folder = tmp_path_factory.mktemp("trained")
    run = {"parallel": "fsdp", "max_epoch": 3, "iters_per_epoch": 1, "keep_last": 1, "global_batch": 2, "evaluate": True}
    config = golden_config(folder, run=run, model={"ckpt": None, "train_llm": "full"})
    return folder / "out/run", ranks(worker.train_counting, str(config))


@pytest.mark.slow
def test_no_process_gathers_tensors_for_a_sharded_checkpoint(trained):
    assert [gathered for gathered, *_ in trained[1]] == [0, 0]


@pytest.mark.slow
def test_a_sharded_checkpoint_is_complete_when_an_evaluation_begins(trained):
    assert [exists for *_, exists in trained[1]] == [[True] * 3] * 2


@pytest.mark.slow
def test_each_process_copies_its_share_of_weights_and_moments(trained):
    copied = [size for _, size, _ in trained[1]]
    content = checkpoint.read(str(trained[0] / "checkpoint_2.pth"), KEY, values=False)
    total = 3 * sum(tensor.nbytes for tensor in content["model"].values())
    assert sum(copied) == total and max(copied) == pytest.approx(total / 2, rel=0.01)


@pytest.mark.slow
def test_the_parts_of_deleted_checkpoints_are_deleted(trained):
    folders = list((trained[0] / checkpoint_parts.FOLDER).iterdir())
    assert [folder.name.partition("-")[0] for folder in folders] == ["3"]


@pytest.mark.slow
def test_a_sharded_checkpoint_is_evaluated_by_one_process(trained, tmp_path, fork_server):
    answers = []
    consolidate(str(trained[0] / "checkpoint_2.pth"), str(tmp_path / "single.pth"))
    for path in (tmp_path / "single.pth", trained[0] / "checkpoint_2.pth"):
        config = golden_config(tmp_path / path.stem, run={}, model={"ckpt": str(path), "train_llm": "full"})
        completed = start("-m", "emollama", "eval", "--cfg-path", str(config)).wait()
        assert completed.returncode == 0, completed.stderr
        answers.append([file.read_text() for file in sorted((tmp_path / path.stem).rglob("predictions_*.jsonl"))])
    assert answers[0] == answers[1] and answers[0]
