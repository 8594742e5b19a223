"""Names and the classes behind them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
from helpers import golden_tree, loaded

from emollama.errors import UserError
from emollama.registry import DATASETS, MODELS, Registry, did_you_mean


class Good:
    @dataclass
    class Config:
        size: int = 1


def registry(*names):
    made = Registry("thing", ())
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


def test_did_you_mean_is_silent_without_a_near_name():
    assert did_you_mean("annotation", ["annotations"]) == " Did you mean 'annotations'?"
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
    rates = Registry("rate", (), needs_config=False)
    rates.register("double")(lambda value: 2 * value)
    assert rates.get("double")(3) == 6


def test_modules_are_imported_at_the_first_lookup_and_not_before(tmp_path, monkeypatch):
    (tmp_path / "lazy_parts.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    things = Registry("thing", ("lazy_parts",))
    assert "lazy_parts" not in sys.modules
    assert things.names() == []
    assert "lazy_parts" in sys.modules
    del sys.modules["lazy_parts"]


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
