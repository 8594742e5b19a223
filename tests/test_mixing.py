"""One run on two datasets of different types with curricula, augmentation and stages: shares and exact resuming."""

from __future__ import annotations

import math
import shutil
from collections import Counter

import pytest
import torch
import yaml
from helpers import GOLDEN, NAMES
from running import golden_config, kill_after_step, read_jsonl

from emollama.config import load
from emollama.data import sampling
from emollama.data.loader import WorkerOptions, training_loader
from emollama.errors import UserError

ITERS, EPOCHS, SAVED_EVERY, KILLED_AFTER, GLOBAL_BATCH = 4, 4, 3, 11, 4
STAGES = [{"init_lr": 1e-3, "epochs": 2}, {"init_lr": 4e-4, "epochs": 2, "warmup_steps": 2}]
RUN = {"stages": STAGES, "iters_per_epoch": ITERS, "save_every_iters": SAVED_EVERY, "accum_grad_iters": 2, "device": "cpu"}
MODEL = {"lora_dropout": 0.1, "dropout": 0.1, "use_grad_checkpoint": False}
AIDS = {"enable_augmentation": True, "augmentation_prob": 0.7, "augmentation_noise": 0.3}
LISTED = AIDS | {
    "task_pool": {"emotion": 1, "reason": 2, "reason_v2": 1},
    "shuffle": True,
    "batch_size": 2,
    "sample_ratio": 2.0,
    "curriculum": {"by": "answer_length", "epochs": 3},
}
TABLE = AIDS | {
    "type": "custom",
    "annotation_file": "clips.csv",
    "task_pool": ["emotion", "reason"],
    "batch_size": 2,
    "sample_ratio": 1.0,
    "curriculum": {"by": "hardness", "epochs": 4, "descending": True},
}
BLOCK = 128  # samples that contain an exact share of each dataset; 1024 outside these tests
HARDNESS = {NAMES[0]: 3.5, NAMES[1]: -1.0, NAMES[3]: 8.0, NAMES[4]: 0.0, NAMES[5]: 2.0}  # five of the six clips


def corpus(folder, hardness=HARDNESS):
    """The golden corpus with a table of clips in addition to its list."""
    shutil.copytree(GOLDEN / "data", folder)
    cells = [f"{name},happy,He laughs aloud.,{value}" for name, value in hardness.items()]
    (folder / "clips.csv").write_text("\n".join(["name,emotion,reason,hardness", *cells]) + "\n")
    return folder


def configured(folder, data, *, run=None, table=None):
    """Write a configuration that trains on both datasets and return its path."""
    path = golden_config(folder, run={"max_epoch": 1, **RUN, **(run or {})}, model=MODEL, data=LISTED | {"data_root": str(data)})
    tree = yaml.safe_load(path.read_text())
    tree["datasets"]["table"] = TABLE | {"data_root": str(data), **(table or {})}
    del tree["evaluation_datasets"]
    path.write_text(yaml.safe_dump(tree))
    return path


def runner(path, *options):
    config = load(str(path), list(options))
    return config.runner_class(config)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread, like the processes that the tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, fork_server):
    """An uninterrupted run, and one that was killed in its second stage and resumed with another number of workers."""
    root = tmp_path_factory.mktemp("mixing")
    data = corpus(root / "data")
    path = {name: configured(root / name, data) for name in ("alone", "killed")}
    runner(path["alone"]).train()
    kill_after_step(KILLED_AFTER, path["killed"], "run.num_workers=2")
    shutil.copytree(root / "killed/out/run", root / "cut")
    resumed = runner(path["killed"], "run.resume_ckpt_path=auto", "run.num_workers=1")
    assert resumed.first_step == KILLED_AFTER // SAVED_EVERY * SAVED_EVERY > ITERS * 2  # in the second stage
    resumed.train()
    return {"alone": root / "alone/out/run", "killed": root / "killed/out/run", "cut": root / "cut", "data": data}


@pytest.fixture
def cut(runs, tmp_path):
    """A function that builds a runner which resumes the killed run with changes."""

    def resumed(**changes):
        shutil.copytree(runs["cut"], tmp_path / "out/run")
        data = changes.pop("data", runs["data"])
        return runner(configured(tmp_path, data, **changes), "run.resume_ckpt_path=auto")

    return resumed


# Resuming


@pytest.mark.slow
def test_losses_gradient_norms_and_learning_rates_are_bit_identical_after_resuming(runs):
    alone, killed = (read_jsonl(runs[name] / "log.jsonl") for name in ("alone", "killed"))
    assert [row["step"] for row in killed] == [row["step"] for row in alone] == list(range(ITERS * EPOCHS))
    for key in ("loss", "grad_norm", "lr", "tokens"):
        assert [row[key] for row in killed] == [row[key] for row in alone], key
    assert len({row["loss"] for row in alone}) == len(alone)


@pytest.mark.slow
def test_final_tensors_and_optimizer_states_are_bit_identical_after_resuming(runs):
    last = f"checkpoint_{EPOCHS - 1}.pth"
    alone, killed = (torch.load(runs[name] / last, weights_only=True) for name in ("alone", "killed"))
    assert alone["model"].keys() == killed["model"].keys()
    for name, tensor in alone["model"].items():
        assert torch.equal(tensor, killed["model"][name]), name
    for key, state in alone["optimizer"]["state"].items():
        assert all(torch.equal(value, killed["optimizer"]["state"][key][part]) for part, value in state.items())


@pytest.mark.slow
def test_a_run_with_two_stages_logs_their_learning_rates_and_trains_all_epochs(runs):
    learning_rates = [row["lr"] for row in read_jsonl(runs["alone"] / "log.jsonl")]
    for stage, (init, warmup) in enumerate(((1e-3, 3), (4e-4, 2))):
        for step in range(2 * ITERS):
            cosine = 1e-6 + (init - 1e-6) * (1 + math.cos(math.pi * step / (2 * ITERS))) / 2
            expected = 1e-6 + (init - 1e-6) * step / warmup if step < warmup else cosine
            assert learning_rates[2 * ITERS * stage + step] == pytest.approx(expected, rel=1e-9)
    assert (runs["alone"] / f"checkpoint_{EPOCHS - 1}.pth").exists()


@pytest.mark.slow
def test_the_saved_configuration_of_a_run_loads_again_and_resumes_the_same_run(runs):
    path = runs["alone"] / "config.yaml"
    assert load(str(path)).resolved() == load(str(runs["alone"].parent.parent / "config.yaml")).resolved()
    again = runner(path, "run.resume_ckpt_path=auto")
    assert again.first_step == again.total_steps == ITERS * EPOCHS and again.cfg.max_epoch == EPOCHS


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run": {"stages": [STAGES[0], {"init_lr": 1e-4, "epochs": 2}]}}, ["run.stages", "0.0004", "0.0001"]),
        ({"table": {"sample_ratio": 0.5}}, ["datasets.table.sample_ratio", "1.0 in the checkpoint, 0.5 in this run"]),
        ({"table": {"augmentation_noise": 0.2}}, ["datasets.table.augmentation_noise", "0.3 in the checkpoint, 0.2 in this run"]),
        (
            {"table": {"curriculum": {"by": "hardness", "epochs": 3}}},
            ["datasets.table.curriculum.epochs", "4 in the checkpoint, 3 in this run"],
        ),
        (
            {"table": {"enable_augmentation": False}},
            ["datasets.table.enable_augmentation", "True in the checkpoint, False in this run"],
        ),
    ],
)
def test_resuming_with_other_stages_sample_ratios_augmentation_or_curriculum_is_refused(cut, changes, expected):
    with pytest.raises(UserError) as error:
        cut(**changes)
    assert all(word in str(error.value) for word in expected), str(error.value)


def test_resuming_with_a_changed_difficulty_in_the_table_is_refused(cut, tmp_path):
    moved = corpus(tmp_path / "moved")
    assert cut(data=moved).first_step >= 2 * ITERS
    shutil.rmtree(tmp_path / "out")
    changed = corpus(tmp_path / "changed", HARDNESS | {NAMES[0]: -7.0})
    with pytest.raises(UserError, match="difficulty of table: '[0-9a-f]+' in the checkpoint, '[0-9a-f]+' in this run"):
        cut(data=changed)


# Sampling by the real runner


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A runner over both datasets whose epochs have 12 steps; shares are exact in each block of :data:`BLOCK` samples."""
    root = tmp_path_factory.mktemp("mixed")
    table = {"instructions": {task: ["Tell me:"] for task in ("emotion", "reason")}}  # marks the table's samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "MIXING_WINDOW", BLOCK)
        yield runner(configured(root, corpus(root / "data"), table=table, run={"iters_per_epoch": 12}))


@pytest.mark.parametrize(("block", "workers"), [(0, 0), *(pytest.param(block, 2, marks=pytest.mark.slow) for block in (0, 1))])
def test_the_training_batches_contain_the_exact_share_of_each_dataset_in_each_block(mixed, block, workers):
    """The marks are texts in the table's questions, decoded from the rendered ids."""
    mark = mixed.prompt.tokenizer("Tell me:", add_special_tokens=False).input_ids[1:]
    steps = BLOCK // GLOBAL_BATCH
    assert mixed.layout.global_batch == GLOBAL_BATCH
    span = {"first_step": block * steps, "end_step": (block + 1) * steps}
    from_table = total = 0
    for (batch,) in training_loader(mixed.samples, mixed.layout, WorkerOptions(workers), **span):
        for ids in batch.input_ids.split(batch.lengths):
            listed = ids.tolist()
            from_table += any(listed[at : at + len(mark)] == mark for at in range(len(listed)))
            total += 1
    assert (total, from_table) == (BLOCK, 43)


def test_both_curricula_of_the_runner_grow_with_the_epochs(mixed):
    draws = mixed.cfg.iters_per_epoch * GLOBAL_BATCH
    samples_by_epoch = [
        [mixed.samples.sampler.at(k) for k in range(epoch * draws, (epoch + 1) * draws)] for epoch in range(EPOCHS + 1)
    ]
    names = [dataset.names() for dataset in mixed.samples.datasets]

    def pool(epoch, which):
        return {names[which][draw.index] for draw in epoch if draw.dataset == which}

    assert [len(pool(epoch, 0)) for epoch in samples_by_epoch] == [2, 4, 6, 6, 6]
    hardest_first = sorted(HARDNESS, key=HARDNESS.get, reverse=True)
    for number, epoch in enumerate(samples_by_epoch):
        assert pool(epoch, 1) == set(hardest_first[: -(-5 * min(number + 1, 4) // 4)])


def test_the_runner_augments_features_of_both_dataset_types(mixed):
    changed = Counter()
    for k in range(40):
        draw = mixed.samples.sampler.at(k)
        dataset = mixed.samples.datasets[draw.dataset]
        plain = dataset.record(draw.index, "emotion", "?").features
        changed[type(dataset).__name__] += any(not torch.equal(plain[slot], mixed.samples[k].slots[slot]) for slot in plain)
    assert set(changed) == {"FeatureFaceCaption", "Custom"} and min(changed.values()) > 8
