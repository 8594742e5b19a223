"""``help()`` of a Config class shows the text and the default of each key."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
from dataclasses import dataclass

import pytest

from emollama.config.sections import sections
from emollama.data.slots import SlotConfig
from emollama.datasets.feature_config import FeatureConfig
from emollama.field_texts import field_texts
from emollama.registration import Registry
from emollama.registry import FUSIONS, METRIC_INPUTS, PROMPT_FORMATS

NESTED = [registry.config(name) for registry in (FUSIONS, PROMPT_FORMATS, METRIC_INPUTS) for name in registry.names()]
CONFIGS = dict.fromkeys([*(section.config for section in sections()), *NESTED, SlotConfig, FeatureConfig])


def words(text):
    """The words of a text without the border of a help page."""
    return " ".join(text.replace("|", " ").split())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__qualname__)
def test_help_shows_the_texts_of_the_keys(config):
    shown, texts = words(pydoc.render_doc(config, renderer=pydoc.plaintext)), field_texts(config)
    assert [item.name for item in dataclasses.fields(config) if words(f"{item.name}: {texts[item.name]} (") not in shown] == []


def test_a_class_of_a_user_is_documented_when_it_is_registered():
    registry = Registry("thing")

    @registry.register("mine")
    class Mine:
        @dataclass
        class Config:
            """My keys."""

            width: int
            """Width in pixels."""
            plain: bool = False
            names: list[str] = dataclasses.field(default_factory=list)
            """Names of things."""

            class Inner:
                other: int = 1

    assert inspect.getdoc(Mine.Config) == (
        "My keys.\n\nAttributes:\n    width: Width in pixels. (required)\n    plain: (default: False)\n"
        "    names: Names of things. (default: [])"
    )
    assert Mine.Config(width=1).__doc__ == Mine.Config.__doc__


def test_keys_without_source_code_are_listed_with_their_defaults():
    registry = Registry("thing")
    config = dataclasses.make_dataclass("Config", [("width", int, dataclasses.field(default=3))])
    registry.register("mine")(type("Mine", (), {"Config": config}))
    assert config.__doc__.endswith("Attributes:\n    width: (default: 3)")
