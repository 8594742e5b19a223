"""Learning rates by step, and the tensors to which weight decay applies."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers import TRAJECTORY
from torch import nn

from emollama.lr_schedules import LRSettings, linear_warmup_cosine_lr, linear_warmup_step_lr
from emollama.models import checkpoint_names
from emollama.optim import adamw, set_lr, trainable


def settings(**changes):
    values = {
        "init_lr": 1e-5,
        "min_lr": 1e-6,
        "warmup_lr": 1e-6,
        "warmup_steps": 1000,
        "decay_rate": 0.9,
        "iters_per_epoch": 1000,
        "epochs": 30,
    }
    return LRSettings(**(values | changes))


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 1e-6),
        (1, 1.009e-6),
        (500, 5.5e-6),
        (999, 9.991e-6),
        (1000, 9.975349e-6),
        (1001, 9.975299e-6),
        (5000, 9.397114e-6),
        (29999, 1.0000000247e-6),
    ],
)
def test_the_cosine_schedule_gives_the_published_values(step, lr):
    assert linear_warmup_cosine_lr(settings(), step) == pytest.approx(lr, rel=1e-7, abs=6e-13)


def test_the_golden_trajectorys_learning_rates_are_reproduced():
    stated = TRAJECTORY["scheduler"]
    keys = ("init_lr", "min_lr", "warmup_lr", "warmup_steps", "iters_per_epoch")
    own = settings(**{key: stated[key] for key in keys}, epochs=stated["max_epoch"])
    for step in TRAJECTORY["steps"]:
        assert linear_warmup_cosine_lr(own, step["step"]) == pytest.approx(step["lr"], rel=1e-12)


def test_a_warm_up_longer_than_an_epoch_does_not_restart():
    rates = [linear_warmup_cosine_lr(settings(warmup_steps=2500), step) for step in range(2500)]
    assert all(later > earlier for earlier, later in pairwise(rates))


def test_without_warm_up_the_cosine_begins_at_init_lr_and_only_falls():
    rates = [linear_warmup_cosine_lr(settings(warmup_steps=0), step) for step in range(0, 30000, 100)]
    assert rates[0] == pytest.approx(1e-5)
    assert all(later < earlier for earlier, later in pairwise(rates)) and rates[-1] > 1e-6


def test_a_warm_up_that_starts_at_init_lr_is_constant():
    rates = {linear_warmup_cosine_lr(settings(warmup_lr=1e-5), step) for step in range(0, 1000, 100)}
    assert all(rate == pytest.approx(1e-5) for rate in rates)


def test_the_step_schedule_warms_up_within_epoch_zero_then_decays_to_min_lr():
    own = settings(warmup_steps=100, decay_rate=0.5, iters_per_epoch=1000)
    assert linear_warmup_step_lr(own, 0) == pytest.approx(1e-6)
    assert linear_warmup_step_lr(own, 50) == pytest.approx(5.5e-6)
    assert linear_warmup_step_lr(own, 100) == linear_warmup_step_lr(own, 999) == pytest.approx(1e-5)
    assert linear_warmup_step_lr(own, 1000) == linear_warmup_step_lr(own, 1999) == pytest.approx(5e-6)
    assert linear_warmup_step_lr(own, 3000) == pytest.approx(1.25e-6)
    assert linear_warmup_step_lr(own, 4000) == linear_warmup_step_lr(own, 29999) == 1e-6


def test_the_step_schedule_without_warm_up_begins_at_init_lr():
    assert linear_warmup_step_lr(settings(warmup_steps=0), 0) == 1e-5


def test_weight_decay_groups_are_those_of_the_published_code(golden_model):
    named = trainable(golden_model)
    own = {id(parameter): checkpoint_names.stored_name(name) for name, parameter in named.items()}
    groups = adamw(named.items(), lr=1e-3, weight_decay=0.05, beta2=0.999).param_groups
    by_decay = {group["weight_decay"]: {own[id(parameter)] for parameter in group["params"]} for group in groups}
    assert by_decay == {0.05: set(TRAJECTORY["weight_decay_params"]), 0.0: set(TRAJECTORY["no_decay_params"])}


def test_names_with_ln_or_bn_and_one_dimensional_tensors_do_not_decay():
    names = {"proj.weight": (2, 2), "ln_vision.weight": (2, 2), "bn.scale": (2, 2), "norm.weight": (2,), "out.bias": (2, 2)}
    named = {name: nn.Parameter(torch.zeros(shape)) for name, shape in names.items()}
    decayed, plain = adamw(named.items(), lr=1.0, weight_decay=0.1, beta2=0.99).param_groups
    assert [id(parameter) for parameter in decayed["params"]] == [id(named["proj.weight"])]
    assert len(plain["params"]) == 4 and (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.9, 0.99)


def test_set_lr_sets_the_learning_rate_of_every_parameter_group():
    named = {"a.weight": nn.Parameter(torch.zeros(2, 2)), "a.bias": nn.Parameter(torch.zeros(2))}
    optimizer = adamw(named.items(), lr=1.0, weight_decay=0.1, beta2=0.99)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_trainable_excludes_frozen_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert list(trainable(model)) == ["1.weight", "1.bias"]
