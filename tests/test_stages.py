"""Stages of the learning rate: each restarts the schedule, and errors name the stage and key."""

from __future__ import annotations

import math

import pytest
from helpers import golden_tree, loaded

from emollama.errors import UserError
from emollama.lr_schedules import learning_rate, total_epochs
from emollama.runners.runner_base import RunnerBase

ITERS = 10
TWO = [{"init_lr": 1e-5, "epochs": 15}, {"init_lr": 5e-6, "epochs": 15}]


def rate(stages, **keys):
    return learning_rate(RunnerBase.Config(stages=stages, iters_per_epoch=ITERS, **keys))


def cosine(init, low, step, steps):
    return low + (init - low) * (1 + math.cos(math.pi * step / steps)) / 2


def warm(init, start, step, steps):
    return start + (init - start) * step / steps


# Rates


def test_each_stage_follows_a_cosine_from_its_init_lr_to_the_min_lr_of_the_run():
    lr = rate(TWO, min_lr=1e-6)
    for step in range(300):
        init, offset = (1e-5, step) if step < 150 else (5e-6, step - 150)
        assert lr(step) == pytest.approx(cosine(init, 1e-6, offset, 150), rel=1e-12)
    assert lr(0) == 1e-5 and lr(150) == 5e-6
    assert lr(149) == pytest.approx(1e-6, rel=2e-3) and lr(299) == pytest.approx(1e-6, rel=2e-3)


def test_the_runs_warm_up_begins_each_stage():
    lr = rate(TWO, min_lr=1e-6, warmup_lr=1e-7, warmup_steps=20)
    for begin, init in ((0, 1e-5), (150, 5e-6)):
        for offset in (0, 1, 19):
            assert lr(begin + offset) == pytest.approx(warm(init, 1e-7, offset, 20), rel=1e-12)
        assert lr(begin + 20) == pytest.approx(cosine(init, 1e-6, 20, 150), rel=1e-12)
    assert lr(149) == pytest.approx(cosine(1e-5, 1e-6, 149, 150), rel=1e-12)


def test_the_keys_of_a_stage_override_those_of_the_run():
    stages = [
        {"init_lr": 1e-4, "epochs": 2, "warmup_steps": 5, "warmup_lr": 0.0},
        {"init_lr": 1e-5, "epochs": 3, "min_lr": 1e-8, "warmup_steps": 0},
    ]
    lr = rate(stages, min_lr=1e-6, warmup_lr=1e-7, warmup_steps=10)
    assert [lr(step) for step in range(5)] == pytest.approx([warm(1e-4, 0.0, step, 5) for step in range(5)])
    assert lr(5) == pytest.approx(cosine(1e-4, 1e-6, 5, 20)) and lr(19) == pytest.approx(cosine(1e-4, 1e-6, 19, 20))
    assert lr(20) == 1e-5 and lr(49) == pytest.approx(cosine(1e-5, 1e-8, 29, 30))


def test_a_warm_up_without_warmup_lr_is_constant_at_the_init_lr_of_the_stage():
    lr = rate(TWO, warmup_steps=20)
    assert {lr(step) for step in range(20)} == {1e-5} and {lr(step) for step in range(150, 170)} == {5e-6}


def test_the_step_schedule_counts_epochs_from_the_start_of_each_stage():
    stages = [{"init_lr": 1e-4, "epochs": 3}, {"init_lr": 1e-5, "epochs": 3}]
    lr = rate(stages, lr_sched="linear_warmup_step_lr", lr_decay_rate=0.5)
    expected = [1e-4, 5e-5, 2.5e-5, 1e-5, 5e-6, 2.5e-6]
    assert [lr(epoch * ITERS) for epoch in range(6)] == pytest.approx(expected)
    assert [lr(epoch * ITERS + ITERS - 1) for epoch in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize("sched", ["linear_warmup_cosine_lr", "linear_warmup_step_lr"])
def test_a_single_stage_gives_the_same_learning_rates_as_no_stages(sched):
    keys = {"lr_sched": sched, "min_lr": 1e-7, "warmup_lr": 1e-8, "warmup_steps": 7}
    one, none = rate([{"init_lr": 3e-5, "epochs": 4}], **keys), rate([], init_lr=3e-5, max_epoch=4, **keys)
    assert [one(step) for step in range(40)] == [none(step) for step in range(40)]


# Epochs


@pytest.mark.parametrize(
    ("stages", "max_epoch", "total"), [(TWO, 1, 30), (TWO, 30, 30), (TWO[:1], 1, 15), ([], 7, 7), ([], 1, 1)]
)
def test_max_epoch_is_the_sum_of_the_epochs_of_the_stages(stages, max_epoch, total):
    assert total_epochs(stages, max_epoch) == total
    assert RunnerBase.Config(stages=stages, max_epoch=max_epoch).max_epoch == total


# Refusals

GOOD = {"init_lr": 1e-5, "epochs": 2}


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([GOOD, GOOD | {"epoch": 3}], "stages[1]: unknown key 'epoch'. Did you mean 'epochs'? Keys of a stage: init_lr, epochs"),
        ([GOOD | {"max_epoch": 3}], "stages[0]: unknown key 'max_epoch'."),
        ([{"epochs": 2}], "stages[0]: init_lr is missing. A stage is, for example, {init_lr: 1e-5, epochs: 15}"),
        ([GOOD, {"init_lr": 1e-5}], "stages[1]: epochs is missing"),
        ([{}], "stages[0]: init_lr is missing"),
        ([GOOD | {"epochs": 0}], "stages[0].epochs is 0; it must be a whole number of at least 1"),
        ([GOOD | {"epochs": 1.5}], "stages[0].epochs is 1.5; it must be a whole number"),
        ([GOOD | {"epochs": True}], "stages[0].epochs is True"),
        ([GOOD | {"warmup_steps": 0.5}], "stages[0].warmup_steps is 0.5; it must be a whole number of at least 0"),
        ([GOOD | {"warmup_steps": -1}], "stages[0].warmup_steps is -1"),
        ([GOOD, GOOD | {"init_lr": -1e-5}], "stages[1].init_lr is -1e-05; it must be a finite number of at least 0"),
        ([GOOD | {"init_lr": "fast"}], "stages[0].init_lr is 'fast'"),
        ([GOOD | {"min_lr": float("inf")}], "stages[0].min_lr is inf"),
        ([GOOD | {"min_lr": float("nan")}], "stages[0].min_lr is nan"),
        ([GOOD | {"warmup_lr": None}], "stages[0].warmup_lr is None"),
    ],
)
def test_an_invalid_stage_is_reported_with_its_index_and_key(stages, expected):
    with pytest.raises(ValueError) as error:
        total_epochs(stages, 1)
    assert str(error.value).startswith(expected)


def test_a_max_epoch_that_differs_from_the_sum_of_the_stages_is_refused(tmp_path):
    tree = golden_tree(tmp_path)
    tree["run"] |= {"stages": TWO, "max_epoch": 12}
    with pytest.raises(
        UserError, match=r"config\.yaml: run: max_epoch is 12, but the stages have 30 epochs\. Remove max_epoch\.$"
    ):
        loaded(tmp_path, tree)


def test_stages_can_be_set_on_the_command_line(tmp_path):
    tree = golden_tree(tmp_path)
    config = loaded(tmp_path, tree, "run.stages=[{init_lr: 1e-5, epochs: 2}, {init_lr: 5.0e-6, epochs: 3}]")
    assert config.run.stages == [{"init_lr": 1e-5, "epochs": 2}, {"init_lr": 5e-6, "epochs": 3}]
    assert config.run.max_epoch == 5
    with pytest.raises(UserError, match=r"--options: 'run\.stages"):
        loaded(tmp_path, tree, "run.stages=[1e-5, 5e-6]")
    with pytest.raises(UserError, match=r"^--options: run: stages\[0\]: epochs is missing"):
        loaded(tmp_path, tree, "run.stages=[{init_lr: 1e-5}]")
