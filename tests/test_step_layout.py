"""How the samples of a step are divided among processes and micro-batches, from the configuration."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import golden_tree, loaded

from emollama.data.batch import IGNORED
from emollama.data.features import Features
from emollama.data.loader import BatchLayout
from emollama.data.shared_prompts import share_prompts
from emollama.data.slots import SlotShape
from emollama.distributed import process_group
from emollama.errors import UserError
from emollama.planning.planner import Planner
from emollama.planning.samples import example_batch
from emollama.runners.longest_samples import SampleLengths, most_vectors
from emollama.runners.preparation import Preparation
from emollama.runners.run_config import RunnerConfig
from emollama.runners.step_layout import remedy_for, samples_per_step, step_layout


def blocks(batch_size):
    """Dataset blocks with this micro-batch size."""
    return {name: SimpleNamespace(batch_size=batch_size) for name in ("coarse", "fine")}


@pytest.mark.parametrize(("batch_size", "processes", "accumulate"), [(1, 1, 8), (2, 2, 2), (1, 8, 1), (8, 1, 1)])
def test_the_accumulation_follows_from_the_global_batch(batch_size, processes, accumulate):
    run = RunnerConfig(global_batch=8)
    assert step_layout(run, blocks(batch_size), processes, 0) == BatchLayout(batch_size, accumulate, processes, 0)
    assert samples_per_step(run, batch_size, processes) == 8


def test_with_a_maximum_of_tokens_the_global_batch_does_not_depend_on_the_batch_size():
    layouts = [step_layout(RunnerConfig(global_batch=6, max_tokens=500), blocks(size), 2, 1) for size in (1, 5)]
    assert layouts[0] == layouts[1]
    assert [len(indices) for indices in layouts[0].sample_indices(0, 2)] == [3, 3]


def test_until_a_maximum_of_tokens_is_chosen_the_layout_has_the_largest_one():
    run = RunnerConfig(global_batch=6, max_tokens="auto")
    assert step_layout(run, blocks(5), 2, 1) == step_layout(RunnerConfig(global_batch=6, max_tokens=8192), blocks(5), 2, 1)


@pytest.mark.parametrize(
    ("keys", "batch_size", "processes", "message"),
    [
        ({}, 4, 2, "6 is not a multiple of 2 processes x batch_size 4. Set it to a multiple, such as 8, or batch_size to 3, or"),
        ({}, 4, 1, "6 is not a multiple of 1 process x batch_size 4. Set it to a multiple, such as 8, or batch_size to 3, or"),
        ({"global_batch": 7}, 4, 2, "7 is not a multiple of 2 processes x batch_size 4. Set it to a multiple, such as 8."),
        ({"global_batch": 8, "tasks_per_clip": 2}, 6, 2, "such as 12, or batch_size to 4, or set run.max_tokens."),
        ({"global_batch": 7, "max_tokens": 100}, 4, 2, "7 is not a multiple of 2 processes. Set it to a multiple, such as 8."),
        ({"global_batch": 7, "max_tokens": 9, "tasks_per_clip": 2}, 4, 1, "1 process x run.tasks_per_clip 2. Set it to a"),
    ],
)
def test_a_global_batch_that_cannot_be_divided_is_rejected_with_values_that_work(keys, batch_size, processes, message):
    run = {"global_batch": 6} | keys
    with pytest.raises(UserError) as error:
        step_layout(RunnerConfig(**run), blocks(batch_size), processes, 0)
    assert message in str(error.value)
    # The values of the message are accepted.
    values = dict(re.findall(r"(multiple|batch_size)(?:, such as| to) (\d+)", str(error.value).partition(" Set ")[2]))
    step_layout(RunnerConfig(**run | {"global_batch": int(values["multiple"])}), blocks(batch_size), processes, 0)
    if "batch_size" in values:
        step_layout(RunnerConfig(**run), blocks(int(values["batch_size"])), processes, 0)


@pytest.mark.parametrize("tokens", [None, 500])
@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize(("samples", "batch_size", "processes"), [(12, 12, 2), (12, 8, 3), (12, 2, 2), (10, 4, 1), (10, 4, 4)])
def test_the_keys_that_restore_the_samples_of_a_step_work(samples, batch_size, processes, tasks, tokens):
    run = {"accum_grad_iters": 2, "max_tokens": tokens, "tasks_per_clip": tasks}
    config = SimpleNamespace(run=RunnerConfig(**run), datasets={"a": SimpleNamespace(batch_size=batch_size)})
    text = remedy_for(samples, config, processes, tasks)
    keys = {key: int(value) for key, value in re.findall(r"([\w.]+): (\d+)", text)}
    if not keys:
        assert samples % (processes * tasks)
        processes = int(re.search(r"equally, but (\d+) can", text)[1])
        size = samples // processes
    else:
        size = keys.pop("datasets.a.batch_size", batch_size)
    changed = run | {"accum_grad_iters": 1, "global_batch": samples} | {key.removeprefix("run."): keys[key] for key in keys}
    assert step_layout(RunnerConfig(**changed), blocks(size), processes, 0).global_batch == samples


@pytest.mark.parametrize(("packing", "padded"), [("auto", False), ("padded", True), ("off", False)])
def test_the_layout_of_a_run_knows_whether_its_language_model_pads_samples(tmp_path, packing, padded):
    config = loaded(tmp_path, golden_tree(tmp_path), f"model.packing={packing}")
    assert Preparation(config, process_group.start("cpu"), training=True).layout.padded is padded


def test_the_samples_of_a_planned_micro_batch_have_its_tokens_also_with_padding(tmp_path):
    planner = Planner(loaded(tmp_path, golden_tree(tmp_path)), gpus=1, device="cpu")
    size = planner.micro_batch_of(5 * planner.sample.total + 3)
    batch = example_batch(planner.config, planner.model, planner.sample, size)
    assert sum(batch.lengths) == size.tokens
    assert size.tokens <= len(batch.lengths) * batch.max_length < size.tokens + size.samples


def test_the_message_about_a_batch_size_names_all_blocks_that_have_it():
    message = "the value of datasets.coarse.batch_size and datasets.fine.batch_size is 4, which is not a multiple"
    with pytest.raises(UserError, match=message):
        step_layout(RunnerConfig(tasks_per_clip=3), blocks(4), 1, 0)


def test_a_global_batch_excludes_accum_grad_iters_above_1():
    RunnerConfig(global_batch=8, accum_grad_iters=1)
    with pytest.raises(
        ValueError, match=r"global_batch is 8, and accum_grad_iters is 2: .* Set accum_grad_iters: 1, or remove global_batch\."
    ):
        RunnerConfig(global_batch=8, accum_grad_iters=2)


@pytest.fixture(scope="module")
def longest(golden_dataset, golden_prompt):
    """(tokens, name) of the longest sample with any task and instruction."""
    pool, places = golden_dataset.pool, range(len(golden_dataset))
    pairs = [(task, text) for task in pool.tasks for text in pool.instructions[task]]
    samples = [golden_prompt.tokenize(golden_dataset.record(index, *pair)) for index in places for pair in pairs]
    return max((len(sample.input_ids), sample.name) for sample in samples)


@pytest.fixture
def lengths(golden_config, golden_dataset, golden_prompt):
    """The lengths of the samples of the golden corpus."""
    model, shapes = golden_config.model, golden_config.model_class.slot_shapes(golden_config.model)
    return SampleLengths({"clips": golden_dataset}, golden_prompt, model, shapes)


def test_samples_of_at_most_the_maximum_are_accepted_without_reading_features(lengths, golden_dataset, longest, monkeypatch):
    monkeypatch.setattr(golden_dataset, "record", None)
    lengths.require_fitting(longest[0])


def test_a_sample_with_more_tokens_than_the_maximum_is_named(lengths, longest):
    tokens, name = longest
    with pytest.raises(UserError) as error:
        lengths.require_fitting(tokens - 1)
    start = f"run.max_tokens is {tokens - 1}, but the sample '{name}' of datasets.clips has {tokens} tokens (task "
    assert str(error.value).startswith(start) and f"Set it to at least {tokens}, " in str(error.value)


@pytest.mark.parametrize("further", [[], ["go", "tell me " * 30]], ids=["the built-in instructions", "uneven instructions"])
def test_the_shortest_prompt_is_not_longer_than_any(lengths, golden_dataset, golden_prompt, monkeypatch, further):
    pool = golden_dataset.pool
    monkeypatch.setattr(pool, "instructions", {task: [*texts, *further] for task, texts in pool.instructions.items()})
    samples = [
        golden_prompt.tokenize(golden_dataset.record(index, task, instruction))
        for task in pool.tasks
        for instruction in pool.instructions[task]
        for index in range(len(golden_dataset))
    ]
    prompts = [int((sample.labels == IGNORED).sum()) for sample in samples]
    assert min(prompts) - 3 <= lengths.longest(1).shortest_prompt <= min(prompts)


def longest_group(dataset, prompt):
    """Tokens of the longest prompts and answers about one clip with all tasks, the same beginning counted once."""
    pool, places = dataset.pool, range(len(dataset))
    groups = [
        [prompt.tokenize(dataset.record(index, task, pool.instructions[task][0])) for task in pool.tasks] for index in places
    ]
    return max(sum(len(sample.input_ids) for sample in share_prompts(group)) for group in groups)


@pytest.mark.parametrize("warns", [True, False])
def test_a_maximum_below_the_samples_about_a_clip_is_logged(lengths, golden_dataset, golden_prompt, monkeypatch, caplog, warns):
    tokens, tasks = longest_group(golden_dataset, golden_prompt), len(golden_dataset.pool.tasks)
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    # The estimate counts the opening and the closing of a prompt for each task.
    maximum = tokens - 1 if warns else tokens + 16 * tasks
    lengths.warn_of_long_groups(maximum, tasks)
    start = f"the {tasks} samples about a clip (run.tasks_per_clip) have up to about "
    assert (start in caplog.text and f", more than run.max_tokens, which is {maximum}." in caplog.text) == warns


@pytest.mark.parametrize(("shape", "expected"), [(SlotShape(None, 7), 5), (SlotShape(None, 7, class_token="first"), 4)])
def test_a_slot_of_any_number_of_vectors_counts_with_its_largest_array(tmp_path, shape, expected):
    for name, rows in {"a": 2, "b": 5, "c": 3}.items():
        np.save(tmp_path / f"{name}.npy", np.arange(rows * 7, dtype=np.float32).reshape(rows, 7))
    source = Features.open(str(tmp_path), ("gaze", "first")[: 1 + (shape.class_token is not None)], shape, "features.gaze")
    dataset = SimpleNamespace(features=[source], names=lambda: ["a", "b", "c"])
    assert most_vectors([dataset], "gaze", shape) == expected
