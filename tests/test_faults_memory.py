"""Memory that is exhausted: that of the machine in training and evaluation, and that of /dev/shm for data workers."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import small_disks
import torch
from helpers import GOLDEN, golden_tree, write
from small_disks import small_disk

from emollama.config import load
from emollama.data.batch import collate
from emollama.data.loader import BatchLayout
from emollama.data.workers import check_shared_memory
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.memory import is_out_of_memory
from emollama.models.packed_llm import PackedLLM
from emollama.runners.out_of_memory import reported
from emollama.stores.store import NpyFolder

pytestmark = pytest.mark.faults

NAMES = [line.split()[0] for line in (GOLDEN / "data/MERR_coarse_grained.txt").read_text().splitlines()]
GIB = 2**30
PER_SAMPLE = 6 * GIB  # bytes of address space that the model of these tests needs for each sample


def address_space():
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.fixture
def hungry(monkeypatch):
    """A model that needs much memory for each sample, in a process whose memory is limited; set the samples that fit."""
    embed = PackedLLM._embed
    before = resource.getrlimit(resource.RLIMIT_AS)

    def allocate(self, batch):
        torch.empty(PER_SAMPLE * len(batch.names), dtype=torch.uint8)  # never written, so it needs only addresses
        return embed(self, batch)

    def limit(samples):
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + int((samples + 0.5) * PER_SAMPLE), before[1]))

    monkeypatch.setattr(PackedLLM, "_embed", allocate)
    yield limit
    resource.setrlimit(resource.RLIMIT_AS, before)


def configured(folder, **run):
    tree = golden_tree(folder)
    tree["datasets"]["golden"] |= {"batch_size": 3}
    tree["evaluation_datasets"]["answers"] |= {"task_pool": ["emotion"], "max_new_tokens": 3, "batch_size": 6}
    tree["run"] |= run
    return write(folder, tree)


# Training


def test_out_of_memory_in_training_names_the_samples_and_the_keys_that_reduce_it(tmp_path, emollama, hungry):
    path = configured(tmp_path)
    hungry(1)
    completed = emollama("train", "--cfg-path", path)
    assert completed.returncode == 1
    message = completed.stderr[completed.stderr.index("error: ") :]
    assert "Traceback" not in completed.stderr
    assert "step 0: out of memory on process 0 of 1 (cpu): can't allocate memory: you tried to allocate" in message
    found = re.search(r"has 3 samples with (\d+) tokens: (.*)\. The longest one, '(.*)', has (\d+) tokens\.", message)
    assert found[2].split(", ") == NAMES[:3] and found[3] in NAMES[:3]
    assert int(found[1]) / 3 <= int(found[4]) < int(found[1])
    assert "lower datasets.golden.batch_size (now 3) and raise run.accum_grad_iters (now 1)" in message
    assert "model.max_txt_len (now 1024) or model.max_context_len (now 3800)" in message
    assert "set model.use_grad_checkpoint: True; set run.amp: True" in message


@pytest.mark.parametrize(("key", "now"), [("auto", "auto, which is 512"), (512, "512")])
def test_out_of_memory_with_a_maximum_of_tokens_says_to_lower_it(golden_dataset, golden_prompt, tmp_path, key, now):
    config, layout, world = (
        load(configured(tmp_path, max_tokens=key)),
        BatchLayout(3, 1, 1, 0, 512),
        World(0, 1, torch.device("cpu")),
    )
    samples = [golden_prompt.tokenize(golden_dataset.record(index, "emotion", "Which one?")) for index in (0, 1)]
    with pytest.raises(UserError) as error, reported([collate(samples)], 0, config, layout, world):
        raise MemoryError
    assert f"lower run.max_tokens (now {now}), which keeps the global batch" in str(error.value)


def test_out_of_memory_in_training_is_not_retried(tmp_path, emollama, hungry):
    path = configured(tmp_path)
    hungry(1)
    emollama("train", "--cfg-path", path)
    assert not list((tmp_path / "out").rglob("checkpoint_*.pth"))
    assert (tmp_path / "out/run/log.jsonl").read_text() == ""


def test_the_advice_leaves_out_what_is_already_set(tmp_path, emollama, hungry):
    path = configured(tmp_path)
    hungry(0)
    options = ["datasets.golden.batch_size=1", "model.use_grad_checkpoint=true", "run.amp=true", "run.amp_dtype=bf16"]
    completed = emollama("train", "--cfg-path", path, "--options", *options)
    assert f"The micro-batch is the sample '{NAMES[0]}' with" in completed.stderr
    advice = completed.stderr[completed.stderr.index("To need less memory") :]
    assert not re.search("batch_size|use_grad_checkpoint|amp", advice)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_errors_of_memory_are_recognized(error, expected):
    assert is_out_of_memory(error) is expected


# Evaluation


def evaluated(folder, emollama):
    completed = emollama("eval", "--cfg-path", str(folder / "config.yaml"))
    text = folder / "out/run/result/predictions_answers.jsonl"
    return completed, text.read_text() if text.exists() else ""


def test_an_evaluation_without_enough_memory_halves_its_batches_and_gives_the_same_answers(tmp_path, emollama, hungry):
    configured(tmp_path)
    expected = evaluated(tmp_path, emollama)[1]
    hungry(1)
    completed, predictions = evaluated(tmp_path, emollama)
    assert completed.returncode == 0, completed.stderr
    assert len(predictions.splitlines()) == 6 and predictions == expected
    assert completed.stderr.count("out of memory") == 1
    assert "evaluation block answers: out of memory (can't allocate memory" in completed.stderr
    assert "with batch_size 6. The evaluation continues with smaller batches" in completed.stderr


def test_an_evaluation_names_a_sample_that_does_not_fit_alone(tmp_path, emollama, hungry):
    configured(tmp_path)
    hungry(0)
    completed, _ = evaluated(tmp_path, emollama)
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    (name, tokens) = re.search(
        r"The sample '(\w+)', whose prompt has (\d+) text tokens, does not fit alone", completed.stderr
    ).groups()
    assert name in NAMES and int(tokens) > 20
    assert "Lower evaluation_datasets.answers.max_new_tokens" in completed.stderr


# Shared memory and data workers


def with_workers(folder, **run):
    tree = golden_tree(folder)
    tree["datasets"]["golden"] |= {"batch_size": 3}
    tree["run"] |= {"num_workers": 2, "iters_per_epoch": 4} | run
    return write(folder, tree)


def test_the_shared_memory_of_data_workers_is_compared_with_the_free_space(golden_dataset, golden_prompt):
    samples = [golden_prompt.tokenize(golden_dataset.record(index, "emotion", "Which emotion is it?")) for index in range(3)]
    batch = collate(samples)
    bytes_of = sum(packed.values.nbytes for packed in batch.slots.values())
    assert bytes_of > 100_000
    with small_disk("1m") as folder:
        check_shared_memory([batch], num_workers=2, processes=1, loads_per_step=1, folder=folder)
        (folder / "other").write_bytes(bytes(500_000))
        with pytest.raises(UserError) as error:
            check_shared_memory([batch], num_workers=2, processes=1, loads_per_step=1, folder=folder)
        check_shared_memory([batch], num_workers=0, processes=1, loads_per_step=1, folder=folder)
    assert re.search(
        rf"^{folder} has 0\.5 MiB of free shared memory, but data workers need about \d\.\d MiB: 1 process", str(error.value)
    )
    assert "Lower run.num_workers" in str(error.value) and "docker run --shm-size=1g, or --ipc=host" in str(error.value)


MOUNTS = "tests/workers/small_mounts.py"


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["train", "dry run"])
def test_too_little_shared_memory_is_reported_before_the_model_is_loaded(tmp_path, launch, more):
    small_disks.require()
    line = ["-m", "emollama", "train", "--cfg-path", with_workers(tmp_path), *more]
    completed = launch(MOUNTS, "/dev/shm=300k", "--", *line)
    assert completed.returncode == 1
    assert "error: /dev/shm has 0.3 MiB of free shared memory, but data workers need about" in completed.stderr
    assert "loading the language model" not in completed.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("free", "problem"), [(0, "there is no shared memory for"), (160_000, r"\) ran out of shared memory")])
def test_shared_memory_that_another_program_fills_ends_the_run_with_the_remedy(tmp_path, launch, free, problem):
    small_disks.require()
    script = "tests/workers/filled_shared_memory.py"
    completed = launch(MOUNTS, "/dev/shm=2m", "--", script, with_workers(tmp_path), str(free))
    assert completed.returncode == 1
    assert re.search(problem, completed.stderr) and "MiB free. Lower run.num_workers" in completed.stderr, completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.fixture
def in_workers(monkeypatch):
    """Call a function in data workers when they read the features of a clip."""
    load, process = NpyFolder.load, os.getpid()

    def act(function, name):
        def changed(self, clip):
            if os.getpid() != process and clip == name:
                function()
            return load(self, clip)

        monkeypatch.setattr(NpyFolder, "load", changed)

    return act


def failed(emollama, path):
    completed = emollama("train", "--cfg-path", path)
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    return completed.stderr[completed.stderr.index("error: ") :]


def test_a_killed_data_worker_is_reported_with_its_sample(tmp_path, emollama, in_workers):
    in_workers(lambda: os.kill(os.getpid(), signal.SIGKILL), NAMES[4])
    message = failed(emollama, with_workers(tmp_path))
    assert re.search(rf"data worker \d \(process \d+\) was killed by SIGKILL while it read sample '{NAMES[4]}'", message)
    assert "Lower run.num_workers or the batch_size of the datasets, or raise the memory limit." in message


def test_a_data_worker_that_crashes_is_reported_with_its_sample(tmp_path, emollama, in_workers):
    in_workers(lambda: os.kill(os.getpid(), signal.SIGSEGV), NAMES[4])
    message = failed(emollama, with_workers(tmp_path))
    assert f"was ended by a signal (Segmentation fault) while it read sample '{NAMES[4]}'" in message


def test_a_data_worker_without_memory_is_reported_with_the_remedy(tmp_path, emollama, in_workers):
    in_workers(lambda: np.empty(2**50), NAMES[4])
    message = failed(emollama, with_workers(tmp_path))
    assert message.startswith("error: a data worker ran out of memory: ") and "Unable to allocate" in message
    assert "Lower run.num_workers or the batch_size of the datasets." in message


def test_data_workers_that_deliver_nothing_end_the_run_with_the_sample_and_the_line(tmp_path, emollama, in_workers):
    reading, writing = os.pipe()  # nothing is ever written
    in_workers(partial(os.read, reading, 1), NAMES[0])
    message = failed(emollama, with_workers(tmp_path, hang_minutes=0.2))
    os.close(reading)
    os.close(writing)
    assert "the data workers delivered no batch for 0.2 minutes (run.hang_minutes)" in message
    assert re.search(
        rf"worker \d \(process \d+\) reads sample '{NAMES[0]}':\n    .*test_faults_memory\.py, line \d+, in changed", message
    )
