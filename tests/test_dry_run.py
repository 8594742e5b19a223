"""--dry-run: what it finds before weights are loaded, and what it prints."""

from __future__ import annotations

import pytest
import torch
import yaml
from running import golden_config

from emollama import launcher
from emollama.cli import main
from emollama.commands import train as train_command
from emollama.models import llm_weights

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
    """Weights of the language model are built on the meta device only, and nothing is launched."""
    build = llm_weights.build

    def built(options, config, *, dtype, device):
        assert device.type == "meta", "--dry-run loads weights"
        return build(options, config, dtype=dtype, device=device)

    monkeypatch.setattr(llm_weights, "build", built)
    monkeypatch.setattr(launcher, "visible_gpus", lambda: 0)
    monkeypatch.setattr(train_command, "launch", lambda *_, **__: pytest.fail("--dry-run launches processes"))


def test_a_run_without_problems_is_described_and_nothing_is_written(tmp_path, capfd):
    path = golden_config(tmp_path, run={**MINIMUM, "evaluate": True, "metric": "train_layout.emotion.accuracy"})
    before = sorted(tmp_path.rglob("*"))
    status, out, _ = outcome(capfd, "train", "--dry-run", "--nproc", "2", "--cfg-path", str(path))
    assert status == 0
    facts = {line[:28].strip(): line[28:].strip() for line in out.splitlines()[:-1]}
    assert facts["run folder"] == str(tmp_path / "out/run") and facts["processes"].startswith("2 on ")
    assert facts["datasets.clips"] == "6 samples; tasks: emotion"
    assert facts["evaluation: train_layout"] == "6 samples; tasks: emotion, reason, reason_v2"
    assert facts["training"] == "16 steps of 2 samples"
    assert facts["checkpoint"].endswith("checkpoint_slim.pth")
    assert facts["parameters"] == "255,296 trainable of 458,368"
    assert out.splitlines()[-1] == "no problem was found; nothing was written"
    assert sorted(tmp_path.rglob("*")) == before


def test_all_problems_are_reported_in_one_message(tmp_path, capfd):
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
def test_a_missing_checkpoint_or_language_model_is_a_problem(command, option, tmp_path, capfd):
    path = golden_config(tmp_path)
    status, _, err = outcome(capfd, command, "--dry-run", "--cfg-path", str(path), "--options", option)
    key, _, place = option.partition("=")
    assert status == 1 and err.splitlines()[-1].startswith(f"error: {key}: no f") and f"'{place}'" in err


def test_tensors_that_do_not_fit_are_a_problem(tmp_path, capfd):
    path = golden_config(tmp_path, model={"lora_r": 8})
    status, _, err = outcome(capfd, "eval", "--dry-run", "--cfg-path", str(path))
    assert status == 1 and "checkpoint_slim.pth" in err and "lora_r" in err


def test_an_evaluation_needs_a_checkpoint_and_training_does_not(tmp_path, capfd):
    path = golden_config(tmp_path, model={"ckpt": None})
    status, _, err = outcome(capfd, "eval", "--dry-run", "--cfg-path", str(path))
    assert status == 1 and "model.ckpt is null" in err
    status, out, _ = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path))
    assert status == 0 and "none: projections and adapters start from random values" in out


def test_a_run_folder_with_checkpoints_is_a_problem_unless_the_run_is_resumed(tmp_path, capfd):
    path = golden_config(tmp_path)
    folder = tmp_path / "out/run"
    folder.mkdir(parents=True)
    torch.save({"model": {}}, folder / "checkpoint_0.pth")
    status, _, err = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path))
    assert status == 1 and "holds the checkpoints of another run" in err
    options = ("--options", f"run.resume_ckpt_path={folder}/checkpoint_0.pth")
    status, _, err = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path), *options)
    assert status == 1 and "it holds weights, not a run" in err


def test_resuming_automatically_needs_a_name(tmp_path, capfd):
    path = golden_config(tmp_path)
    tree = yaml.safe_load(path.read_text())
    del tree["run"]["job_id"]
    path.write_text(yaml.safe_dump(tree))
    options = ("--options", "run.resume_ckpt_path=auto")
    status, _, err = outcome(capfd, "train", "--dry-run", "--cfg-path", str(path), *options)
    assert status == 1 and "run.resume_ckpt_path: auto needs run.job_id" in err
