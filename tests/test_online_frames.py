"""Frames encoded during the training step: the numbers equal those of cached features, and conflicts are refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from helpers import GOLDEN, golden_tree, loaded
from media_files import picture, write_video
from safetensors.torch import load_file, save_file

from emollama.checkpoint import read
from emollama.data.batch import collate
from emollama.encoders.eva import Eva
from emollama.encoders.weights import digest
from emollama.errors import UserError
from emollama.media.source import Source
from emollama.planning.estimate import plan
from emollama.runners.datasets import build_datasets, training_blocks
from emollama.runners.runner_base import RunnerBase
from emollama.stores.manifest import Manifest

WEIGHTS = str(GOLDEN / "vision/eva_tiny.safetensors")
NAMES = [line.split()[0] for line in (GOLDEN / "data/MERR_coarse_grained.txt").read_text().splitlines() if line.strip()]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Videos of the golden clips, and EVA features of their first frames in float32."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "videos").mkdir()
    (folder / "eva").mkdir()
    encoder = Eva(Eva.Config(weights=WEIGHTS, image_size=112), device=torch.device("cpu"), key="encoders.eva")
    for number, name in enumerate(NAMES):
        path = folder / "videos" / (f"{name}.avi" if number % 2 else f"{name}.mp4")
        write_video(path, pictures=[picture(3 * number + more) for more in range(5 + number)])
        (features,) = encoder.encode([encoder.load(Source(name, path))])
        np.save(folder / "eva" / f"{name}.npy", features)
    return folder


def tree(tmp_path, clips, *, online, **data):
    config_tree = golden_tree(tmp_path)
    images = {"image_feature_path": None, "image_path": str(clips / "videos")}
    keys = (images if online else {"image_feature_path": str(clips / "eva")}) | data
    for block in (*config_tree["datasets"].values(), *config_tree["evaluation_datasets"].values()):
        block.update(keys)
    config_tree["model"] |= {"vit_weights": WEIGHTS, "vit_precision": "fp32"} if online else {}
    config_tree["run"] |= {"iters_per_epoch": 4, "log_freq": 1, "job_id": "online" if online else "cached"}
    return config_tree


def trained(tmp_path, clips, *, online, **data):
    config = loaded(tmp_path, tree(tmp_path, clips, online=online, **data))
    folder = RunnerBase(config).train()
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()], folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, clips):
    return {online: trained(tmp_path_factory.mktemp("run"), clips, online=online, batch_size=3) for online in (False, True)}


def test_training_losses_on_videos_equal_those_on_cached_features(runs):
    cached, online = runs[False][0], runs[True][0]
    assert len(cached) == 4
    assert np.abs(np.array(cached) - online).max() <= 1e-5


def test_the_encoder_is_neither_trained_nor_saved(runs):
    stored = read(str(runs[True][1] / "checkpoint_0.pth"), "k")["model"]
    assert set(stored) == set(read(str(runs[False][1] / "checkpoint_0.pth"), "k")["model"])
    assert not any(name.startswith(("vit", "visual_encoder")) for name in stored)


def answers(tmp_path, clips, *, online):
    config = loaded(tmp_path, tree(tmp_path, clips, online=online))
    RunnerBase(config, training=False).evaluate()
    path = next((tmp_path / "out").rglob("predictions_answers.jsonl"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_and_losses_on_videos_equal_those_on_cached_features(tmp_path, clips):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    cached, online = (answers(tmp_path / name, clips, online=choice) for name, choice in (("a", False), ("b", True)))
    assert [row["prediction"] for row in cached] == [row["prediction"] for row in online]
    assert max(abs(one["loss"] - other["loss"]) for one, other in zip(cached, online, strict=True)) <= 1e-5


def test_a_batch_may_mix_cached_clips_clips_encoded_online_and_clips_without_a_video(tmp_path, clips):
    """Two datasets share a batch, and one lacks some videos: each clip's loss equals its loss alone."""
    config_tree = tree(tmp_path, clips, online=True, missing_features="zero")
    config_tree["datasets"]["cached"] = copy.deepcopy(tree(tmp_path, clips, online=False)["datasets"]["golden"])
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((clips / "videos").iterdir())[:3]:
        (few / path.name).symlink_to(path)
    config_tree["datasets"]["golden"]["image_path"] = str(few)
    runner = RunnerBase(loaded(tmp_path, config_tree))
    records = [dataset.record(index, "emotion", "x") for dataset in runner.datasets.values() for index in (0, 4, 5)]
    samples = [runner.prompt.tokenize(record) for record in records]
    with torch.no_grad():
        runner.model.eval()
        together = runner.model(collate(samples))
        alone = torch.cat([runner.model(collate([sample])) for sample in samples])
    assert {len(record.features["frame"]) for record in records} == {0, 1}
    assert (together - alone).abs().max() < 1e-5


def test_gradient_checkpointing_of_the_encoder_does_not_change_a_loss(tmp_path, clips, runs):
    config_tree = tree(tmp_path, clips, online=True, batch_size=3)
    config_tree["model"]["use_grad_checkpoint_vit"] = True
    folder = RunnerBase(loaded(tmp_path, config_tree)).train()
    assert [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()] == runs[True][0]


@pytest.mark.slow
def test_a_plan_counts_the_parameters_of_the_encoder_as_frozen(tmp_path, clips):
    plans = [plan(loaded(tmp_path, tree(tmp_path, clips, online=online))) for online in (True, False)]
    count = plans[0].parameters["image encoder, frozen"]
    assert plans[0].parameters["total"] - count == plans[1].parameters["total"]
    assert plans[0].parameters["trainable"] == plans[1].parameters["trainable"]
    assert plans[0].tokens == plans[1].tokens


# Errors before weights are loaded


def refused(tmp_path, config_tree):
    with pytest.raises(UserError) as refusal:
        RunnerBase(loaded(tmp_path, config_tree))
    assert not (tmp_path / "out").exists()
    return str(refusal.value)


def test_videos_without_an_image_encoder_are_refused_with_three_remedies(tmp_path, clips):
    config_tree = tree(tmp_path, clips, online=True)
    config_tree["model"]["vit_weights"] = None
    message = refused(tmp_path, config_tree)
    assert all(word in message for word in ("model.vit_weights is null", "features.image", "image_path: null"))


def test_without_image_features_and_videos_the_image_slot_is_empty(tmp_path, clips):
    config_tree = tree(tmp_path, clips, online=False, image_feature_path=None)
    runner = RunnerBase(loaded(tmp_path, config_tree))
    assert len(runner.datasets["golden"].record(0, "emotion", "x").features["image"]) == 0


def test_all_missing_and_broken_videos_are_reported_together(tmp_path, clips):
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in sorted((clips / "videos").iterdir())[2:]:
        (videos / path.name).symlink_to(path)
    (videos / f"{NAMES[0]}.mp4").write_text("no video")
    message = refused(tmp_path, tree(tmp_path, clips, online=True, image_path=str(videos)))
    assert NAMES[1] in message
    assert f"{NAMES[0]}.mp4" in message
    assert "leave the clip out (exclude)" in message


def test_peak_frames_without_their_file_and_an_encoder_of_another_width_are_refused(tmp_path, clips):
    message = refused(tmp_path, tree(tmp_path, clips, online=True, frame_selection="peak"))
    assert "peak_index_path" in message
    config_tree = tree(tmp_path, clips, online=True)
    config_tree["model"]["slot_dims"] = {"image": 352}
    config_tree["model"]["ckpt"] = None
    message = refused(tmp_path, config_tree)
    assert "has hidden size 176, but model.slots.image.dim is 352" in message


def test_peak_frames_are_selected_by_the_peak_index_of_the_captions(tmp_path, clips):
    data = {"frame_selection": "peak", "peak_index_path": "MERR_coarse_grained.json"}
    runner = RunnerBase(loaded(tmp_path, tree(tmp_path, clips, online=True, **data)))
    first = RunnerBase(loaded(tmp_path, tree(tmp_path, clips, online=True)))
    frames = [source.datasets["golden"].record(0, "emotion", "x").features["frame"] for source in (runner, first)]
    assert frames[0].shape == (1, 3 * 112**2)
    assert not torch.equal(*frames)


def test_masking_features_that_the_model_computes_is_rejected(tmp_path, clips):
    config_tree = tree(tmp_path, clips, online=True)
    config_tree["evaluation_datasets"]["answers"]["mask_slots"] = ["image"]
    with pytest.raises(UserError, match=r"answers\.mask_slots: .*emollama extract"):
        RunnerBase(loaded(tmp_path, config_tree), training=False)


# Augmentation


def augmented(tmp_path, clips, *, online, kind):
    """Return features of a clip sampled many times with one kind of augmentation."""
    data = {"enable_augmentation": True, "augmentation_prob": 1.0, "augmentations": [kind]}
    dataset = RunnerBase(loaded(tmp_path, tree(tmp_path, clips, online=online, **data))).datasets["golden"]
    return [dataset.record(0, "emotion", "x", np.random.default_rng(draw)).features for draw in range(60)]


@pytest.mark.slow
def test_drop_modality_drops_a_frame_exactly_when_it_drops_cached_features(tmp_path, clips):
    augmented_features = {online: augmented(tmp_path, clips, online=online, kind="drop_modality") for online in (False, True)}
    dropped = [not features["image"].any() for features in augmented_features[False]]
    assert 5 < sum(dropped) < 30
    assert [not len(features["frame"]) for features in augmented_features[True]] == dropped
    for features, gone in zip(augmented_features[True], dropped, strict=True):
        assert features["image"].shape == ((64, 176) if gone else (0, 176))
        assert features["cls"].shape == ((1, 176) if gone else (0, 176))
        assert not features["image"].any()


def test_noise_leaves_pixels_alone_and_masking_of_frames_is_rejected(tmp_path, clips):
    frames = [features["frame"] for features in augmented(tmp_path, clips, online=True, kind="noise")]
    assert all(torch.equal(frame, frames[0]) for frame in frames)
    with pytest.raises(UserError, match=r"augmentations: mask_rows .*Remove it from the list"):
        augmented(tmp_path, clips, online=True, kind="mask_rows")


# Cached and online features that were computed differently


def cache_with_manifest(tmp_path, clips, choice):
    """Copy the caches with a manifest that states this frame selection; return the folder."""
    described = Eva.describe(Eva.Config(WEIGHTS, image_size=112, frame_selection=choice), "k")
    folder = tmp_path / choice
    folder.mkdir()
    for path in (clips / "eva").iterdir():
        (folder / path.name).symlink_to(path)
    Manifest(
        ("image", "cls"), described.shape.num_vectors, described.shape.dim, described.settings, digest(WEIGHTS), "float32"
    ).write(folder)
    return str(folder)


@pytest.mark.parametrize(("choice", "fits"), [("first", True), ("middle", False)])
def test_caches_and_frames_are_mixed_only_if_they_were_computed_alike(tmp_path, clips, choice, fits):
    config_tree = tree(tmp_path, clips, online=True)
    config_tree["datasets"]["cached"] = config_tree["datasets"]["golden"] | {
        "image_feature_path": cache_with_manifest(tmp_path, clips, choice)
    }
    if fits:
        assert RunnerBase(loaded(tmp_path, config_tree)).features["image"]["frame_selection"] == "first"
    else:
        assert "frame_selection: 'first' and 'middle'" in refused(tmp_path, config_tree)


def test_a_checkpoint_trained_on_frames_is_refused_for_another_frame_or_encoder(tmp_path, clips, runs):
    config_tree = tree(tmp_path, clips, online=False, image_feature_path=cache_with_manifest(tmp_path, clips, "middle"))
    config_tree["model"]["ckpt"] = str(runs[True][1] / "checkpoint_0.pth")
    with pytest.raises(
        UserError, match="trained on image features that were extracted differently: frame_selection: 'first' and 'middle'"
    ):
        RunnerBase(loaded(tmp_path, config_tree), training=False)
    tensors = {name: value * 1.01 for name, value in load_file(WEIGHTS).items()}
    save_file(tensors, tmp_path / "other.safetensors")
    config_tree = tree(tmp_path, clips, online=True)
    config_tree["model"] |= {"ckpt": str(runs[True][1] / "checkpoint_0.pth"), "vit_weights": str(tmp_path / "other.safetensors")}
    with pytest.raises(UserError, match="extracted differently: weights: "):
        RunnerBase(loaded(tmp_path, config_tree), training=False)


def test_a_manifest_file_in_a_folder_of_videos_is_ignored(tmp_path, clips):
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in (clips / "videos").iterdir():
        (videos / path.name).symlink_to(path)
    (videos / "manifest.json").write_text('{"clips": 12}')
    assert RunnerBase(loaded(tmp_path, tree(tmp_path, clips, online=True, image_path=str(videos)))).datasets


@pytest.mark.parametrize(("check_values", "decoded"), [("small", False), ("all", True)])
def test_large_frames_are_decoded_at_the_start_only_on_request(tmp_path, clips, monkeypatch, check_values, decoded):
    monkeypatch.setattr("emollama.data.features.VALUES_CHECKED_UP_TO", 0)
    config = loaded(tmp_path, tree(tmp_path, clips, online=True, check_values=check_values))
    (dataset,) = build_datasets(config, training_blocks(config), training=True, check=False).values()
    (frames,) = (source for source in dataset.features if source.frame_selection is not None)
    assert (frames.check(NAMES[:1]).valid[NAMES[0]].digest != "") is decoded
