"""Requests to stop (SIGTERM, SIGUSR1, a time limit) in real processes, and the runs that continue afterwards."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from ranks import HANG, start
from running import GOLDEN, ROOT, command, environment, golden_config, read_jsonl
from test_faults_folders import assert_equal_tensors, wait_until

from emollama.distributed.stop_requests import SAME_REQUEST_SECONDS

pytestmark = pytest.mark.faults
SCRIPT = str(ROOT / "tests/workers/interrupted_training.py")
STEPS, EPOCHS = 5, 2
SETTINGS = {"iters_per_epoch": STEPS, "max_epoch": EPOCHS, "evaluate": True, "save_every_iters": 3, "resume_ckpt_path": "auto"}
DATA = {"task_pool": {"emotion": 0.5, "reason": 0.5}, "shuffle": True, "batch_size": 2, "instructions": {}}
MODEL = {"lora_dropout": 0.1, "dropout": 0.1}
# Where rank 0 sends SIGTERM to both: the point, and the number of the call. Each is hit in a run of its own.
MOMENTS = [
    ("build", 1),
    ("first", 1),
    ("step", 1),
    ("step", 4),
    ("gradients", 3),
    ("save", 1),
    ("save", 2),
    ("answers", 1),
    ("answers", 3),
    ("scores", 2),
]


def configured(folder):
    path = golden_config(folder, run=SETTINGS, data=DATA, model=MODEL)
    text = path.read_text()
    path.write_text(text.replace("batch_size: 4", "batch_size: 2").replace("max_new_tokens: 20", "max_new_tokens: 3"))
    return path


def run_two(*arguments):
    return start(*map(str, arguments), processes=2).wait()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, fork_server):
    folder = tmp_path_factory.mktemp("uninterrupted")
    completed = run_two("train.py", "--cfg-path", configured(folder))
    assert completed.returncode == 0, completed.stderr
    return folder / "out/run"


def assert_same_run(run, reference):
    for epoch in range(EPOCHS):
        assert_equal_tensors(run / f"checkpoint_{epoch}.pth", reference / f"checkpoint_{epoch}.pth")
        for name in ("predictions_train_layout.jsonl", "predictions_upstream.jsonl", "metrics_train_layout.json"):
            path = f"result/epoch_{epoch}/{name}"
            assert (run / path).read_bytes() == (reference / path).read_bytes(), path
    for name, key in (("log.jsonl", "loss"), ("log.jsonl", "grad_norm"), ("eval.jsonl", "metrics")):
        rows, expected = read_jsonl(run / name), read_jsonl(reference / name)
        assert [(row["step"], row[key]) for row in rows] == [(row["step"], row[key]) for row in expected]


@pytest.mark.parametrize(("point", "number"), MOMENTS)
def test_a_run_that_sigterm_stopped_continues_bit_identically(point, number, uninterrupted, tmp_path, fork_server):
    config, pids = configured(tmp_path), tmp_path / "pids"
    run = start(SCRIPT, point, str(number), str(pids), "--cfg-path", str(config), processes=2)
    pids.write_text(" ".join(map(str, run.pids)))
    completed = run.wait()
    # Workers of torchrun end with status 0, so that it does not restart them.
    assert completed.returncode == 0, completed.stderr
    assert "stopped by SIGTERM" in completed.stderr and "Traceback" not in completed.stderr
    assert not (tmp_path / f"out/run/result/epoch_{EPOCHS - 1}/metrics_upstream.json").exists()
    completed = run_two("train.py", "--cfg-path", config)
    assert completed.returncode == 0, completed.stderr
    assert_same_run(tmp_path / "out/run", uninterrupted)


def test_a_run_that_sigterm_stopped_at_random_moments_continues_bit_identically(uninterrupted, tmp_path, fork_server):
    config, moments = configured(tmp_path), random.Random(0)
    for _ in range(10):
        run = start("train.py", "--cfg-path", str(config), processes=2)
        wait_until(lambda run=run: "samples per step" in run.stderr() or run.poll() is not None, run)
        time.sleep(moments.uniform(0, 0.3))
        run.send_signal(signal.SIGTERM)
        completed = run.wait()
        assert completed.returncode == 0, completed.stderr
    assert run_two("train.py", "--cfg-path", config).returncode == 0
    assert_same_run(tmp_path / "out/run", uninterrupted)


def test_an_interrupted_evaluation_keeps_its_answers_and_continues(tmp_path, fork_server):
    config, pids = configured(tmp_path), tmp_path / "pids"
    result = tmp_path / "out/run/result"
    line = ["--cfg-path", str(config), "--options", "run.evaluate_only=True", "evaluation_datasets.upstream=null"]
    run = start(SCRIPT, "answers", "2", str(pids), *line, processes=2)
    pids.write_text(" ".join(map(str, run.pids)))
    completed = run.wait()
    assert completed.returncode == 0 and "stopped by SIGTERM while answering train_layout" in completed.stderr
    kept = {path.name: path.read_text().splitlines() for path in result.glob(".answers_*")}
    assert set(kept) == {f".answers_train_layout_{rank}_of_2.jsonl" for rank in range(2)}
    assert len(kept[".answers_train_layout_0_of_2.jsonl"]) == 3  # a header and two batches
    # An answer that the model would never give shows that the kept ones are used.
    path = result / ".answers_train_layout_0_of_2.jsonl"
    header, first, *others = kept[path.name]
    changed = json.loads(first)
    del changed["checksum"]
    changed["answers"][0]["prediction"] = "a kept answer"
    changed["checksum"] = zlib.crc32(json.dumps(changed, sort_keys=True).encode())
    path.write_text("\n".join([header, json.dumps(changed), *others, '{"items": [1,']))
    completed = run_two("train.py", *line)
    assert completed.returncode == 0, completed.stderr
    predictions = read_jsonl(result / "predictions_train_layout.jsonl")
    assert len(predictions) == 18 and sum(row["prediction"] == "a kept answer" for row in predictions) == 1
    assert not list(result.glob(".answers_*"))


# What an evaluation depends on: a change of each of them after an interruption.
def new_features(folder):
    for path in (folder / "data").glob("HL-UTT/*.npy"):
        np.save(path, np.load(path) * 2)


def new_language_model(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "llama/model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, folder / "llama/model.safetensors", {"format": "pt"})


def new_checkpoint(folder):
    import torch

    content = torch.load(folder / "checkpoint.pth", weights_only=True)
    content["model"] = {name: tensor * 1.5 for name, tensor in content["model"].items()}
    torch.save(content, folder / "checkpoint.pth")


CHANGES = {
    "features": (new_features, []),
    "language model": (new_language_model, []),
    "checkpoint": (new_checkpoint, []),
    "settings": (Path.exists, ["evaluation_datasets.train_layout.mask_slots=[audio]"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_answers_of_another_evaluation_are_never_used(change, tmp_path, fork_server):
    shutil.copytree(GOLDEN / "data", tmp_path / "data")
    shutil.copytree(GOLDEN / "llama", tmp_path / "llama")
    shutil.copy(GOLDEN / "checkpoint_slim.pth", tmp_path / "checkpoint.pth")
    config, pids = configured(tmp_path), tmp_path / "pids"
    config.write_text(config.read_text().replace(str(GOLDEN / "data"), str(tmp_path / "data")))
    own = [f"model.llama_model={tmp_path}/llama", f"model.ckpt={tmp_path}/checkpoint.pth"]
    line = ["--cfg-path", str(config), "--options", "run.evaluate_only=True", "evaluation_datasets.upstream=null", *own]
    run = start(SCRIPT, "answers", "4", str(pids), *line)
    pids.write_text(str(run.pids[0]))
    assert run.wait().returncode == 75
    function, options = CHANGES[change]
    function(tmp_path)
    for job_id in ("run", "fresh"):
        completed = start("train.py", *line, *options, f"run.job_id={job_id}").wait()
        assert completed.returncode == 0, completed.stderr
        assert "continuing with" not in completed.stderr
    continued, fresh = (read_jsonl(tmp_path / f"out/{name}/result/predictions_train_layout.jsonl") for name in ("run", "fresh"))
    assert continued == fresh


def test_answers_of_another_number_of_processes_do_not_stay(tmp_path, fork_server):
    config, pids = configured(tmp_path), tmp_path / "pids"
    line = ["--cfg-path", str(config), "--options", "run.evaluate_only=True", "evaluation_datasets.upstream=null"]
    run = start(SCRIPT, "answers", "2", str(pids), *line, processes=2)
    pids.write_text(" ".join(map(str, run.pids)))
    assert run.wait().returncode == 0
    assert start("train.py", *line).wait().returncode == 0
    assert not list((tmp_path / "out/run/result").glob(".answers_*"))


def stopped_before_the_first_step(folder, config, *options):
    run = start(SCRIPT, "first", "1", str(folder / "pids"), "--cfg-path", str(config), "--options", *options)
    (folder / "pids").write_text(str(run.pids[0]))
    completed = run.wait()
    assert completed.returncode == 75, completed.stderr


def test_a_run_that_resumes_from_an_earlier_step_never_returns_to_its_later_checkpoints(tmp_path, launch):
    config = golden_config(tmp_path, run={"iters_per_epoch": 2, "max_epoch": 2})
    assert launch("train.py", "--cfg-path", str(config)).returncode == 0
    run = tmp_path / "out/run"
    stopped_before_the_first_step(tmp_path, config, f"run.resume_ckpt_path={run}/checkpoint_0.pth", "run.max_epoch=3")
    assert {path.name for path in run.glob("checkpoint_*.pth")} == {"checkpoint_0.pth"}
    assert (run / "superseded/1_checkpoint_1.pth").is_file() and (run / "superseded/1_checkpoint_1.pth.sha256").is_file()
    options = ["run.resume_ckpt_path=auto", "run.max_epoch=3"]
    completed = launch("train.py", "--cfg-path", str(config), "--options", *options)
    assert completed.returncode == 0 and f"resuming from {run}/checkpoint_0.pth" in completed.stderr
    assert [row["step"] for row in read_jsonl(run / "log.jsonl")] == list(range(6))


def test_a_run_that_resumes_from_another_folder_has_a_checkpoint_when_it_stops(tmp_path, launch):
    config = golden_config(tmp_path, run={"iters_per_epoch": 2, "max_epoch": 2})
    assert launch("train.py", "--cfg-path", str(config)).returncode == 0
    source = f"run.resume_ckpt_path={tmp_path}/out/run/checkpoint_0.pth"
    stopped_before_the_first_step(tmp_path, config, "run.job_id=other", source)
    other = tmp_path / "out/other"
    assert (other / "checkpoint_last.pth").is_file()
    # A run that was killed before it saved leaves only its configuration and its log.
    for path in other.glob("checkpoint_*"):
        path.unlink()
    completed = launch("train.py", "--cfg-path", str(config), "--options", "run.job_id=other", "run.resume_ckpt_path=auto")
    assert completed.returncode == 1 and f"Set {source} to continue" in completed.stderr
    completed = launch("train.py", "--cfg-path", str(config), "--options", "run.job_id=other", source)
    assert completed.returncode == 0 and (other / "checkpoint_1.pth").is_file()


def test_a_time_limit_stops_a_run_with_the_documented_status(tmp_path, launch):
    config = golden_config(tmp_path, run={"iters_per_epoch": 100_000, "stop_after_minutes": 0.02, "log_freq": 100})
    completed = launch("train.py", "--cfg-path", str(config))
    assert completed.returncode == 75, completed.stderr
    last = completed.stderr.splitlines()[-1]
    assert last.startswith("stopped by run.stop_after_minutes after ") and last.endswith("run.resume_ckpt_path=auto")
    assert (tmp_path / "out/run/checkpoint_last.pth").is_file()


def test_an_interrupt_that_python_ignores_ends_the_run_at_the_next_step(tmp_path, fork_server):
    config = golden_config(tmp_path, run={"iters_per_epoch": 100_000})
    run = start(str(ROOT / "tests/workers/faulty_training.py"), "ignored interrupt", "0", "3", "--cfg-path", str(config))
    completed = run.wait()
    assert completed.returncode == 130, completed.stderr
    assert "Exception ignored" in completed.stderr
    assert completed.stderr.splitlines()[-1] == "interrupted; this run has not saved a checkpoint yet"


def test_data_workers_that_get_the_signal_too_do_not_disturb_the_stop(tmp_path, fork_server):
    config = golden_config(tmp_path, run={"iters_per_epoch": 100_000, "num_workers": 2})
    run = start("train.py", "--cfg-path", str(config))
    wait_until(lambda: len(read_jsonl(tmp_path / "out/run/log.jsonl")) > 2, run)
    os.killpg(run.pids[0], signal.SIGTERM)
    completed = run.wait()
    assert completed.returncode == 75, completed.stderr
    assert "stopped by SIGTERM after " in completed.stderr and (tmp_path / "out/run/checkpoint_last.pth").is_file()
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pids[0], 0)


def test_a_second_signal_ends_a_process_at_once(tmp_path, fork_server):
    config = golden_config(tmp_path)
    run = start(str(ROOT / "tests/workers/faulty_training.py"), "hang", "0", "3", "--cfg-path", str(config))
    wait_until(lambda: (tmp_path / "out/run/hanging").is_file(), run)
    run.send_signal(signal.SIGTERM)
    run.send_signal(signal.SIGUSR1)  # the same request
    time.sleep(SAME_REQUEST_SECONDS + 0.5)
    assert run.poll() is None
    run.send_signal(signal.SIGUSR1)
    assert run.wait().returncode == 128 + signal.SIGUSR1


def launched(folder, number, *line):
    """Start a launcher, send it a signal after some steps, and return its exit status and output."""
    log = folder / "out/run/log.jsonl"
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=output, stderr=output, start_new_session=True)
        end = time.monotonic() + HANG
        while len(read_jsonl(log)) < 2:
            assert process.poll() is None and time.monotonic() < end, (folder / "output").read_text()
            time.sleep(0.1)
        os.kill(process.pid, number)
        return process.wait(HANG), (folder / "output").read_text()


def test_emollama_train_passes_sigusr1_on_and_ends_with_the_documented_status(tmp_path):
    config = golden_config(tmp_path, run={"iters_per_epoch": 100_000})
    line = [*command("-m", "emollama", "train"), "--cfg-path", str(config), "--nproc", "2"]
    status, output = launched(tmp_path, signal.SIGUSR1, *line)
    assert status == 75, output
    assert output.splitlines()[-1].startswith("stopped by SIGUSR1 after ") and output.count("stopped by") == 1
    assert (tmp_path / "out/run/checkpoint_last.pth").is_file()


def test_torchrun_with_the_documented_options_stops_a_run_and_does_not_restart_it(tmp_path):
    config = golden_config(tmp_path, run={"iters_per_epoch": 100_000})
    line = command("train.py", "--cfg-path", str(config), processes=2)
    options = ["--max-restarts=3", "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout=300"]
    status, output = launched(tmp_path, signal.SIGUSR1, *line[:3], *options, *line[3:])
    assert status == 1 and output.count("stopped by SIGUSR1 after ") == 1 and output.count("run folder ") == 1
    assert (tmp_path / "out/run/checkpoint_last.pth").is_file()
