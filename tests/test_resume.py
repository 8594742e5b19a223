"""A run that is killed and resumed is bit-identical to an uninterrupted run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from running import golden_config, kill_after_step, read_jsonl

from emollama.config import load
from emollama.errors import UserError

EPOCH, SAVED_EVERY, KILLED_AFTER = 5, 2, 3
SETTINGS = {"iters_per_epoch": EPOCH, "max_epoch": 2, "save_every_iters": SAVED_EVERY, "num_workers": 2, "accum_grad_iters": 2}
DATA = {"task_pool": {"emotion": 0.2, "reason": 0.5, "reason_v2": 0.3}, "shuffle": True, "batch_size": 2, "instructions": {}}
MODEL = {"lora_dropout": 0.1, "dropout": 0.1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, launch):
    """An uninterrupted run, and one that was killed in the middle of its first epoch and resumed."""
    root = tmp_path_factory.mktemp("resume")
    config = {name: golden_config(root / name, run=SETTINGS, data=DATA, model=MODEL) for name in ("alone", "killed")}
    result = launch("train.py", "--cfg-path", str(config["alone"]))
    assert result.returncode == 0, result.stderr
    log = root / "killed/out/run/log.jsonl"
    kill_after_step(KILLED_AFTER, config["killed"])
    assert not (log.parent / "checkpoint_0.pth").exists()
    shutil.copytree(log.parent, root / "cut")
    result = launch("train.py", "--cfg-path", str(config["killed"]), "--options", "run.resume_ckpt_path=auto")
    assert result.returncode == 0, result.stderr
    assert "checkpoint_last.pth" in result.stderr
    return {"alone": root / "alone/out/run", "killed": root / "killed/out/run", "cut": root / "cut"}


def test_losses_and_gradient_norms_are_bit_identical_after_resuming(folders):
    alone, killed = (read_jsonl(folders[name] / "log.jsonl") for name in ("alone", "killed"))
    assert [row["step"] for row in killed] == list(range(2 * EPOCH))
    assert [row["loss"] for row in killed] == [row["loss"] for row in alone]
    assert [row["grad_norm"] for row in killed] == [row["grad_norm"] for row in alone]


def test_final_tensors_and_optimizer_states_are_bit_identical_after_resuming(folders):
    import torch

    alone, killed = (torch.load(folders[name] / "checkpoint_1.pth", weights_only=True) for name in ("alone", "killed"))
    for name, tensor in alone["model"].items():
        assert torch.equal(tensor, killed["model"][name]), name
    for key, state in alone["optimizer"]["state"].items():
        assert all(torch.equal(value, killed["optimizer"]["state"][key][part]) for part, value in state.items())


def test_the_losses_of_the_uninterrupted_run_all_differ(folders):
    first = read_jsonl(folders["alone"] / "log.jsonl")
    assert len({row["loss"] for row in first}) == len(first)


def resumed(folders, tmp_path, **changes):
    """Return a runner that resumes the killed run with changed settings."""
    shutil.copytree(folders["cut"], tmp_path / "out/run")
    blocks = {"run": SETTINGS | {"resume_ckpt_path": "auto"}, "data": DATA, "model": MODEL}
    for key, value in changes.items():
        blocks[key] = blocks[key] | value
    config = load(str(golden_config(tmp_path, **blocks)))
    return config.runner_class(config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run": {"init_lr": 2e-3}}, ["run.init_lr", "0.001", "0.002"]),
        (
            {"data": {"batch_size": 4}},
            ["samples of a step", "4 in the checkpoint", "run.global_batch: 4 and run.accum_grad_iters: 1 set"],
        ),
        ({"model": {"dropout": 0.3}}, ["model.dropout", "0.1", "0.3"]),
    ],
)
def test_a_changed_setting_is_refused_with_both_values(folders, tmp_path, changes, expected):
    with pytest.raises(UserError) as error:
        resumed(folders, tmp_path, **changes)
    assert all(word in str(error.value) for word in expected)


def test_workers_intervals_and_a_larger_max_epoch_may_change_when_resuming(folders, tmp_path):
    other = {"num_workers": 0, "save_every_iters": 100, "async_save": False, "log_freq": 7, "max_epoch": 3}
    runner = resumed(folders, tmp_path, run=other)
    assert (runner.first_step, runner.total_steps) == (SAVED_EVERY, 3 * EPOCH)


def test_the_previous_checkpoint_is_used_if_the_last_one_is_damaged(folders, tmp_path):
    from emollama.runners.checkpoints import newest

    folder = tmp_path / "run"
    shutil.copytree(folders["alone"], folder)
    assert Path(newest(folder, {})["path"]).name == "checkpoint_1.pth"
    path = folder / "checkpoint_1.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert Path(newest(folder, {})["path"]).name in ("checkpoint_last.pth", "checkpoint_0.pth")


def test_resuming_automatically_without_a_checkpoint_starts_a_new_run_with_a_log_message(tmp_path, caplog):
    config = load(str(golden_config(tmp_path, run={"resume_ckpt_path": "auto", "iters_per_epoch": 1})))
    assert config.runner_class(config).first_step == 0
    assert "starting a new run" in caplog.text
