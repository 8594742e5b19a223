"""A run gives the same results with .npy files, packed shards and tar shards."""

from __future__ import annotations

import argparse
import shutil

import numpy as np
import pytest
import torch
from helpers import FOLDERS
from running import GOLDEN, golden_config, read_jsonl

from emollama.commands import pack
from emollama.config import load
from emollama.stores.packed import PackedStore

KEYS = {slot: f"{slot}_feature_path" for slot in FOLDERS}
STEPS, SAVED_AFTER = 8, 3


def packed(*arguments):
    """Run ``emollama pack`` in this process."""
    parser = argparse.ArgumentParser()
    pack.add_arguments(parser)
    pack.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The keys of a dataset block for each kind of store."""
    root = tmp_path_factory.mktemp("stores")
    paths = {"npy": {}}
    for kind in ("packed", "tar"):
        for folder in FOLDERS.values():
            source, output = GOLDEN / "data" / folder, root / kind / folder
            packed("--source", source, "--output", output, "--to", kind, "--shard-gib", "5e-5")
        paths[kind] = {KEYS[slot]: str(root / kind / folder) for slot, folder in FOLDERS.items()}
    assert len(list((root / "tar/eva").glob("*.tar"))) == 3
    return paths


def trained(folder, data, **settings):
    """Train for :data:`STEPS` steps on the golden corpus and return the run's folder."""
    run = {"iters_per_epoch": STEPS, "save_every_iters": SAVED_AFTER, **settings}
    config = load(str(golden_config(folder, run=run, data=data)))
    return config.runner_class(config).train()


def losses(folder):
    return [row["loss"] for row in read_jsonl(folder / "log.jsonl")]


@pytest.fixture(scope="module")
def in_file_order(stores, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {kind: losses(trained(root / kind, keys)) for kind, keys in stores.items()}


@pytest.mark.parametrize("kind", ["packed", "tar"])
def test_training_losses_are_bit_identical_to_those_on_npy_files(in_file_order, kind):
    assert len(in_file_order["npy"]) == STEPS
    assert in_file_order[kind] == in_file_order["npy"]


@pytest.mark.parametrize("kind", [pytest.param("packed", marks=pytest.mark.slow), "tar"])
def test_a_shuffled_run_on_shards_resumes_with_the_same_losses(stores, tmp_path, kind):
    data = stores[kind] | {"shuffle": True, "shuffle_window": 2}
    alone = trained(tmp_path / "alone", data)
    (tmp_path / "cut/out/run").mkdir(parents=True)
    for name in ("checkpoint_last.pth", "checkpoint_last.pth.sha256"):
        shutil.copy(alone / name, tmp_path / "cut/out/run")
    assert torch.load(alone / "checkpoint_last.pth", weights_only=True)["step"] == 2 * SAVED_AFTER
    resumed = trained(tmp_path / "cut", data, resume_ckpt_path="auto")
    assert losses(resumed) == losses(alone)[2 * SAVED_AFTER :]


def test_the_sampling_of_a_dataset_uses_the_tar_shards_and_the_shuffle_window(stores, tmp_path):
    config = load(str(golden_config(tmp_path, data=stores["tar"] | {"shuffle": True, "shuffle_window": 1})))
    shapes = config.model_class.slot_shapes(config.model)
    dataset = config.dataset_class("datasets.clips")(config.datasets["clips"], slot_shapes=shapes, block_path="clips")
    sampling = dataset.sampling()
    assert sorted(sampling.shards.tolist()) == [0, 0, 1, 1, 2, 2] and sampling.window == 1


def test_resuming_a_run_on_tars_with_unsharded_files_is_refused(stores, tmp_path):
    data = stores["tar"] | {"shuffle": True}
    folder = trained(tmp_path, data)
    assert (folder / "checkpoint_0.pth").is_file()
    with pytest.raises(ValueError, match=r"shards or curriculum difficulty of clips"):
        trained(tmp_path, {"shuffle": True}, resume_ckpt_path="auto", max_epoch=2)


@pytest.mark.slow
def test_losses_on_int8_stores_are_bit_identical_to_those_on_their_values_in_float32(tmp_path):
    quantized, values = {}, {}
    for slot, folder in FOLDERS.items():
        output = tmp_path / "int8" / folder
        packed("--source", GOLDEN / "data" / folder, "--output", output, "--dtype", "int8")
        store = PackedStore.open(output)
        (tmp_path / "float32" / folder).mkdir(parents=True)
        for name in store.names():
            np.save(tmp_path / "float32" / folder / f"{name}.npy", store.load(name))
        quantized[KEYS[slot]], values[KEYS[slot]] = str(output), str(tmp_path / "float32" / folder)
    assert losses(trained(tmp_path / "a", quantized)) == losses(trained(tmp_path / "b", values))
