"""Metrics and metric inputs of a user's modules: in files of scores, in configurations, and their errors."""

from __future__ import annotations

import importlib
import json
import re
import sys
from types import SimpleNamespace

import pytest
from helpers import golden_tree, loaded
from invented_runs import write_json, write_lines
from running import ROOT

from emollama.component_errors import ComponentFailed
from emollama.config.user_modules import import_user_modules
from emollama.errors import UserError
from emollama.evaluation.metrics import Metric
from emollama.evaluation.predictions import Prediction
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
        (GOOD, "return metric_input.length", r"metric 'length' \(FILE, line 16\) failed with AttributeError: "),
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


def test_a_class_instead_of_the_name_of_a_metric_input_is_refused():
    with pytest.raises(TypeError, match="metric 'odd': metric_input must be the name of a registered metric input, such as"):
        Metric("odd", Scoring, len)


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
    runner = SimpleNamespace(world=process_group.start("cpu"), predict=lambda *_: rows)
    evaluation = Evaluation({"dev": EvaluationSet(None, None, scoring("length"))}, runner, None)
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
