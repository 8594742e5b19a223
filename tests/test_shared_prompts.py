"""Samples about one clip that share the beginning of their prompts (``run.tasks_per_clip``)."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TASKS, loaded, training_tree
from running import golden_config, read_jsonl
from test_attention import naive, offsets, tensors
from workers import splits

from emollama.data import loader
from emollama.data.batch import IGNORED, Sample, SharedPrompts, collate
from emollama.data.loader import BatchLayout, TrainingSamples, WorkerOptions, step_batches, training_loader
from emollama.data.sampling import DatasetSampling, MixtureSampler
from emollama.data.shared_prompts import records_of, share_prompts
from emollama.data.token_budget import split_into
from emollama.distributed import process_group
from emollama.errors import UserError
from emollama.models import attention, packing_check
from emollama.models.attention import packed_attention
from emollama.runners.preparation import Preparation
from emollama.runners.step_layout import most_tokens
from emollama.runners.summary import training_steps

K = 3


@pytest.fixture
def samples(golden_dataset, golden_prompt):
    """The golden corpus with all three tasks of each clip in the same step."""
    sampler = MixtureSampler(3, (golden_dataset.sampling(),), samples_per_epoch=60, tasks_per_clip=K)
    return TrainingSamples([golden_dataset], golden_prompt, sampler)


def whole(samples, count):
    """The first samples, each with its whole prompt."""
    return [samples[index] for index in range(count)]


def shared(samples, count):
    """The first samples with shared prompts."""
    return [sample for clip in samples.__getitems__(list(range(0, count, K))) for sample in clip]


def losses_and_gradients(model, batch):
    model.zero_grad(set_to_none=True)
    losses = model(batch)
    (losses * batch.loss_weights[batch.label_positions]).sum().backward()
    gradients = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return losses.detach(), gradients


def relative(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


# The order of the samples


def test_the_samples_of_a_group_have_the_same_clip_and_random_numbers_but_different_dropout():
    sampler = MixtureSampler(1, (DatasetSampling(50),), tasks_per_clip=K)
    refs = [sampler.at(index) for index in range(3 * K)]
    for first in range(0, 3 * K, K):
        group = refs[first : first + K]
        assert len({(ref.index, ref.rng.random()) for ref in group}) == 1
    assert len({ref.dropout_seed for ref in refs}) == 3 * K


def test_groups_come_in_the_order_of_the_samples_of_a_run_with_one_task_per_clip():
    curriculum = DatasetSampling(20, ratio=2, difficulty=np.arange(20.0), phases=3)
    one, several = (
        MixtureSampler(1, (curriculum, DatasetSampling(9)), samples_per_epoch=60 * k, tasks_per_clip=k) for k in (1, K)
    )
    for group in range(0, 400, 7):
        expected = one.at(group)
        for member in range(K):
            ref = several.at(group * K + member)
            assert (ref.dataset, ref.index) == (expected.dataset, expected.index)


def test_a_step_has_each_sample_once_and_groups_are_never_split():
    for world, accumulate in ((1, 2), (2, 1)):
        layouts = [BatchLayout(2 * K, accumulate, world, rank, tasks_per_clip=K) for rank in range(world)]
        first = [index for layout in layouts for loaded_together in layout.sample_indices(1, 2) for index in loaded_together]
        assert sorted(first) == list(range(4 * K, 8 * K, K))


# Loading


def test_the_summary_names_the_clips_of_a_step():
    layout = BatchLayout(2 * K, 2, 3, 0, tasks_per_clip=K)
    rows = dict(training_steps(SimpleNamespace(max_epoch=1, iters_per_epoch=1), layout, first_step=0))
    assert rows["clips per step"] == f"12, each with {K} tasks (run.tasks_per_clip)"
    assert "clips per step" not in dict(
        training_steps(SimpleNamespace(max_epoch=1, iters_per_epoch=1), BatchLayout(2, 2, 3, 0), 0)
    )


def test_a_group_has_different_tasks_of_one_clip_whose_features_are_read_once(samples, golden_dataset, monkeypatch):
    reads, read = [], type(golden_dataset.features[0]).read
    monkeypatch.setattr(type(golden_dataset.features[0]), "read", lambda self, name: reads.append(name) or read(self, name))
    (clip,) = samples.__getitems__([2 * K])
    assert sorted(sample.task for sample in clip) == sorted(TASKS) and len({sample.name for sample in clip}) == 1
    assert len(reads) == len(golden_dataset.features)


def test_a_dataset_that_cannot_read_several_records_augments_them_in_the_same_way():
    class Dataset:
        def record(self, index, task, instruction, rng):
            return index, task, rng.random()

    (_, first, number), (_, second, same) = records_of(
        Dataset(), 0, [("emotion", "?"), ("reason", "!")], np.random.default_rng(1)
    )
    assert (first, second) == ("emotion", "reason") and number == same


def test_a_subclass_that_overrides_record_is_called_for_each_task(golden_dataset):
    class Renamed(type(golden_dataset)):
        def record(self, index, task, instruction, rng=None):
            return replace(super().record(index, task, instruction, rng), name="renamed")

    dataset = object.__new__(Renamed)
    dataset.__dict__ |= golden_dataset.__dict__
    questions = [("emotion", "?"), ("reason", "!")]
    assert [record.name for record in records_of(dataset, 0, questions, np.random.default_rng(1))] == ["renamed", "renamed"]


def test_samples_share_all_tokens_before_their_tasks_and_the_features(samples):
    first, *others = (clip := samples.__getitems__([0])[0])
    for sample, complete in zip(others, whole(samples, K)[1:], strict=True):
        count = sample.shared_tokens
        assert bool((complete.input_ids[count:] >= 0).all()) and bool((complete.input_ids[:count] < 0).any())
        assert first.input_ids[:count].equal(complete.input_ids[:count])
        assert first.input_ids[count] != complete.input_ids[count]
        assert sample.input_ids.equal(complete.input_ids[count:]) and sample.labels.equal(complete.labels[count:])
    batch = collate(clip)
    assert batch.slots["image"].values.shape == first.slots["image"].shape
    assert batch.max_length == max(len(sample.input_ids) for sample in whole(samples, K))
    positions = batch.position_ids.split(list(batch.lengths))
    assert [int(part[0]) for part in positions] == [sample.shared_tokens for sample in clip]


def test_equal_prompts_are_shared_up_to_the_token_before_the_answer(samples):
    sample = samples[0]
    answer = int((sample.labels >= 0).nonzero()[0])
    assert [part.shared_tokens for part in share_prompts([sample, sample])] == [0, answer - 1]


def test_a_sample_with_features_after_the_different_tokens_stays_complete(samples):
    first, second = whole(samples, 2)
    different = replace(second, input_ids=second.input_ids.clone())
    different.input_ids[1] += 1
    assert share_prompts([first, different])[1] is different


def test_a_sample_shares_the_tokens_of_the_last_complete_sample():
    rows = [[1, 10, -1, -1, 20, 30], [1, 11, 12, -1, -1, 21, 31], [1, 10, -1, -1, 22, 23, 32], [1, 10, -1, -1, 22, 24, 32]]
    samples = []
    for ids in map(torch.tensor, rows):
        labels = ids.where(torch.arange(len(ids)) == len(ids) - 1, IGNORED)
        samples.append(Sample("clip", "emotion", ids, labels, (labels != IGNORED).float(), {"image": torch.zeros(2, 4)}))
    batch = collate(share_prompts(samples))
    attended = batch.shared.attended.split(batch.shared.cu_attended.diff().tolist())
    assert [batch.input_ids[tokens].tolist() for tokens in attended] == rows
    assert batch.shared.tokens == (0, 0, 0, 5)


def test_all_tensors_of_a_micro_batch_are_moved_together(samples):
    batch = collate(shared(samples, K))
    moved = batch.to(torch.device("meta"))
    assert all(tensor.is_meta for tensor in moved.tensors)
    assert any(tensor is batch.shared.attended for tensor in batch.tensors)
    assert any(tensor is batch.slots["image"].values for tensor in batch.tensors)


@pytest.mark.parametrize("share", [share_prompts, list])
@pytest.mark.parametrize("max_tokens", [50, 600, 2000])
def test_micro_batches_with_a_maximum_number_of_tokens_never_split_a_group(samples, max_tokens, share, monkeypatch):
    # With a prompt format whose features follow the user text, share_prompts leaves all samples complete.
    monkeypatch.setattr(loader, "share_prompts", share)
    layout = BatchLayout(4 * K, 1, 1, 0, max_tokens, K)
    batches = next(step_batches(training_loader(samples, layout, WorkerOptions(), first_step=0, end_step=1), 1))
    for number in (3, 4):
        parts = layout.split_into(batches, number)
        assert sum(len(batch.names) for batch in parts) == 4 * K
        for batch in parts:
            names = [set(batch.names[first : first + K]) for first in range(0, len(batch.names), K)]
            assert len(batch.names) % K == 0 and all(len(of_clip) == 1 for of_clip in names)
            if share is share_prompts:
                assert [count == 0 for count in batch.shared.tokens] == [True, False, False] * len(names)
            else:
                assert batch.shared is None


def test_a_split_micro_batch_has_the_samples_of_the_original(samples):
    batch = collate(shared(samples, 2 * K))
    parts = split_into([batch], 2, tasks_per_clip=K)
    for clip, part in zip(samples.__getitems__([0, K]), parts, strict=True):
        expected = collate(clip)
        assert part.names == expected.names and part.dropout_seeds.equal(expected.dropout_seeds)
        assert part.shared.tokens == expected.shared.tokens and part.shared.attended.equal(expected.shared.attended)
        assert part.slots["image"].values.equal(expected.slots["image"].values)


# The model


def test_losses_and_gradients_equal_those_of_samples_with_whole_prompts(golden_model, samples):
    expected_losses, expected = losses_and_gradients(golden_model, collate(whole(samples, 2 * K)))
    batch = collate(shared(samples, 2 * K))
    assert len(batch.input_ids) < 0.7 * sum(len(sample.input_ids) for sample in whole(samples, 2 * K))
    losses, gradients = losses_and_gradients(golden_model, batch)
    assert relative(losses, expected_losses) <= 1e-6 and relative(gradients, expected) <= 1e-6


def test_with_dropout_the_losses_of_a_group_do_not_depend_on_the_other_groups(golden_model, samples, monkeypatch):
    monkeypatch.setattr(golden_model.dropout, "p", 0.3)
    monkeypatch.setattr(golden_model.dropout, "_threshold", round(0.3 * 2**16))
    without = golden_model(collate(shared(samples, 2 * K)))
    golden_model.train()
    try:
        together = golden_model(collate(shared(samples, 2 * K)))
        alone = torch.cat([golden_model(collate(clip)) for clip in samples.__getitems__([0, K])])
    finally:
        golden_model.eval()
    assert relative(alone, together) <= 1e-6 and relative(without, together) > 1e-3


SHARED = [0, 3, 5, 0, 2]
LENGTHS = [6, 4, 1, 3, 5]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [None, 3, 100])
def test_attention_with_shared_tokens_equals_that_of_whole_sequences(heads, kv_heads, window):
    row = [tensor.requires_grad_() for tensor in tensors(heads, kv_heads, sum(LENGTHS))]
    layout = SharedPrompts.of(SHARED, LENGTHS)
    options = {"cu_seqlens": offsets(LENGTHS), "max_length": 7, "lengths": LENGTHS, "shared": layout, "sliding_window": window}
    output = packed_attention(torch.nn.Module(), *row, None, **options)[0]
    totals = [count + length for count, length in zip(SHARED, LENGTHS, strict=True)]
    sequences = naive(*(tensor[:, :, layout.attended] for tensor in row), totals, window)
    own = [part[:, count:] for part, count in zip(sequences.split(totals, 1), SHARED, strict=True)]
    torch.testing.assert_close(output, torch.cat(own, 1))
    weights = torch.arange(output.numel(), dtype=output.dtype).view_as(output)
    gradients, expected = (torch.autograd.grad((value * weights).sum(), row) for value in (output, torch.cat(own, 1)))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
def test_the_variable_length_kernel_with_shared_tokens_equals_the_loop(window):
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < attention.AMPERE:
        pytest.skip("needs a CUDA device of compute capability 8 or more")
    row = [torch.randn(1, heads, sum(LENGTHS), 64, dtype=torch.bfloat16, device="cuda") for heads in (4, 2, 2)]
    layout = SharedPrompts.of(SHARED, LENGTHS).mapped(lambda tensor: tensor.cuda())
    options = {
        "cu_seqlens": offsets(LENGTHS).cuda(),
        "max_length": 7,
        "lengths": LENGTHS,
        "shared": layout,
        "sliding_window": window,
    }
    results = []
    for values in (row, [tensor.float() for tensor in row]):
        values = [tensor.clone().requires_grad_() for tensor in values]
        output = packed_attention(torch.nn.Module(), *values, None, **options)[0]
        results.append([output, *torch.autograd.grad(output.float().square().sum(), values)])
    for kernel, loop in zip(*results, strict=True):
        torch.testing.assert_close(kernel.float(), loop, atol=3e-2, rtol=3e-2)


# The check of the language model


def test_a_language_model_that_computes_other_values_with_shared_prompts_cannot_use_them(golden_model, monkeypatch):
    config, cpu = golden_model.llm_config, torch.device("cpu")
    assert packing_check.check(config, "auto", cpu, torch.float32).shared_prompts
    monkeypatch.setattr(attention, "_with_prompts", lambda parts, shared: parts)
    packing = packing_check.check(config, "auto", cpu, torch.float32)
    assert packing.is_packed and not packing.shared_prompts
    with pytest.raises(UserError, match="run.tasks_per_clip: samples of models of the type 'llama' cannot share a prompt"):
        packing.require_shared_prompts("llama")


# Mistakes


@pytest.mark.parametrize(
    ("options", "tasks", "message"),
    [
        (
            ["batch_size=4"],
            TASKS,
            "datasets.golden.batch_size is 4, which is not a multiple of run.tasks_per_clip, 3.",
        ),
        (["batch_size=3"], TASKS[:2], "but the number of tasks in datasets.golden.task_pool is 2 (emotion, reason)."),
        (["batch_size=3", "model.packing=padded"], TASKS, "models of the type 'llama' cannot share a prompt (model.packing is"),
        (
            ["run.max_tokens=9", "run.global_batch=4"],
            TASKS,
            "run.global_batch 4 is not a multiple of 1 process x run.",
        ),
        (["run.tasks_per_clip=0"], TASKS, "tasks_per_clip is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_reported_at_the_start(tmp_path, corpus, options, tasks, message):
    options = [option.replace("batch_size", "datasets.golden.batch_size") for option in options]
    with pytest.raises(UserError) as error:
        config = loaded(tmp_path, training_tree(tmp_path, corpus, tasks), "run.tasks_per_clip=3", *options)
        Preparation(config, process_group.start("cpu"), training=True)
    assert message in str(error.value)


def test_samples_about_a_clip_with_more_tokens_than_a_micro_batch_are_logged_at_the_start(tmp_path, corpus, monkeypatch, caplog):
    options = ("run.tasks_per_clip=3", "datasets.golden.batch_size=3", "run.max_tokens=200")
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    Preparation(loaded(tmp_path, training_tree(tmp_path, corpus, TASKS), *options), process_group.start("cpu"), training=True)
    assert "the 3 samples about a clip (run.tasks_per_clip) have up to about " in caplog.text


# Runs


def config(folder, batch_size, **run):
    """A run of two epochs of two steps with six samples, with dropout."""
    return str(
        golden_config(
            folder,
            run={"iters_per_epoch": 2, "max_epoch": 2, "tasks_per_clip": K} | run,
            data={"batch_size": batch_size, "task_pool": list(TASKS), "shuffle": True},
            model={"lora_dropout": 0.05, "dropout": 0.1},
        )
    )


def losses(folder):
    return [row["loss"] for row in read_jsonl(folder / "out/run/log.jsonl")]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a run with both clips of a step in one micro-batch."""
    folder = tmp_path_factory.mktemp("shared_prompts")
    splits.train_only(config(folder, 2 * K))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"accum_grad_iters": 2}, {"global_batch": 2 * K, "max_tokens": 400}])
def test_losses_do_not_depend_on_the_micro_batches_of_a_step(reference, tmp_path, keys):
    splits.train_only(config(tmp_path, K, **keys))
    assert losses(tmp_path) == pytest.approx(losses(reference), rel=1e-6)


@pytest.mark.slow
def test_a_run_resumes_with_other_processes_but_not_with_other_tasks_per_clip(reference, tmp_path, ranks):
    keys = {"resume_ckpt_path": str(reference / "out/run/checkpoint_0.pth")}
    ranks(splits.train_only, config(tmp_path, K, **keys))
    assert losses(tmp_path) == pytest.approx(losses(reference)[2:], rel=1e-6)
    with pytest.raises(UserError, match="run.tasks_per_clip: 3 in the checkpoint, 1 in this run"):
        splits.train_only(config(tmp_path / "other", 2 * K, **keys, tasks_per_clip=1))


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 600), (250, 300), (400, 400), (9000, 1200)])
def test_the_memory_is_chosen_for_the_largest_possible_micro_batch(max_tokens, expected):
    assert most_tokens(BatchLayout(2 * K, 2, 1, 0, max_tokens, K), longest=100) == expected
