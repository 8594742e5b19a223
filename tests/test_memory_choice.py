"""The choice of the layers that recompute their activations, and the measurement on which it is based."""

from __future__ import annotations

import logging
from functools import partial

import pytest
from helpers import golden_tree, loaded

from emollama.data.batch import collate
from emollama.recomputation import layers_of, set_recomputation
from emollama.runners import memory_choice
from emollama.runners.memory_choice import Activations, measured, memory, saved_bytes

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
    assert Activations(recomputed=20, layer=10, layers=8).best_choice(2, free) == every


def test_the_measurement_predicts_the_saved_tensors_for_any_choice(runner):
    batch, llm = collate([runner.samples[0], runner.samples[1]]), runner.model.llama_model
    tokens, loss = len(batch.input_ids), partial(runner.task.loss, runner.model, batch)
    activations = measured(runner.model, llm, loss, tokens)
    constant = {tensor.untyped_storage().data_ptr() for tensor in [*runner.model.parameters(), *runner.model.buffers()]}
    for every, stored in ((0, 2), (2, 1), (1, 0)):
        set_recomputation(llm, every)
        predicted = tokens * (activations.recomputed + stored * activations.layer)
        # The last layer saves less than the others if it computes only the outputs at the answers.
        least = predicted - tokens * activations.layer * (every != 1)
        assert 0.97 * least < saved_bytes(loss, constant) < 1.03 * predicted, every


@pytest.mark.parametrize(
    ("free", "expected", "text"),
    [(100 * GIB, [False, False], "no recomputation"), (0, [True, True], "recomputation of all layers")],
)
def test_auto_depends_on_the_free_memory(configuration, monkeypatch, caplog, tmp_path, free, expected, text):
    monkeypatch.setattr(memory_choice, "memory", lambda device: (free, 100 * GIB))
    monkeypatch.setattr(configuration.run, "job_id", tmp_path.name)
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    with caplog.at_level(logging.INFO):
        runner = configuration.runner_class(configuration)
    assert [layer.gradient_checkpointing for layer in layers_of(runner.model.llama_model)] == expected
    longest = max(len(runner.samples[index].input_ids) for index in range(len(runner.datasets["golden"])))
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("memory: ")]
    assert line.startswith(f"memory: micro-batches of up to {longest} tokens, {text}, expecting ")
    assert line.endswith(" of 100.0 GiB")


def test_the_memory_of_the_machine_is_shared_by_its_processes(runner, monkeypatch):
    alone = memory(runner.world.device)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory(runner.world.device)[1] == alone[1] // 2 > 0
