"""No operation of a training step waits for a GPU. Values are read from it for log entries, after the step."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from helpers import golden_tree, loaded
from host_syncs import SETTINGS, STEPS, host_syncs, train_with_steps_in


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


def waiting(folder, options):
    """The operations of training steps that wait for a GPU."""
    config = loaded(folder, golden_tree(folder), *STEPS, *options)
    found = []

    @contextmanager
    def counted():
        with host_syncs() as operations:
            yield
        found.extend(operations)

    train_with_steps_in(config.runner_class(config), counted)
    return sorted(set(found))


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_training_steps_do_not_wait_for_a_gpu(tmp_path, options):
    assert waiting(tmp_path, options) == []


@pytest.mark.slow
def test_only_the_masks_of_transformers_let_steps_of_padded_samples_wait(tmp_path):
    places = waiting(tmp_path, ["model.packing=padded"])
    assert [place for place in places if "transformers/masking_utils.py" not in place] == []
