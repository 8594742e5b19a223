"""Sharded checkpoints of a run on two nodes with disks of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from running import golden_config, read_jsonl
from small_disks import small_disk
from test_checkpoint_parts import damage, part, write
from workers import node_functions as worker

from emollama import checkpoint, checkpoint_parts, file_digests
from emollama.distributed.process_group import World
from emollama.runners.checkpoints import read_to_resume, step_of
from emollama.runners.run_checkpoints import remove_interrupted


@pytest.fixture
def folders(tmp_path):
    """The folders of a run: the first node has the checkpoints of two epochs, and each node has the parts of its process."""
    for step in (1, 2):
        for name in "ab":
            write(tmp_path / name, step, f"checkpoint_{step - 1}.pth")
        part(tmp_path / "a", step).unlink()
        part(tmp_path / "b", step, 0).unlink()
    remove_checkpoint(tmp_path / "b", 0), remove_checkpoint(tmp_path / "b", 1)
    return [tmp_path / name for name in "ab"]


def remove_checkpoint(folder: Path, epoch: int) -> None:
    path = folder / f"checkpoint_{epoch}.pth"
    path.unlink()
    file_digests.digest_path(path).unlink()


def files(folder: Path) -> list[str]:
    """The files in a folder without digests."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".sha256")


def resume(ranks, folders, configured="auto"):
    """Resume on both nodes, from a file in their folders or ``auto``; the error, the step, and the warnings of each."""
    return ranks(worker.resume, list(map(str, folders)), configured)


def test_each_node_gets_the_parts_of_the_other(ranks, folders):
    assert resume(ranks, folders) == [("", 2, [])] * 2


def test_a_damaged_part_is_replaced_by_that_of_another_node(ranks, folders):
    write(folders[0], 2, "checkpoint_1.pth")
    damage(part(folders[0], 2))
    assert resume(ranks, folders) == [("", 2, [])] * 2


@pytest.mark.parametrize("action", [damage, Path.unlink])
def test_a_run_resumes_from_an_earlier_checkpoint_if_no_node_has_a_part_of_the_newest(ranks, folders, action):
    action(part(folders[1], 2))
    first, second = resume(ranks, folders)
    assert [first[:2], second] == [("", 1), ("", 1, [])]
    (warning,) = first[2]
    path = folders[0] / "checkpoint_1.pth"
    start = f"{path} is skipped: no node has an intact copy: {path} is a sharded checkpoint, and its file"
    assert warning.startswith(f"{start} {part(folders[0], 2)} (") and "written by host1) is missing" in warning


def test_files_of_a_checkpoint_that_was_skipped_are_moved_on_all_nodes(ranks, folders):
    damage(part(folders[1], 2))
    later = [[name for name in files(folder) if "/2-0/" in name] for folder in folders]
    resume(ranks, folders)
    assert [files(folder / "superseded") for folder in folders] == [["1_checkpoint_1.pth", *later[0]], later[1]]


def test_a_run_whose_checkpoints_all_lack_a_part_is_not_started_anew(ranks, folders):
    part(folders[1], 1).unlink(), part(folders[1], 2).unlink()
    (error, *_), (same, *_) = resume(ranks, folders)
    assert error == same and error.startswith(
        f"run.resume_ckpt_path: auto: no checkpoint in {folders[0]} can be used (checkpoint_"
    )
    assert "checkpoint_0.pth: no node has" in error and "checkpoint_1.pth: no node has" in error


def test_a_configured_checkpoint_without_a_part_is_an_error_that_names_the_part_on_each_node(ranks, folders):
    part(folders[1], 2).unlink()
    for folder, (error, *_) in zip(folders, resume(ranks, folders, "checkpoint_1.pth"), strict=True):
        text = f"{folder}/checkpoint_1.pth is a sharded checkpoint, and its file {part(folder, 2)} ("
        assert error.startswith(f"run.resume_ckpt_path: no node has an intact copy: {text}")


def test_the_parts_of_a_checkpoint_that_only_another_node_has_are_kept(ranks, folders):
    for file in (folders[0] / "checkpoint_1.pth", file_digests.digest_path(folders[0] / "checkpoint_1.pth")):
        file.rename(folders[1] / file.name)
    assert resume(ranks, folders) == [("", 2, [])] * 2
    assert all(part(folder, 2).is_file() and part(folder, 2, 0).is_file() for folder in folders)


def test_a_damaged_checkpoint_of_one_node_is_skipped_for_an_earlier_one_of_another(ranks, folders):
    write(folders[1], 3, "checkpoint_2.pth")
    damage(folders[1] / "checkpoint_2.pth")
    first, second = resume(ranks, folders)
    assert (first[:2], second[:2]) == (("", 2), ("", 2)) and first[2][0].startswith(f"{folders[1]}/checkpoint_2.pth is skipped: ")
    assert (folders[1] / "superseded/1_checkpoint_2.pth").is_file()


def test_the_next_checkpoint_after_a_damaged_one_can_be_on_another_node(ranks, folders):
    write(folders[0], 4, "checkpoint_3.pth")
    damage(folders[0] / "checkpoint_3.pth")
    write(folders[1], 3, "checkpoint_2.pth")
    first, second = resume(ranks, folders)
    assert (first[:2], second) == (("", 3), ("", 3, [])) and "checkpoint_3.pth is skipped" in first[2][0]


def test_parts_beside_the_checkpoint_of_another_run_are_used_on_a_node_without_the_checkpoint(ranks, folders, tmp_path):
    new_run = [tmp_path / name / "new" for name in "ab"]
    for folder in new_run:
        folder.mkdir()
    assert resume(ranks, new_run, "../checkpoint_1.pth") == [("", 2, [])] * 2
    assert all(part(folder, 2, rank).is_file() for folder in folders for rank in (0, 1))
    assert files(tmp_path / "b/new") == []


def test_a_new_run_keeps_parts_that_it_resumes_from_until_they_are_read(tmp_path):
    used, unused = (write(tmp_path, step, f"checkpoint_{step}.pth") for step in (1, 2))
    (other := tmp_path / "other").mkdir()
    content = read_to_resume(used)
    for path in (used, unused):
        path.rename(other / path.name)
    left = tmp_path / ".checkpoint_last.pth.new"
    left.touch()
    (tmp_path / ".fetched").mkdir()
    remove_interrupted(tmp_path, World(0, 1, torch.device("cpu")), content)
    assert [path.name for path in checkpoint_parts.folders(tmp_path)] == ["1-0"]
    assert not left.exists() and not (tmp_path / ".fetched").exists()
    remove_interrupted(tmp_path, World(0, 1, torch.device("cpu")), None)
    assert checkpoint_parts.folders(tmp_path) == []


@pytest.mark.faults
def test_a_node_without_space_for_the_checkpoint_is_named_and_keeps_no_incomplete_file(ranks, folders):
    with small_disk("1m") as disk:
        shutil.copytree(folders[1], folder := disk / "run")
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        (error, *_), (same, *_) = resume(ranks, [folders[0], folder])
        copy = folder / ".fetched/checkpoint_1.pth"
        assert error == same and error.startswith(f"node 1 (b) cannot store {copy}, the checkpoint to resume from: No space left")
        assert files(folder) == files(folders[1])
        (disk / "filler").unlink()
        assert resume(ranks, [folders[0], folder]) == [("", 2, [])] * 2


def test_a_node_that_cannot_store_a_part_is_named(ranks, folders):
    part(folders[1], 2, 0).mkdir()
    (error, *_), (same, *_) = resume(ranks, folders)
    start = f"node 1 (b) cannot store {part(folders[1], 2, 0)}, the checkpoint to resume from: Is a directory. Move this folder"
    assert error == same and error.startswith(start)


# Runs whose second node has a small disk. Its part takes 2.7 MB, and a new part is written before the old one is deleted.

FOUR = {"iters_per_epoch": 4, "save_every_iters": 1, "global_batch": 2, "warmup_steps": 0, "resume_ckpt_path": "auto"}


@contextmanager
def configurations(tmp_path: Path) -> Iterator[tuple[list[str], list[Path], Path]]:
    """Configurations of the nodes, the folders of their run, and a file that leaves space for one part on the second node."""
    with small_disk("9m") as disk:
        run = FOUR | {"parallel": "fsdp", "evaluate": False}
        homes = [tmp_path / "a", disk]
        paths = [str(golden_config(home, run=run, model={"ckpt": None, "train_llm": "full"})) for home in homes]
        (disk / "filler").write_bytes(bytes(5_000_000))
        yield paths, [home / "out/run" for home in homes], disk / "filler"


@pytest.mark.faults
def test_a_last_checkpoint_that_one_node_cannot_store_is_saved_when_there_is_space(ranks, tmp_path):
    with configurations(tmp_path) as (paths, folders, filler):
        (error, warnings, saved), (same, *_) = ranks(worker.train, paths, str(filler), 3)
        path = folders[1] / checkpoint_parts.FOLDER
        (warning,) = [text for text in warnings if "could not be written" in text]
        assert warning.startswith(f"node 1 (b): {path}/") and "No space left" in warning and "the next steps try again" in warning
        # The checkpoint of the first step is intact until the disk has space in the fourth.
        assert (error, same, saved) == ("", "", 1)
        assert step_of(folders[0] / "checkpoint_0.pth") == 4
        # The parts of the saves in between are deleted.
        assert {path.name.partition("-")[0] for folder in folders for path in checkpoint_parts.folders(folder)} == {"1", "4"}


@pytest.mark.faults
def test_a_run_that_ends_because_one_node_cannot_store_its_part_continues_from_the_checkpoint_before(ranks, tmp_path):
    with configurations(tmp_path) as (paths, folders, filler):
        (error, *_), (same, *_) = ranks(worker.train, paths)
        assert error == same and error.startswith(f"node 1 (b): {folders[1]}/") and "No space left" in error
        assert [path.name for path in folders[0].glob("*.pth")] == [checkpoint.LAST] and step_of(
            folders[0] / checkpoint.LAST
        ) == 1
        assert not list(folders[1].rglob(".*.new"))
        losses = [row["loss"] for row in read_jsonl(folders[0] / "log.jsonl")]
        filler.unlink()
        assert [error for error, *_ in ranks(worker.train, paths)] == ["", ""]
        assert [row["loss"] for row in read_jsonl(folders[0] / "log.jsonl")] == losses and len(losses) == 4
        assert step_of(folders[0] / "checkpoint_0.pth") == 4
