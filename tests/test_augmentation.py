"""Random augmentation of features: the effect of each kind, cases without any effect, and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import FOLDERS, NAMES, golden_tree, loaded

from emollama.data.augmentation import Augmentation
from emollama.data.loader import BatchLayout, TrainingSamples, WorkerOptions, step_batches, training_loader
from emollama.data.sampling import MixtureSampler
from emollama.errors import UserError

MODALITIES = (("image", "cls"), ("face",), ("video",), ("audio",))
KINDS = ("noise", "drop_modality", "mask_rows")


def features(num_vectors=64, absent=()):
    """Non-zero feature vectors for every slot; absent slots are zeros."""
    draw = np.random.default_rng(2)
    shapes = {"image": (num_vectors, 16), "cls": (1, 16), "face": (1, 1024), "video": (1, 1024), "audio": (1, 1024)}
    result = {slot: torch.from_numpy(draw.normal(3.0, 2.0, shape).astype(np.float32)) for slot, shape in shapes.items()}
    return result | {slot: torch.zeros_like(result[slot]) for slot in absent}


def augmented(original, kinds, k=0, prob=1.0, noise=0.1, mask=0.25):
    return Augmentation(prob, kinds, noise, mask, MODALITIES)(dict(original), np.random.default_rng([9, k]))


def changed(original, result):
    return {slot for slot in original if not torch.equal(original[slot], result[slot])}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[slot], other[slot]) for slot in one)


# Each kind


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_noise_is_a_fraction_of_each_arrays_standard_deviation_and_spares_the_image(share):
    original = features()
    original["video"] = original["video"] * 100
    result = augmented(original, ("noise",), noise=share)
    assert changed(original, result) == {"face", "video", "audio"}
    for slot in ("face", "video", "audio"):
        noise = result[slot] - original[slot]
        assert noise.dtype == torch.float32 and noise.shape == original[slot].shape
        assert float(noise.std() / original[slot].std()) == pytest.approx(share, rel=0.1)
        assert abs(float(noise.mean() / original[slot].std())) < 0.15 * share
    parts = [result[slot] - original[slot] for slot in ("face", "audio")]
    assert abs(float(torch.corrcoef(torch.cat(parts))[0, 1])) < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_that_a_configuration_adds_is_augmented_like_the_others(kind):
    original = features() | {"gaze": torch.randn(8, 7, generator=torch.Generator().manual_seed(0))}
    augmentation = Augmentation(1.0, (kind,), 0.1, 0.25, (*MODALITIES, ("gaze",)))
    results = [augmentation(dict(original), np.random.default_rng([9, k])) for k in range(20)]
    assert any("gaze" in changed(original, result) for result in results)


def test_noise_leaves_a_missing_modality_at_zero():
    result = augmented(features(absent=("video",)), ("noise",))
    assert not result["video"].any() and result["face"].any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_vectors", [1, 0])
def test_empty_slots_stay_empty(num_vectors):
    original = features() | {slot: torch.zeros(0, 16) for slot in ("image", "cls")} | {"face": torch.zeros(0, 1024)}
    original["audio"] = original["audio"][:num_vectors]
    for k in range(20):
        result = augmented(original, KINDS, k)
        assert {slot: result[slot].shape for slot in result} == {slot: original[slot].shape for slot in original}


def test_exactly_one_whole_modality_is_dropped_and_each_equally_often():
    original = features()
    dropped = []
    for k in range(400):
        result = augmented(original, ("drop_modality",), k)
        dropped.append(tuple(slot for slot in original if slot in changed(original, result)))
        assert not any(result[slot].any() for slot in dropped[-1])
    assert set(dropped) == set(MODALITIES)
    assert all(60 < dropped.count(slots) < 140 for slots in MODALITIES)


def test_the_last_modality_is_never_dropped():
    original = features(absent=("face", "video", "audio"))
    assert all(same(augmented(original, ("drop_modality",), k), original) for k in range(30))
    original = features(absent=("image", "cls", "face", "video"))
    assert all(same(augmented(original, ("drop_modality",), k), original) for k in range(30))
    result = features(absent=("face", "video"))
    for k in range(5):
        result = augmented(result, ("drop_modality",), k)
    assert any(vectors.any() for vectors in result.values())


def test_a_repeated_augmentation_kind_is_refused():
    with pytest.raises(ValueError, match="contains a kind twice"):
        augmented(features(), ("noise", "noise"), 1)


def test_an_image_with_only_its_class_vector_left_counts_as_a_modality():
    original = features(absent=("image", "video", "audio"))
    left = {
        tuple(slot for slot, vectors in augmented(original, ("drop_modality",), k).items() if vectors.any()) for k in range(30)
    }
    assert left == {("cls",), ("face",)}


@pytest.mark.parametrize(("mask", "count"), [(0.0, 0), (0.25, 16), (0.5, 32), (0.3, 19), (1.0, 64)])
def test_mask_sets_the_configured_share_of_image_vectors_to_zero(mask, count):
    original = features()
    hit = torch.zeros(64, dtype=torch.int64)
    for k in range(60):
        result = augmented(original, ("mask_rows",), k, mask=mask)
        gone = ~result["image"].any(dim=1)
        assert int(gone.sum()) == count and torch.equal(result["image"][~gone], original["image"][~gone])
        assert changed(original, result) <= {"image"}
        hit += gone
    assert 0 < count < 64 or set(hit.tolist()) == {60 * count // 64}
    assert count == 0 or hit.min() > 0


def test_each_kind_happens_independently_with_the_configured_probability():
    original = features()
    results = [augmented(original, KINDS, k, prob=0.5) for k in range(400)]
    noisy = [bool({"face", "video", "audio"} <= changed(original, result)) for result in results]
    dropped = [any(not vectors.any() for slot, vectors in result.items() if slot != "image") for result in results]
    masked = [16 <= int((~result["image"].any(dim=1)).sum()) < 64 for result in results]
    for happened in (noisy, dropped, masked):
        assert 140 < sum(happened) < 260
    together = sum(all(three) for three in zip(noisy, dropped, masked, strict=True))
    assert 20 < together < 80 and any(changed(original, result) == set() for result in results)


# Cases without any effect, and what stays unchanged


def test_zero_probability_or_no_augmentation_kind_changes_nothing():
    original = features()
    for k in range(20):
        assert same(augmented(original, KINDS, k, prob=0.0), original)
        assert same(augmented(original, (), k), original)


def test_the_input_tensors_are_not_modified():
    original = features()
    before = {slot: vectors.clone() for slot, vectors in original.items()}
    for k in range(10):
        augmented(original, KINDS, k, noise=5.0, mask=1.0)
    assert same(original, before)


def test_the_same_sample_index_gives_the_same_features_and_another_index_others():
    original = features()
    for k in range(10):
        assert same(augmented(original, KINDS, k), augmented(original, KINDS, k))
    assert not same(augmented(original, KINDS, 1), augmented(original, KINDS, 2))


# With the configuration of a dataset block


@pytest.fixture
def build(tmp_path):
    """A function that builds the golden corpus under ``datasets`` or ``evaluation_datasets``."""

    def build_dataset(training=True, **keys):
        tree = golden_tree(tmp_path)
        label, group = ("golden", "datasets") if training else ("answers", "evaluation_datasets")
        tree[group][label] |= {"task_pool": ["emotion", "reason"], "shuffle": True, **keys}
        config = loaded(tmp_path, tree)
        shapes = config.model_class.slot_shapes(config.model)
        block = config.datasets[label] if training else config.evaluation_datasets[label].dataset
        return config.dataset_class(f"{group}.{label}")(block, slot_shapes=shapes, block_path=label, training=training)

    return build_dataset


ON = {"enable_augmentation": True, "augmentation_prob": 1.0}


def read(dataset, k=0, index=0):
    return dataset.record(index, "emotion", "Which?", np.random.default_rng(k)).features


def test_a_dataset_is_not_augmented_when_disabled_or_with_probability_zero(build):
    plain = build().record(0, "emotion", "Which?").features
    assert same(read(build(augmentation_prob=1.0)), plain)
    assert same(read(build(enable_augmentation=True, augmentation_prob=0.0)), plain)
    assert changed(plain, read(build(**ON))) >= {"image", "face"}


def test_the_augmentation_uses_all_keys_of_the_dataset_block(build):
    plain = read(build())
    only = build(**ON, augmentations=["mask_rows"], augmentation_mask=0.5)
    masked = read(only)
    assert changed(plain, masked) == {"image"} and int((~masked["image"].any(dim=1)).sum()) == 32
    loud = read(build(**ON, augmentations=["noise"], augmentation_noise=2.0))
    assert float((loud["face"] - plain["face"]).std() / plain["face"].std()) == pytest.approx(2.0, rel=0.1)


def test_evaluation_is_never_augmented(build, golden_config, golden_prompt, golden_model):
    from emollama.decoding.answer_generator import AnswerGenerator

    task, generator = golden_config.task_class(), AnswerGenerator([golden_model], golden_prompt)
    options = task.Config(max_new_tokens=3)
    plain, augmented_answers = (
        task.predict(generator, dataset, options, task.evaluation_items(dataset, options), 1)
        for dataset in (build(training=False), build(training=False, **ON, augmentation_noise=9.0))
    )
    assert augmented_answers == plain and all(row.loss is not None for row in plain)


def test_augmentation_modifies_neither_files_nor_shared_zero_vectors(build, golden_config):
    dataset = build(**ON, video_feature_path=None, augmentation_noise=3.0)
    zeros = {slot: vectors.clone() for slot, vectors in (dataset._zeros | dataset._absent).items()}
    first = dataset.record(1, "emotion", "Which?").features
    for k in range(10):
        read(dataset, k, 1)
    assert same(dataset.record(1, "emotion", "Which?").features, first)
    assert same(dataset._zeros | dataset._absent, zeros)
    stored = np.load(f"{dataset.cfg.data_root}/{FOLDERS['audio']}/{NAMES[1]}.npy")
    assert np.array_equal(first["audio"].numpy().ravel(), stored.ravel())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"augmentation_prob": 1.5}, "augmentation_prob is 1.5; it must be from 0 to 1"),
        ({"augmentation_prob": -0.1}, "augmentation_prob is -0.1"),
        ({"augmentation_prob": float("nan")}, "augmentation_prob is nan"),
        ({"augmentation_mask": 2.0}, "augmentation_mask is 2.0; it must be from 0 to 1"),
        ({"augmentation_noise": -1.0}, "augmentation_noise is -1.0; it must be at least 0"),
        ({"augmentation_noise": float("inf")}, "augmentation_noise is inf"),
        ({"augmentations": ["noise", "noises"]}, "expected a list of the values noise, drop_modality, mask_rows"),
        ({"augmentations": "noise"}, "augmentations"),
        ({"enable_augmentation": "perhaps"}, "enable_augmentation"),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_invalid_values_are_refused_with_block_and_key_even_when_augmentation_is_off(build, keys, message, enabled):
    with pytest.raises(UserError) as error:
        build(**{"enable_augmentation": enabled, **keys})
    assert "datasets.golden" in str(error.value) and message in str(error.value)


# With the loader


@pytest.fixture
def samples(build, golden_prompt):
    """A function that gives the training samples of the golden corpus with these keys."""

    def build_samples(**keys):
        dataset = build(**keys)
        return TrainingSamples([dataset], golden_prompt, MixtureSampler(3, (dataset.sampling(),), 8))

    return build_samples


def loaded_samples(samples, split, first=0, end=3, workers=0):
    """(name, ids, feature vectors by slot) of the samples of these steps, in the order of the loader."""
    loader = training_loader(samples, split, WorkerOptions(workers), first_step=first, end_step=end)
    collected = []
    for batch in (batch for step in step_batches(loader, split.loads_per_step) for batch in step):
        ids = [part.tolist() for part in batch.input_ids.split(batch.lengths)]
        slots = [
            {slot: packed.values[packed.offsets[i] : packed.offsets[i + 1]].tolist() for slot, packed in batch.slots.items()}
            for i in range(len(batch.names))
        ]
        collected += zip(batch.names, ids, slots, strict=True)
    return collected


def in_any_order(samples):
    return sorted(samples, key=repr)


def test_augmentation_changes_features_but_not_clips_tasks_or_texts(samples):
    plain, augmented_samples = (loaded_samples(samples(**keys), BatchLayout(4, 1, 1, 0)) for keys in ({}, ON))
    assert [(name, ids) for name, ids, _ in augmented_samples] == [(name, ids) for name, ids, _ in plain]
    assert all(one[2] != other[2] for one, other in zip(augmented_samples, plain, strict=True))


def test_augmented_batches_do_not_depend_on_workers_or_the_step_they_start_at(samples):
    augmented_samples, split = samples(**ON), BatchLayout(2, 2, 1, 0)
    whole = loaded_samples(augmented_samples, split)
    assert loaded_samples(augmented_samples, split, workers=2) == whole
    assert loaded_samples(augmented_samples, split, first=2) == whole[8:]


def test_an_augmented_global_batch_is_the_same_for_any_world_and_accumulation(samples):
    augmented_samples = samples(**ON)
    expected = in_any_order(loaded_samples(augmented_samples, BatchLayout(4, 1, 1, 0), 1, 2))
    for batch_size, accumulate, world in ((1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)):
        ranks = [
            loaded_samples(augmented_samples, BatchLayout(batch_size, accumulate, world, rank), 1, 2) for rank in range(world)
        ]
        assert in_any_order(sample for rank in ranks for sample in rank) == expected


def test_a_clip_is_augmented_differently_each_time_it_is_sampled(samples):
    augmented_samples = samples(**ON, augmentations=["noise"])
    by_name = {}
    for name, _, slots in loaded_samples(augmented_samples, BatchLayout(6, 1, 1, 0), 0, 4):
        by_name.setdefault(name, []).append(slots["face"][0][0])
    assert all(len(values) == 4 == len(set(values)) for values in by_name.values()) and len(by_name) == 6
