"""Checkpoints that are written in the background: what they contain, who waits for them, and where their errors appear."""

from __future__ import annotations

import errno
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import golden_tree, loaded

from emollama import checkpoint, file_digests
from emollama.distributed import process_group
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.runners import checkpoint_writer
from emollama.runners.checkpoint_writer import CheckpointWriter
from emollama.runners.checkpoints import step_of
from emollama.runners.run_checkpoints import RunCheckpoints
from emollama.runners.validation import Validation

CPU = torch.device("cpu")


def hold(patch):
    """Let no file be written before somebody waits for it; returns the contents to write, and an event that ends this."""
    released, contents, save, wait = threading.Event(), [], checkpoint.save, checkpoint_writer.wait

    def save_when_awaited(path, content):
        contents.append(content)
        assert released.wait(60)
        save(path, content)

    def release_and_wait(writing):
        released.set()
        wait(writing)
        released.clear()

    patch.setattr(checkpoint, "save", save_when_awaited)
    patch.setattr(checkpoint_writer, "wait", release_and_wait)
    return contents, released


@pytest.fixture
def held(monkeypatch):
    """:func:`hold` in a test; returns the contents to write."""
    contents, released = hold(monkeypatch)
    yield contents
    released.set()


def values(number):
    """The content of a checkpoint."""
    state = {0: {"exp_avg": torch.full((3, 2), number * 0.5), "step": torch.tensor(number)}}
    return {"model": {"a": torch.full((3, 2), number)}, "optimizer": {"state": state, "param_groups": [{"params": [0]}]}}


def run_checkpoints(folder, world=None, **settings):
    """The checkpoints of a run with two steps per epoch; the tensors in the file of a step have its number."""
    cfg = {"iters_per_epoch": 2, "save_every_iters": None, "keep_last": None, "async_save": True} | settings
    world = world or World(0, 1, CPU)
    return RunCheckpoints(SimpleNamespace(**cfg), folder, world, lambda step: values(float(step)) | {"step": step}, None)


# What a file contains


def test_a_step_that_runs_while_a_file_is_written_does_not_change_it(tmp_path, held):
    writer, content = CheckpointWriter(in_background=True, device=CPU), values(1.0) | {"skipped": [1, 2]}
    writer.start(tmp_path / "a.pth", content)
    assert not (tmp_path / "a.pth").exists()
    content["model"]["a"].add_(1)
    content["optimizer"]["state"][0]["exp_avg"].zero_()
    content["optimizer"]["state"][0]["step"] += 1
    content["optimizer"]["param_groups"][0]["params"].append(1)
    content["skipped"].append(3)
    writer.finish()
    stored = checkpoint.read(str(tmp_path / "a.pth"), "x")
    assert stored["model"]["a"].eq(1).all() and stored["optimizer"]["state"][0]["exp_avg"].eq(0.5).all()
    assert stored["optimizer"]["state"][0]["step"] == 1 and stored["optimizer"]["param_groups"] == [{"params": [0]}]
    assert stored["skipped"] == [1, 2]


@pytest.mark.gpu
@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="no CUDA device")
def test_on_a_gpu_the_copies_are_in_pinned_memory(tmp_path, held):
    writer, weight = CheckpointWriter(in_background=True, device=torch.device("cuda")), torch.ones(3, 2, device="cuda")
    for number in (1, 2):
        writer.start(tmp_path / "a.pth", {"model": {"a": weight}})
        weight.add_(1)
        writer.finish()
        assert torch.load(tmp_path / "a.pth", weights_only=True)["model"]["a"].eq(number).all()
    first, second = (copied["model"]["a"] for copied in held)
    assert first.is_pinned() and second.is_pinned()
    # PyTorch 2.11 allocates new buffers for each copy.
    assert first.data_ptr() == second.data_ptr() or torch.__version__ < (2, 12)


@pytest.mark.skipif(torch.__version__ < (2, 12), reason="PyTorch 2.11 allocates new buffers for each copy")
def test_the_buffers_of_the_copies_are_used_again(tmp_path, held):
    writer, content = CheckpointWriter(in_background=True, device=CPU), values(1.0)
    for name in ("a.pth", "b.pth"):
        writer.start(tmp_path / name, content)
        writer.finish()
    first, second = (copied["optimizer"]["state"][0]["exp_avg"].data_ptr() for copied in held)
    assert first == second != content["optimizer"]["state"][0]["exp_avg"].data_ptr()


def test_files_have_the_same_bytes_with_and_without_the_background(tmp_path):
    for in_background in (True, False):
        writer = CheckpointWriter(in_background=in_background, device=CPU)
        (tmp_path / str(in_background)).mkdir()
        writer.start(tmp_path / str(in_background) / "a.pth", values(1.0))
        writer.finish()
    assert (tmp_path / "True/a.pth").read_bytes() == (tmp_path / "False/a.pth").read_bytes()


def test_without_memory_for_a_copy_the_save_waits_after_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint_writer, "machine_memory", lambda: (10, 10))
    writer = CheckpointWriter(in_background=True, device=CPU)
    for name in ("a.pth", "b.pth"):
        writer.start(tmp_path / name, values(1.0))
        assert (tmp_path / name).exists()
        writer.finish()
    assert caplog.text.count("run.async_save: a copy of a checkpoint needs") == 1


# Who waits


def test_the_next_save_waits_for_the_one_before(tmp_path, held):
    checkpoints = run_checkpoints(tmp_path, save_every_iters=1)
    checkpoints.maybe_save(1)
    assert not (tmp_path / checkpoint.LAST).exists()
    checkpoints.maybe_save(2)
    assert step_of(tmp_path / checkpoint.LAST) == 1 and not (tmp_path / "checkpoint_0.pth").exists()
    checkpoints.finish()
    assert step_of(tmp_path / "checkpoint_0.pth") == 2


def test_the_end_of_a_run_waits(tmp_path, held):
    with run_checkpoints(tmp_path) as checkpoints:
        checkpoints.maybe_save(2)
        assert not (tmp_path / "checkpoint_0.pth").exists()
    assert file_digests.is_intact(tmp_path / "checkpoint_0.pth")


def test_the_end_of_a_run_with_an_error_waits_and_raises_that_error(tmp_path, held):
    (tmp_path / "checkpoint_1.pth").mkdir()
    for step in (2, 4):
        with pytest.raises(ZeroDivisionError), run_checkpoints(tmp_path) as checkpoints:
            checkpoints.maybe_save(step)
            raise ZeroDivisionError
    assert file_digests.is_intact(tmp_path / "checkpoint_0.pth")


def test_a_stop_waits_for_a_checkpoint_of_its_step(tmp_path, held):
    checkpoints = run_checkpoints(tmp_path)
    checkpoints.maybe_save(2)
    checkpoints.save_if_new(2)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_0.pth"]
    checkpoints.save_if_new(3)
    assert step_of(tmp_path / checkpoint.LAST) == 3


def test_old_checkpoints_stay_until_the_new_one_is_complete(tmp_path, held):
    checkpoints = run_checkpoints(tmp_path, keep_last=1)
    checkpoints.maybe_save(2)
    checkpoints.finish()
    checkpoints.maybe_save(4)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_0.pth"]
    checkpoints.finish()
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_1.pth"]


def test_without_the_key_a_save_is_complete_when_it_returns(tmp_path):
    run_checkpoints(tmp_path, async_save=False).maybe_save(2)
    assert file_digests.is_intact(tmp_path / "checkpoint_0.pth")


# Errors


@pytest.mark.parametrize("saves_again", [True, False])
def test_an_error_in_the_background_ends_the_run_at_the_next_save_or_at_its_end(tmp_path, saves_again):
    (tmp_path / "checkpoint_0.pth").mkdir()
    checkpoints = run_checkpoints(tmp_path)
    checkpoints.maybe_save(2)
    with pytest.raises(UserError, match=r"checkpoint_0\.pth could not be written: Is a directory\. Move this folder away"):
        checkpoints.maybe_save(4) if saves_again else checkpoints.finish()
    assert not (tmp_path / "checkpoint_1.pth").exists()


def test_an_error_that_is_known_ends_the_run_at_the_next_step(tmp_path):
    (tmp_path / "checkpoint_0.pth").mkdir()
    checkpoints = run_checkpoints(tmp_path)
    checkpoints.maybe_save(2)
    checkpoint_writer.wait([checkpoints._writer._writing])
    with pytest.raises(UserError, match="could not be written"):
        checkpoints.maybe_save(3)


def errors_of_steps(folder):
    """Save in this process and those of its group, two steps per epoch; return the steps with an error and the errors."""
    checkpoints, errors = run_checkpoints(Path(folder), world=process_group.start("cpu")), []
    with pytest.MonkeyPatch.context() as patch:
        hold(patch)
        for step in (2, 3, 4, 5):
            try:
                checkpoints.maybe_save(step)
            except UserError as error:
                errors.append((step, type(error).__name__, str(error).partition(":")[0]))
        checkpoints.finish()
    return errors


def test_all_ranks_get_the_error_at_the_same_step(tmp_path, ranks):
    (tmp_path / "checkpoint_0.pth").mkdir()
    text = f"{tmp_path}/checkpoint_0.pth could not be written"
    assert ranks(errors_of_steps, str(tmp_path)) == [[(4, "UserError", text)], [(4, "RemoteUserError", text)]]


def full(path, content):
    """Write a checkpoint to a full disk."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise UserError(f"{path} could not be written") from error


def test_a_last_checkpoint_that_does_not_fit_is_tried_again_with_one_warning(tmp_path, monkeypatch, caplog):
    checkpoints = run_checkpoints(tmp_path, save_every_iters=3, iters_per_epoch=100)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        for step in range(3, 8):
            checkpoints.maybe_save(step)
            checkpoint_writer.wait(filter(None, [checkpoints._writer._writing]))
    checkpoints.maybe_save(8)
    checkpoints.finish()
    assert step_of(tmp_path / checkpoint.LAST) == 8
    assert caplog.text.count("Training continues, and the next steps try again.") == 1


# The best checkpoint


def no_links(source, target):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_the_best_checkpoint_is_a_second_name_of_that_of_the_epoch_or_a_copy(tmp_path, held, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    checkpoints = run_checkpoints(tmp_path)
    for step in (2, 4):
        checkpoints.maybe_save(step)
        assert checkpoints.save_best(step)
        assert file_digests.is_intact(tmp_path / checkpoint.BEST) and step_of(tmp_path / checkpoint.BEST) == step
        epoch = tmp_path / f"checkpoint_{step // 2 - 1}.pth"
        assert file_digests.is_intact(epoch) and epoch.samefile(tmp_path / checkpoint.BEST) == links
    assert step_of(tmp_path / "checkpoint_0.pth") == 2 and len(held) == 2


def test_a_best_checkpoint_without_one_of_the_epoch_is_written(tmp_path, held):
    assert run_checkpoints(tmp_path).save_best(2)
    assert file_digests.is_intact(tmp_path / checkpoint.BEST) and not (tmp_path / "checkpoint_0.pth").exists()


def test_a_best_checkpoint_without_one_of_the_epoch_that_does_not_fit_is_not_announced_for_later(tmp_path, monkeypatch, caplog):
    checkpoints = run_checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint, "save", full)
    assert checkpoints.save_best(2) is None
    assert caplog.text.count("Training continues.") == 1 and "again" not in caplog.text


@pytest.mark.parametrize("duplicate", [checkpoint.copy, checkpoint.link])
@pytest.mark.parametrize("completed", range(4))
def test_an_interrupted_copy_or_link_leaves_a_checkpoint_with_its_digest(tmp_path, monkeypatch, completed, duplicate):
    """It is interrupted before each of its renames."""
    source, target, replace = tmp_path / "checkpoint_1.pth", tmp_path / checkpoint.BEST, os.replace
    checkpoint.save(source, {"model": {"a": torch.tensor(2.0)}})
    checkpoint.save(target, {"model": {"a": torch.tensor(1.0)}})
    renames = []

    def interrupted(*paths):
        if len(renames) == completed:
            raise KeyboardInterrupt
        renames.append(paths)
        replace(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    with suppress(KeyboardInterrupt):
        duplicate(source, target)
    assert file_digests.is_intact(target) and len(renames) == min(completed, 3)
    assert checkpoint.read(str(target), "x")["model"]["a"] == (1 if completed < 2 else 2)


def test_a_file_without_a_digest_is_copied_with_one(tmp_path):
    checkpoint.save(tmp_path / "a.pth", {"model": {}})
    file_digests.digest_path(tmp_path / "a.pth").unlink()
    checkpoint.link(tmp_path / "a.pth", tmp_path / "b.pth")
    assert file_digests.is_intact(tmp_path / "b.pth")


# A run


def test_the_best_checkpoint_is_complete_before_eval_jsonl_names_it(tmp_path, held, monkeypatch):
    write, complete = Validation._write, []

    def watched(self, log):
        best = Path(self._folder, checkpoint.BEST)
        complete.append((file_digests.is_intact(best), step_of(best)))
        write(self, log)

    monkeypatch.setattr(Validation, "_write", watched)
    tree = golden_tree(tmp_path)
    tree["run"] |= {"iters_per_epoch": 1, "max_epoch": 1, "evaluate": True, "save_best": "answers.emotion.loss"}
    config = loaded(tmp_path, tree)
    folder = config.runner_class(config).train()
    assert complete == [(True, 1)]
    assert [json.loads(line)["best"] for line in (folder / "eval.jsonl").read_text().splitlines()] == [True]


def test_eval_jsonl_says_if_no_file_has_the_weights_of_the_best_evaluation(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(RunCheckpoints, "save_best", lambda *_: None)
    tree = golden_tree(tmp_path)
    tree["run"] |= {"iters_per_epoch": 1, "max_epoch": 1, "evaluate": True, "save_best": "answers.emotion.loss"}
    config = loaded(tmp_path, tree)
    folder = config.runner_class(config).train()
    (line,) = map(json.loads, (folder / "eval.jsonl").read_text().splitlines())
    assert line["best_lost"] and "is the best so far, but no file has its weights, because the disk is full" in caplog.text
