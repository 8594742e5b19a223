"""The files and messages of a run, and the outputs that it refuses to write."""

from __future__ import annotations

import json
import re
import signal
import sys
import time

import pytest
from ranks import HANG, start
from running import ROOT, golden_config, read_jsonl

from emollama.config import load
from emollama.data.dataset import ClipsToPredict
from emollama.errors import UserError
from emollama.evaluation.losses import Losses
from emollama.evaluation.prediction_files import write_predictions
from emollama.registry import DATASETS, METRICS
from emollama.run_folder import PredictionRecord


def runner_of(path, *options, training=True):
    config = load(str(path), list(options))
    return config.runner_class(config, training=training)


@pytest.mark.parametrize("training", [True, False])
def test_a_folder_that_cannot_be_written_is_refused_by_its_key(tmp_path, training):
    (tmp_path / "file").write_text("in the way")
    path = golden_config(tmp_path, run={"output_dir": str(tmp_path / "file/deeper")})
    with pytest.raises(UserError, match="run.output_dir: cannot write under"):
        runner_of(path, training=training)


@pytest.mark.parametrize(("training", "model"), [(True, {}), (False, {"ckpt_allow_missing": ["*"]})])
def test_a_run_that_starts_from_random_values_logs_one_warning(tmp_path, caplog, training, model):
    runner_of(golden_config(tmp_path, model={"ckpt": None} | model), training=training)
    warnings = [record for record in caplog.records if "random values" in record.getMessage()]
    assert [record.levelname for record in warnings] == ["WARNING"] and "model.ckpt is null" in warnings[0].getMessage()


def test_a_step_with_a_non_finite_loss_is_skipped_and_consecutive_ones_stop_the_run(tmp_path):
    import torch

    path = golden_config(tmp_path, run={"max_skipped_steps": 3}, model={"ckpt": None})
    runner = runner_of(path)
    with torch.no_grad():
        runner.model.fusion.llama_proj.bias[0] = float("nan")
    before = {name: value.clone() for name, value in runner.parallel.trainable_state().items()}
    with pytest.raises(UserError, match=r"not finite in 3 consecutive steps.* \(1 sample: sample_00000371"):
        runner.train()
    after = runner.parallel.trainable_state()
    assert all(torch.equal(before[name], after[name]) or "llama_proj.bias" in name for name in before)
    assert [row["skipped_steps"] for row in read_jsonl(runner.folder / "log.jsonl")] == [1, 2]


def test_a_non_finite_loss_is_written_as_null_and_makes_the_mean_null(tmp_path):
    row = PredictionRecord("a", "emotion", "", "happy", None, None, float("nan"))
    (path,) = write_predictions(tmp_path, "block", [row])
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss"] is None
    assert METRICS.get("loss").compute(Losses(("a", "b"), (float("nan"), 1.0))) is None


def test_an_interrupt_prints_no_traceback_and_reports_that_nothing_was_saved(tmp_path, fork_server):
    started = start("train.py", "--cfg-path", str(golden_config(tmp_path, run={"iters_per_epoch": 100_000})))
    end = time.monotonic() + HANG
    while not read_jsonl(tmp_path / "out/run/log.jsonl"):
        assert started.poll() is None and time.monotonic() < end, started.stderr()
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    result = started.wait()
    assert result.returncode == 130
    assert result.stderr.splitlines()[-1] == "interrupted; this run has not saved a checkpoint yet"
    assert "Traceback" not in result.stderr


def test_a_configuration_error_is_printed_without_a_traceback_and_exits_with_status_1(tmp_path, launch):
    path = golden_config(tmp_path, run={"max_epochs": 3})
    result = launch("train.py", "--cfg-path", str(path))
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == f"error: {path}: unknown key 'run.max_epochs'. Did you mean 'max_epoch'?\n"
    assert not (tmp_path / "out").exists()


def test_the_custom_dataset_in_the_documentation_works_as_written(tmp_path, monkeypatch):
    text = (ROOT / "docs/extending.md").read_text()
    code = re.search(r"```python\n(# my_datasets.py.*?)```", text, re.DOTALL)[1]
    (tmp_path / "my_datasets.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(DATASETS, "_entries", {name: DATASETS.get(name) for name in DATASETS.names()})
    base, scaled = (golden_config(tmp_path / name) for name in ("base", "scaled"))
    own = ["imports=[my_datasets]", "datasets.clips.type=scaled_audio", "datasets.clips.audio_scale=0.25"]
    runner = runner_of(scaled, *own)
    plain, quiet = runner_of(base).datasets["clips"], runner.datasets["clips"]
    folder = next(source.path for source in quiet.features if source.slots == ("audio",))
    clips = ClipsToPredict(quiet.names()[:1], "emotion", None, {"audio": folder})
    shapes = runner.config.model_class.slot_shapes(runner.config.model)
    predicted = type(quiet).for_clips(quiet.cfg, clips, slot_shapes=shapes, block_path="datasets.clips")
    audio = [dataset.record(0, "emotion", "?").features["audio"] for dataset in (plain, quiet, predicted)]
    assert audio[1].equal(audio[0] * 0.25) and audio[2].equal(audio[1])
    sys.modules.pop("my_datasets")
