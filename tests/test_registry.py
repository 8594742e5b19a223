"""Registries: names and the classes that they resolve to."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal

import pytest
from helpers import golden_tree, loaded
from registrations import restored_registries

import emollama.registry
from emollama.encoders.encoder import Encoder
from emollama.errors import UserError
from emollama.interface_check import missing_members
from emollama.registration import BuiltIn, Registry
from emollama.registry import (
    DATASETS,
    ENCODERS,
    EXTRACTORS,
    FUSIONS,
    JUDGES,
    LR_SCHEDULES,
    METRICS,
    MODELS,
    PROMPT_FORMATS,
    RUNNERS,
    TASKS,
)
from emollama.suggestions import did_you_mean


class Good:
    @dataclass
    class Config:
        size: int = 1


def registry(*names):
    result = Registry("thing")
    for name in names:
        result.register(name)(type(name, (Good,), {}))
    return result


def test_a_lookup_returns_the_registered_class_itself():
    things = registry()
    assert things.register("good")(Good) is Good
    assert things.get("good") is Good


def test_an_unknown_name_is_reported_with_the_kind_the_nearest_and_all_names():
    with pytest.raises(UserError) as error:
        registry("walnut", "hazelnut", "almond").get("wallnut")
    assert str(error.value) == "Unknown thing 'wallnut'. Did you mean 'walnut'? Registered: almond, hazelnut, walnut"


def test_an_unknown_name_similar_to_no_other_gets_no_suggestion():
    with pytest.raises(UserError) as error:
        registry("walnut").get("zzz")
    assert str(error.value) == "Unknown thing 'zzz'. Registered: walnut"


def test_an_unknown_name_is_reported_with_at_most_ten_names():
    with pytest.raises(UserError, match=rf"Registered: (\w+, ){{10}}\.\.\. and {len(METRICS.names()) - 10} more \(all of them: "):
        METRICS.get("zzz")


def test_did_you_mean_is_empty_without_a_similar_name():
    assert did_you_mean("annotation", ["annotations"]) == " Did you mean 'annotations'?"
    names = ["init_lr", "iters_per_epoch_and_more", "iters_per_epoch"]
    assert did_you_mean("iters", names) == " Did you mean 'iters_per_epoch'?"
    assert did_you_mean("i", names) == did_you_mean("iters_of_an_epoch_in_all", names[:1]) == ""
    assert did_you_mean("annotation", ["width"]) == ""


def test_a_duplicate_name_is_refused_and_the_first_class_remains_registered():
    things = registry("walnut")
    first = things.get("walnut")
    with pytest.raises(UserError, match=r"^thing 'walnut' is already registered by .*test_registry\.py, line \d+\. Register"):
        things.register("walnut")(Good)
    assert things.get("walnut") is first


@pytest.mark.parametrize("inner", [{}, {"Config": type("Config", (), {})}, {"Config": None}])
def test_a_class_without_a_config_dataclass_is_refused_at_registration(inner):
    things = registry()
    with pytest.raises(UserError, match="^thing 'bare': Bare must contain a @dataclass named Config$"):
        things.register("bare")(type("Bare", (), inner))
    assert things.names() == []


@dataclass
class TypedConfig:
    """A Config of a component that a nested block configures."""

    tokens: int = 1
    names: list[str] = field(default_factory=list)
    flag: bool = False
    rate: float | None = None
    shape: Literal["round", "square"] = "round"
    ages: dict[str, int] = field(default_factory=lambda: {"a": 1})
    free: Any = None


def typed(**keys):
    things = registry()
    things.register("typed")(type("Typed", (), {"Config": TypedConfig}))
    return things.nested_config({"type": "typed", **keys}, "run.thing")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokens": "two"}, "tokens: expected a whole number, got 'two'."),
        ({"tokens": None}, "tokens: expected a whole number, got null."),
        ({"tokens": "${x}"}, "tokens: expected a whole number, got '${x}'."),
        ({"names": "happy"}, "names: expected a list of texts, got 'happy'."),
        ({"flag": "maybe"}, "flag: expected True or False, got 'maybe'."),
        ({"rate": [1]}, "rate: expected a number or null, got [1]."),
        ({"shape": "sqare"}, "shape: expected one of round, square, got 'sqare'. Did you mean 'square'?"),
        ({"ages": {"a": "old"}}, "ages: expected a mapping to whole numbers, got {'a': 'old'}."),
    ],
)
def test_a_value_of_the_wrong_type_in_a_nested_block_is_refused_with_its_key(keys, message):
    with pytest.raises(UserError) as error:
        typed(**keys)
    assert str(error.value) == f"run.thing: {message}"


@pytest.mark.parametrize(
    ("key", "value", "converted"),
    [
        ("tokens", "2", 2),
        ("flag", "no", False),
        ("rate", 1, 1.0),
        ("names", [1, r"\${x}", "???"], ["1", r"\${x}", "???"]),
        ("ages", {"b": "2"}, {"b": 2}),
        ("free", {"a": ["${paths.x}", {1: "{}"}]}, {"a": ["${paths.x}", {1: "{}"}]}),
    ],
)
def test_values_of_a_nested_block_are_converted_to_the_types_of_its_config(key, value, converted):
    actual = getattr(typed(**{key: value}), key)
    assert actual == converted and type(actual) is type(converted)


def test_a_field_whose_type_a_configuration_cannot_have_is_reported_when_its_key_is_set():
    things = registry()
    things.register("sets")(type("Sets", (), {"Config": make_dataclass("Config", [("words", set[str])])}))
    with pytest.raises(UserError, match=r"^run\.thing: words: the field's type is not one .* annotation: set\[str\]"):
        things.nested_config({"type": "sets", "words": ["a"]}, "run.thing")


def test_the_keys_of_a_fusion_are_checked_when_the_configuration_is_read(tmp_path):
    tree = golden_tree(tmp_path)
    tree["model"]["fusion"] = {"type": "linear", "tokens": 2}
    with pytest.raises(UserError, match="model: fusion: unknown key 'tokens'. Keys of linear: none"):
        loaded(tmp_path, tree)


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


def test_the_config_of_a_built_in_class_is_read_without_importing_its_module(tmp_path, monkeypatch):
    (tmp_path / "heavy_part.py").write_text("raise AssertionError\n")
    (tmp_path / "light_part.py").write_text("class PartConfig:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    things = Registry("thing", {"part": BuiltIn("heavy_part:Part", {"Config": "light_part:PartConfig"})})
    assert things.config("part") is sys.modules["light_part"].PartConfig
    assert things.register("own")(Good) is Good
    assert things.config("own") is Good.Config
    with pytest.raises(UserError, match=r"^thing 'part' is already registered by heavy_part\. Register Good under"):
        things.register("part")(Good)
    del sys.modules["light_part"]


ALL = [value for value in vars(emollama.registry).values() if isinstance(value, Registry)]


def test_every_built_in_name_and_light_attribute_resolves_to_the_right_object():
    light = 0
    for each in ALL:
        for name, entry in each._built_in.items():
            resolved = each.get(name)
            for attribute in entry.light:
                light += 1
                assert each.attribute(name, attribute) is getattr(resolved, attribute), (each.kind, name, attribute)
    assert light >= 15


class OnlyConfig:
    @dataclass
    class Config:
        pass


# A registry, an object, and the first members that it lacks of the interface.
INTERFACES = [
    (MODELS, OnlyConfig, "slot_shapes"),
    (FUSIONS, OnlyConfig, "layout"),
    (PROMPT_FORMATS, OnlyConfig, "tokenize"),
    (DATASETS, OnlyConfig, "__len__, names"),
    (TASKS, OnlyConfig, "scoring, loss, evaluation_items, predict"),
    (RUNNERS, OnlyConfig, "prepare, train, evaluate"),
    (LR_SCHEDULES, 3, "__call__"),
    (ENCODERS, OnlyConfig, "SLOTS, describe, load, encode"),
    (EXTRACTORS, OnlyConfig, "run, dry_run"),
    (METRICS, 3, "title, metric_input, compute"),
    (JUDGES, OnlyConfig, "clue_overlap, emotion_words"),
]


@pytest.mark.parametrize(("things", "entry", "members"), INTERFACES, ids=lambda value: getattr(value, "kind", ""))
def test_a_component_that_lacks_members_of_its_interface_is_refused_with_their_names(things, entry, members, monkeypatch):
    monkeypatch.setattr(things, "_entries", {})
    things.register("mine")(entry)
    with pytest.raises(UserError) as error:
        things.get("mine", "key")
    described = "OnlyConfig" if entry is OnlyConfig else "3"
    start = rf"key: {things.kind} 'mine' \({described}, {re.escape(__file__)}, line \d+\) has no {re.escape(members)}\b"
    assert re.match(start, str(error.value)), error.value


def test_an_encoder_whose_class_leaves_abstract_methods_undefined_is_refused(monkeypatch):
    monkeypatch.setattr(ENCODERS, "_entries", {})
    ENCODERS.register("mine")(type("Mine", (Encoder,), {"Config": OnlyConfig.Config, "SLOTS": ("face",), "load": len}))
    with pytest.raises(UserError, match="has no describe, encode. Add what Encoder in emollama.encoders.encoder describes"):
        ENCODERS.get("mine")


def test_built_in_components_have_the_members_of_their_interface():
    for each in (each for each in ALL if each._interface is not None):
        interface = importlib.import_module(each._interface.partition(":")[0])
        for name in each._built_in:
            assert missing_members(each.get(name), getattr(interface, each._interface.partition(":")[2])) == [], name


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
    assert config.dataset_class("datasets.golden") is sys.modules["my_clips"].MyClips
    assert config.datasets["golden"].brightness == 2.0
    del sys.modules["my_clips"]


def test_components_of_a_test_and_their_modules_do_not_remain(tmp_path, monkeypatch):
    (tmp_path / "rates_of_a_test.py").write_text(
        "from emollama.registry import LR_SCHEDULES\nLR_SCHEDULES.register('of_a_test')(lambda step: 1.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    before = LR_SCHEDULES.names()
    for _ in range(2):
        with restored_registries():
            importlib.import_module("rates_of_a_test")
            assert set(LR_SCHEDULES.names()) == {*before, "of_a_test"}
        assert LR_SCHEDULES.names() == before
        assert "rates_of_a_test" not in sys.modules


def test_a_dataset_without_a_method_is_reported_with_the_key_that_selected_it(tmp_path, monkeypatch):
    dataset = DATASETS.get("feature_face_caption")
    members = {name: getattr(dataset, name) for name in dir(dataset) if not name.startswith("_") and name != "record"}
    monkeypatch.setattr(DATASETS, "_entries", {})
    DATASETS.register("mine")(type("Mine", (), members | {"__len__": dataset.__len__}))
    tree = golden_tree(tmp_path)
    tree["datasets"]["golden"]["type"] = "mine"
    with pytest.raises(UserError, match=r"^datasets\.golden\.type: dataset 'mine' \(Mine, .*\) has no record\. Add what"):
        loaded(tmp_path, tree)


def test_an_import_that_fails_names_the_module(tmp_path):
    tree = golden_tree(tmp_path) | {"imports": ["no_such_module_here"]}
    with pytest.raises(
        UserError, match=r"^imports: cannot import 'no_such_module_here': No module named 'no_such_module_here'\.$"
    ):
        loaded(tmp_path, tree)


@pytest.fixture
def import_failure(tmp_path, monkeypatch):
    """A function that imports a module with this text and returns the error, without the folder in its paths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    tree = golden_tree(tmp_path)

    def import_error(text, name="of_mine"):
        (tmp_path / "of_mine.py").write_text(text)
        importlib.invalidate_caches()
        with pytest.raises(UserError) as error:
            loaded(tmp_path, tree | {"imports": [name]})
        assert error.value.__cause__ is not None  # --debug prints its traceback
        return str(error.value).replace(f"{tmp_path}/", "")

    yield import_error
    for name in ("of_mine", "of_mine_too"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\nimport of_mine_too\n", "of_mine.py, line 2: No module named 'of_mine_too'."),
        ("def f(:\n    pass\n", "of_mine.py, line 1: SyntaxError: invalid syntax. Correct this line."),
        ("import json\n\njson.loads('{')\n", "of_mine.py, line 3: JSONDecodeError: Expecting property name"),
        ("def f():\n    return 1 / 0\n\nf()\n", "of_mine.py, line 2: ZeroDivisionError: division by zero."),
        (
            "from emollama.registry import METRICS\nMETRICS.register('war')(3)\n",
            "of_mine.py, line 2: metric 'war' is already registered by emollama.evaluation.recognition. Register 3 under another",
        ),
        ("from emollama.errors import UserError\nraise UserError('set MINE')\n", "of_mine.py, line 2: set MINE."),
    ],
)
def test_an_error_in_an_imported_module_is_reported_with_its_file_and_line(import_failure, text, reason):
    assert import_failure(text).startswith(f"imports: cannot import 'of_mine': {reason}")


@pytest.mark.parametrize(("text", "call"), [("import sys\nsys.exit(0)\n", "0"), ("\nraise SystemExit\n", "")])
def test_a_module_that_ends_the_program_is_an_error(import_failure, text, call):
    assert import_failure(text).startswith(f"imports: 'of_mine' called sys.exit({call}) (of_mine.py, line 2). A module")


def test_an_error_in_an_indirectly_imported_user_module_is_reported_with_its_file(import_failure, tmp_path):
    (tmp_path / "of_mine_too.py").write_text("\nraise RuntimeError('broken')\n")
    assert import_failure("import of_mine_too\n").endswith("of_mine_too.py, line 2: RuntimeError: broken.")


def test_an_import_with_the_suffix_py_is_refused_with_the_remedy(import_failure):
    assert import_failure("", "of_mine.py").endswith(" Write it without '.py'.")


def test_an_interrupt_during_an_import_is_not_converted_to_an_error(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        loaded(tmp_path, golden_tree(tmp_path) | {"imports": ["of_mine"]})


@pytest.mark.parametrize("name", [1, None, "", " ", "..x", "a..b", "a/b.py", ["a"]])
def test_an_invalid_module_name_is_refused(tmp_path, name):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, golden_tree(tmp_path) | {"imports": [name]})
    assert str(error.value).startswith(f"{tmp_path}/config.yaml: 'imports': {name!r} is not the name of a Python module.")


def test_imports_that_are_not_a_list_are_refused_with_the_correct_form(tmp_path):
    with pytest.raises(
        UserError, match=r"'imports' must be a list of Python module names, not 'mine'\. Write imports: \[mine\]$"
    ):
        loaded(tmp_path, golden_tree(tmp_path) | {"imports": "mine"})
