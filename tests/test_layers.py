"""Layers of a configuration: how a later layer removes entries of an earlier one."""

from __future__ import annotations

import pytest
from helpers import golden_tree, loaded

from emollama.errors import UserError


def test_null_removes_a_block_that_an_earlier_layer_has(tmp_path):
    tree = golden_tree(tmp_path)
    tree["evaluation_datasets"]["second"] = dict(tree["evaluation_datasets"]["answers"])
    assert list(loaded(tmp_path, tree, "evaluation_datasets.second=null").evaluation_datasets) == ["answers"]
    cfg = loaded(tmp_path, tree, "evaluation_datasets=null")
    assert cfg.evaluation_datasets == {} and list(cfg.datasets) == ["golden"]
    assert list(loaded(tmp_path, tree).evaluation_datasets) == ["answers", "second"]


def test_null_for_an_unknown_block_is_refused(tmp_path):
    with pytest.raises(UserError, match="'evaluation_datasets.other' must be a block of keys, not None"):
        loaded(tmp_path, golden_tree(tmp_path), "evaluation_datasets.other=null")


def test_null_removes_the_judge_of_a_block(tmp_path):
    tree = golden_tree(tmp_path)
    tree["evaluation_datasets"]["answers"]["judge"] = {"type": "lexical"}
    cfg = loaded(tmp_path, tree, "evaluation_datasets.answers.judge=null")
    assert cfg.evaluation_datasets["answers"].scoring.judge is None
