"""How processes with whole trained tensors exchange their gradients (run.parallel: ddp, run.reduce_dtype)."""

from __future__ import annotations

import pytest
import torch
from running import golden_config
from workers import exchanged_gradients as worker

pytestmark = pytest.mark.slow
ROUNDING = 2**-8  # largest relative error of a number that is rounded to bf16


@pytest.fixture(scope="module")
def gradients(tmp_path_factory, ranks):
    """run.reduce_dtype -> the gradients of each rank by name."""
    root = tmp_path_factory.mktemp("gradients")
    paths = {dtype: golden_config(root / dtype, run={"reduce_dtype": dtype}) for dtype in ("fp32", "bf16")}
    runs = {dtype: ranks(worker.gradients, str(path)) for dtype, path in paths.items()}
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


def test_the_gradients_of_the_projections_are_exchanged_after_all_others(tmp_path, ranks):
    for groups in ranks(worker.exchange_order, str(golden_config(tmp_path))):
        projections = [name.startswith("fusion.") for group in groups for name in group]
        assert len(groups) > 2 and projections == sorted(projections) and set(projections) == {False, True}
