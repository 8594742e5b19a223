"""Sampling of datasets: windows of shards that are read together, and curricula with growing pools."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from emollama.data.loader import BatchLayout
from emollama.data.sampling import MIXING_WINDOW, DatasetSampling, MixtureSampler

SIZE = 23
SHARDS = np.repeat(np.arange(8), 3)[:SIZE]  # shards of three clips, the last one of two
HARD = np.random.default_rng(5).permutation(SIZE).astype(float)  # clip -> its rank from easy to hard


def order(*datasets, samples_per_epoch=1, seed=4):
    return MixtureSampler(seed, datasets, samples_per_epoch)


def easiest(settings, phase):
    """Return the clips of a phase, if no two have the same difficulty."""
    by = np.arange(settings.size) if settings.difficulty is None else np.argsort(settings.difficulty)
    return sorted(by[: settings.count(phase)].tolist())


def sampled(sampler, indices, dataset=0):
    """Return the clips of one dataset in the order of sampling."""
    return [ref.index for ref in map(sampler.at, indices) if ref.dataset == dataset]


# Without shards and curriculum


@pytest.mark.parametrize("seed", [0, 42])
@pytest.mark.parametrize("ratios", [(1.0,), (3.0, 1.0)])
def test_each_dataset_epoch_is_a_permutation_seeded_by_the_seed_dataset_and_epoch(seed, ratios):
    sampler = order(*(DatasetSampling(7 - 2 * number, ratio) for number, ratio in enumerate(ratios)), seed=seed)
    for dataset, settings in enumerate(sampler.datasets):
        indices = sampled(sampler, range(400), dataset)
        passes = [
            np.random.default_rng([seed, 0, dataset, dataset_epoch]).permutation(settings.size) for dataset_epoch in range(60)
        ]
        assert indices == np.concatenate(passes).tolist()[: len(indices)]
        assert len(indices) > 4 * settings.size


def test_without_a_curriculum_the_order_does_not_depend_on_samples_per_epoch():
    indices = range(200)
    assert sampled(order(DatasetSampling(SIZE), samples_per_epoch=3), indices) == sampled(
        order(DatasetSampling(SIZE), samples_per_epoch=50), indices
    )
    shards = DatasetSampling(SIZE, shards=SHARDS, window=2)
    assert sampled(order(shards, samples_per_epoch=3), indices) == sampled(order(shards, samples_per_epoch=50), indices)


# Shards


@pytest.mark.parametrize("window", [1, 2, 3, 8, 100])
def test_each_dataset_epoch_is_a_permutation_and_reads_one_shard_window_after_another(window):
    sampler = order(DatasetSampling(SIZE, shards=SHARDS, window=window))
    for dataset_epoch in range(12):
        indices = sampled(sampler, range(dataset_epoch * SIZE, (dataset_epoch + 1) * SIZE))
        assert sorted(indices) == list(range(SIZE))
        shards_left = dict(Counter(SHARDS.tolist()))
        at, counts = 0, []
        while at < SIZE:  # a window ends where `window` whole shards have been read
            open_shards: set[int] = set()
            while at < SIZE and (len(open_shards) < window or any(shards_left[shard] for shard in open_shards)):
                shard = int(SHARDS[indices[at]])
                open_shards.add(shard)
                shards_left[shard] -= 1
                at += 1
            assert not any(shards_left[shard] for shard in open_shards)
            counts.append(len(open_shards))
        assert counts == [window] * (8 // window) + [8 % window] * bool(8 % window)


def test_shards_and_their_samples_are_shuffled_again_in_each_dataset_epoch():
    sampler = order(DatasetSampling(SIZE, shards=SHARDS, window=1))
    passes = [sampled(sampler, range(dataset_epoch * SIZE, (dataset_epoch + 1) * SIZE)) for dataset_epoch in range(30)]
    assert len({tuple(dict.fromkeys(SHARDS[one].tolist())) for one in passes}) > 25
    inside = {tuple(clip for clip in one if SHARDS[clip] == 0) for one in passes}
    assert len(inside) == 6  # every order of a shard's three clips


def test_a_window_mixes_the_samples_of_its_shards():
    sampler = order(DatasetSampling(SIZE, shards=SHARDS, window=4))
    first = [SHARDS[clip] for clip in sampled(sampler, range(12))]
    assert sum(one != other for one, other in pairwise(first)) > 3


def test_without_shuffle_shards_do_not_matter():
    assert sampled(order(DatasetSampling(SIZE, shuffle=False, shards=SHARDS)), range(30)) == [*range(SIZE), *range(7)]


# Curriculum


@pytest.mark.parametrize(("phases", "samples_per_epoch"), [(1, 40), (3, 40), (4, 7), (5, 60), (30, 25)])
def test_each_curriculum_phase_samples_only_its_easiest_share_and_the_last_one_all(phases, samples_per_epoch):
    sampler = order(DatasetSampling(SIZE, difficulty=HARD, phases=phases), samples_per_epoch=samples_per_epoch)
    for epoch in range(phases):
        pool = np.argsort(HARD)[: -(-SIZE * (epoch + 1) // phases)].tolist()
        assert len(pool) >= SIZE * (epoch + 1) / phases > len(pool) - 1
        begin, end = epoch * samples_per_epoch, (epoch + 1) * samples_per_epoch
        indices = sampled(sampler, range(begin, end))
        assert set(indices) <= set(pool)
        for first in range(0, len(indices) - len(pool) + 1, len(pool)):
            assert sorted(indices[first : first + len(pool)]) == sorted(pool)
    begin = (phases - 1) * samples_per_epoch
    for dataset_epoch in range(4):
        assert sorted(sampled(sampler, range(begin + dataset_epoch * SIZE, begin + (dataset_epoch + 1) * SIZE))) == list(
            range(SIZE)
        )


def test_dataset_epochs_and_phases_of_a_curriculum_have_different_orders():
    sampler = order(DatasetSampling(SIZE, difficulty=np.zeros(SIZE), phases=2), samples_per_epoch=10 * SIZE)
    firsts = {tuple(sampled(sampler, range(dataset_epoch * 12, dataset_epoch * 12 + 12))) for dataset_epoch in range(15)}
    assert len(firsts) == 15
    slow = order(DatasetSampling(SIZE, difficulty=np.zeros(SIZE), phases=2 * SIZE), samples_per_epoch=SIZE)
    last = [sampled(slow, range(epoch * SIZE, (epoch + 1) * SIZE)) for epoch in (2 * SIZE - 2, 2 * SIZE - 1)]
    assert sorted(last[0]) == sorted(last[1]) == list(range(SIZE)) and last[0] != last[1]


def test_equally_easy_samples_are_added_in_random_order_and_remain_in_the_curriculum():
    chosen = set()
    for seed in range(20):
        sampler = order(DatasetSampling(6, difficulty=np.zeros(6), phases=3), samples_per_epoch=10, seed=seed)
        first, second = set(sampled(sampler, range(10))), set(sampled(sampler, range(10, 20)))
        assert len(first) == 2 and len(second) == 4 and first < second
        chosen |= first
    assert chosen == set(range(6))


def test_an_unknown_difficulty_comes_last_in_either_direction():
    for values in ([np.nan, 3.0, 1.0, 2.0], [np.nan, -3.0, -1.0, -2.0]):
        sampler = order(DatasetSampling(4, difficulty=np.array(values), phases=4), samples_per_epoch=12)
        assert all(0 not in sampled(sampler, range(12 * phase, 12 * phase + 12)) for phase in range(3))


def test_without_shuffle_a_curriculum_repeats_its_samples_from_easy_to_hard():
    sampler = order(DatasetSampling(4, shuffle=False, difficulty=np.array([3.0, 1.0, 2.0, 0.0]), phases=2), samples_per_epoch=5)
    assert sampled(sampler, range(5)) == [3, 1, 3, 1, 3]
    assert sampled(sampler, range(5, 11)) == [3, 1, 2, 0, 3, 1]


def test_a_curriculum_over_shards_samples_its_easiest_share_shard_by_shard():
    sampler = order(DatasetSampling(SIZE, shards=SHARDS, window=1, difficulty=HARD, phases=2), samples_per_epoch=36)
    pool = sorted(np.argsort(HARD)[:12].tolist())
    for dataset_epoch in range(3):
        indices = sampled(sampler, range(12 * dataset_epoch, 12 * dataset_epoch + 12))
        assert sorted(indices) == pool
        visits = [shard for shard, before in zip(SHARDS[indices], [-1, *SHARDS[indices]], strict=False) if shard != before]
        assert len(visits) == len(set(visits))


def test_mixed_curricula_start_a_new_permutation_at_each_of_their_phases():
    all_settings = (
        DatasetSampling(SIZE, 2.0, difficulty=HARD, phases=3),
        DatasetSampling(9, 1.0, difficulty=-np.arange(9.0), phases=2),
        DatasetSampling(5, 0.5),
    )
    epoch = 300  # not a multiple of the mixing block
    sampler = order(*all_settings, samples_per_epoch=epoch)
    whole = [sampler.at(k) for k in range(4 * epoch)]  # more than a block
    for dataset, settings in enumerate(all_settings):
        for phase in range(settings.phases):
            end = (phase + 1) * epoch if phase + 1 < settings.phases else len(whole)
            indices = [ref.index for ref in whole[phase * epoch : end] if ref.dataset == dataset]
            pool = easiest(settings, phase)
            assert len(pool) == -(-settings.size * (phase + 1) // settings.phases) and len(indices) > 3 * len(pool)
            for first in range(0, len(indices) - len(pool) + 1, len(pool)):
                assert sorted(indices[first : first + len(pool)]) == pool


# Everything combined


def everything(seed=4):
    all_settings = (
        DatasetSampling(SIZE, 3.0, shards=SHARDS, window=2),
        DatasetSampling(9, 1.0, difficulty=np.arange(9.0), phases=4),
        DatasetSampling(SIZE, 1.0, shards=SHARDS, window=3, difficulty=HARD, phases=2),
        DatasetSampling(5, 0.5, shuffle=False),
    )
    return order(*all_settings, samples_per_epoch=700, seed=seed)


def listed(sampler, indices):
    return [(ref.dataset, ref.index, ref.rng.random()) for ref in map(sampler.at, indices)]


def test_a_sample_is_a_pure_function_of_seed_and_global_index_with_shards_and_curricula_too():
    count = MIXING_WINDOW + 100  # beyond the first block and the first epoch of 700 samples
    forward = listed(everything(), range(count))
    assert listed(everything(), reversed(range(count))) == forward[::-1]
    scattered = np.random.default_rng(0).permutation(count)[:100].tolist()
    assert listed(everything(), scattered) == [forward[k] for k in scattered]
    assert listed(everything(seed=5), range(100)) != forward[:100]


def test_shares_stay_exact_with_shards_and_curricula():
    dataset_counts = Counter(ref[0] for ref in listed(everything(), range(MIXING_WINDOW, 2 * MIXING_WINDOW)))
    assert [dataset_counts[dataset] for dataset in range(4)] == [559, 186, 186, 93]


@pytest.mark.parametrize("split", [(1, 6, 1), (6, 1, 1), (2, 1, 3), (1, 3, 2)])
def test_a_step_uses_the_same_samples_for_any_world_size_accumulation_and_batch_size(split):
    batch_size, accumulate, world = split
    sampler = everything()
    for step in (0, 116, 117, 400):  # step 116 crosses the end of the first epoch of 700 samples
        indices = [
            index
            for rank in range(world)
            for micro in BatchLayout(batch_size, accumulate, world, rank).sample_indices(step, step + 1)
            for index in micro
        ]
        assert sorted(listed(sampler, indices)) == sorted(listed(everything(), range(6 * step, 6 * step + 6)))


def test_a_digest_distinguishes_shards_and_difficulties_and_is_none_without():
    digests = [
        DatasetSampling(SIZE, difficulty=HARD).digest(),
        DatasetSampling(SIZE, difficulty=-HARD).digest(),
        DatasetSampling(SIZE, shards=SHARDS).digest(),
        DatasetSampling(SIZE, shards=SHARDS, difficulty=HARD).digest(),
        DatasetSampling(SIZE, 0.5, shuffle=False).digest(),
    ]
    assert len(set(digests)) == 5 and digests[-1] is None
    assert DatasetSampling(SIZE, difficulty=HARD.copy()).digest() == digests[0]
