"""Scoring: selects the metrics that a block's tasks and keys allow, builds their metric inputs, and computes their values.

All errors in the keys are detected when a :class:`Scoring` is constructed, before any text is generated.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from emollama.errors import UserError, require_at_least
from emollama.evaluation.captions.java import JavaFailed
from emollama.evaluation.captions.reader import CaptionReader
from emollama.evaluation.captions.tokenizers import CaptionTokenizer
from emollama.evaluation.judges.judge import Judge, JudgeUnreachable
from emollama.evaluation.labels import AnswerRule, LabelReader, SeveralHits
from emollama.evaluation.metrics import MetricInput, compute_input, explanation, input_config, input_type, metric, metric_value
from emollama.evaluation.openset import read_openset
from emollama.evaluation.predictions import CAPTION, Prediction
from emollama.evaluation.resources import ScoringResources
from emollama.evaluation.spelling import KeySpelling
from emollama.evaluation.synonyms import Synonyms, read_synonyms
from emollama.evaluation.wheel_files import Wheels
from emollama.field_texts import documented
from emollama.registry import JUDGES, METRIC_INPUTS, METRICS

USAGE_COUNTERS = ("calls", "cached", "failed", "prompt_tokens", "completion_tokens", "cost")


@dataclass(frozen=True)
class TaskScores:
    """Scores of the predictions for one task.

    Attributes:
        predictions: the predictions.
        metrics: name -> value; None if it is undefined.
        inputs: the metric inputs by their registered names.
        judge: name and usage of the judge, and why it was ``unreachable`` if so; empty if no judge was used.
    """

    predictions: Sequence[Prediction]
    metrics: dict[str, float | None]
    inputs: dict[str, MetricInput]
    judge: dict[str, Any]

    @property
    def num_samples(self) -> int:
        """Number of samples, one for each prediction."""
        return len(self.predictions)

    def metrics_of(self, input_name: str) -> list[str]:
        """Return the names of the metrics that are computed from a metric input."""
        return [name for name in self.metrics if metric(name).metric_input == input_name]


class Scoring:
    """Scores the predictions of an evaluation block or of a file.

    Args:
        cfg: configuration of the scores.
        labels: labels that answers to the task ``emotion`` may have.
        aliases: word in an answer -> label that it stands for.
        tasks: task -> what its predictions have: "reference", "loss", both or neither.
        key: name of the block in messages; "" if its keys come from options.
        options: key -> the option that sets it, for messages; None for a block of a configuration.

    Raises:
        UserError: If a metric is unknown or cannot be computed here, the judge is configured incorrectly, or a file is unusable.
    """

    @documented
    @dataclass
    class Config:
        """Keys of a block under ``evaluation_datasets`` that concern its scores."""

        metrics: list[str] = field(default_factory=list)
        """Metrics to compute. If empty, all metrics that the block's tasks and the keys below allow are computed."""
        answer_rule: AnswerRule = "search"
        """How a label is extracted from an answer. exact: the whole answer is a label. search: the answer is a label, or contains
        one as a whole word. last_word: the last word is a label, as in the evaluation published with Emotion-LLaMA."""
        several_hits: SeveralHits = "invalid"
        """Result for an answer that contains several labels: invalid, or the first or last of them."""
        judge: dict[str, Any] | None = None
        """Judge of descriptions: {type: lexical}, or {type: openai, model: ..., base_url: ...}. If null, there is no judge, and
        clue_overlap and label_overlap are not computed."""
        openset_path: str | None = None
        """True emotion words of each clip (name,openset as CSV, or an imported openset.json), for the metrics ov and ew. Relative
        to the current directory."""
        synonyms_path: str | None = None
        """Groups of synonyms for ov, JSON: a list of lists of words, {group: [words]}, {word: group}, or {clip: list of lists of
        words} with groups for each clip; or openset-synonym.zip of MER2024-OV. If there are groups for each clip, other clips are
        left out. If null, each word is a group of its own."""
        wheel_folder: str | None = None
        """Folder of emotion wheels in the layout of MERTools, for ew."""
        wheel_level: int = 1
        """Level of the wheels at which ew compares words: 1 or 2."""
        caption_tokenizer: CaptionTokenizer = "auto"
        """Tokenizer that splits captions into words. ptb: Stanford's tokenizer, as in COCO's evaluation; needs Java. treebank:
        NLTK's; its scores are close to those of ptb, but not equal. auto: ptb if Java is installed, else treebank."""
        metric_inputs: dict[str, Any] = field(default_factory=dict)
        """Keys of metric inputs that have their own: {name: {key: value}}. The built-in ones have none."""

        def __post_init__(self) -> None:
            for name in self.metrics:
                METRICS.require(name, "metrics")
                input_type(name)
            for name, keys in self.metric_inputs.items():
                input_config(name, keys)
            require_at_least(1, self, "wheel_level")
            if self.wheel_level > 2:
                raise ValueError(f"wheel_level: expected 1 or 2, got {self.wheel_level}")
            if self.judge:
                JUDGES.configured(self.judge, "judge")

    def __init__(
        self,
        cfg: Config,
        *,
        labels: Sequence[str],
        aliases: Mapping[str, str],
        tasks: Mapping[str, Collection[str]],
        key: str,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.cfg = cfg
        self.key = key
        self._spelling = KeySpelling(key, options or {})
        self.judge: Judge | None = JUDGES.built(cfg.judge, self._spelling.path("judge")) if cfg.judge else None
        self._resources = self._read(tasks, labels, aliases)
        with self._named_in_errors():
            self.metrics = {task: self._computable(task) for task in tasks}
        self._require_computable()
        self._warn()

    def _read(self, tasks: Mapping[str, Collection[str]], labels: Sequence[str], aliases: Mapping[str, str]) -> ScoringResources:
        """Return what the block offers to metric inputs, and read its files."""
        cfg, spelling = self.cfg, self._spelling
        with self._named_in_errors():
            reader = LabelReader(labels, aliases, cfg.answer_rule, cfg.several_hits, spelling=spelling)
            openset = read_openset(cfg.openset_path, spelling.name("openset_path")) if cfg.openset_path else None
            synonyms, published = Synonyms(), None
            if cfg.synonyms_path:
                synonyms = read_synonyms(cfg.synonyms_path, spelling.name("synonyms_path"), openset or {})
            if cfg.openset_path and synonyms.by_sample is not None:
                published = read_openset(cfg.openset_path, published=True)
            folder = cfg.wheel_folder
            wheels = Wheels.read(folder, cfg.wheel_level, spelling.name("wheel_folder")) if folder else None
        captioned = "reference" in tasks.get(CAPTION, ())
        captions = CaptionReader(cfg.caption_tokenizer, spelling, every_metric=not cfg.metrics) if captioned else None
        return ScoringResources(
            tasks=tasks,
            spelling=spelling,
            label_reader=reader,
            judge=self.judge,
            openset=openset,
            published_openset=published,
            synonyms=synonyms,
            wheels=wheels,
            caption_reader=captions,
        )

    def _warn(self) -> None:
        """Log what differs because of something that is not installed, and a judge that is not asked."""
        computed = self._needed(name for names in self.metrics.values() for name in names)
        with self._named_in_errors():
            texts = [explanation(metric_input, "warning", self._resources_of(name)) for name, metric_input in computed.items()]
        if self.judge and not any(metric_input.uses_judge for metric_input in computed.values()):
            text = "the judge is not used, because the data has no descriptions to compare with. Add data that has them."
            texts.append(f"{self._spelling.path('judge')}: {text}")
        for warning in dict.fromkeys(filter(None, texts)):
            logging.getLogger("emollama").warning("%s", warning)

    def _needed(self, metrics: Iterable[str]) -> dict[str, type[MetricInput]]:
        """Return the inputs of these metrics by name, in the order of their registration."""
        needed = {metric(name).metric_input: input_type(name) for name in metrics}
        return {name: needed[name] for name in METRIC_INPUTS.in_order() if name in needed}

    def _resources_of(self, input_name: str) -> ScoringResources:
        """Return the resources for a metric input."""
        return replace(self._resources, cfg=input_config(input_name, self.cfg.metric_inputs.get(input_name, {})))

    @contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        """Put the path of the block in front of the message of a UserError."""
        try:
            yield
        except (JudgeUnreachable, JavaFailed):
            raise
        except UserError as error:
            raise type(error)(self._spelling.in_block(error)) from error.__cause__

    def score(self, predictions: Sequence[Prediction], *, tolerant: bool = False) -> dict[str, TaskScores]:
        """Return the scores of each task. Predictions for tasks that were not passed to the constructor are ignored.

        Args:
            predictions: predictions for any of the tasks.
            tolerant: if a judge cannot be reached or a Java program fails, its metrics are None, with a warning.

        Raises:
            JudgeUnreachable: If the judge cannot be reached, unless ``tolerant``.
            JavaFailed: If a Java program failed, unless ``tolerant``.
        """
        by_task = {task: [prediction for prediction in predictions if prediction.task == task] for task in self.metrics}
        return {task: self._scores(by_task[task], metrics, tolerant) for task, metrics in self.metrics.items()}

    def _scores(self, predictions: list[Prediction], metrics: list[str], tolerant: bool) -> TaskScores:
        needed = self._needed(metrics)
        judge = self.judge if any(metric_input.uses_judge for metric_input in needed.values()) else None
        before = judge.usage() if judge else {}
        inputs, failure = self._compute_inputs(metrics, predictions, tolerant)
        unreachable = {"unreachable": str(failure)} if failure else {}
        with self._named_in_errors():
            input_names = {name: metric(name).metric_input for name in metrics}
            values = {
                name: metric_value(name, inputs[input_name]) if input_name in inputs else None
                for name, input_name in input_names.items()
            }
        usage = {"name": judge.name, **_usage_between(before, judge.usage()), **unreachable} if judge else {}
        return TaskScores(predictions, values, inputs, usage)

    def _compute_inputs(
        self, metrics: Sequence[str], predictions: list[Prediction], tolerant: bool
    ) -> tuple[dict[str, MetricInput], JudgeUnreachable | None]:
        """Compute the metric inputs; if the judge cannot be reached, return those computed so far and the error."""
        inputs: dict[str, MetricInput] = {}
        # Inputs that may need the judge come last, so that an unreachable judge costs no other metric.
        for name, _ in sorted(self._needed(metrics).items(), key=lambda item: item[1].uses_judge):
            own = [one for one in metrics if metric(one).metric_input == name]
            try:
                with self._named_in_errors():
                    inputs[name] = compute_input(own, predictions, self._resources_of(name))
            except (JudgeUnreachable, JavaFailed) as error:
                if not tolerant:
                    raise
                logging.getLogger("emollama").warning("%s", self._spelling.in_block(error))
                if isinstance(error, JudgeUnreachable):
                    return inputs, error
        return inputs, None

    def _computable(self, task: str) -> list[str]:
        """Return the requested metrics that can be computed for a task."""
        names = [name for name in self.cfg.metrics or METRICS.in_order() if self._missing(name, task) is None]
        order = METRIC_INPUTS.in_order()
        return names if self.cfg.metrics else sorted(names, key=lambda name: order.index(metric(name).metric_input))

    def _require_computable(self) -> None:
        for name in self.cfg.metrics:
            if not any(name in computable for computable in self.metrics.values()):
                key = self._spelling.path("metrics")
                raise UserError(f"{key}: '{name}' cannot be computed here: {self.why_not_computed(name)}")

    def why_not_computed(self, name: str) -> str:
        """Return the reason why a metric is not computed for any task of this block."""
        missing = {self._missing(name, task) for task in self.metrics}
        if None in missing:
            return f"it is not listed in {self._spelling.path('metrics')}"
        return f"it needs {' or '.join(sorted(map(str, missing)))}"

    def _missing(self, name: str, task: str) -> str | None:
        """Return what is missing to compute a metric for a task; None if nothing is."""
        return explanation(input_type(name), "missing", self._resources_of(metric(name).metric_input), task)


def _usage_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return a judge's usage between two reports: the counts of ``after`` less those of ``before``."""
    counts = {key: after[key] - (before[key] or 0) for key in USAGE_COUNTERS if after.get(key) is not None}
    return {**after, **counts}
