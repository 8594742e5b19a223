"""The Python API: what ``emollama.load`` reads, and that a session does the same as the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers import golden_tree, write
from running import golden_config

import emollama
from emollama.session import options_of


@pytest.fixture
def run_folder(tmp_path):
    """A run's folder without checkpoints, and a function that adds one of a step."""
    folder = tmp_path / "runs/mine"
    folder.mkdir(parents=True)
    write(folder, golden_tree(tmp_path))
    return folder


def add(folder, name, step):
    """Save a checkpoint with its digest."""
    from emollama import checkpoint

    checkpoint.save(folder / name, {"step": step})
    return folder / name


def test_the_names_of_the_package_are_those_of_its_modules():
    assert [name for name in emollama.__all__ if getattr(emollama, name).__name__ != name] == []
    assert {*emollama.__all__} < {*dir(emollama)}
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        emollama.lod


def test_options_are_those_of_the_command_line_or_a_mapping_of_python_values(tmp_path):
    path = write(tmp_path, golden_tree(tmp_path))
    values = {"run.max_epoch": 3, "run.evaluate": True, "run.metric": None, "run.job_id": "a 'b' \"c\": #é", "run.init_lr": 1e-9}
    config = emollama.load(path, {**values, "run.output_dir": tmp_path}).config.run
    assert [config.max_epoch, config.evaluate, config.metric, config.job_id, config.init_lr] == list(values.values())
    assert config.output_dir == str(tmp_path)
    assert emollama.load(path, ["run.max_epoch=3"]).config.run.max_epoch == 3
    assert options_of(("a=1",)) == ["a=1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("run.seed=1", r"a single text. Write a list: options=\['run.seed=1'\]"),
        ({"run.seed": {1}}, "the value of 'run.seed' cannot be written in YAML"),
        ({"run.sed": 1}, "'run.sed'.* Did you mean 'seed'"),
    ],
)
def test_invalid_options_are_user_errors(options, message, tmp_path):
    with pytest.raises(emollama.UserError, match=message):
        emollama.load(write(tmp_path, golden_tree(tmp_path)), options)


def test_the_best_checkpoint_of_a_run_takes_precedence_over_later_ones(run_folder):
    best = add(run_folder, "checkpoint_best.pth", 2)
    add(run_folder, "checkpoint_3.pth", 8)
    assert emollama.load(run_folder).config.model.ckpt == str(best)


def test_a_run_without_best_checkpoint_is_loaded_from_the_highest_step(run_folder):
    add(run_folder, "checkpoint_last.pth", 5)
    latest = add(run_folder, "checkpoint_10.pth", 22)
    add(run_folder, "checkpoint_9.pth", 20)
    assert emollama.load(str(run_folder)).config.model.ckpt == str(latest)


def test_a_named_checkpoint_takes_precedence_over_the_folder(run_folder, tmp_path):
    other = tmp_path / "other.pth"
    assert emollama.load(run_folder, checkpoint=other).config.model.ckpt == str(other)
    assert emollama.load(run_folder, checkpoint=[other, "b.pth"]).config.model.ckpt == [str(other), "b.pth"]


@pytest.mark.parametrize("name", ["checkpoint_best.pth", "checkpoint_1.pth"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:40]), r"is truncated"),
        (lambda path: Path(f"{path}.sha256").write_text("0" * 64), "was changed after it was saved"),
    ],
)
def test_a_damaged_checkpoint_is_not_replaced_by_an_earlier_one(name, damage, message, run_folder):
    add(run_folder, "checkpoint_0.pth", 2)
    damage(add(run_folder, name, 4))
    with pytest.raises(emollama.UserError, match=f"{name}: .*{message}.*specify the checkpoint to use"):
        emollama.load(run_folder)


def test_a_folder_that_is_not_a_run_or_has_no_checkpoint_is_reported(run_folder, tmp_path):
    with pytest.raises(emollama.UserError, match="contains no checkpoint. Train first"):
        emollama.load(run_folder)
    with pytest.raises(emollama.UserError, match=f"'{tmp_path}' is not the folder of a run: it has no config.yaml"):
        emollama.load(tmp_path)


def test_a_file_that_was_changed_after_it_was_loaded_is_not_run(tmp_path):
    tree = golden_tree(tmp_path)
    session = emollama.load(write(tmp_path, tree))
    write(tmp_path, {**tree, "run": {**tree["run"], "seed": 7}})
    with pytest.raises(emollama.UserError, match="config.yaml was changed after it was loaded"):
        session.evaluate()


def test_a_session_that_only_evaluates_does_not_train(tmp_path):
    session = emollama.load(write(tmp_path, golden_tree(tmp_path)), {"run.evaluate_only": True})
    with pytest.raises(emollama.UserError, match="Call evaluate"):
        session.train()
    with pytest.raises(emollama.UserError, match="nproc is 0"):
        session.evaluate(nproc=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The session of a run that was trained for two steps by another session."""
    folder = tmp_path_factory.mktemp("api")
    tiny = {"run.iters_per_epoch": 2, "run.device": "cpu", "evaluation_datasets.train_layout.max_new_tokens": 8}
    return emollama.load(golden_config(folder), {**tiny, "evaluation_datasets.upstream": None}).train()


@pytest.mark.slow
def test_training_returns_the_session_of_the_run(trained):
    folder = Path(trained.config.model.ckpt).parent
    assert Path(trained.config.model.ckpt).name == "checkpoint_0.pth"
    assert yaml.safe_load((folder / "config.yaml").read_text())["run"]["iters_per_epoch"] == 2


@pytest.mark.slow
def test_an_evaluation_returns_the_answers_and_metrics_of_the_command(trained, emollama):
    result = trained.evaluate()
    path, checkpoint = Path(trained.config.model.ckpt).with_name("config.yaml"), trained.config.model.ckpt
    assert emollama("eval", "--cfg-path", path, "--options", f"model.ckpt={checkpoint}", "run.job_id=command").returncode == 0
    by_command = path.parent.parent / "command/result"
    names = ["predictions_train_layout.jsonl", "metrics_train_layout.json"]
    assert [(result.folder / name).read_bytes() for name in names] == [(by_command / name).read_bytes() for name in names]
    lines = [json.loads(line) for line in (by_command / names[0]).read_text().splitlines()]
    assert {(row.name, row.task): row.prediction for row in result.predictions} == {
        (line["name"], line["task"]): line["prediction"] for line in lines
    }
    scores = json.loads((by_command / names[1]).read_text())["tasks"]
    assert result.metrics == {
        f"train_layout/{task}/{name}": value for task, score in scores.items() for name, value in score["metrics"].items()
    }
