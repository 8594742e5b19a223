"""How processes exchange their gradients (run.reduce_dtype), with whole and with sharded trained tensors."""

from __future__ import annotations

import pytest
import torch
from running import golden_config
from workers import exchanged_gradients as worker

pytestmark = pytest.mark.slow
ROUNDING = 2**-8  # largest relative error of a number that is rounded to bf16


def config(folder, mode, dtype):
    """Write the configuration of a run with three micro-batches per step, which trains all weights if they are sharded."""
    model = {} if mode == "ddp" else {"train_llm": "full", "ckpt": None}
    return str(golden_config(folder, run={"parallel": mode, "reduce_dtype": dtype, "accum_grad_iters": 3}, model=model))


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def gradients(request, tmp_path_factory, ranks):
    """run.reduce_dtype -> the gradients of each rank by name."""
    root = tmp_path_factory.mktemp("gradients")
    runs = {dtype: ranks(worker.gradients, config(root / dtype, request.param, dtype)) for dtype in ("fp32", "bf16")}
    return {
        dtype: [{name: torch.tensor(gradient) for name, gradient in rank.items()} for rank in run] for dtype, run in runs.items()
    }


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_all_ranks_get_the_same_gradients(gradients, dtype):
    first, second = gradients[dtype]
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_that_are_exchanged_in_bf16_differ_only_by_rounding(gradients):
    exact, rounded = gradients["fp32"][0], gradients["bf16"][0]
    for name, gradient in exact.items():
        # Each rank rounds its own gradient, and then their sum is rounded.
        assert 0 < (rounded[name] - gradient).norm() < 3 * ROUNDING * gradient.norm(), name


# With hsdp and fp32, FSDP has them in buffers of its own until the groups exchange them.
@pytest.mark.parametrize(("mode", "dtype"), [("fsdp", "fp32"), ("fsdp", "bf16"), ("hsdp", "bf16")])
def test_sharded_gradients_are_divided_and_added_up_in_float32_after_each_micro_batch(tmp_path, ranks, mode, dtype):
    for before in ranks(worker.dtypes_between_micro_batches, config(tmp_path, mode, dtype)):
        assert before == [{None}, {torch.float32}, {torch.float32}]


def test_micro_batches_add_gradients_up_where_they_are_exchanged(tmp_path, ranks):
    assert ranks(worker.tensors_between_micro_batches, config(tmp_path, "ddp", "fp32")) == [1, 1]


def test_the_gradients_of_the_projections_are_exchanged_after_all_others(tmp_path, ranks):
    for groups in ranks(worker.exchange_order, str(golden_config(tmp_path))):
        projections = [name.startswith("fusion.") for group in groups for name in group]
        assert len(groups) > 2 and projections == sorted(projections) and set(projections) == {False, True}
