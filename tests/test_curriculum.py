"""Curricula: their keys, the difficulty measures, and the order of sampling."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import NAMES, golden_tree, loaded

from emollama.data.curriculum import Curriculum
from emollama.data.sampling import MixtureSampler
from emollama.errors import UserError

LIST = "MERR_fine_grained.txt"  # name, count, label, valence


@pytest.fixture
def build(tmp_path, corpus):
    """A function that builds the golden training block with a curriculum."""

    def build_dataset(by, epochs=3, descending=False, **keys):
        tree = golden_tree(tmp_path, corpus)
        course = {"by": by, "epochs": epochs, "descending": descending}
        tree["datasets"]["golden"] |= {"annotation_file": LIST, "shuffle": True, "curriculum": course, **keys}
        config = loaded(tmp_path, tree)
        shapes = config.model_class.slot_shapes(config.model)
        return config.dataset_class("datasets.golden")(
            config.datasets["golden"], slot_shapes=shapes, block_path="datasets.golden"
        )

    return build_dataset


def sampled_indices(dataset, sample_indices, samples_per_epoch=10):
    """Indices of the sampled clips in the annotation file."""
    sampler = MixtureSampler(1, (dataset.sampling(),), samples_per_epoch)
    return {sampler.at(k).index for k in sample_indices}


def table(corpus, text):
    (corpus / "table.csv").write_text(text)
    return {"type": "custom", "annotation_file": "table.csv"}


# Keys


def test_without_keys_there_is_no_curriculum_and_descending_is_off_by_default():
    assert Curriculum.from_config({}) is None
    assert Curriculum.from_config({"by": "modalities", "epochs": 4}) == Curriculum("modalities", 4, False)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"by": "x", "epoch": 3}, "unknown key 'epoch'. Did you mean 'epochs'?"),
        ({"epochs": 3}, "curriculum.by is None"),
        ({"by": "", "epochs": 3}, "curriculum.by is ''"),
        ({"by": ["x"], "epochs": 3}, "curriculum.by is ['x']"),
        ({"by": "x"}, "curriculum.epochs is None"),
        ({"by": "x", "epochs": 0}, "curriculum.epochs is 0"),
        ({"by": "x", "epochs": 1.5}, "curriculum.epochs is 1.5"),
        ({"by": "x", "epochs": True}, "curriculum.epochs is True"),
        ({"by": "x", "epochs": 3, "descending": "no"}, "curriculum.descending is 'no'"),
    ],
)
def test_invalid_curriculum_keys_and_values_are_refused_by_name(mapping, message):
    with pytest.raises(ValueError) as error:
        Curriculum.from_config(mapping)
    assert str(error.value).startswith("curriculum") and message in str(error.value)


def test_an_invalid_curriculum_is_reported_with_its_block(tmp_path):
    tree = golden_tree(tmp_path)
    with pytest.raises(
        UserError, match=r"^--options: datasets\.golden: curriculum\.epochs is 0; it must be a whole number of at least 1$"
    ):
        loaded(tmp_path, tree, "datasets.golden.curriculum.by=modalities", "datasets.golden.curriculum.epochs=0")


# Measures


def test_a_curriculum_can_sort_by_a_column_of_the_annotation_list(build):
    dataset = build("valence")  # 2.5, -2, -2, 1, 0, -2
    assert dataset.sampling().difficulty.tolist() == [2.5, -2.0, -2.0, 1.0, 0.0, -2.0]
    assert sampled_indices(dataset, range(10)) < {1, 2, 5} and sampled_indices(dataset, range(10, 20)) == {1, 2, 5, 4}
    assert sampled_indices(build("count"), range(10)) == {0, 3}  # 13 and 18 frames


def test_a_descending_curriculum_samples_the_largest_values_first(build):
    assert sampled_indices(build("valence", descending=True), range(10)) == {0, 3}


def test_the_curriculum_modalities_samples_clips_without_missing_modalities_first(build, corpus):
    for folder, name in (("HL-UTT", NAMES[0]), ("HL-UTT", NAMES[3]), ("maeV_399_UTT", NAMES[3]), ("eva", NAMES[5])):
        (corpus / folder / f"{name}.npy").unlink()
    dataset = build("modalities", epochs=2, missing_features="zero")
    assert dataset.sampling().difficulty.tolist() == [1.0, 0.0, 0.0, 2.0, 0.0, 1.0]
    assert sampled_indices(dataset, range(10)) == {1, 2, 4}
    assert sampled_indices(dataset, range(10, 20)) == set(range(6))


def test_the_curriculum_answer_length_is_the_longest_answer_of_the_tasks_in_words(build, corpus):
    text = "name,emotion,reason\n"
    text += f"{NAMES[0]},happy,one two three.\n{NAMES[1]},sad,she weeps and sighs\n{NAMES[2]},angry,he shouts\n"
    emotions = build("answer_length", **table(corpus, text), task_pool=["emotion"])
    assert emotions.sampling().difficulty.tolist() == [1.0, 1.0, 1.0]
    both = build("answer_length", **table(corpus, text), task_pool=["emotion", "reason"])
    assert both.sampling().difficulty.tolist() == [3.0, 4.0, 2.0]


def test_a_curriculum_can_sort_by_an_additional_column_of_a_table(build, corpus):
    text = f"name,emotion,hardness\n{NAMES[0]},happy,1e3\n{NAMES[1]},sad,-2\n{NAMES[2]},sad,0.5\n"
    dataset = build("hardness", **table(corpus, text))
    assert dataset.problems() == []
    assert sampled_indices(dataset, range(10)) == {1} and sampled_indices(dataset, range(20, 40)) == {0, 1, 2}


# Clips that cannot be sorted


def test_a_missing_column_is_reported_at_the_start_with_the_existing_columns(build, corpus):
    (problem,) = build("valance").problems()
    assert problem.text == (
        f"datasets.golden: curriculum.by 'valance': {corpus}/{LIST} has no such column. Did you mean 'valence'?"
        " Known: modalities, answer_length, count, valence"
    )


@pytest.mark.parametrize("cell", ["", "easy", "nan", "inf", "1;5"])
def test_all_rows_without_a_number_are_reported_at_the_start_with_their_lines(build, corpus, cell):
    text = f"name,emotion,hardness\n{NAMES[0]},happy,{cell}\n{NAMES[1]},sad,1\n{NAMES[2]},sad,?\n"
    (problem,) = build("hardness", **table(corpus, text)).problems()
    assert "datasets.golden: curriculum.by 'hardness': " in problem.text and f"{corpus}/table.csv" in problem.text
    assert f"for 2 clips: {cell!r} (line 2, {NAMES[0]}), '?' (line 4, {NAMES[2]})" in problem.text
    remaining = build("hardness", **table(corpus, text), exclude=[NAMES[0], NAMES[2]])
    assert remaining.problems() == [] and sampled_indices(remaining, range(9)) == {0}


def test_an_evaluation_does_not_require_the_curriculum_column(tmp_path, corpus):
    tree = golden_tree(tmp_path, corpus)
    tree["evaluation_datasets"]["answers"]["curriculum"] = {"by": "nothing", "epochs": 2}
    config = loaded(tmp_path, tree)
    shapes = config.model_class.slot_shapes(config.model)
    block = config.evaluation_datasets["answers"].dataset
    dataset = config.dataset_class("evaluation_datasets.answers")(block, slot_shapes=shapes, block_path="answers", training=False)
    assert dataset.problems() == []


def test_without_a_curriculum_all_samples_are_available_from_the_start(build, corpus):
    sampling = build("valence", curriculum={}).sampling()
    assert sampling.difficulty is None and sampling.phases == 1 and sampling.digest() is None
    assert np.array_equal(sampling.indices(0, np.random.default_rng(0)), np.arange(6))
