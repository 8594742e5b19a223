"""Names and the classes behind them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
from helpers import golden_tree, loaded

from emollama.errors import UserError
from emollama.registry import (
    DATASETS,
    ENCODERS,
    EXTRACTORS,
    FUSIONS,
    JUDGES,
    LR_SCHEDULES,
    METRICS,
    MODELS,
    RUNNERS,
    TASKS,
    BuiltIn,
    Registry,
    did_you_mean,
)


class Good:
    @dataclass
    class Config:
        size: int = 1


def registry(*names):
    made = Registry("thing")
    for name in names:
        made.register(name)(type(name, (Good,), {}))
    return made


def test_a_lookup_returns_the_registered_class_itself():
    things = registry()
    assert things.register("good")(Good) is Good
    assert things.get("good") is Good


def test_a_miss_names_the_kind_the_nearest_name_and_all_names_sorted():
    with pytest.raises(UserError) as error:
        registry("walnut", "hazelnut", "almond").get("wallnut")
    assert str(error.value) == "Unknown thing 'wallnut'. Did you mean 'walnut'? Registered: almond, hazelnut, walnut"


def test_a_miss_far_from_every_name_suggests_none():
    with pytest.raises(UserError) as error:
        registry("walnut").get("zzz")
    assert str(error.value) == "Unknown thing 'zzz'. Registered: walnut"


def test_a_miss_among_many_names_lists_ten():
    with pytest.raises(UserError, match=rf"Registered: (\w+, ){{10}}\.\.\. and {len(METRICS.names()) - 10} more \(all of them: "):
        METRICS.get("zzz")


def test_did_you_mean_is_silent_without_a_near_name():
    assert did_you_mean("annotation", ["annotations"]) == " Did you mean 'annotations'?"
    known = ["init_lr", "iters_per_epoch_and_more", "iters_per_epoch"]
    assert did_you_mean("iters", known) == " Did you mean 'iters_per_epoch'?"
    assert did_you_mean("i", known) == did_you_mean("iters_of_an_epoch_in_all", known[:1]) == ""
    assert did_you_mean("annotation", ["width"]) == ""


def test_a_duplicate_name_is_refused_and_the_first_stays():
    things = registry("walnut")
    first = things.get("walnut")
    with pytest.raises(ValueError, match="thing 'walnut' is registered twice"):
        things.register("walnut")(Good)
    assert things.get("walnut") is first


@pytest.mark.parametrize("inner", [{}, {"Config": type("Config", (), {})}, {"Config": None}])
def test_a_class_without_a_config_dataclass_is_refused_at_registration(inner):
    things = registry()
    with pytest.raises(ValueError, match="has no @dataclass named Config"):
        things.register("bare")(type("Bare", (), inner))
    assert things.names() == []


def test_a_registry_of_functions_needs_no_config():
    rates = Registry("rate", needs_config=False)
    rates.register("double")(lambda value: 2 * value)
    assert rates.get("double")(3) == 6


def test_a_lookup_imports_only_the_module_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "lazy_one.py").write_text("class One:\n    Config = None\n")
    (tmp_path / "lazy_two.py").write_text("raise AssertionError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    things = Registry("thing", {"one": "lazy_one:One", "two": "lazy_two:Two"})
    assert things.names() == ["one", "two"]
    things.require("two")
    assert "lazy_one" not in sys.modules
    assert things.get("one") is sys.modules["lazy_one"].One
    assert "lazy_two" not in sys.modules
    del sys.modules["lazy_one"]


def test_the_config_of_a_built_in_class_is_read_without_its_module(tmp_path, monkeypatch):
    (tmp_path / "heavy_part.py").write_text("raise AssertionError\n")
    (tmp_path / "light_part.py").write_text("class PartConfig:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    things = Registry("thing", {"part": BuiltIn("heavy_part:Part", {"Config": "light_part:PartConfig"})})
    assert things.config("part") is sys.modules["light_part"].PartConfig
    assert things.register("own")(Good) is Good
    assert things.config("own") is Good.Config
    with pytest.raises(ValueError, match="thing 'part' is registered twice"):
        things.register("part")(Good)
    del sys.modules["light_part"]


ALL = (MODELS, FUSIONS, DATASETS, TASKS, RUNNERS, LR_SCHEDULES, ENCODERS, EXTRACTORS, METRICS, JUDGES)


def test_every_built_in_name_leads_to_its_class_and_every_light_attribute_to_the_same_object():
    light = 0
    for known in ALL:
        for name, entry in known._built_in.items():
            found = known.get(name)
            for attribute in entry.light:
                light += 1
                assert known.attribute(name, attribute) is getattr(found, attribute), (known.kind, name, attribute)
    assert light >= 15


def test_the_published_components_are_registered():
    assert "minigpt_v2" in MODELS.names()
    assert "feature_face_caption" in DATASETS.names()


def test_a_user_module_in_imports_adds_its_component_to_a_yaml(tmp_path, monkeypatch):
    (tmp_path / "my_clips.py").write_text(
        "from dataclasses import dataclass\n"
        "from emollama.datasets.feature_face_caption import FeatureFaceCaption\n"
        "from emollama.registry import DATASETS\n"
        "@DATASETS.register('my_clips')\n"
        "class MyClips(FeatureFaceCaption):\n"
        "    @dataclass\n"
        "    class Config(FeatureFaceCaption.Config):\n"
        "        brightness: float = 0.5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries) or {name: DATASETS.get(name) for name in DATASETS.names()})
    tree = golden_tree(tmp_path)
    tree["imports"] = ["my_clips"]
    tree["datasets"]["golden"] |= {"type": "my_clips", "brightness": 2}
    config = loaded(tmp_path, tree)
    assert config.classes["datasets.golden"] is sys.modules["my_clips"].MyClips
    assert config.datasets["golden"].brightness == 2.0
    del sys.modules["my_clips"]


def test_an_import_that_fails_names_the_module(tmp_path):
    tree = golden_tree(tmp_path) | {"imports": ["no_such_module_here"]}
    with pytest.raises(UserError, match="imports: cannot import 'no_such_module_here'"):
        loaded(tmp_path, tree)
