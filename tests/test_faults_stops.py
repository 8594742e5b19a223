"""Requests to stop (SIGTERM, SIGUSR1, a time limit) in real processes, and the runs that continue afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import pytest
from ranks import HANG, start
from running import ROOT, command, environment, golden_config, read_jsonl
from test_faults_folders import assert_equal_tensors, wait_until

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
    config, stops = configured(tmp_path), 0
    delays = random.Random(0)
    for _ in range(10):
        run = start("train.py", "--cfg-path", str(config), processes=2)
        wait_until(lambda run=run: "samples per step" in run.stderr() or run.poll() is not None, run)
        time.sleep(delays.uniform(0, 0.3))
        run.send_signal(signal.SIGTERM)
        completed = run.wait()
        assert completed.returncode == 0, completed.stderr
        stops += "stopped by SIGTERM" in completed.stderr
    assert stops > 1
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
    changed["answers"][0]["prediction"] = "a kept answer"
    path.write_text("\n".join([header, json.dumps(changed), *others, '{"items": [1,']))
    completed = run_two("train.py", *line)
    assert completed.returncode == 0, completed.stderr
    predictions = read_jsonl(result / "predictions_train_layout.jsonl")
    assert len(predictions) == 18 and sum(row["prediction"] == "a kept answer" for row in predictions) == 1
    assert not list(result.glob(".answers_*"))


def test_the_answers_of_another_checkpoint_are_never_used(tmp_path, launch):
    config = configured(tmp_path)
    line = ["--cfg-path", str(config), "--options", "run.evaluate_only=True", "evaluation_datasets.upstream=null"]
    result = tmp_path / "out/run/result"
    result.mkdir(parents=True)
    header = json.dumps({"identity": "another"})
    wrong = {"items": [0, 1], "answers": [{"name": "wrong"}]}
    (result / ".answers_train_layout_0_of_1.jsonl").write_text(f"{header}\n{json.dumps(wrong)}\n")
    completed = launch("train.py", *line)
    assert completed.returncode == 0, completed.stderr
    assert "wrong" not in {row["name"] for row in read_jsonl(result / "predictions_train_layout.jsonl")}


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
    wait_until(lambda: len(read_jsonl(tmp_path / "out/run/log.jsonl")) == 3, run)
    run.send_signal(signal.SIGTERM)
    time.sleep(0.5)
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
    _, output = launched(tmp_path, signal.SIGUSR1, *line[:3], *options, *line[3:])
    assert output.count("stopped by SIGUSR1 after ") == 1 and output.count("run folder ") == 1
    assert (tmp_path / "out/run/checkpoint_last.pth").is_file()
