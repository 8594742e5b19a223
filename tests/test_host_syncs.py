"""Between log entries, no operation of a training step waits for a GPU."""

from __future__ import annotations

import pytest
import torch
from helpers import golden_tree, loaded
from host_syncs import host_syncs

STEPS = 4


@pytest.mark.parametrize("values", [torch.tensor([3.0, 0.0]), torch.tensor([[1.0, 2.0]])], ids=["vector", "matrix"])
@pytest.mark.parametrize(
    "operation",
    [lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.nonzero(), lambda x: x[x > 1], lambda x: bool((x > 9).any())],
    ids=["item", "tolist", "nonzero", "mask", "bool"],
)
def test_an_operation_that_reads_values_is_found(operation, values):
    with host_syncs() as found:
        operation(values)
    assert found


@pytest.mark.parametrize("options", [["run.max_grad_norm=1.0"], ["run.amp=True", "model.use_grad_checkpoint=True"]])
def test_steps_without_a_log_entry_do_not_wait_for_a_gpu(tmp_path, options):
    options = [f"run.iters_per_epoch={STEPS}", "run.max_epoch=1", "run.log_freq=100", *options]
    config = loaded(tmp_path, golden_tree(tmp_path), *options)
    runner = config.runner_class(config)
    batches = list(runner._step_batches())
    steps, found = runner._step, []

    def counted(step, micro_batches):
        with host_syncs() as operations:
            values = steps(step, micro_batches)
        found.extend(operations)
        return values

    runner._step = counted
    runner._step_batches = lambda: iter(batches)
    runner.train()
    assert sorted(set(found)) == []
