"""Memory that is exhausted: that of the machine in training and evaluation, and that of /dev/shm for data workers."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest
import torch
from helpers import GOLDEN, golden_tree, write

from emollama.models.packed_llm import PackedLLM

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
    assert "lower datasets.*.batch_size (now 3) and raise run.accum_grad_iters (now 1)" in message
    assert "model.max_txt_len (now 1024) or model.max_context_len (now 3800)" in message
    assert "set model.use_grad_checkpoint: True; set run.amp: True" in message


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
