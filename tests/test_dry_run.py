"""--dry-run: the errors that it detects before weights are loaded, and its output."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
import torch
import yaml
from helpers import GOLDEN
from running import golden_config

from emollama import checkpoint
from emollama.cli import main
from emollama.commands import running
from emollama.config import load
from emollama.distributed import launcher, process_group
from emollama.errors import UserError
from emollama.models import llm_weights
from emollama.registry import RUNNERS
from emollama.runners.preparation import Preparation
from emollama.runners.runner_base import RunnerBase

MINIMUM = {"max_epoch": 2, "iters_per_epoch": 8}


def outcome(capfd, *argv):
    """Exit status, standard output and standard error of a command run in this process."""
    try:
        main(argv)
        status = 0
    except SystemExit as end:
        status = end.code
    return status, *capfd.readouterr()


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Fail if weights of the language model are built outside the meta device or a process is launched."""
    build = llm_weights.build

    def built(options, config, *, dtype, device):
        assert device.type == "meta", "--dry-run loads weights"
        return build(options, config, dtype=dtype, device=device)

    monkeypatch.setattr(llm_weights, "build", built)
    monkeypatch.setattr(launcher, "visible_gpus", lambda: 0)
    monkeypatch.setattr(running, "launch", lambda *_, **__: pytest.fail("--dry-run launches processes"))


def test_a_dry_run_without_problems_describes_the_run_and_writes_nothing(tmp_path, capfd):
    path = golden_config(tmp_path, run={**MINIMUM, "evaluate": True, "metric": "train_layout.emotion.loss"})
    before = sorted(tmp_path.rglob("*"))
    status, out, _ = outcome(capfd, "train", "--dry-run", "--nproc", "2", "--cfg-path", str(path))
    assert status == 0
    summary = dict(re.split(" {2,}", line) for line in out.splitlines()[:-1])
    assert summary["run folder"] == str(tmp_path / "out/run") and summary["processes"].startswith("2 on ")
    assert summary["datasets.clips"] == "6 samples; tasks: emotion"
    assert summary["evaluation: train_layout"] == "6 samples; tasks: emotion, reason, reason_v2"
    assert summary["steps"] == "16 (2 epochs x 8 iterations)"
    assert summary["samples per step"] == "2 (2 processes x 1 accumulated x micro-batch of 1)"
    assert summary["checkpoint"].endswith("checkpoint_slim.pth")
    assert summary["parameters"] == "255,296 trainable of 458,368"
    assert out.splitlines()[-1] == "no problem was found; nothing was written"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_reports_all_problems_in_one_message(tmp_path, capfd):
    path = golden_config(tmp_path, data={"coarse_grained_json_path": "nowhere.json", "task_pool": ["reason"]})
    blocked = tmp_path / "file"
    blocked.write_text("")
    options = ("model.ckpt=nowhere.pth", "model.llama_model=nolm", f"run.output_dir={blocked}/runs")
    status, out, err = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path), "--options", *options)
    assert (status, out) == (1, "")
    message = err[err.index("error: ") :]
    assert message.startswith("error: 4 problems:\n- run.output_dir: cannot write")
    for text in ("model.llama_model: no folder 'nolm'", "model.ckpt: no file 'nowhere.pth'", "nowhere.json"):
        assert message.count(text) == 1


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("option", ["model.ckpt=nowhere.pth", "model.llama_model=nowhere"])
def test_a_dry_run_reports_a_missing_checkpoint_or_language_model(command, option, tmp_path, capfd):
    path = golden_config(tmp_path)
    status, _, err = outcome(capfd, command, "--dry-run", "--cfg-path", str(path), "--options", option)
    key, _, missing_path = option.partition("=")
    assert status == 1 and err.splitlines()[-1].startswith(f"error: {key}: no f") and f"'{missing_path}'" in err


def test_a_dry_run_reports_checkpoint_tensors_that_do_not_fit(tmp_path, capfd):
    path = golden_config(tmp_path, model={"lora_r": 8})
    status, _, err = outcome(capfd, "eval", "--dry-run", "--cfg-path", str(path))
    assert status == 1 and "checkpoint_slim.pth" in err and "lora_r" in err


def test_a_dry_run_requires_a_checkpoint_for_evaluation_but_not_for_training(tmp_path, capfd):
    path = golden_config(tmp_path, model={"ckpt": None})
    status, _, err = outcome(capfd, "eval", "--dry-run", "--cfg-path", str(path))
    assert status == 1 and "model.ckpt is null" in err
    status, out, _ = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path))
    assert status == 0 and "none: projections and adapters start from random values" in out


def test_a_dry_run_reports_a_run_folder_with_checkpoints_unless_the_run_is_resumed(tmp_path, capfd):
    path = golden_config(tmp_path)
    folder = tmp_path / "out/run"
    folder.mkdir(parents=True)
    torch.save({"model": {}}, folder / "checkpoint_0.pth")
    status, _, err = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path))
    assert status == 1 and "contains another run" in err
    options = ("--options", f"run.resume_ckpt_path={folder}/checkpoint_0.pth")
    status, _, err = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path), *options)
    assert status == 1 and "contains weights, but not the state of a run" in err


SECOND = f"datasets.second={{type: feature_face_caption, data_root: {GOLDEN}/data, annotation_file: MERR_coarse_grained.txt"


@pytest.mark.parametrize(
    ("command", "options", "problem"),
    [
        ("train", ["run.evaluate=True", "run.metric=accuracy"], "run.metric: unknown metric 'accuracy'"),
        ("train", ["run.evaluate=True", "run.save_best=loss"], "run.metric: 'loss' is computed more than once"),
        ("train", ["run.evaluate=True", "run.metric=cider_d"], "run.metric: no block computes 'cider_d'"),
        ("train", ["run.resume_ckpt_path=auto", "run.job_id=null"], "run.resume_ckpt_path: auto needs run.job_id"),
        ("train", [SECOND + ", batch_size: 3}"], "all blocks under 'datasets' must have the same batch_size"),
        (
            "train",
            [SECOND + ", sample_ratio: 0.000001}"],
            "datasets.second.sample_ratio is too small: 0.001 of every 1024 samples",
        ),
        ("train", ["model.lora_r=8"], "checkpoint_slim.pth"),
        ("train", ["model.ckpt=nowhere.pth"], "model.ckpt: no file"),
        ("eval", ["model.ckpt=null"], "model.ckpt is null"),
        (
            "eval",
            ["evaluation_datasets.upstream.mask_slots=[smell]"],
            "evaluation_datasets.upstream.mask_slots: 1 unknown slot: smell",
        ),
    ],
)
def test_a_dry_run_reports_a_problem_with_the_same_message_as_the_run(command, options, problem, tmp_path, capfd):
    line = (command, "--cfg-path", str(golden_config(tmp_path)), *(["--options", *options] if options else []))
    messages = []
    for more in ((), ("--dry-run",)):
        status, out, err = outcome(capfd, *line, *more)
        assert (status, out) == (1, "")
        messages.append(err[err.index("error: ") :])
    assert messages[0] == messages[1] and messages[0].startswith("error: ") and problem in messages[0]
    assert not (tmp_path / "out").exists()


def stored_run(path, steps):
    """Write a checkpoint of the run that a file configures; returns the checkpoint's path."""
    config = load(str(path))
    ready = Preparation(config, process_group.start("cpu"), training=True)
    content = {
        "step": steps,
        "model": ready.tensors[0],
        "facts": ready.resume_fields,
        "features": {},
        "config": config.unresolved(),
    }
    stored = path.with_name("stored.pth")
    checkpoint.save(stored, content | {"optimizer": {}, "scaler": {}, "skipped": [0, 0]})
    return stored


@pytest.mark.slow
def test_a_dry_run_of_a_resumed_run_needs_only_its_checkpoint_and_a_later_end(tmp_path, capfd):
    path = golden_config(tmp_path, run={"save_every_iters": 4})
    line = ("train", "--dry-run", "--cfg-path", str(path), "--options", "model.ckpt=gone.pth")
    stored = stored_run(path, steps=4)
    status, out, _ = outcome(capfd, *line, f"run.resume_ckpt_path={stored}")
    assert status == 0 and re.search(rf"^checkpoint +{re.escape(str(stored))}$", out, re.MULTILINE)
    assert re.search("^resuming +at step 4 of 8$", out, re.MULTILINE)
    stored_run(path, steps=9)
    status, _, err = outcome(capfd, *line, f"run.resume_ckpt_path={stored}")
    problem = "error: run.max_epoch: the checkpoint to resume from is at step 9, but this run ends at step 8."
    assert status == 1 and err.splitlines()[-1] == f"{problem} Increase run.max_epoch."


def test_a_dry_run_shows_how_the_samples_of_a_step_are_divided(tmp_path, capfd):
    run = {"max_tokens": 5000, "global_batch": 8, "tasks_per_clip": 2}
    path = golden_config(tmp_path, data={"task_pool": ["emotion", "reason"]}, run=run)
    status, out, _ = outcome(capfd, "train", "--dry-run", "--nproc", "2", "--cfg-path", str(path))
    summary = dict(re.split(r"  +", line) for line in out.splitlines() if "  " in line)
    assert (status, summary["samples per step"]) == (0, "8 (2 processes x 4, in micro-batches of up to 5,000 tokens)")
    assert summary["clips per step"] == "4, each with 2 tasks (run.tasks_per_clip)"


class Choosy(RunnerBase):
    """A runner with an additional check."""

    @classmethod
    def prepare(cls, config, world, **how):
        with how.get("problems") or nullcontext():
            raise UserError("run.seed: choose another one")
        return super().prepare(config, world, **how)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_the_checks_of_a_custom_runner_are_run(more, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(RUNNERS, "_entries", {"choosy": Choosy})
    line = ("--cfg-path", str(golden_config(tmp_path)), "--options", "run.runner=choosy")
    status, _, err = outcome(capfd, "train", *line, *more)
    assert status == 1 and err.splitlines()[-1] == "error: run.seed: choose another one"


def test_a_dry_run_refuses_a_runner_without_the_methods_of_a_runner(tmp_path, capfd, monkeypatch):
    class Bare:
        Config = RunnerBase.Config

    monkeypatch.setattr(RUNNERS, "_entries", {"bare": Bare})
    line = ("--cfg-path", str(golden_config(tmp_path)), "--options", "run.runner=bare")
    status, _, err = outcome(capfd, "train", "--dry-run", *line)
    assert status == 1 and "error: run.runner: runner 'bare' (" in err and ") has no prepare, train, evaluate. Add what" in err


def test_a_dry_run_aligns_long_names_and_escapes_control_characters(tmp_path, capfd):
    path = golden_config(tmp_path)
    tree, name = yaml.safe_load(path.read_text()), "a_label_that_is_much_longer_than_any_other_in_this_file"
    tree["datasets"] = {name: tree["datasets"]["clips"]}
    tree["run"] |= {"output_dir": f"{tmp_path}/out\x1b[2J"}
    path.write_text(yaml.safe_dump(tree))
    status, out, _ = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path))
    assert status == 0 and "\x1b" not in out and "out\\x1b[2J" in out
    (line,) = (line for line in out.splitlines() if line.startswith(f"datasets.{name}"))
    column = line.index("6 samples")
    assert column == len(f"datasets.{name}") + 2
    assert all(row[column - 1] == " " and row[column] != " " for row in out.splitlines()[:-1])


def test_automatic_resuming_requires_a_job_id_in_a_dry_run(tmp_path, capfd):
    path = golden_config(tmp_path)
    tree = yaml.safe_load(path.read_text())
    del tree["run"]["job_id"]
    path.write_text(yaml.safe_dump(tree))
    options = ("--options", "run.resume_ckpt_path=auto")
    status, _, err = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path), *options)
    assert status == 1 and "run.resume_ckpt_path: auto needs run.job_id" in err


def test_errors_of_all_blocks_are_reported_in_one_message(tmp_path, capfd):
    path = golden_config(tmp_path)
    tree = yaml.safe_load(path.read_text())
    (block,) = tree["datasets"].values()
    tree["datasets"] = {
        "first": block | {"type": block.get("type", "feature_face_caption"), "annotation_file": "missing_1.txt"},
        "second": block | {"type": block.get("type", "feature_face_caption"), "annotation_file": "missing_2.txt"},
    }
    path.write_text(yaml.safe_dump(tree))
    status, _, error = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path))
    assert status == 1
    for name, file in (("first", "missing_1.txt"), ("second", "missing_2.txt")):
        assert re.search(rf"- datasets\.{name}\.annotation_file: no file '[^']*{file}'", error)
