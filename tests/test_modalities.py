"""A modality that is declared in YAML only, and the fusion module along time of the docs."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from helpers import GOLDEN, golden_tree, loaded, write
from running import ROOT
from safetensors.torch import load_file

from emollama import checkpoint
from emollama.data.batch import PackedFeatures
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.models.fusion.build import build_fusion, require_agreement
from emollama.models.fusion.linear import LinearFusion
from emollama.planning.estimate import plan
from emollama.registry import FUSIONS
from emollama.runners.runner_base import RunnerBase

PAGE = (ROOT / "docs/modalities.md").read_text(encoding="utf-8")
LABELS = ["happy", "sad", "angry", "neutral"]
USUAL = dict.fromkeys(("image", "face", "video", "audio"))


def blocks_of_code(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Clips of four labels that only the gaze features tell apart; the names and all other inputs are alike."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(3)
    (folder / "gaze_npy").mkdir()
    prototypes = rng.normal(0, 2, (4, 7))
    rows = ["name,emotion"]
    for number in range(160):
        vector = prototypes[number % 4] + rng.normal(0, 0.3, 7)
        np.save(folder / f"gaze_npy/clip_{number:03d}.npy", vector.astype(np.float32))
        rows.append(f"clip_{number:03d},{LABELS[number % 4]}")
    (folder / "clips.csv").write_text("\n".join(rows))
    return folder


def tree_of(folder, corpus, **run):
    """A configuration whose keys about gaze are exactly those of the docs."""
    declared = yaml.safe_load(blocks_of_code("yaml")[0])
    block = {"annotation_file": str(corpus / "clips.csv"), "labels": LABELS, "held_out": 0.4, "batch_size": 8}
    block["instructions"] = {"emotion": ["Which of {labels}?"]}
    block["features"] = USUAL | declared["datasets"]["custom"]["features"]
    return {
        "model": {
            "arch": "minigpt_v2",
            "llama_model": str(GOLDEN / "llama"),
            "slots": {"image": {"dim": 8}, "face": {"dim": 4}, "video": {"dim": 4}, "audio": {"dim": 4}}
            | declared["model"]["slots"],
            "image_size": 28,
            "lora_r": 4,
            "lora_dropout": 0.0,
            "use_grad_checkpoint": False,
        },
        "datasets": {"custom": block},
        "evaluation_datasets": {"custom": block | {"answer_by": "likelihood", "metrics": ["war"], "batch_size": 16}},
        "run": {
            "init_lr": 1e-2,
            "min_lr": 1e-4,
            "max_epoch": 2,
            "iters_per_epoch": 30,
            "num_workers": 0,
            "amp": False,
            "device": "cpu",
            "evaluate": True,
            "output_dir": str(folder / "out"),
            "job_id": "run",
            **run,
        },
    }


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """The folder of a run with gaze features."""
    folder = tmp_path_factory.mktemp("trained")
    return RunnerBase(loaded(folder, tree_of(folder, corpus))).train()


def tensors_of(folder):
    return checkpoint.read(str(folder / "checkpoint_1.pth"), "key")["model"]


def accuracy(folder):
    last = (folder / "eval.jsonl").read_text().splitlines()[-1]
    return json.loads(last)["metrics"]["custom/emotion/war"]


def test_labels_that_depend_only_on_the_new_modality_are_learned_with_it(trained):
    assert accuracy(trained) >= 0.95


@pytest.mark.slow
def test_without_the_new_modality_the_accuracy_is_that_of_guessing(corpus, tmp_path):
    tree = tree_of(tmp_path, corpus)
    for group in ("datasets", "evaluation_datasets"):
        tree[group]["custom"]["features"] = USUAL | {"gaze": None}
    assert accuracy(RunnerBase(loaded(tmp_path, tree)).train()) <= 0.4


def test_a_checkpoint_contains_the_projection_of_the_new_modality(trained):
    assert tensors_of(trained)["feats_llama_proj_gaze.weight"].shape[1] == 7


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_tensors(corpus, trained, tmp_path):
    tree = tree_of(tmp_path, corpus, resume_ckpt_path=str(trained / "checkpoint_0.pth"))
    resumed = RunnerBase(loaded(tmp_path, tree)).train()
    first, second = tensors_of(trained), tensors_of(resumed)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_peft_folder_contains_the_projection_of_the_new_modality(trained, tmp_path, emollama):
    convert = ("checkpoint", "convert", trained / "checkpoint_1.pth", "--to", "peft", "--output", tmp_path / "peft")
    assert emollama(*convert).returncode == 0
    exported = load_file(str(tmp_path / "peft/projectors.safetensors"))
    assert exported["feats_llama_proj_gaze.weight"].equal(tensors_of(trained)["feats_llama_proj_gaze.weight"])


def test_check_data_counts_the_arrays_of_the_new_modality(corpus, tmp_path, emollama):
    config = write(tmp_path, tree_of(tmp_path, corpus))
    report = json.loads(emollama("check-data", "--cfg-path", config, "--json").stdout)
    (arrays,) = report["blocks"][0]["arrays"]
    assert (arrays["slots"], arrays["missing"], arrays["kinds"]) == (["gaze"], 0, {"float32 (7,)": arrays["present"]})


def test_plan_counts_the_feature_tokens_of_the_new_modality(corpus, tmp_path):
    assert plan(loaded(tmp_path, tree_of(tmp_path, corpus))).tokens["rows: gaze"] == 1


def test_the_report_contains_the_new_modality(trained, emollama):
    assert emollama("report", trained).returncode == 0
    page = (trained / "result/report.html").read_text(encoding="utf-8")
    assert re.search(r"features:\n( +\w+: null\n)* +gaze: gaze_npy\n", page)


def test_the_summary_lists_the_features_and_the_slots_that_are_empty(corpus, tmp_path, emollama):
    summary = emollama("train", "--cfg-path", write(tmp_path, tree_of(tmp_path, corpus)), "--dry-run").stdout
    assert re.search(r"features +gaze \(gaze_npy\); no image, face, video, audio", summary)


def test_a_checkpoint_without_the_new_projection_loads_and_says_so_once(tmp_path, caplog):
    tree = golden_tree(tmp_path)
    tree["model"]["slots"] = {"gaze": {"dim": 7}}
    tree["datasets"]["golden"]["features"] = {"gaze": None}
    RunnerBase(loaded(tmp_path, tree))
    lines = [record.message for record in caplog.records if "feats_llama_proj_gaze" in record.message]
    assert len(lines) == 1 and "initialized 2 missing tensors" in lines[0]


def test_features_of_the_wrong_size_name_the_key_to_change(corpus, tmp_path):
    tree = tree_of(tmp_path, corpus)
    tree["model"]["slots"]["gaze"] = {"dim": 9}
    with pytest.raises(UserError, match=r"shape \(7,\), expected \(9,\) or \(1, 9\) \(or set model.slots.gaze.dim: 7"):
        RunnerBase(loaded(tmp_path, tree))


def test_an_evaluation_needs_the_new_projection(tmp_path):
    tree = golden_tree(tmp_path)
    tree["model"]["slots"] = {"gaze": {"dim": 7}}
    tree["evaluation_datasets"]["answers"]["features"] = {"gaze": None}
    with pytest.raises(UserError, match=r"2 missing tensors: feats_llama_proj_gaze.weight, .* set ckpt_allow_missing"):
        RunnerBase(loaded(tmp_path, tree), training=False)


def two_slots(tree, *order):
    """Declare the slots a and b in this order, without features for them."""
    tree["model"]["slots"] = {slot: {"dim": 3} for slot in order}
    tree["datasets"]["golden"]["features"] = {"a": None, "b": None}
    tree["evaluation_datasets"]["answers"]["features"] = {"a": None, "b": None}


@pytest.fixture(scope="module")
def ordered(tmp_path_factory):
    """A checkpoint of a run with the slots a and b."""
    folder = tmp_path_factory.mktemp("ordered")
    tree = golden_tree(folder)
    two_slots(tree, "a", "b")
    return RunnerBase(loaded(folder, tree)).train() / "checkpoint_0.pth"


def test_a_run_with_the_new_slots_in_another_order_does_not_resume(ordered, tmp_path):
    tree = golden_tree(tmp_path)
    two_slots(tree, "b", "a")
    tree["run"] |= {"resume_ckpt_path": str(ordered), "max_epoch": 2}
    with pytest.raises(UserError, match="feature tokens: .*'cls', 'a', 'b'|feature tokens: .*cls.*a.*b"):
        RunnerBase(loaded(tmp_path, tree))


def test_an_evaluation_with_the_new_slots_in_another_order_is_warned_about(ordered, tmp_path, caplog):
    tree = golden_tree(tmp_path)
    two_slots(tree, "b", "a")
    tree["model"]["ckpt"] = str(ordered)
    RunnerBase(loaded(tmp_path, tree), training=False)
    assert "was trained with the feature tokens of 'feature' (face, video, audio, cls, a, b) in another order" in caplog.text


def test_a_run_resumes_with_keys_that_mean_the_same(ordered, tmp_path):
    tree = golden_tree(tmp_path)
    two_slots(tree, "a", "b")
    tree["model"]["slots"]["a"]["length"] = 1
    tree["model"] |= {"fusion": {"type": "linear"}, "prompt_format": {"type": "emotion_llama"}}
    tree["run"] |= {"resume_ckpt_path": str(ordered), "max_epoch": 2}
    assert RunnerBase(loaded(tmp_path, tree)).first_step == 2


def test_another_prompt_format_than_that_of_the_training_is_warned_about(ordered, tmp_path, caplog):
    tree = golden_tree(tmp_path)
    two_slots(tree, "a", "b")
    tree["model"] |= {"ckpt": str(ordered), "prompt_format": {"type": "emotion_llama", "bos": "never"}}
    RunnerBase(loaded(tmp_path, tree), training=False)
    assert "was trained with prompt_format 'emotion_llama'" in caplog.text


def test_a_block_that_does_not_mention_a_slot_of_another_block_is_warned_about(tmp_path, caplog):
    tree = golden_tree(tmp_path)
    two_slots(tree, "a", "b")
    tree["datasets"]["more"] = tree["datasets"]["golden"] | {"features": {"a": None}}
    RunnerBase(loaded(tmp_path, tree))
    assert "datasets.more.features does not mention b, which other blocks fill" in caplog.text


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"gaze": {"a": 1}}, "features.gaze"),
        (["gaze"], "features"),
    ],
)
def test_features_of_the_wrong_type_are_refused(tmp_path, features, message):
    tree = golden_tree(tmp_path)
    tree["datasets"]["golden"] |= {"features": features, "audio_feature_path": "HL-UTT"}
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, tree)


# The fusion module of the docs


@pytest.fixture(scope="module")
def temporal(tmp_path_factory):
    """The registered class of the docs, imported from a module outside the package."""
    folder = tmp_path_factory.mktemp("fusion")
    (folder / "my_fusion.py").write_text(blocks_of_code("python")[0])
    sys.path.insert(0, str(folder))
    __import__("my_fusion")
    yield FUSIONS.get("temporal")
    sys.path.remove(str(folder))
    del sys.modules["my_fusion"], FUSIONS._entries["temporal"]


SLOTS = {"gaze": SlotShape(None, 7), "pulse": SlotShape(None, 2)}
LENGTHS = (5, 1, 0, 12)


def packed(lengths):
    generator = torch.Generator().manual_seed(1)
    return {slot: [torch.randn(length, shape.dim, generator=generator) for length in lengths] for slot, shape in SLOTS.items()}


def test_the_example_has_at_most_forty_lines_of_code():
    code = blocks_of_code("python")[0]
    assert len([line for line in code.splitlines() if line.strip() and not line.strip().startswith(("#", '"""'))]) <= 40


def test_the_tokens_of_a_sample_do_not_depend_on_the_other_samples_of_the_batch(temporal):
    torch.manual_seed(0)
    fusion, samples = temporal(temporal.Config(), SLOTS, 8), packed(LENGTHS)
    together = fusion({slot: PackedFeatures.pack(vectors) for slot, vectors in samples.items()})
    for index in range(len(LENGTHS)):
        alone = fusion({slot: PackedFeatures.pack([vectors[index]]) for slot, vectors in samples.items()})
        for slot in SLOTS:
            assert torch.equal(alone[slot], together[slot][4 * index : 4 * index + 4])


def test_a_run_with_the_example_trains_on_clips_of_different_lengths(temporal, corpus, tmp_path):
    (tmp_path / "gaze_npy").mkdir()
    rng = np.random.default_rng(0)
    for path in (corpus / "gaze_npy").iterdir():
        vectors = np.repeat(np.load(path)[None], rng.integers(1, 9), axis=0)
        np.save(tmp_path / "gaze_npy" / path.name, vectors)
    (tmp_path / "clips.csv").write_text((corpus / "clips.csv").read_text())
    tree = tree_of(tmp_path, tmp_path, iters_per_epoch=2, max_epoch=1)
    tree["model"] |= {"fusion": {"type": "temporal", "tokens": 2}, "slots": USUAL | {"gaze": {"dim": 7, "length": None}}}
    runner = RunnerBase(loaded(tmp_path, tree))
    before = runner.model.fusion.convolutions["gaze"].weight.clone()
    runner.train()
    assert not torch.equal(runner.model.fusion.convolutions["gaze"].weight, before)


# Fusion modules with errors


class Wrong(LinearFusion):
    """A fusion module that returns one token less than its layout says."""

    def forward(self, slots):
        tokens = super().forward(slots)
        return tokens | {"gaze": tokens["gaze"][:-1]}


class NeedsVectors(LinearFusion):
    """A fusion module that fails without feature vectors."""

    def forward(self, slots):
        for vectors in slots["gaze"].split():
            vectors.amax(0)
        return super().forward(slots)


class ByValue(LinearFusion):
    """A fusion module whose forward pass depends on values, which tensors on the meta device do not have."""

    def forward(self, slots):
        tokens = super().forward(slots)
        return tokens if slots["gaze"].values.max().item() < 1e9 else {}


def test_a_fusion_module_that_depends_on_values_is_checked_with_real_tensors(monkeypatch):
    monkeypatch.setitem(FUSIONS._entries, "by_value", ByValue)
    build_fusion("by_value", {"gaze": SlotShape(1, 7)}, 8, torch.device("meta"))


class Detached(LinearFusion):
    """A fusion module that returns its tokens without a gradient."""

    def forward(self, slots):
        return {part: value.detach() for part, value in super().forward(slots).items()}


class Deaf(LinearFusion):
    """A fusion module that does not use the vectors of its slot."""

    def forward(self, slots):
        zeros = slots["gaze"].values.new_zeros(slots["gaze"].values.shape)
        return {"gaze": self.feats_llama_proj_gaze(zeros)}


class Listing(LinearFusion):
    """A fusion module that returns a list."""

    def forward(self, slots):
        return list(super().forward(slots).values())


class Failing(LinearFusion):
    """A fusion module with an error in its forward pass."""

    def forward(self, slots):
        return slots["nothing"]


class Idle(LinearFusion):
    """A fusion module with a layer that its forward pass does not use."""

    def __init__(self, cfg, slots, hidden_size):
        super().__init__(cfg, slots, hidden_size)
        self.idle = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        (Wrong, r"Wrong \(.*test_modalities.py\).*layout\(\) says 2 feature tokens 'gaze' of size 8, but forward\(\) returns 1"),
        (Detached, "returns tensors without a gradient"),
        (Deaf, "does not use the vectors of 1 slot: gaze"),
        (Listing, "returns a list. Return a dict"),
        (Idle, r"Idle \(.*test_modalities.py\): forward\(\) does not use 2 parameters: idle.weight, idle.bias"),
        (NeedsVectors, r"NeedsVectors.forward\(\) \(.*test_modalities.py, line \d+\) failed with IndexError"),
        (Failing, r"Failing.forward\(\) \(.*test_modalities.py, line \d+\) failed with KeyError: 'nothing'"),
    ],
)
def test_a_fusion_module_that_does_not_fit_its_layout_is_refused_with_its_file(fusion, message):
    slots = {"gaze": SlotShape(1, 7)}
    with pytest.raises(UserError, match=message):
        require_agreement(fusion(fusion.Config(), slots, 8), fusion.layout(fusion.Config(), slots), slots, 8)


def test_a_slot_that_the_fusion_does_not_accept_is_refused_with_the_accepted_ones():
    with pytest.raises(UserError, match="'image_projection' accepts only the slot image, but the model has image, gaze"):
        build_fusion("image_projection", {"image": SlotShape(4, 7), "gaze": SlotShape(1, 7)}, 8, torch.device("meta"))


def without_features(tree, folder):
    # Both blocks contain the same mapping.
    del tree["datasets"]["custom"]["features"]["gaze"]


def without_slot(tree, folder):
    del tree["model"]["slots"]["gaze"]


def arrays_of(tree, folder, *shape):
    (folder / "other").mkdir()
    for number in range(160):
        np.save(folder / f"other/clip_{number:03d}.npy", np.ones(shape, np.float32))
    tree["datasets"]["custom"]["features"]["gaze"] = str(folder / "other")


def arrays_of_another_size(tree, folder):
    arrays_of(tree, folder, 9)


def arrays_of_several_vectors(tree, folder):
    arrays_of(tree, folder, 5, 7)


@pytest.mark.parametrize(
    ("row", "mistake"), enumerate([without_features, without_slot, arrays_of_another_size, arrays_of_several_vectors])
)
def test_the_errors_on_the_page_are_those_of_the_program(corpus, tmp_path, row, mistake):
    quoted = re.findall(r"^\| `([^`]+)` \|", PAGE.partition("## Errors")[2], re.MULTILINE)
    tree = tree_of(tmp_path, corpus)
    mistake(tree, tmp_path)
    with pytest.raises(UserError, match=".*".join(map(re.escape, quoted[row].split("...")))):
        RunnerBase(loaded(tmp_path, tree))
