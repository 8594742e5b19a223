"""The provenance of features is stored with them, and compared before they are mixed or used with a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shutil

import pytest
from helpers import GOLDEN, golden_tree, loaded

from emollama.checkpoint import read
from emollama.checks.check_data import check
from emollama.commands import pack
from emollama.encoders.eva import Eva
from emollama.encoders.weights import digest
from emollama.errors import UserError
from emollama.runners.runner_base import RunnerBase
from emollama.stores.manifest import FILE, Manifest, differences

HUBERT = Manifest(
    slots=("audio",),
    num_vectors=1,
    dim=1024,
    settings={"encoder": "hubert", "layers": [-1], "pooling": "mean", "precision": "fp32"},
    weights="ab" * 32,
    dtype="float32",
    versions={"torch": "2"},
)


def changed(**settings):
    return dataclasses.replace(HUBERT, settings=HUBERT.settings | settings)


@pytest.fixture
def two_corpora(tmp_path):
    """A configuration that trains on one copy of the golden corpus and evaluates on another."""
    for name in ("train", "test"):
        shutil.copytree(GOLDEN / "data", tmp_path / name)
    tree = golden_tree(tmp_path)
    tree["datasets"]["golden"]["data_root"] = str(tmp_path / "train")
    tree["evaluation_datasets"]["answers"] |= {"data_root": str(tmp_path / "test"), "task_pool": ["emotion"]}
    tree["run"] |= {"evaluate": True}
    return tree


def describe(tmp_path, train=None, test=None):
    for name, manifest in (("train", train), ("test", test)):
        if manifest is not None:
            manifest.write(tmp_path / name / "HL-UTT")


def refused(tmp_path, tree, *options, training=True):
    with pytest.raises(UserError) as refusal:
        RunnerBase(loaded(tmp_path, tree, *options), training=training)
    return str(refusal.value)


def packed(*arguments):
    """Run the command in this process."""
    parser = argparse.ArgumentParser()
    pack.add_arguments(parser)
    pack.run(parser.parse_args([str(argument) for argument in arguments]))


def test_a_manifest_is_unchanged_after_writing_and_reading(tmp_path):
    HUBERT.write(tmp_path)
    assert Manifest.read(str(tmp_path)) == HUBERT


def test_differences_are_listed_by_key_with_both_values():
    assert differences(HUBERT.fields(), changed(layers=[-4, -3, -2, -1]).fields()) == ["layers: [-1] and [-4, -3, -2, -1]"]
    assert differences({"a": 1}, {"b": 1}) == ["a: 1 and None", "b: None and 1"]
    assert differences(HUBERT.fields(), HUBERT.fields()) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "another", "version": 1}', '{"format": "emollama features", "version": 1}']
)
def test_a_file_that_is_not_a_manifest_is_refused_with_its_name(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=FILE):
        Manifest.read(str(tmp_path))


def test_features_without_a_manifest_are_accepted(tmp_path, two_corpora):
    assert RunnerBase(loaded(tmp_path, two_corpora)).features == {}


def test_blocks_with_differently_pooled_features_are_refused(tmp_path, two_corpora):
    describe(tmp_path, HUBERT, changed(pooling="max"))
    message = refused(tmp_path, two_corpora)
    assert "datasets.golden.features.audio" in message
    assert "evaluation_datasets.answers.features.audio" in message
    assert "pooling: 'mean' and 'max'" in message
    assert not (tmp_path / "out").exists()


def test_a_training_and_an_evaluation_block_of_the_same_name_are_compared(tmp_path, two_corpora):
    two_corpora["evaluation_datasets"] = {"golden": two_corpora["evaluation_datasets"]["answers"]}
    describe(tmp_path, HUBERT, changed(pooling="max"))
    assert "pooling: 'mean' and 'max'" in refused(tmp_path, two_corpora)


def test_other_weights_of_the_same_encoder_are_refused(tmp_path, two_corpora):
    describe(tmp_path, HUBERT, dataclasses.replace(HUBERT, weights="cd" * 32))
    assert "weights: 'abab" in refused(tmp_path, two_corpora)


def test_differences_in_precision_and_library_versions_are_ignored(tmp_path, two_corpora):
    describe(tmp_path, HUBERT, dataclasses.replace(changed(precision="bf16"), versions={"torch": "3"}))
    assert list(RunnerBase(loaded(tmp_path, two_corpora)).features) == ["audio"]


def test_allow_other_features_turns_the_refusal_into_a_warning(tmp_path, two_corpora, caplog, monkeypatch):
    describe(tmp_path, HUBERT, changed(pooling="max"))
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    with caplog.at_level("WARNING", logger="emollama"):
        RunnerBase(loaded(tmp_path, two_corpora, "run.allow_other_features=True"))
    assert "pooling: 'mean' and 'max'" in caplog.text


def test_features_of_another_slot_are_refused(tmp_path, two_corpora):
    describe(tmp_path, dataclasses.replace(HUBERT, slots=("face",), settings={"encoder": "mae"}))
    message = refused(tmp_path, two_corpora)
    assert "contains face features of the encoder mae, expected audio" in message


def test_evaluating_a_checkpoint_on_differently_extracted_features_is_refused(tmp_path, two_corpora):
    two_corpora["run"]["evaluate"] = False
    describe(tmp_path, HUBERT)
    folder = RunnerBase(loaded(tmp_path, two_corpora)).train()
    assert read(str(folder / "checkpoint_0.pth"), "k")["features"]["audio"]["pooling"] == "mean"
    two_corpora["model"]["ckpt"] = str(folder / "checkpoint_0.pth")
    describe(tmp_path, test=HUBERT)
    assert RunnerBase(loaded(tmp_path, two_corpora), training=False).features
    describe(tmp_path, test=changed(layers=[-4, -3, -2, -1]))
    message = refused(tmp_path, two_corpora, training=False)
    assert (
        "checkpoint_0.pth was trained on audio features that were extracted differently: layers: [-1] and [-4, -3, -2, -1]"
        in message
    )


def test_resuming_a_run_on_differently_extracted_features_is_refused(tmp_path, two_corpora):
    two_corpora["run"] |= {"evaluate": False, "max_epoch": 2}
    describe(tmp_path, HUBERT)
    folder = RunnerBase(loaded(tmp_path, two_corpora)).train()
    (folder / "checkpoint_1.pth").unlink()
    describe(tmp_path, changed(layers=[-2]))
    message = refused(tmp_path, two_corpora, "run.resume_ckpt_path=auto")
    assert "checkpoint_0.pth was trained on audio features that were extracted differently: layers: [-1] and [-2]" in message
    assert RunnerBase(loaded(tmp_path, two_corpora, "run.resume_ckpt_path=auto", "run.allow_other_features=True")).first_step


def test_a_checkpoint_does_not_record_features_used_only_for_evaluation(tmp_path, two_corpora):
    describe(tmp_path, test=HUBERT)
    folder = RunnerBase(loaded(tmp_path, two_corpora)).train()
    assert read(str(folder / "checkpoint_0.pth"), "k")["features"] == {}


@pytest.mark.slow
def test_a_manifest_added_later_does_not_prevent_resuming(tmp_path, two_corpora):
    two_corpora["run"] |= {"evaluate": False, "max_epoch": 2}
    folder = RunnerBase(loaded(tmp_path, two_corpora)).train()
    (folder / "checkpoint_1.pth").unlink()
    describe(tmp_path, HUBERT, HUBERT)
    assert RunnerBase(loaded(tmp_path, two_corpora, "run.resume_ckpt_path=auto", "run.evaluate=True")).first_step


def test_check_data_reports_differently_extracted_features(tmp_path, two_corpora):
    describe(tmp_path, HUBERT, changed(pooling="max"))
    findings = check(loaded(tmp_path, two_corpora)).findings
    assert any(finding.kind == "different features" and "pooling" in finding.text for finding in findings)


def test_the_configured_encoders_are_compared_with_the_manifests(tmp_path, two_corpora):
    weights = str(GOLDEN / "vision/eva_tiny.safetensors")
    two_corpora["encoders"] = {"eva": {"weights": weights, "image_size": 112, "frame_selection": "middle"}}
    for frame, fits in (("first", False), ("middle", True)):
        described = Eva.describe(Eva.Config(weights=weights, image_size=112, frame_selection=frame), "k")
        manifest = Manifest(
            ("image", "cls"), described.shape.num_vectors, described.shape.dim, described.settings, digest(weights), "float32"
        )
        for name in ("train", "test"):
            manifest.write(tmp_path / name / "eva")
        if fits:
            assert "image" in RunnerBase(loaded(tmp_path, two_corpora)).features
        else:
            assert "frame_selection: 'middle' and 'first'" in refused(tmp_path, two_corpora)
    dataclasses.replace(manifest, weights="ef" * 32).write(tmp_path / "train/eva")
    assert "encoders.eva and datasets.golden.features.image" in refused(tmp_path, two_corpora)


def test_an_encoder_with_missing_weights_does_not_prevent_training(tmp_path, two_corpora):
    describe(tmp_path, HUBERT, HUBERT)
    two_corpora["encoders"] = {"hubert": {"weights": str(tmp_path / "nowhere")}}
    assert RunnerBase(loaded(tmp_path, two_corpora)).features


def test_packing_copies_the_manifest(tmp_path):
    shutil.copytree(GOLDEN / "data/HL-UTT", tmp_path / "HL-UTT")
    HUBERT.write(tmp_path / "HL-UTT")
    for kind in ("packed", "tar"):
        packed("--source", tmp_path / "HL-UTT", "--output", tmp_path / kind, "--to", kind)
        assert Manifest.read(str(tmp_path / kind)) == HUBERT


def test_the_manifest_of_tars_selected_by_a_pattern_is_in_their_folder(tmp_path, two_corpora):
    for name, manifest in (("train", HUBERT), ("test", changed(pooling="max"))):
        describe(tmp_path, **{name: manifest})
        packed("--source", tmp_path / name / "HL-UTT", "--output", tmp_path / name / "tars", "--to", "tar")
    for path in ("shard-00000.tar", "shard-{00000..00000}.tar", "shard-*.tar::"):
        assert Manifest.read(str(tmp_path / "train/tars" / path)) == HUBERT
        assert Manifest.read(str(tmp_path / "absent" / path)) is None
    two_corpora["datasets"]["golden"]["audio_feature_path"] = "tars/shard-{00000..00000}.tar"
    two_corpora["evaluation_datasets"]["answers"]["audio_feature_path"] = "tars/shard-*.tar::"
    assert "pooling: 'mean' and 'max'" in refused(tmp_path, two_corpora)


def test_repacking_or_indexing_tars_copies_the_manifest(tmp_path):
    shutil.copytree(GOLDEN / "data/HL-UTT", tmp_path / "HL-UTT")
    HUBERT.write(tmp_path / "HL-UTT")
    packed("--source", tmp_path / "HL-UTT", "--output", tmp_path / "tars", "--to", "tar")
    packed("--source", tmp_path / "tars/shard-{00000..00000}.tar", "--output", tmp_path / "again")
    packed("--index", tmp_path / "tars/shard-*.tar", "--output", tmp_path / "indexes")
    assert Manifest.read(str(tmp_path / "again")) == Manifest.read(str(tmp_path / "indexes")) == HUBERT


def test_packing_differently_extracted_sources_together_is_refused(tmp_path):
    for name, manifest in (("a", HUBERT), ("b", changed(pooling="max"))):
        shutil.copytree(GOLDEN / "data/HL-UTT", tmp_path / name)
        manifest.write(tmp_path / name)
    for path in (tmp_path / "b").glob("*.npy"):
        path.rename(path.with_stem(f"other_{path.stem}"))
    with pytest.raises(UserError, match="pooling: 'mean' and 'max'"):
        packed("--source", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    assert not (tmp_path / "c").exists()
