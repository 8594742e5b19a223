"""The choice of the layers that recompute their activations, and the measurement on which it is based."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import golden_tree, loaded

from emollama.data.batch import collate
from emollama.data.loader import BatchLayout
from emollama.distributed.process_group import World
from emollama.memory import machine_memory
from emollama.recomputation import layers_of, set_recomputation
from emollama.runners import memory_choice
from emollama.runners.longest_samples import Longest
from emollama.runners.memory_choice import (
    Activations,
    cached_measurement,
    measured,
    memory,
    most_labels,
    recompute_as_needed,
    saved_bytes,
)

GIB = 2**30


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto")
    tree = golden_tree(folder)
    tree["model"]["use_grad_checkpoint"] = "auto"
    return loaded(folder, tree)


@pytest.fixture(scope="module")
def runner(configuration):
    return configuration.runner_class(configuration)


@pytest.mark.parametrize(("free", "every"), [(220, 0), (219, 4), (180, 4), (179, 3), (159, 2), (139, 1), (0, 1)])
def test_the_fewest_layers_that_fit_are_recomputed(free, every):
    # A token has 20 + 9 * 10 = 110 bytes without recomputation; each recomputed layer saves 10.
    assert Activations(recomputed=20, layer=10, label=0, layers=8).best_choice(2, 0, free) == every


def test_a_label_needs_its_log_probabilities_and_two_gradients_of_their_size():
    activations = Activations(recomputed=20, layer=10, label=7, layers=8)
    assert activations.bytes_of_step(1, tokens=2, labels=5) == 2 * 30 + 5 * 3 * 7


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 4 * 30), (200, 200), (9000, 8 * 30)])
def test_all_samples_of_a_micro_batch_may_have_the_longest_answer(max_tokens, expected):
    assert most_labels(BatchLayout(4, 2, 1, 0, max_tokens), Longest(sample=100, answer=30, group=100)) == expected


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 2 * 2 * 30), (150, 150)])
def test_padded_samples_have_logits_at_the_labels_of_each_other(max_tokens, expected):
    assert most_labels(BatchLayout(2, 2, 1, 0, max_tokens, padded=True), Longest(100, answer=30, group=100)) == expected


def prepared(runner):
    """What a runner keeps of its preparation."""
    names = ("config", "world", "precision", "prompt", "datasets", "layout")
    return SimpleNamespace(**{name: getattr(runner, name) for name in names}, sampler=runner.samples.sampler)


def runner_loss(runner):
    return partial(runner.task.loss, runner.model)


@pytest.mark.slow
def test_the_measurement_does_not_depend_on_the_answer_of_the_sample(runner):
    sample, llm = runner.samples[0], runner.model.llama_model
    longer = replace(sample, labels=sample.input_ids.clamp(min=0))
    short, long = (measured(runner.model, llm, runner_loss(runner), item) for item in (sample, longer))
    assert short == long
    # The log-probabilities are the largest tensor of a label.
    log_probabilities = 4 * llm.get_output_embeddings().weight.shape[0]
    assert log_probabilities <= short.label < 2 * log_probabilities


def test_a_measurement_does_not_change_buffers(runner):
    norm, loss = torch.nn.BatchNorm1d(2), runner_loss(runner)

    def loss_with_norm(batch):
        norm(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        norm.running_var = torch.zeros(2)
        return loss(batch)

    measured(torch.nn.ModuleList([runner.model, norm]), runner.model.llama_model, loss_with_norm, runner.samples[0])
    assert norm.running_mean.tolist() == [0, 0] and norm.running_var.tolist() == [1, 1] and norm.num_batches_tracked == 0


def test_a_model_with_one_switch_for_all_layers_says_that_all_are_recomputed(runner, monkeypatch, caplog):
    monkeypatch.setattr(memory_choice, "layers_of", lambda llm: [])
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    with caplog.at_level(logging.INFO):
        recompute_as_needed(runner.model, prepared(runner))
    assert "memory: all layers are recomputed, because this language model has one switch for all of them" in caplog.text


def test_the_expected_memory_is_that_of_the_process_with_the_least_free_memory(runner, monkeypatch, caplog):
    monkeypatch.setattr(World, "gather", lambda world, value: [(60 * GIB, 80 * GIB, 20 * GIB), (30 * GIB, 40 * GIB, 10 * GIB)])
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    with caplog.at_level(logging.INFO):
        recompute_as_needed(runner.model, prepared(runner))
    assert "expecting 10.0 of 40.0 GiB" in caplog.text


def test_the_measurement_predicts_the_saved_tensors_for_any_choice(runner):
    batch, llm = collate([runner.samples[0]]), runner.model.llama_model
    tokens, loss = len(batch.input_ids), partial(runner.task.loss, runner.model, batch)
    activations = measured(runner.model, llm, runner_loss(runner), runner.samples[0])
    constant = {tensor.untyped_storage().data_ptr() for tensor in [*runner.model.parameters(), *runner.model.buffers()]}
    for every, stored in ((0, 2), (2, 1), (1, 0)):
        set_recomputation(llm, every)
        labels = len(batch.label_positions) * activations.label
        predicted = activations.constant + tokens * (activations.recomputed + stored * activations.layer) + labels
        # The last layer saves less than the others if it computes only the outputs at the answers.
        least = predicted - tokens * activations.layer * (every != 1)
        assert 0.97 * least < saved_bytes(loss, constant) < 1.03 * predicted, every


@pytest.mark.parametrize(
    ("free", "expected", "text"),
    [(100 * GIB, [False, False], "no recomputation"), (0, [True, True], "recomputation of all layers")],
)
def test_auto_depends_on_the_free_memory(configuration, monkeypatch, caplog, tmp_path, free, expected, text):
    monkeypatch.setattr(memory_choice, "memory", lambda device: (free, 100 * GIB, 0))
    monkeypatch.setattr(configuration.run, "job_id", tmp_path.name)
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    with caplog.at_level(logging.INFO):
        runner = configuration.runner_class(configuration)
    assert [layer.gradient_checkpointing for layer in layers_of(runner.model.llama_model)] == expected
    longest = max(len(runner.samples[index].input_ids) for index in range(len(runner.datasets["golden"])))
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("memory: ")]
    assert line.startswith(f"memory: micro-batches of up to {longest} tokens, {text}, expecting ")
    assert line.endswith(" of 100.0 GiB")


def test_a_second_run_with_the_same_model_does_not_measure_again(runner, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    numbers = [Activations(recomputed=20, layer=10, label=7, layers=8, constant=3), Activations(1, 1, 1, 1)]
    run = prepared(runner)
    assert [cached_measurement(run, lambda: numbers.pop(0)) for _ in range(2)] == [Activations(20, 10, 7, 8, 3)] * 2
    monkeypatch.setattr(memory_choice, "software", lambda: {"torch": "another version"})
    assert cached_measurement(run, lambda: numbers.pop(0)) == Activations(1, 1, 1, 1)


def test_on_a_cpu_the_memory_in_use_is_that_of_the_process(runner):
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert memory(runner.world.device)[2] == pytest.approx(resident, rel=0.05)


def test_the_free_memory_of_a_container_is_below_the_strictest_limit_of_its_groups(tmp_path):
    groups = tmp_path / "sys/fs/cgroup"
    (groups / "slurm/job_1").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 900 kB\n")
    assert machine_memory(tmp_path) == (900 * 1024, 1000 * 1024)
    (tmp_path / "proc/self/cgroup").write_text("1:cpu:/\n0::/slurm/job_1\n")
    for group, limit in (("", "max"), ("slurm", "600000"), ("slurm/job_1", "max")):
        (groups / group / "memory.max").write_text(f"{limit}\n")
        (groups / group / "memory.current").write_text("500000\n")
        (groups / group / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert machine_memory(tmp_path) == (200_000, 600_000)


def test_copies_of_weights_do_not_count_for_each_token():
    activations = Activations(recomputed=20, layer=10, label=0, layers=8, constant=1000)
    assert activations.bytes_of_step(1, tokens=4, labels=0) - activations.bytes_of_step(1, tokens=2, labels=0) == 2 * 30


def test_the_memory_of_the_machine_is_shared_by_its_processes(runner, monkeypatch):
    alone = memory(runner.world.device)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory(runner.world.device)[1] == alone[1] // 2 > 0
