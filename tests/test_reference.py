"""docs/configuration.md is generated from the Config classes and describes each key once."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from running import ROOT

from emollama.config.reference import describe, markdown
from emollama.config.sections import sections
from emollama.errors import UserError

PAGE = ROOT / "docs/configuration.md"


def table_rows(block: str) -> list[list[str]]:
    """Return the cells of each key's row in the tables of a block."""
    return [line.strip("|\n").split(" | ") for line in describe(block).splitlines() if line.startswith("| `")]


def test_the_page_of_the_configuration_reference_is_up_to_date():
    assert PAGE.read_text() == markdown(), "run: python -m emollama reference > docs/configuration.md"


@pytest.mark.parametrize("block", ["model", "datasets", "encoders"])
def test_a_key_shared_by_several_types_has_one_description(block):
    texts = Counter((row[0], row[-1]) for row in table_rows(block))
    assert [key for key, count in texts.items() if count > 1] == []


def test_different_defaults_of_a_shared_key_name_their_types():
    defaults = {row[0].strip("| "): row[2] for row in table_rows("model") if len(row) == 4}
    assert defaults["`train_llm`"] == "`none` (`minigpt4`); `lora` (`minigpt_v2`)"
    assert defaults["`lora_r`"] == "`64`"


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.title)
def test_every_key_is_in_the_table_of_its_type_or_in_the_shared_table(section):
    tables = describe(section.block).split("## ")
    shown = [table for table in tables if "keys of several " in table or table.startswith(f"{section.title}\n")]
    missing = [item.name for item in dataclasses.fields(section.config) if f"| `{item.name}` |" not in "".join(shown)]
    assert missing == []


def test_the_keys_that_select_a_preset_or_a_component_are_described():
    model, dataset = describe("model.preset"), describe("datasets.mine.preset")
    assert "tiny (models)" in model and "use_grad_checkpoint: False" in model and "mer_six_labels" not in model
    assert "labels: [neutral" in dataset and "tiny" not in dataset and "tiny" in describe("preset")
    assert "minigpt4, minigpt_v2" in describe("model.arch") and "feature_face_caption" in describe("datasets.type")
    with pytest.raises(UserError, match=r"no configuration key 'run\.preset'"):
        describe("run.preset")
