"""Metrics and metric inputs of a user's modules: in files of scores, in configurations, and their errors."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import golden_tree, loaded
from invented_runs import write_json, write_lines
from running import ROOT

from emollama.component_errors import ComponentFailed
from emollama.config.user_modules import import_user_modules
from emollama.errors import UserError
from emollama.evaluation.matching import Matched
from emollama.evaluation.metrics import Metric
from emollama.evaluation.prediction_files import RESERVED, scores_as_dict
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.records import task_record
from emollama.evaluation.scoring import Scoring
from emollama.evaluation.statistics import Resampling, compare
from emollama.registry import METRIC_INPUTS, METRICS
from emollama.run_folder import PredictionRecord

SECTION = (ROOT / "docs/evaluation.md").read_text().partition("## Add a metric")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
EXAMPLES = {re.search(r"# (\w+)\.py", text)[1]: text for text in BLOCKS}
WORDS = ["She seems happy", "He may be sad , perhaps", "angry", ""]
ANSWERS = [Prediction(f"clip_{index}", "reason", text, "She is happy.") for index, text in enumerate(WORDS)]

INPUT = """
from dataclasses import dataclass
from emollama.evaluation.metrics import Metric, MetricInput
from emollama.registry import METRIC_INPUTS, METRICS

@METRIC_INPUTS.register("broken")
@dataclass(frozen=True)
class Broken(MetricInput):
    lengths: tuple[int, ...]

    @classmethod
    def compute(cls, predictions, resources):
        {compute}

def value(metric_input):
    {value}

METRICS.register("length")(Metric("length", "broken", value, max_value=None))
"""
GOOD = "return cls(tuple(p.name for p in predictions), tuple(len(p.text) for p in predictions))"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that writes a module into the current directory, from which commands import it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for registry in (METRICS, METRIC_INPUTS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    names = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def scoring(*metrics, tasks=("reason",), key="evaluation_datasets.dev", **keys):
    available = dict.fromkeys(tasks, ("reference",))
    return Scoring(Scoring.Config(metrics=list(metrics), **keys), labels=[], aliases={}, tasks=available, key=key)


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return str(error.value)


# The examples of the docs


@pytest.fixture
def answer_file(tmp_path):
    rows = [{"name": each.name, "task": "reason", "prediction": each.text, "reference": each.reference} for each in ANSWERS]
    write_lines(tmp_path / "mine.jsonl", rows)
    return tmp_path / "mine.jsonl"


def test_the_documented_metric_of_texts_has_about_15_lines():
    assert 8 <= sum(bool(line.strip()) for line in EXAMPLES["my_metrics"].splitlines()) <= 15


def test_the_documented_metric_is_scored_with_an_interval_in_table_and_files(module, answer_file, emollama, tmp_path):
    name = module("my_metrics", EXAMPLES["my_metrics"])
    output = tmp_path / "scores"
    command = emollama("score", "--imports", name, "--predictions", answer_file, "--resamples", 100, "--output", output)
    assert command.returncode == 0, command.stderr
    table = r"^\| +\| +mean_words \|\n.*\n\| mine\.jsonl \| +2\.5000 \|\n\| +\| \[\d\.\d+, \d\.\d+\] \|$"
    assert re.search(table, command.stdout, re.MULTILINE)
    [file] = json.loads((output / "scores.json").read_text())["tasks"]["reason"]["files"].values()
    estimate = file["estimates"]["mean_words"]
    assert (estimate["value"], estimate["clips"]) == (2.5, 4) and 0 <= estimate["low"] < 2.5 < estimate["high"] <= 6
    header, *rows = [line.split(",") for line in (output / "scores.csv").read_text().splitlines()]
    assert [row[header.index("mean_words")] for row in rows] == ["3.0", "6.0", "1.0", "0.0"]


def test_the_documented_metric_input_is_computed_for_its_tasks_with_the_keys_of_its_config(module):
    import_user_modules([module("my_inputs", EXAMPLES["my_inputs"])])
    assert scoring("hedged").score(ANSWERS)["reason"].metrics == {"hedged": 0.5}
    keys = {"metric_inputs": {"hedges": {"words": ["may"]}}}
    scores = scoring("hedged", **keys).score(ANSWERS)["reason"]
    assert scores.metrics == {"hedged": 0.25} and scores.inputs["hedges"].counts == (0, 1, 0, 0)
    estimate = compare({"a": scores}, Resampling(100)).estimates["a"]["hedged"]
    assert estimate.num_samples == 4 and 0 <= estimate.low < 0.25 < estimate.high
    text = refusal(scoring, "hedged", tasks=["emotion"])
    assert "'hedged' cannot be computed here: it needs a task with descriptions" in text


def test_a_metric_of_a_user_comes_after_the_built_in_ones_and_can_use_their_inputs(module):
    METRICS.register("words")(Metric("words", "answers", lambda answers: 1.0))
    METRICS.register("first_label")(Metric("first label", "labels", lambda labels: 0.5))
    scored = Scoring(Scoring.Config(), labels=["happy"], aliases={}, tasks={"emotion": ("reference", "loss")}, key="k")
    names = scored.metrics["emotion"]
    assert names[-2:] == ["loss", "words"] and names.index("first_label") == names.index("invalid_rate") + 1


def test_a_metric_of_a_module_under_imports_is_accepted_in_a_block(module, tmp_path):
    tree = golden_tree(tmp_path) | {"imports": [module("my_inputs", EXAMPLES["my_inputs"])]}
    tree["evaluation_datasets"]["answers"] |= {"metrics": ["hedged"], "metric_inputs": {"hedges": {"words": ["may"]}}}
    cfg = loaded(tmp_path, tree).evaluation_datasets["answers"].scoring
    assert cfg.metrics == ["hedged"] and cfg.metric_inputs == {"hedges": {"words": ["may"]}}


# Errors


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"hedgs": {}}, "metric_inputs.hedgs: Unknown metric input 'hedgs'. Did you mean 'hedges'?"),
        ({"hedges": {"word": ["a"]}}, "metric_inputs.hedges: unknown key 'word'. Did you mean 'words'?"),
        ({"hedges": ["a"]}, "metric_inputs.hedges: expected {key: value}, got ['a']"),
        ({"hedges": {"words": "happy"}}, "metric_inputs.hedges: words: expected a list of texts, got 'happy'."),
        ({"labels": {"words": 1}}, "metric_inputs.labels: unknown key 'words'. Keys of labels: none"),
    ],
)
def test_invalid_keys_of_a_metric_input_are_refused(module, tmp_path, keys, expected):
    tree = golden_tree(tmp_path) | {"imports": [module("my_inputs", EXAMPLES["my_inputs"])]}
    tree["evaluation_datasets"]["answers"]["metric_inputs"] = keys
    text = refusal(loaded, tmp_path, tree)
    assert "evaluation_datasets.answers" in text and expected in text


@pytest.mark.parametrize(
    ("compute", "value", "expected"),
    [
        (
            "return predictions[9]",
            "",
            r"metric input 'broken' of length, class Broken \(FILE, line 13\) failed with IndexError",
        ),
        ("raise KeyError", "", r"metric input 'broken' of length, class Broken \(FILE, line 13\) failed with KeyError\. Correct"),
        ("return 3", "", r"class Broken \(FILE\): compute returned 3\. Expected an object of this class\."),
        ("return cls(('x',), (1,))", "", r"class Broken \(FILE\): names has 'x' more often than the predictions\."),
        ("return cls((predictions[0].name,) * 2, (1, 2))", "", r"names has 'clip_0' more often than the predictions\."),
        ("return cls((predictions[0].name,), (1, 2))", "", r"lengths has 2 entries for 1 samples\."),
        (
            "raise SystemExit(0)",
            "",
            r"metric input 'broken' of length, class Broken \(FILE, line 13\) failed with SystemExit: 0\.",
        ),
        ("return cls([p.name for p in predictions], ())", "", r"names is \['clip_0', .*\. Expected a tuple of strings\."),
        ("return cls((5,), (1,))", "", r"names is \(5,\)\. Expected a tuple of strings\."),
        ("return cls((), [])", "", r"\(FILE\): lengths is of type list, of which take selects no entries\. Use a tuple with one"),
        ("import numpy; return cls((), numpy.zeros(1))", "", r"lengths is of type ndarray, of which take selects no entries\."),
        (GOOD, "return metric_input.length", r"metric 'length' \(FILE, line 16\) failed with AttributeError: "),
        (GOOD, "return 10**400", r"metric 'length' \(FILE\) failed with OverflowError: int too large to convert to float\."),
        (GOOD, "return float('nan')", r"metric 'length' \(FILE\) returned nan\. Expected a finite number, or None"),
        (GOOD, "return 'long'", r"metric 'length' \(FILE\) returned 'long'\. Expected a finite number, or None"),
    ],
)
def test_an_error_of_a_metric_or_an_input_names_it_with_its_file_and_block(module, tmp_path, compute, value, expected):
    import_user_modules([module("my_broken", INPUT.format(compute=compute, value=value or "pass"))])
    with pytest.raises(ComponentFailed) as error:
        scoring("length").score(ANSWERS)
    path = re.escape(str(tmp_path / "my_broken.py"))
    assert re.match(f"evaluation_datasets.dev: .*{expected.replace('FILE', path)}", str(error.value)), error.value
    raised = "failed with" in expected
    assert (error.value.__cause__ is not None) is raised  # --debug prints its traceback


@pytest.fixture
def scores_with(module, tmp_path):
    """A function that scores answers with a metric input that has another method, and the file of the input."""

    def scored(method):
        import_user_modules([module("my_broken", INPUT.format(compute=f"{GOOD}\n\n    {method}", value="return 0.5"))])
        return scoring("length").score(ANSWERS)["reason"]

    return scored, re.escape(str(tmp_path / "my_broken.py"))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("def take(self, indices): return 1 / 0", r"take of the metric input Broken \(FILE, line 15\) failed with ZeroDivision"),
        ("def take(self, indices): pass", r"take of the metric input Broken \(FILE\) returned None\. Expected an object of the"),
        ("def take(self, indices): return self", r"take of .* \(FILE\) returned other samples than those at the indices\."),
        ("def scored(self): return 1 / 0", r"scored of the metric input Broken \(FILE, line 15\) failed with ZeroDivisionError"),
        ("def scored(self): pass", r"scored of the metric input Broken \(FILE\) returned None\. Expected an object of the same"),
        (
            "def scored(self): return Broken(('x',), (1,))",
            r"scored of .* \(FILE\) returned 'x' in addition to the input's samples",
        ),
    ],
)
def test_a_method_that_selects_samples_is_checked_in_the_bootstrap(scores_with, method, expected):
    scored, file = scores_with
    text = refusal(compare, {"a": scored(method)}, Resampling(100))
    assert re.match(expected.replace("FILE", file), text), text


def test_the_rows_of_single_samples_are_checked(scores_with):
    scored, file = scores_with
    scores = scored("def take(self, indices): return self")
    text = refusal(scores.inputs["broken"].sample_rows, ["length"])
    assert re.match(rf"take of the metric input Broken \({file}\) returned other samples", text)


@pytest.mark.parametrize("key", RESERVED)
def test_details_must_not_replace_the_keys_of_a_task(scores_with, key):
    scored, file = scores_with
    text = refusal(scores_as_dict, scored(f"def details(self, *_): return {{'{key}': 1}}"))
    assert re.match(rf"metric input 'broken', class Broken \({file}\): details returned the reserved key '{key}'\.", text)


def test_every_key_that_a_file_of_scores_adds_to_a_task_is_reserved(scores_with):
    scores = scores_with[0]("")
    matched = {"a": Matched(tuple(scores.predictions), (), (), ())}
    assert {*task_record({"a": scores}, matched, Resampling(0))["a"]} <= {*RESERVED}


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("None", r"None\. Expected \{key: value\}\."),
        ("{'a': {1}}", r"a value that JSON cannot store: Object of type set is not JSON serializable\."),
        ("{'a': float('nan')}", r"a value that JSON cannot store: Out of range float values"),
        ("{(1, 2): 3}", r"a value that JSON cannot store: keys must be str"),
    ],
)
def test_details_that_cannot_be_written_are_refused(scores_with, returned, expected):
    scored, file = scores_with
    text = refusal(scores_as_dict, scored(f"def details(self, *_): return {returned}"))
    assert re.match(rf"metric input 'broken', class Broken \({file}\): details returned {expected}", text), text


def test_details_of_two_metric_inputs_must_not_differ(scores_with):
    scores = scores_with[0]("def details(self, *_): return {'words': len(self.names)}")
    broken = scores.inputs["broken"]
    assert scores_as_dict(replace(scores, inputs={"broken": broken, "same": broken}))["words"] == 4
    other = replace(scores, inputs={"broken": broken, "other": broken.take([0])})
    assert "metric input 'other', class Broken" in (text := refusal(scores_as_dict, other))
    assert "details returned the key 'words', which another metric input sets to another value." in text


@pytest.mark.parametrize("method", ["missing", "warning"])
@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("5", r" \(FILE\) returned 5\. Expected a string or None\."),
        ("False", r" \(FILE\) returned False\. Expected a string or None\."),
        ("1 / 0", r" \(FILE, line 16\) failed with ZeroDivisionError"),
    ],
)
def test_a_reason_or_warning_that_is_no_text_is_refused(scores_with, method, result, expected):
    scored, file = scores_with
    text = refusal(scored, f"@classmethod\n    def {method}(cls, *_): return {result}")
    pattern = f"evaluation_datasets.dev: {method} of the metric input Broken{expected}"
    assert re.match(pattern.replace("FILE", file), text), text


def test_a_user_error_of_a_metric_input_is_reported_as_it_is(module):
    raised = "from emollama.errors import UserError\n        raise UserError('set MY_WORDS')"
    import_user_modules([module("my_broken", INPUT.format(compute=raised, value="pass"))])
    assert refusal(scoring("length").score, ANSWERS) == "evaluation_datasets.dev: set MY_WORDS"


def test_a_metric_that_fails_on_a_resample_is_reported(module):
    few = "return 1 / (len({*metric_input.names}) - 1) if len({*metric_input.names}) < 4 else 1.0"
    import_user_modules([module("my_broken", INPUT.format(compute=GOOD, value=few))])
    scores = {"a": scoring("length").score(ANSWERS)["reason"]}
    text = refusal(compare, scores, Resampling(400))
    assert re.search(r"metric 'length' \(.*my_broken\.py, line 16\) failed with ZeroDivisionError", text)


def test_a_metric_with_an_input_that_is_not_registered_is_refused_with_the_remedy(module):
    METRICS.register("odd")(Metric("odd", "anwers", len))
    text = refusal(scoring, "odd")
    assert text.startswith("metric 'odd': Unknown metric input 'anwers'. Did you mean 'answers'?")
    assert "Register its class with @METRIC_INPUTS.register('anwers')" in text
    assert refusal(scoring) == f"evaluation_datasets.dev: {text}"


def test_a_metric_input_that_is_no_subclass_is_refused(module):
    class Other:
        Config = Scoring.Config

    METRIC_INPUTS.register("other")(Other)
    METRICS.register("odd")(Metric("odd", "other", len))
    assert re.search(
        r"metric input 'other' \(.*test_user_metrics\.py\): .* must be a subclass of .*MetricInput", refusal(scoring, "odd")
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((5, "answers", len), "metric 5: title must be a string, not int"),
        (("odd", Scoring, len), "metric 'odd': metric_input must be the name of a registered metric input, such as"),
        (("odd", "answers", None), "metric 'odd': compute must be a function of the metric input, not None"),
        (("odd", "answers", len, True, "1"), "metric 'odd': max_value must be a number or None, not '1'"),
    ],
)
def test_a_value_of_another_type_in_a_metric_is_refused(values, expected):
    with pytest.raises(TypeError, match=expected):
        Metric(*values)


def test_a_metric_that_cannot_be_built_is_reported_with_the_line_of_its_module(module, tmp_path):
    text = "from emollama.evaluation.metrics import Metric\n\nMetric(5, 'answers', len)\n"
    assert "metric 5: title must be a string" in (refused := refusal(import_user_modules, [module("my_title", text)]))
    assert f"{tmp_path / 'my_title.py'}, line 3: TypeError" in refused


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nowhere_to_be_found", "--imports: cannot import 'nowhere_to_be_found': No module named"),
        ("./my_metrics.py", "--imports: './my_metrics.py' is not the name of a Python module. Write package.module"),
    ],
)
@pytest.mark.parametrize("command", ["score", "submission", "report", "compare"])
def test_a_module_that_cannot_be_imported_is_reported_with_the_option(emollama, module, command, name, expected):
    files = ["a", "b"] if command in ("report", "compare") else ["--predictions", "a"]
    output = ["--output", "x.npz"] if command == "submission" else []
    run = emollama(command, *files, *output, "--imports", name)
    assert run.returncode == 1 and run.stderr.startswith(f"error: {expected}")


# Runs


def test_predictions_are_written_before_a_metric_fails(module, tmp_path):
    from emollama.distributed import process_group
    from emollama.runners.evaluation import Evaluation, EvaluationSet

    import_user_modules([module("my_broken", INPUT.format(compute="return predictions[9]", value="pass"))])
    rows = [PredictionRecord(each.name, "reason", "?", each.text, None, None, None) for each in ANSWERS]
    empty = SimpleNamespace(digest=str, features=(), compute_dtype="fp32")
    world = process_group.start("cpu")
    generator = SimpleNamespace(members=(), prompt_format=empty)
    runner = SimpleNamespace(world=world, predict=lambda *_: rows, generator=generator, precision=empty)
    evaluation = Evaluation({"dev": EvaluationSet(empty, None, scoring("length"))}, runner, None, {})
    text = refusal(evaluation.run, tmp_path / "result")
    path = tmp_path / "result/predictions_dev.jsonl"
    assert text.endswith(f"The predictions are in {path}; to score them later, use 'emollama score'.")
    assert [json.loads(line)["prediction"] for line in path.read_text().splitlines()] == WORDS


def test_a_report_shows_the_plain_name_of_an_unknown_metric_and_its_title_with_imports(module, tmp_path, emollama):
    folder = tmp_path / "run"
    write_json(
        folder / "result/metrics_dev.json", {"block": "dev", "tasks": {"reason": {"clips": 4, "metrics": {"mean_words": 2.5}}}}
    )
    assert emollama("report", folder).returncode == 0
    page = folder / "result/report.html"
    assert "mean_words" in page.read_text() and "words per answer" not in page.read_text()
    assert emollama("report", "--imports", module("my_metrics", EXAMPLES["my_metrics"]), folder).returncode == 0
    assert "words per answer" in page.read_text()
