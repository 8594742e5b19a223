"""run.parallel: fsdp and hsdp in processes with gloo, compared with ddp."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from running import golden_config, read_jsonl
from workers import sharded_training as worker

from emollama.convert.consolidation import consolidate

pytestmark = pytest.mark.slow
STEPS, RESUMED = 6, 2  # steps of a run, and of the checkpoint from which others continue
TOLERANCE = 1e-6  # relative
# What is trained -> keys of the model. Dropout and recomputation show whether each process uses the same random numbers.
TRAINED: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.1, "use_grad_checkpoint": True},
    "none": {"ckpt": None, "train_llm": "none", "use_grad_checkpoint": 2},
    "full": {"ckpt": None, "train_llm": "full", "use_grad_checkpoint": "auto"},
}
SHARDED = ("fsdp", "hsdp")
MODES = ("ddp", *SHARDED)
# What is trained by four processes, and what by runs that continue in another mode. Every mode occurs with LoRA or with full.
FOUR = [*itertools.product(["full"], MODES), ("lora", "ddp"), ("lora", "fsdp")]
CONTINUED = [("lora", *pair) for pair in itertools.permutations(MODES, 2)]
CONTINUED += [("full", "ddp", "fsdp"), ("full", "fsdp", "hsdp"), ("full", "hsdp", "ddp")]
RUN = {"global_batch": 8, "max_epoch": 3, "iters_per_epoch": 2, "max_grad_norm": 5.0, "eval_epoch_interval": 3}


class FourRanks(Ranks):
    """Four processes in one group."""

    SIZE = 4


@pytest.fixture(scope="module")
def four_ranks(fork_server):
    group = FourRanks()
    yield group
    group.close()


def config(folder: Path, trained: str, mode: str, **run: Any) -> str:
    """Write the configuration of a run; hsdp divides the weights among half of the processes."""
    keys = RUN | {"parallel": mode} | run
    if mode == "hsdp":
        keys.setdefault("shard_size", 1)
    path = golden_config(folder, run=keys, model=TRAINED[trained])
    tree = json.loads(path.read_text())
    for block in tree["evaluation_datasets"].values():
        block["max_new_tokens"] = 6  # each token gathers the weights of each layer
    path.write_text(json.dumps(tree))
    return str(path)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(folder / "out/run/log.jsonl")]


def stored(folder: Path, epoch: int = RUN["max_epoch"] - 1) -> dict[str, Any]:
    """Read a checkpoint; write it as a single file before if it is sharded."""
    path = folder / f"out/run/checkpoint_{epoch}.pth"
    if (folder / "out/run/checkpoint_parts").exists():
        consolidate(str(path), str(path := folder / "consolidated.pth"))
    return torch.load(path, weights_only=True)


def answers(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Block -> name, task and answer of each prediction."""
    files = sorted(folder.rglob("predictions_*.jsonl"))
    return {file.stem: [(row["name"], row["task"], row["prediction"]) for row in read_jsonl(file)] for file in files}


@pytest.fixture(scope="module")
def two(tmp_path_factory, ranks):
    """Folder of runs in two processes: <what is trained>_<mode>."""
    root = tmp_path_factory.mktemp("two")
    runs = itertools.product(TRAINED, MODES)
    ranks(worker.train, [config(root / f"{trained}_{mode}", trained, mode, evaluate=True) for trained, mode in runs])
    return root


@pytest.fixture(scope="module")
def four(tmp_path_factory, four_ranks):
    """The same for four processes; hsdp divides the weights among two of them."""
    root = tmp_path_factory.mktemp("four")
    more = {"hsdp": {"shard_size": 2}}
    four_ranks(worker.train, [config(root / f"{run[0]}_{run[1]}", *run, **more.get(run[1], {})) for run in FOUR])
    return root


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("mode", SHARDED)
def test_sharded_weights_give_the_losses_of_ddp_in_two_processes(two, trained, mode):
    expected = losses(two / f"{trained}_ddp")
    assert losses(two / f"{trained}_{mode}") == pytest.approx(expected, rel=TOLERANCE) and len(expected) == STEPS


@pytest.mark.parametrize(("trained", "mode"), [run for run in FOUR if run[1] != "ddp"])
def test_sharded_weights_give_the_losses_of_ddp_in_four_processes(four, trained, mode):
    expected = losses(four / f"{trained}_ddp")
    assert losses(four / f"{trained}_{mode}") == pytest.approx(expected, rel=TOLERANCE) and len(expected) == STEPS


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("mode", SHARDED)
def test_the_evaluation_of_sharded_weights_gives_the_answers_of_ddp(two, trained, mode):
    expected = answers(two / f"{trained}_ddp")
    assert answers(two / f"{trained}_{mode}") == expected and len(expected) == 2


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("mode", SHARDED)
def test_a_checkpoint_of_sharded_weights_has_the_tensors_of_one_of_ddp(two, trained, mode):
    expected, content = stored(two / f"{trained}_ddp"), stored(two / f"{trained}_{mode}")
    assert content.keys() == expected.keys() and content["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        assert torch.allclose(content["model"][name], tensor, rtol=1e-5, atol=1e-6), name
    one, other = content["optimizer"], expected["optimizer"]
    assert one["param_groups"] == other["param_groups"] and one["state"].keys() == other["state"].keys()
    for index, values in other["state"].items():
        for name, value in values.items():
            assert torch.allclose(one["state"][index][name], value, rtol=1e-4, atol=1e-7), (index, name)


def resumed(folder: Path, trained: str, mode: str, checkpoint: Path, **run: Any) -> str:
    return config(folder, trained, mode, resume_ckpt_path=str(checkpoint), **run)


@pytest.fixture(scope="module")
def resumed_runs(two, ranks):
    """Folder of runs that continue from those of ``two``: <what is trained>_<mode of the checkpoint>_<mode>."""
    root = two / "resumed"
    paths = []
    for trained, first, second in CONTINUED:
        checkpoint = two / f"{trained}_{first}/out/run/checkpoint_{RESUMED // 2 - 1}.pth"
        # An evaluation before the first step is the first to use the weights, in inference mode.
        evaluated = {"evaluate": True, "eval_epoch_interval": 1} if (first, second) == ("ddp", "fsdp") else {}
        paths.append(resumed(root / f"{trained}_{first}_{second}", trained, second, checkpoint, **evaluated))
    ranks(worker.train, paths)
    return root


@pytest.mark.parametrize(("trained", "first", "second"), CONTINUED)
def test_a_run_continues_in_another_mode_as_without_the_interruption(two, resumed_runs, trained, first, second):
    expected = losses(two / f"{trained}_ddp")[RESUMED:]
    assert losses(resumed_runs / f"{trained}_{first}_{second}") == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("trained", ["lora", "full"])
def test_a_run_continues_with_fewer_processes_at_the_same_global_batch(tmp_path, four, ranks, trained):
    checkpoint = "out/run/checkpoint_{}.pth"
    ranks(worker.train, [resumed(tmp_path / "two", trained, "fsdp", four / f"{trained}_fsdp" / checkpoint.format(0))])
    worker.train([resumed(tmp_path / "one", trained, "fsdp", tmp_path / "two" / checkpoint.format(1))])
    expected = losses(four / f"{trained}_fsdp")
    assert losses(tmp_path / "two") == pytest.approx(expected[2:], rel=TOLERANCE)
    assert losses(tmp_path / "one") == pytest.approx(expected[4:], rel=TOLERANCE)


@pytest.mark.parametrize("trained", ["lora", "full"])
def test_the_gradients_of_mixed_precision_are_those_of_ddp(tmp_path, ranks, trained):
    paths = {mode: config(tmp_path / mode, trained, mode, amp=True, amp_dtype="bf16") for mode in MODES}
    ranks(worker.first_gradients, list(paths.values()))
    expected, *others = (torch.load(tmp_path / mode / "gradients.pt", weights_only=True) for mode in MODES)
    for gradients in others:
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (gradients[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def test_the_gradient_scaler_of_fp16_skips_the_steps_of_ddp(tmp_path, ranks):
    scale = 2.0**18
    run = {"amp": True, "amp_dtype": "fp16", "max_epoch": 3}
    folders = {mode: tmp_path / mode for mode in ("ddp", "fsdp")}
    ranks(worker.train, [config(folders[mode], "full", mode, **run) for mode in folders], scale)
    scalers = {mode: stored(folder, epoch=2)["scaler"] for mode, folder in folders.items()}
    assert scalers["fsdp"] == scalers["ddp"] and scale / 64 < scalers["ddp"]["scale"] < scale
    assert losses(folders["fsdp"]) == pytest.approx(losses(folders["ddp"]), rel=1e-3)


def evaluation(folder: Path, trained: str, mode: str) -> str:
    """Write a configuration that evaluates with all ways to answer."""
    path = Path(config(folder, trained, mode))
    tree = json.loads(path.read_text())
    block = tree["evaluation_datasets"].pop("upstream")
    tree["evaluation_datasets"] |= {
        "likelihood": block | {"task_pool": ["emotion"], "answer_by": "likelihood"},
        "beams": block | {"num_beams": 2, "max_new_tokens": 5},
    }
    tree["model"]["ckpt_allow_missing"] = ["*"]
    path.write_text(json.dumps(tree))
    return str(path)


def test_ranks_with_different_numbers_of_forward_passes_give_the_answers_of_ddp(tmp_path, four_ranks):
    paths = {mode: evaluation(tmp_path / mode, "lora", mode) for mode in ("ddp", "fsdp")}
    numbers = {mode: four_ranks(worker.evaluate, path) for mode, path in paths.items()}
    assert answers(tmp_path / "fsdp") == answers(tmp_path / "ddp") and len(answers(tmp_path / "ddp")) == 3
    assert numbers["fsdp"] == numbers["ddp"] and len(set(numbers["ddp"])) > 1


def test_a_rank_without_memory_repeats_a_batch_while_the_others_continue(tmp_path, ranks):
    paths = [evaluation(tmp_path / name, "lora", "fsdp") for name in ("intact", "failed")]
    one, other = ranks(worker.evaluate, paths[0]), ranks(worker.evaluate, paths[1], 2)
    assert answers(tmp_path / "failed") == answers(tmp_path / "intact")
    assert other[1] > one[1] and other[0] == one[0]


def test_each_process_has_its_part_of_the_language_model(tmp_path, four_ranks):
    sizes = four_ranks(worker.layer_bytes, config(tmp_path, "none", "fsdp"))
    whole = sizes[0][1]
    # The last norm stays whole.
    assert all(own == pytest.approx(whole / 4, rel=0.01) for own, _ in sizes)


def test_weights_of_4_bits_are_sharded_with_the_losses_of_ddp(tmp_path, ranks):
    pytest.importorskip("bitsandbytes")
    model = {"load_in_4bit": True}
    folders = {mode: tmp_path / mode for mode in ("ddp", "fsdp")}
    run = RUN | {"max_epoch": 1}
    ranks(worker.train, [str(golden_config(folders[mode], run=run | {"parallel": mode}, model=model)) for mode in folders])
    assert losses(folders["fsdp"]) == pytest.approx(losses(folders["ddp"]), rel=TOLERANCE)
