"""Scoring: selects the metrics that a block's tasks and keys allow, builds their metric inputs, and computes their values.

All errors in the keys are detected when a :class:`Scoring` is constructed, before any text is generated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from emollama.errors import UserError, require_at_least
from emollama.evaluation.captions.gathering import CaptionInputs
from emollama.evaluation.captions.java import JavaFailed
from emollama.evaluation.captions.metric_inputs import CAPTION_METRIC_INPUTS, CaptionNumbers
from emollama.evaluation.captions.tokenizers import CaptionTokenizer
from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps, judge_clues, judge_labels
from emollama.evaluation.judges.judge import JudgeUnreachable
from emollama.evaluation.labels import AnswerRule, LabelReader, SeveralHits
from emollama.evaluation.losses import Losses
from emollama.evaluation.metrics import Metric, MetricInput, metric
from emollama.evaluation.openset import OpenSets, extract_words, read_openset, read_synonyms
from emollama.evaluation.predictions import CAPTION, Prediction
from emollama.evaluation.recognition import Labels
from emollama.evaluation.spelling import KeySpelling
from emollama.evaluation.wheels import Wheels, WheelSets
from emollama.listing import listing
from emollama.registry import JUDGES, METRICS

DESCRIPTION_TASKS = ("reason", "reason_v2", "")  # "" if a file does not state its task
JUDGE_INPUTS = (ClueOverlaps, LabelOverlaps)
INPUTS_THAT_MAY_USE_JUDGE = (*JUDGE_INPUTS, OpenSets, WheelSets)  # the judge also extracts the words of descriptions
USAGE_COUNTERS = ("calls", "cached", "failed", "prompt_tokens", "completion_tokens", "cost")


@dataclass(frozen=True)
class TaskScores:
    """Scores of the predictions for one task.

    Attributes:
        predictions: the predictions.
        metrics: name -> value; None if it is undefined.
        inputs: the metric inputs by class.
        judge: name and usage of the judge, and why it was ``unreachable`` if so; empty if no judge was used.
    """

    predictions: Sequence[Prediction]
    metrics: dict[str, float | None]
    inputs: dict[type, MetricInput]
    judge: dict[str, Any]

    @property
    def num_samples(self) -> int:
        """Number of samples, one for each prediction."""
        return len(self.predictions)


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
        """Groups of synonyms for ov, JSON: a list of lists of words, {group: [words]} or {word: group}. If null, each word is a
        group of its own."""
        wheel_folder: str | None = None
        """Folder of emotion wheels in the layout of MERTools, for ew."""
        wheel_level: int = 1
        """Level of the wheels at which ew compares words: 1 or 2."""
        caption_tokenizer: CaptionTokenizer = "auto"
        """Tokenizer that splits captions into words. ptb: Stanford's tokenizer, as in COCO's evaluation; needs Java. treebank:
        NLTK's; its scores are close to those of ptb, but not equal. auto: ptb if Java is installed, else treebank."""

        def __post_init__(self) -> None:
            for name in self.metrics:
                METRICS.get(name, "metrics")
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
        spelling = self._spelling = KeySpelling(key, options or {})
        self._tasks = tasks
        self.judge: Any = JUDGES.built(cfg.judge, spelling.path("judge")) if cfg.judge else None
        try:
            self._reader = LabelReader(labels, aliases, cfg.answer_rule, cfg.several_hits, spelling=spelling)
            self._openset = read_openset(cfg.openset_path, spelling.name("openset_path")) if cfg.openset_path else None
            self._synonyms = read_synonyms(cfg.synonyms_path, spelling.name("synonyms_path")) if cfg.synonyms_path else {}
            folder = cfg.wheel_folder
            self._wheels = Wheels.read(folder, cfg.wheel_level, spelling.name("wheel_folder")) if folder else None
        except UserError as error:
            raise UserError(spelling.in_block(error)) from None
        captioned = "reference" in tasks.get(CAPTION, ())
        self._captions = CaptionInputs(cfg.caption_tokenizer, spelling) if captioned else None
        self._builders: dict[type, Callable[[list[Prediction]], MetricInput]] = {
            Labels: self._labels,
            ClueOverlaps: self._clues,
            LabelOverlaps: self._label_overlaps,
            OpenSets: self._open_sets,
            WheelSets: self._wheel_sets,
            **{input_type: partial(self._caption_numbers, input_type) for input_type in CAPTION_METRIC_INPUTS},
            Losses: self._losses,
        }
        self.metrics = {task: self._computable(task) for task in tasks}
        self._require_computable()
        if self._captions and any(metric(name).input_type in CAPTION_METRIC_INPUTS for name in self.metrics[CAPTION]):
            self._captions.warn(without_meteor=not cfg.metrics)
        if self.judge and not any(metric(name).input_type in JUDGE_INPUTS for names in self.metrics.values() for name in names):
            text = "%s: the judge is not used, because the data has no descriptions to compare with. Add data that has them."
            logging.getLogger("emollama").warning(text, spelling.path("judge"))

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
        input_types = {name: metric(name).input_type for name in metrics}
        needed = [input_type for input_type in self._builders if input_type in input_types.values()]
        uses_judge = self.judge is not None and any(input_type in INPUTS_THAT_MAY_USE_JUDGE for input_type in needed)
        before = self.judge.usage() if uses_judge else {}
        inputs, failure = self._build_inputs(needed, predictions, tolerant)
        unreachable = {"unreachable": str(failure)} if failure else {}
        values = {
            name: metric(name).compute(inputs[input_type]) if input_type in inputs else None
            for name, input_type in input_types.items()
        }
        judge = {"name": self.judge.name, **_usage_between(before, self.judge.usage()), **unreachable} if uses_judge else {}
        return TaskScores(predictions, values, inputs, judge)

    def _build_inputs(
        self, input_types: list[type], predictions: list[Prediction], tolerant: bool
    ) -> tuple[dict[type, MetricInput], JudgeUnreachable | None]:
        """Build the metric inputs; if the judge cannot be reached, return those built so far and the error."""
        inputs: dict[type, MetricInput] = {}
        # Inputs that may need the judge come last, so that an unreachable judge costs no other metric.
        for input_type in sorted(input_types, key=INPUTS_THAT_MAY_USE_JUDGE.__contains__):
            try:
                inputs[input_type] = self._builders[input_type](predictions)
            except (JudgeUnreachable, JavaFailed) as error:
                if not tolerant:
                    raise
                logging.getLogger("emollama").warning("%s", self._spelling.in_block(error))
                if isinstance(error, JudgeUnreachable):
                    return inputs, error
            except UserError as error:
                raise UserError(self._spelling.in_block(error)) from None
        return inputs, None

    def _computable(self, task: str) -> list[str]:
        """Return the requested metrics that can be computed for a task."""
        names = [name for name in self.cfg.metrics or METRICS.in_order() if self._missing(metric(name), task) is None]
        order = list(self._builders)
        return names if self.cfg.metrics else sorted(names, key=lambda name: order.index(metric(name).input_type))

    def _require_computable(self) -> None:
        for name in self.cfg.metrics:
            if not any(name in computable for computable in self.metrics.values()):
                key = self._spelling.path("metrics")
                raise UserError(f"{key}: '{name}' cannot be computed here: {self.why_not_computed(name)}")

    def why_not_computed(self, name: str) -> str:
        """Return the reason why a metric is not computed for any task of this block."""
        if metric(name).input_type not in self._builders:
            return f"no builder is registered for its metric input {metric(name).input_type.__name__}"
        missing = {self._missing(metric(name), task) for task in self._tasks}
        if None in missing:
            return f"it is not listed in {self._spelling.path('metrics')}"
        return f"it needs {' or '.join(sorted(map(str, missing)))}"

    def _missing(self, requested: Metric, task: str) -> str | None:
        """Return what is missing to compute a metric for a task; None if nothing is."""
        input_type = requested.input_type
        if input_type not in self._builders:
            return f"a builder of {input_type.__name__}"
        if input_type is Losses and "loss" not in self._tasks[task]:
            return "samples with a target answer, and prompt_layout: train"
        if input_type is Labels and task != "emotion":
            return "the task 'emotion'"
        if input_type in CAPTION_METRIC_INPUTS and task != CAPTION:
            return f"the task '{CAPTION}'"
        if input_type in CAPTION_METRIC_INPUTS:
            return self._captions.missing(input_type) if self._captions else "samples with reference captions"
        if input_type in JUDGE_INPUTS and task not in DESCRIPTION_TASKS:
            return "a task with descriptions (reason, reason_v2)"
        if input_type in JUDGE_INPUTS and self.judge is None:
            return f"a judge; set {self._spelling.component('judge', 'lexical')}, or another judge"
        if (input_type is Labels or input_type in JUDGE_INPUTS) and "reference" not in self._tasks[task]:
            return "samples with a reference: labels in the annotation file, or descriptions"
        if input_type in (OpenSets, WheelSets) and self._openset is None:
            return f"{self._spelling.name('openset_path')}, the true emotion words of the samples"
        needs_wheels = input_type is WheelSets and self._wheels is None
        return f"{self._spelling.name('wheel_folder')}, the emotion wheels" if needs_wheels else None

    def _caption_numbers(self, input_type: type[CaptionNumbers], predictions: list[Prediction]) -> MetricInput:
        assert self._captions is not None
        return self._captions.build(input_type, predictions)

    def _losses(self, predictions: list[Prediction]) -> Losses:
        losses = [(prediction.name, prediction.loss) for prediction in predictions if prediction.loss is not None]
        return Losses(tuple(name for name, _ in losses), tuple(loss for _, loss in losses))

    def _labels(self, predictions: list[Prediction]) -> Labels:
        annotated = [prediction for prediction in predictions if prediction.reference is not None]
        extracted = [self._reader.read(prediction.text) for prediction in annotated]
        try:
            return Labels(
                names=tuple(prediction.name for prediction in annotated),
                references=tuple(str(prediction.reference_text) for prediction in annotated),
                predicted=tuple(extraction.label for extraction in extracted),
                mentioned=tuple(extraction.mentioned for extraction in extracted),
                labels=self._reader.labels,
            )
        except UserError as error:
            raise UserError(f"{self._spelling.name('labels')}: {error}") from None

    def _clues(self, predictions: list[Prediction]) -> ClueOverlaps:
        return judge_clues(self.judge, [prediction for prediction in predictions if prediction.reference is not None])

    def _label_overlaps(self, predictions: list[Prediction]) -> LabelOverlaps:
        return judge_labels(self.judge, [prediction for prediction in predictions if prediction.reference is not None])

    def _open_sets(self, predictions: list[Prediction]) -> OpenSets:
        return OpenSets.of(*self._word_sets(predictions), self._synonyms)

    def _wheel_sets(self, predictions: list[Prediction]) -> WheelSets:
        assert self._wheels is not None
        return WheelSets.of(*self._word_sets(predictions), self._wheels)

    def _word_sets(self, predictions: list[Prediction]) -> tuple[list[str], list[Sequence[str]], list[Sequence[str]]]:
        """Return three lists (names, reference words, predicted words), without samples whose words could not be extracted."""
        assert self._openset is not None
        predicted_texts = {prediction.name: prediction.text for prediction in predictions if prediction.name in self._openset}
        predicted = extract_words(predicted_texts, self.judge or JUDGES.built({"type": "lexical"}, "judge"))
        failed = [name for name, words in predicted.items() if words is None]
        if failed:
            text = f"ov and ew leave out {listing(failed, 'sample')}, because the judge found no emotion words"
            logging.getLogger("emollama").warning("%s", self._spelling.in_block(text))
        names = [name for name, words in predicted.items() if words is not None]
        return names, [self._openset[name] for name in names], [predicted[name] or () for name in names]


def _usage_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return a judge's usage between two reports: the counts of ``after`` less those of ``before``."""
    counts = {key: after[key] - (before[key] or 0) for key in USAGE_COUNTERS if after.get(key) is not None}
    return {**after, **counts}
