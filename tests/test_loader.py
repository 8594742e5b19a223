"""The sampling order and its distribution over ranks and micro-batches."""

from __future__ import annotations

import gc
import os
import random
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import NAMES

from emollama.data.batch import PackedFeatures, Sample, collate
from emollama.data.loader import BatchLayout, TrainingSamples, WorkerOptions, step_batches, training_loader
from emollama.data.sampling import MIXING_WINDOW, DatasetSampling, MixtureSampler
from emollama.data.token_budget import group_by_tokens, num_tokens, split_into
from emollama.errors import UserError


def order(sizes=(7,), ratios=None, shuffle=True, seed=1):
    ratios = ratios or [1.0] * len(sizes)
    return MixtureSampler(seed, tuple(DatasetSampling(size, ratio, shuffle) for size, ratio in zip(sizes, ratios, strict=True)))


def clips(sampler, places):
    return [(draw.dataset, draw.index) for draw in map(sampler.at, places)]


# Order


def test_each_dataset_epoch_is_a_permutation_and_epochs_differ():
    sampler = order([7])
    passes = [[clip for _, clip in clips(sampler, range(7 * epoch, 7 * epoch + 7))] for epoch in range(20)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 15


def test_without_shuffle_the_order_is_that_of_the_file_and_repeats():
    assert [clip for _, clip in clips(order([3], shuffle=False), range(8))] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_sample_is_a_pure_function_of_seed_and_global_index():
    places = range(0, 3 * MIXING_WINDOW, 5)
    forward = clips(order([7, 5], [1, 2]), places)
    assert clips(order([7, 5], [1, 2]), reversed(places)) == forward[::-1]
    assert clips(order([7, 5], [1, 2], seed=2), places) != forward


def test_the_generator_of_a_sample_depends_only_on_its_global_index_and_the_seed():
    def numbers(sampler, k):
        return sampler.at(k).rng.random(3).tolist()

    assert numbers(order(), 5) == numbers(order(), 5)
    assert len({tuple(numbers(order(seed=seed), k)) for seed in (1, 2) for k in range(50)}) == 100


@pytest.mark.parametrize(
    ("ratios", "shares"), [([1, 1], [512, 512]), ([3, 1], [768, 256]), ([0.2, 0.1, 0.1], [512, 256, 256]), ([1, 1, 1], None)]
)
def test_every_block_of_samples_has_each_datasets_exact_share(ratios, shares):
    sampler = order([11, 7, 5][: len(ratios)], ratios)
    for block in range(3):
        counts = Counter(draw for draw, _ in clips(sampler, range(block * MIXING_WINDOW, (block + 1) * MIXING_WINDOW)))
        dataset_counts = [counts[dataset] for dataset in range(len(ratios))]
        assert dataset_counts == shares if shares else sorted(dataset_counts) == [341, 341, 342]


def test_a_mixed_dataset_is_sampled_without_replacement_within_its_epochs():
    sampler = order([11, 7], [2, 1])
    sampled = clips(sampler, range(2 * MIXING_WINDOW + 100))
    for dataset, size in enumerate((11, 7)):
        own = [clip for which, clip in sampled if which == dataset]
        for first in range(0, len(own) - size + 1, size):
            assert sorted(own[first : first + size]) == list(range(size))


def test_a_very_small_sample_ratio_is_still_sampled():
    sampler = order([5, 5], [1.0, 0.001])
    assert Counter(dataset for dataset, _ in clips(sampler, range(MIXING_WINDOW)))[1] >= 1


# Batch layout


def step_indices(step, batch_size, accumulate, world):
    """The sorted sample indices of one step over all ranks, including repeated ones."""
    splits = [BatchLayout(batch_size, accumulate, world, rank) for rank in range(world)]
    return sorted(index for split in splits for micro in split.sample_indices(step, step + 1) for index in micro)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_step_has_each_index_of_its_global_batch_once_for_any_layout(batch_size, accumulate, world):
    size = batch_size * accumulate * world
    assert BatchLayout(batch_size, accumulate, world, 0).global_batch == size
    for step in (0, 1, 9):
        assert step_indices(step, batch_size, accumulate, world) == list(range(step * size, (step + 1) * size))


def test_every_micro_batch_has_the_batch_size_and_every_rank_the_same_number_of_them():
    for rank in range(3):
        micro_batches = list(BatchLayout(2, 4, 3, rank).sample_indices(5, 7))
        assert len(micro_batches) == 8 and {len(micro) for micro in micro_batches} == {2}


def test_a_resumed_run_uses_the_same_sample_indices_as_an_uninterrupted_run():
    split = BatchLayout(2, 3, 2, 1)
    assert list(split.sample_indices(0, 9))[4 * 3 :] == list(split.sample_indices(4, 9))


# Micro-batches with a maximum number of tokens


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_groups_contain_each_sample_once_and_at_most_the_tokens_and_few_are_not_full(seed, padded):
    lengths = np.random.default_rng(seed).integers(20, 200, 40).tolist()
    groups = group_by_tokens(lengths, 256, padded=padded)
    sizes = [num_tokens([lengths[index] for index in group], padded=padded) for group in groups]
    assert sorted(index for group in groups for index in group) == list(range(40))
    assert max(sizes) <= 256 and (padded or len(groups) <= 11 / 9 * np.ceil(sum(lengths) / 256) + 1)
    assert groups == group_by_tokens(lengths, 256, padded=padded)


def test_padding_counts_as_tokens_of_a_group():
    lengths = [10, 40, 12, 50, 11]
    assert group_by_tokens(lengths, 125) == [[0, 1, 2, 3, 4]]
    assert group_by_tokens(lengths, 125, padded=True) == [[1, 3], [0, 2, 4]]
    assert group_by_tokens([200, 10, 20], 100, padded=True) == [[0], [1, 2]]


def test_a_sample_with_more_tokens_than_the_maximum_is_alone():
    assert group_by_tokens([300, 10, 20], 100) == [[0], [1, 2]]


@pytest.mark.parametrize("max_tokens", [100, 250, 10_000])
@pytest.mark.parametrize("padded", [False, True])
def test_a_step_has_the_same_samples_with_any_maximum(samples, max_tokens, padded):
    without = batches(samples, BatchLayout(2, 3, 2, 1), end=2)
    layout = BatchLayout(2, 3, 2, 1, max_tokens, padded=padded)
    loader = training_loader(samples, layout, WorkerOptions(), first_step=0, end_step=2)
    steps = list(step_batches(loader, layout.loads_per_step))
    for batch in (batch for step in steps for batch in layout.split_into(step, 4)):
        assert num_tokens(batch.lengths, padded=padded) <= max_tokens or len(batch.names) == 1
    for step, first in zip(steps, (0, 3), strict=True):
        names = [name for batch in step for name in batch.names]
        assert sorted(names) == sorted(name for batch in without[first : first + 3] for name in batch.names)


@pytest.mark.parametrize("number", [2, 3, 6])
def test_the_parts_of_a_split_micro_batch_have_its_samples(samples, number):
    (whole,) = batches(samples, BatchLayout(6, 1, 1, 0, 10_000), end=1)
    parts = split_into([whole], number)
    assert len(parts) == number
    for name in ("names", "tasks", "cache_key"):
        assert sum((getattr(part, name) for part in parts), ()) == getattr(whole, name)
    for name in ("input_ids", "labels", "loss_weights", "position_ids", "dropout_seeds"):
        assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(whole, name))
    for slot, packed in whole.slots.items():
        assert torch.cat([part.slots[slot].values for part in parts]).equal(packed.values)
    assert sum(part.tokens_cut for part in parts) == whole.tokens_cut


def test_the_micro_batch_with_the_most_tokens_is_split(samples):
    small, large = (batches(samples, BatchLayout(size, 1, 1, 0), end=1)[0] for size in (2, 4))
    assert [len(part.names) for part in split_into([small, large], 3)] == [2, 2, 2]
    single = batches(samples, BatchLayout(1, 1, 1, 0), end=1)[0]
    assert [len(part.names) for part in split_into([single, small], 3)] == [1, 1, 1]


@pytest.mark.parametrize(("padded", "expected"), [(False, ["abc", "d", "e"]), (True, ["a", "bc", "de"])])
def test_padding_counts_when_a_micro_batch_is_split(padded, expected):
    def batch(lengths):
        ids = {name: torch.arange(1, 1 + length) for name, length in lengths.items()}
        return collate([Sample(name, "emotion", own, own, torch.ones(len(own)), {}) for name, own in ids.items()])

    parts = split_into([batch({"a": 30, "b": 2, "c": 2}), batch({"d": 20, "e": 20})], 3, padded=padded)
    assert ["".join(part.names) for part in parts] == expected


# Loader


@pytest.fixture
def samples(golden_dataset, golden_prompt):
    return TrainingSamples([golden_dataset], golden_prompt, order([len(golden_dataset)], seed=3))


def batches(samples, split=None, first=0, end=4, workers=0):
    split = split or BatchLayout(2, 1, 1, 0)
    loader = training_loader(samples, split, WorkerOptions(workers), first_step=first, end_step=end)
    return [batch for step in step_batches(loader, split.loads_per_step) for batch in step]


def contents(loaded_batches):
    """(names, tasks, ids, image features) of batches, for comparison."""
    return [
        (b.names, b.tasks, b.input_ids.tolist(), b.slots["image"].values.tolist(), b.cu_seqlens.tolist()) for b in loaded_batches
    ]


def clip_tasks(loaded_batches):
    return sorted(pair for batch in loaded_batches for pair in zip(batch.names, batch.tasks, strict=True))


def test_a_global_batch_has_the_same_clips_tasks_and_texts_for_any_layout(samples):
    expected = None
    for batch_size, accumulate, world in ((4, 1, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)):
        ranks = [batches(samples, BatchLayout(batch_size, accumulate, world, rank), 1, 2) for rank in range(world)]
        one_step = [batch for rank in ranks for batch in rank]
        pieces = sorted(tuple(ids.tolist()) for batch in one_step for ids in batch.input_ids.split(batch.lengths))
        observed = clip_tasks(one_step), pieces
        expected = expected or observed
        assert observed == expected


def test_batches_do_not_depend_on_the_number_of_workers(samples):
    assert contents(batches(samples, workers=2)) == contents(batches(samples, workers=0))


class InSharedMemory(torch.utils.data.Dataset):
    """Samples with feature vectors that are packed in a data worker."""

    def __getitem__(self, index):
        return torch.full((2 + index, 3), float(index), dtype=(torch.float16, torch.float32)[index])

    def __len__(self):
        return 2

    @staticmethod
    def packed(vectors):
        """The features, and whether they were in shared memory before the queue to the process."""
        packed = [PackedFeatures.pack(part) for part in (vectors, [part[:0] for part in vectors])]
        return packed, [each.values.is_shared() for each in packed]


def test_a_data_worker_concatenates_feature_vectors_in_shared_memory():
    def load(num_workers):
        (only,) = torch.utils.data.DataLoader(InSharedMemory(), 2, num_workers=num_workers, collate_fn=InSharedMemory.packed)
        return only

    (expected, in_process), (packed, shared) = load(0), load(1)
    assert (in_process, shared) == ([False, False], [True, False])
    for one, other in zip(packed, expected, strict=True):
        assert one.values.equal(other.values) and one.values.dtype == other.values.dtype and one.offsets == other.offsets


def test_a_loader_started_at_a_later_step_gives_the_batches_of_the_whole_run(samples):
    assert contents(batches(samples))[2:] == contents(batches(samples, first=2))


def test_a_pass_of_batches_has_every_clip_once(samples):
    loaded_batches = batches(samples, end=3)
    assert sorted(name for batch in loaded_batches for name in batch.names) == NAMES


def test_all_tasks_of_the_pool_are_sampled(samples):
    tasks = {samples[k].task for k in range(40)}
    assert tasks == {"emotion", "reason", "reason_v2"}


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_does_not_use_the_global_generators(samples, workers):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    assert len(batches(samples, workers=workers)) == 4
    assert states() == before


def test_batches_do_not_depend_on_the_global_generators(samples):
    before = contents(batches(samples, end=2))
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert contents(batches(samples, end=2)) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_user_error_in_a_worker_is_raised_with_its_own_message(golden_dataset, golden_prompt, monkeypatch, workers):
    def fails(index, task, instruction, rng):
        raise UserError("clip_7.npy (slot face): contains NaN or inf. Extract this clip again.")

    monkeypatch.setattr(golden_dataset, "record", fails)
    samples = TrainingSamples([golden_dataset], golden_prompt, order([6]))
    with pytest.raises(UserError) as error:
        batches(samples, workers=workers)
    assert str(error.value) == "clip_7.npy (slot face): contains NaN or inf. Extract this clip again."


def test_the_loader_has_a_length(samples):
    loader = training_loader(samples, BatchLayout(1, 3, 2, 0), WorkerOptions(), first_step=2, end_step=7)
    assert len(loader) == 15


class Forkable:
    """Garbage that only a collection destroys, and that writes a file if this happens in another process."""

    def __init__(self, path):
        self.itself, self.path, self.process = self, path, os.getpid()

    def __del__(self):
        if os.getpid() != self.process:
            self.path.touch()


class Collecting(torch.utils.data.Dataset):
    """Samples during whose loading the youngest garbage is collected."""

    def __getitem__(self, index):
        return torch.tensor(gc.collect())

    def __len__(self):
        return 4


@pytest.mark.slow
def test_data_workers_do_not_destroy_garbage_of_their_parent(tmp_path):
    loader = torch.utils.data.DataLoader(Collecting(), batch_size=1, num_workers=1)
    gc.collect()
    gc.freeze()  # what exists already is not traversed again, which would take seconds in the worker
    try:
        Forkable(tmp_path / "destroyed")
        assert len(list(step_batches(loader, 2))) == 2
    finally:
        gc.unfreeze()
    assert not (tmp_path / "destroyed").exists()
