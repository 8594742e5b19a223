"""Packing of samples into one sequence without padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import NAMES

from emollama.data.batch import IGNORED, collate


@pytest.fixture
def samples(golden_dataset, golden_prompt):
    """Six samples of different lengths."""
    tasks = ("emotion", "reason", "reason_v2")
    tasks_by_clip = [(clip, tasks[clip % 3]) for clip in range(6)]
    return [
        golden_prompt.tokenize(golden_dataset.record(clip, task, golden_dataset.pool.first_instruction(task)))
        for clip, task in tasks_by_clip
    ]


def test_ids_labels_and_weights_are_joined_in_order_without_padding(samples):
    batch = collate(samples)
    for field in ("input_ids", "labels", "loss_weights"):
        assert getattr(batch, field).equal(torch.cat([getattr(sample, field) for sample in samples]))
    assert batch.names == tuple(NAMES) and batch.tasks[:2] == ("emotion", "reason")


def test_a_batch_has_the_lengths_of_its_samples_and_offsets_for_all_tokens(samples):
    batch = collate(samples)
    lengths = tuple(len(sample.input_ids) for sample in samples)
    assert len(set(lengths)) > 2
    assert batch.lengths == lengths and batch.max_length == max(lengths)
    assert batch.cu_seqlens.dtype == torch.int32 and batch.cu_seqlens[0] == 0
    assert int(batch.cu_seqlens[-1]) == len(batch.input_ids)


def test_positions_restart_with_each_sample(samples):
    batch = collate(samples)
    for positions in batch.position_ids.split(batch.lengths):
        assert positions.tolist() == list(range(len(positions)))


def test_feature_vectors_of_each_slot_are_packed_with_the_boundaries_of_samples(samples):
    batch = collate(samples)
    assert set(batch.slots) == {"image", "cls", "face", "video", "audio"}
    for slot, packed in batch.slots.items():
        assert len(packed.offsets) == 7 and packed.offsets[0] == 0
        for index, sample in enumerate(samples):
            assert packed.values[packed.offsets[index] : packed.offsets[index + 1]].equal(sample.slots[slot])


def test_label_positions_are_those_of_all_labels(samples):
    batch = collate(samples)
    assert (batch.labels[batch.label_positions] != IGNORED).all()
    assert len(batch.label_positions) == sum(int((sample.labels != IGNORED).sum()) for sample in samples)


def test_the_places_of_labels_in_their_samples_are_known_without_reading_the_batch(samples):
    batch = collate(samples)
    columns = [(sample.labels != IGNORED).nonzero().flatten().tolist() for sample in samples]
    assert batch.label_counts == tuple(map(len, columns))
    assert batch.label_columns.tolist() == sorted(set().union(*columns))


def test_cut_tokens_are_summed(samples):
    assert collate([replace(sample, tokens_cut=count) for count, sample in enumerate(samples)]).tokens_cut == 15


def test_a_batch_of_one_sample_equals_the_sample(samples):
    batch = collate(samples[:1])
    assert batch.lengths == (len(samples[0].input_ids),) and batch.input_ids.equal(samples[0].input_ids)


def test_moving_a_batch_to_a_device_preserves_its_values(samples):
    batch = collate(samples)
    moved = batch.to(torch.device("cpu"))
    assert moved.input_ids.equal(batch.input_ids) and moved.slots["image"].values.equal(batch.slots["image"].values)
    assert moved.names == batch.names and moved.lengths == batch.lengths


def test_the_first_token_of_a_sample_has_no_label(samples):
    batch = collate(samples)
    assert bool((batch.labels[batch.cu_seqlens[:-1].long()] == IGNORED).all())
