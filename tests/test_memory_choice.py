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
from emollama.models import cross_entropy
from emollama.recomputation import CHOICES, layers_of, recomputation_of, set_recomputation
from emollama.runners import memory_choice, summary
from emollama.runners.longest_samples import Longest
from emollama.runners.memory_choice import (
    Activations,
    cached_measurement,
    fit_to_memory,
    measured,
    memory,
    saved_bytes,
)
from emollama.runners.step_layout import Size, possible_layouts, size_of, step_layout
from emollama.runners.summary import hyper_parameters

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


@pytest.mark.parametrize(("free", "every"), [(200, 0), (199, 4), (180, 4), (179, 3), (159, 2), (139, 1), (0, 1)])
def test_the_fewest_layers_that_fit_are_recomputed(free, every):
    # A token has 20 + 8 * 10 = 100 bytes without recomputation. Each recomputed layer saves 10, but one is recomputed at a time.
    activations, size = Activations(recomputed=20, layer=10, label=0, layers=8), Size(2, 0)
    assert activations.best_choice(CHOICES, [size], free) == (every, size)


def test_labels_need_their_logits_and_memory_for_a_part_of_them(monkeypatch):
    assert memory_choice.BYTES_OF_PART == 2 * 4 * cross_entropy.PART
    monkeypatch.setattr(memory_choice, "BYTES_OF_PART", 200)
    activations = Activations(recomputed=20, layer=10, label=7, layers=8)
    assert activations.bytes_of_step(1, tokens=2, labels=5) == 2 * 20 + 5 * 7 * 5
    assert activations.bytes_of_step(1, tokens=2, labels=50) == 2 * 20 + 50 * 7 + 200


def test_the_memory_of_labels_is_free_again_when_layers_are_recomputed():
    activations = Activations(recomputed=20, layer=10, label=7, layers=8)
    assert activations.bytes_of_step(1, tokens=2, labels=1) == 2 * 20 + 2 * 2 * 10


# Longest: a sample has 100 tokens, of which 30 are of the answer.
LONGEST = Longest(sample=100, answer=30, group=100, shortest_prompt=60)


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, (400, 4 * 30)), (300, (300, 100)), (9000, (800, 8 * 30))])
def test_all_samples_of_a_micro_batch_may_have_the_longest_answer_and_each_has_a_prompt(max_tokens, expected):
    assert size_of(BatchLayout(4, 2, 1, 0, max_tokens), LONGEST) == expected


# The maximum of tokens


@pytest.mark.parametrize(
    ("samples", "expected"), [(1, [100]), (2, [200, 100]), (5, [500, 256, 100]), (900, [*range(8192, 100, -256), 100])]
)
def test_the_possible_maxima_of_tokens_are_those_of_a_step_a_sample_and_round_numbers_up_to_8192(samples, expected):
    layouts = possible_layouts(BatchLayout(1, samples, 2, 0, 8192), LONGEST)
    assert [layout.max_tokens for layout in layouts] == expected
    assert layouts[0] == BatchLayout(1, samples, 2, 0, expected[0])


def test_a_long_group_about_a_clip_is_the_smallest_maximum():
    layout = BatchLayout(100, 9, 1, 0, 8192, tasks_per_clip=100)
    assert [each.max_tokens for each in possible_layouts(layout, LONGEST)] == [10_000]


@pytest.mark.parametrize(
    ("free", "every", "tokens"),
    [
        # Without recomputation, a token has 100 bytes, and with all layers 40.
        (10**9, 0, 8192),
        (8000 * 100, 0, 7936),
        (2048 * 100, 0, 2048),
        (2047 * 100, 4, 2048),  # 90 bytes a token
        (2048 * 70, 2, 2048),
        (2047 * 70, 1, 3328),
        (300 * 40, 1, 256),
        (100 * 40, 1, 100),
        (0, 1, 100),
    ],
)
def test_layers_are_recomputed_only_for_micro_batches_that_keep_a_gpu_busy(free, every, tokens):
    activations = Activations(recomputed=20, layer=10, label=0, layers=8)
    sizes = [size_of(layout, LONGEST) for layout in possible_layouts(BatchLayout(1, 900, 1, 0, 8192), LONGEST)]
    chosen, size = activations.best_choice(CHOICES, sizes, free)
    assert (chosen, size.tokens) == (every, tokens)


@pytest.mark.parametrize(("free", "every", "tokens"), [(500 * 100, 0, 500), (500 * 100 - 1, 4, 500), (256 * 40, 1, 256)])
def test_no_layer_is_recomputed_if_all_samples_of_a_step_fit(free, every, tokens):
    activations = Activations(recomputed=20, layer=10, label=0, layers=8)
    sizes = [size_of(layout, LONGEST) for layout in possible_layouts(BatchLayout(1, 5, 1, 0, 8192), LONGEST)]
    chosen, size = activations.best_choice(CHOICES, sizes, free)
    assert (chosen, size.tokens) == (every, tokens)


def test_with_a_fixed_recomputation_only_the_tokens_are_chosen():
    activations = Activations(recomputed=20, layer=10, label=0, layers=8)
    sizes = [Size(tokens, 0) for tokens in (8192, 256, 100)]
    assert [activations.best_choice((0,), sizes, tokens * 100)[1].tokens for tokens in (9000, 300, 1)] == [8192, 256, 100]


def test_the_chosen_maximum_of_tokens_is_a_hyper_parameter_of_the_run(configuration, monkeypatch):
    layout = BatchLayout(1, 5, 1, 0, 512)
    assert "run.max_tokens" not in hyper_parameters(configuration, layout)
    monkeypatch.setattr(configuration.run, "max_tokens", "auto")
    assert hyper_parameters(configuration, layout)["run.max_tokens"] == 512


@pytest.mark.parametrize(("free", "expected"), [(100 * GIB, lambda longest: 3 * longest), (0, lambda longest: longest)])
def test_the_maximum_of_tokens_depends_on_the_free_memory(runner, monkeypatch, free, expected):
    monkeypatch.setattr(memory_choice, "memory", lambda device: (free, 100 * GIB, 0))
    run = prepared(runner)
    monkeypatch.setattr(runner.config.run, "max_tokens", "auto")
    monkeypatch.setattr(runner.config.model, "use_grad_checkpoint", False)
    run.layout = step_layout(runner.config.run, {"golden": SimpleNamespace(batch_size=3)}, 1, 0)
    layout = fit_to_memory(runner.model, run)
    longest = max(len(runner.samples[index].input_ids) for index in range(len(runner.datasets["golden"])))
    assert layout == replace(run.layout, max_tokens=expected(longest))
    assert not any(layer.gradient_checkpointing for layer in layers_of(runner.model.llama_model))


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 2 * 2 * 30), (150, 150)])
def test_padded_samples_have_logits_at_the_labels_of_each_other(max_tokens, expected):
    assert size_of(BatchLayout(2, 2, 1, 0, max_tokens, padded=True), LONGEST).labels == expected


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
    # The logits are the largest tensor of a label.
    logits = 4 * llm.get_output_embeddings().weight.shape[0]
    assert logits <= short.label < 2 * logits


def test_a_measurement_does_not_change_buffers(runner):
    norm, loss = torch.nn.BatchNorm1d(2), runner_loss(runner)

    def loss_with_norm(batch):
        norm(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        norm.running_var = torch.zeros(2)
        return loss(batch)

    measured(torch.nn.ModuleList([runner.model, norm]), runner.model.llama_model, loss_with_norm, runner.samples[0])
    assert norm.running_mean.tolist() == [0, 0] and norm.running_var.tolist() == [1, 1] and norm.num_batches_tracked == 0


def test_a_model_with_one_switch_for_all_layers_recomputes_all_of_them_in_the_smallest_micro_batches(runner, monkeypatch, caplog):
    monkeypatch.setattr(memory_choice, "can_choose_layers", lambda llm: False)
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    with caplog.at_level(logging.INFO):
        fit_to_memory(runner.model, prepared(runner))
    text = " recomputation of all layers, because this language model cannot recompute its layers one by one"
    assert text in caplog.text


def test_the_expected_memory_is_that_of_the_process_with_the_least_free_memory(runner, monkeypatch, caplog):
    monkeypatch.setattr(World, "gather", lambda world, value: [(60 * GIB, 80 * GIB, 20 * GIB), (30 * GIB, 40 * GIB, 10 * GIB)])
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    with caplog.at_level(logging.INFO):
        fit_to_memory(runner.model, prepared(runner))
    assert "expecting 10.0 of 40.0 GiB" in caplog.text


def test_the_measurement_predicts_the_saved_tensors_for_any_choice(runner):
    batch, llm = collate([runner.samples[0]]), runner.model.llama_model
    tokens, loss = len(batch.input_ids), partial(runner.task.loss, runner.model, batch)
    activations = measured(runner.model, llm, runner_loss(runner), runner.samples[0])
    constant = {tensor.untyped_storage().data_ptr() for tensor in [*runner.model.parameters(), *runner.model.buffers()]}
    for every, stored in ((0, 2), (2, 1), (1, 0)):
        set_recomputation(llm, every)
        labels = len(batch.label_positions) * activations.label
        per_layer = tokens * activations.layer + activations.layer_constant
        predicted = activations.constant + tokens * activations.recomputed + stored * per_layer + labels
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
    assert recomputation_of(runner.model.llama_model) == ("2 of 2 layers" if expected[0] else "")
    longest = max(len(runner.samples[index].input_ids) for index in range(len(runner.datasets["golden"])))
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("memory: ")]
    assert line.startswith(f"memory: micro-batches of up to {longest} tokens, {text}, expecting ")
    assert line.endswith(" of 100.0 GiB")
    set_recomputation(runner.model.llama_model, 4)
    monkeypatch.setattr(logging.getLogger("emollama"), "level", logging.INFO)
    summary.show_start(runner, steps=[("steps", "8")])
    assert "recomputation" in caplog.text and "1 of 2 layers in the backward pass (model.use_grad_checkpoint)" in caplog.text


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
    activations = Activations(recomputed=20, layer=10, label=0, layers=8, constant=1000, layer_constant=300)
    assert activations.bytes_of_step(1, tokens=4, labels=0) == 1000 + 4 * 40
    assert activations.bytes_of_step(0, tokens=4, labels=0) == 1000 + 8 * 300 + 4 * 100


def test_the_memory_of_the_machine_is_shared_by_its_processes(runner, monkeypatch):
    alone = memory(runner.world.device)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory(runner.world.device)[1] == alone[1] // 2 > 0
