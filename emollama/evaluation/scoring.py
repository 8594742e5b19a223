"""Scoring: selects the metrics that a block's tasks and keys allow, builds their metric inputs, and computes their values.

All errors in the keys are detected when a :class:`Scoring` is constructed, before any answer is generated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from emollama.errors import UserError, require_at_least
from emollama.evaluation.answers import Answer
from emollama.evaluation.captions.gathering import CAPTION, CaptionInputs
from emollama.evaluation.captions.java import JavaFailed
from emollama.evaluation.captions.metric_inputs import CAPTION_METRIC_INPUTS, CaptionNumbers
from emollama.evaluation.captions.tokenizers import CaptionTokenizer
from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps, judge_clues, judge_labels
from emollama.evaluation.judges.judge import JudgeUnreachable
from emollama.evaluation.labels import AnswerRule, LabelReader, SeveralHits
from emollama.evaluation.losses import Losses
from emollama.evaluation.metrics import Metric, MetricInput, metric
from emollama.evaluation.openset import OpenSets, extract_words, read_openset, read_synonyms
from emollama.evaluation.recognition import Labels
from emollama.evaluation.spelling import KeySpelling
from emollama.evaluation.wheels import Wheels, WheelSets
from emollama.listing import listing
from emollama.registry import JUDGES, METRICS

DESCRIBING = ("reason", "reason_v2", "")  # tasks whose answers are descriptions; "" if a file does not state its task
JUDGED = (ClueOverlaps, LabelOverlaps)
MAY_USE_JUDGE = (*JUDGED, OpenSets, WheelSets)  # the judge also extracts the words of descriptions
COUNTED = ("calls", "cached", "failed", "prompt_tokens", "completion_tokens", "cost")


@dataclass(frozen=True)
class TaskScores:
    """Scores of the answers to one task.

    Attributes:
        answers: the answers.
        metrics: name -> value; None if it is undefined.
        inputs: the metric inputs by class.
        judge: name and usage of the judge, and why it was ``unreachable`` if so; empty if no judge was used.
    """

    answers: Sequence[Answer]
    metrics: dict[str, float | None]
    inputs: dict[type, MetricInput]
    judge: dict[str, Any]

    @property
    def clips(self) -> int:
        """Number of answers."""
        return len(self.answers)


class Scoring:
    """Scores the answers of an evaluation block or of a file.

    Args:
        cfg: configuration of the scores.
        labels: labels that answers to the task ``emotion`` may have.
        aliases: word in an answer -> label that it stands for.
        tasks: task -> what its answers have: "reference", "loss", both or neither.
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
        self._builders: dict[type, Callable[[list[Answer]], MetricInput]] = {
            Labels: self._labels,
            ClueOverlaps: self._clues,
            LabelOverlaps: self._label_overlaps,
            OpenSets: self._open_sets,
            WheelSets: self._wheel_sets,
            **{kind: partial(self._caption_numbers, kind) for kind in CAPTION_METRIC_INPUTS},
            Losses: self._losses,
        }
        self.metrics = {task: self._computable(task) for task in tasks}
        self._require_computable()
        if self._captions and any(metric(name).input_type in CAPTION_METRIC_INPUTS for name in self.metrics[CAPTION]):
            self._captions.warn(without_meteor=not cfg.metrics)
        if self.judge and not any(metric(name).input_type in JUDGED for names in self.metrics.values() for name in names):
            text = "%s: the judge is not used, because the data has no descriptions to compare with. Add data that has them."
            logging.getLogger("emollama").warning(text, spelling.path("judge"))

    def score(self, answers: Sequence[Answer], *, tolerant: bool = False) -> dict[str, TaskScores]:
        """Return the scores of each task. Answers to tasks that were not passed to the constructor are ignored.

        Args:
            answers: answers to any of the tasks.
            tolerant: if a judge cannot be reached or a Java program fails, its metrics are None, with a warning.

        Raises:
            JudgeUnreachable: If the judge cannot be reached, unless ``tolerant``.
            JavaFailed: If a Java program failed, unless ``tolerant``.
        """
        by_task = {task: [answer for answer in answers if answer.task == task] for task in self.metrics}
        return {task: self._scores(by_task[task], metrics, tolerant) for task, metrics in self.metrics.items()}

    def _scores(self, answers: list[Answer], metrics: list[str], tolerant: bool) -> TaskScores:
        chosen = {name: metric(name) for name in metrics}
        kinds = [kind for kind in self._builders if any(one.input_type is kind for one in chosen.values())]
        uses_judge = self.judge is not None and any(kind in MAY_USE_JUDGE for kind in kinds)
        before = self.judge.usage() if uses_judge else {}
        inputs, failure = self._build_inputs(kinds, answers, tolerant)
        unreachable = {"unreachable": str(failure)} if failure else {}
        values = {name: one.value(inputs[one.input_type]) if one.input_type in inputs else None for name, one in chosen.items()}
        judge = {"name": self.judge.name, **_usage_between(before, self.judge.usage()), **unreachable} if uses_judge else {}
        return TaskScores(answers, values, inputs, judge)

    def _build_inputs(
        self, kinds: list[type], answers: list[Answer], tolerant: bool
    ) -> tuple[dict[type, MetricInput], JudgeUnreachable | None]:
        """Build the metric inputs; if the judge cannot be reached, return those built so far and the error."""
        inputs: dict[type, MetricInput] = {}
        # Inputs that may need the judge come last, so that an unreachable judge costs no other metric.
        for kind in sorted(kinds, key=MAY_USE_JUDGE.__contains__):
            try:
                inputs[kind] = self._builders[kind](answers)
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
                raise UserError(f"{key}: '{name}' cannot be computed here: it needs {self.needs(name)}")

    def needs(self, name: str) -> str:
        """Return what a metric needs that this block does not have."""
        missing = {self._missing(metric(name), task) for task in self._tasks}
        return f"its name in {self._spelling.path('metrics')}" if None in missing else " or ".join(sorted(map(str, missing)))

    def _missing(self, requested: Metric, task: str) -> str | None:
        """Return what is missing to compute a metric for a task; None if nothing is."""
        kind = requested.input_type
        if kind not in self._builders:
            return f"a metric input of the class {kind.__name__}, which no code builds"
        if kind is Losses and "loss" not in self._tasks[task]:
            return "samples with a target answer, and prompt_layout: train"
        if kind is Labels and task != "emotion":
            return "the task 'emotion'"
        if kind in CAPTION_METRIC_INPUTS and task != CAPTION:
            return f"the task '{CAPTION}'"
        if kind in CAPTION_METRIC_INPUTS:
            return self._captions.missing(kind) if self._captions else "samples with reference captions"
        if kind in JUDGED and task not in DESCRIBING:
            return "a task with descriptions (reason, reason_v2)"
        if kind in JUDGED and self.judge is None:
            return f"a judge; set {self._spelling.component('judge', 'lexical')}, or another judge"
        if (kind is Labels or kind in JUDGED) and "reference" not in self._tasks[task]:
            return "samples with a reference: labels in the annotation file, or descriptions"
        if kind in (OpenSets, WheelSets) and self._openset is None:
            return f"{self._spelling.name('openset_path')}, the true emotion words of the samples"
        return (
            f"{self._spelling.name('wheel_folder')}, the emotion wheels" if kind is WheelSets and self._wheels is None else None
        )

    def _caption_numbers(self, kind: type[CaptionNumbers], answers: list[Answer]) -> MetricInput:
        assert self._captions is not None
        return self._captions.build(kind, answers)

    def _losses(self, answers: list[Answer]) -> Losses:
        losses = [(answer.name, answer.loss) for answer in answers if answer.loss is not None]
        return Losses(tuple(name for name, _ in losses), tuple(loss for _, loss in losses))

    def _labels(self, answers: list[Answer]) -> Labels:
        annotated = [answer for answer in answers if answer.reference is not None]
        extracted = [self._reader.read(answer.prediction) for answer in annotated]
        try:
            return Labels(
                names=tuple(answer.name for answer in annotated),
                truth=tuple(str(answer.truth) for answer in annotated),
                read=tuple(one.label for one in extracted),
                named=tuple(one.named for one in extracted),
                labels=self._reader.labels,
            )
        except UserError as error:
            raise UserError(f"{self._spelling.name('labels')}: {error}") from None

    def _clues(self, answers: list[Answer]) -> ClueOverlaps:
        return judge_clues(self.judge, [answer for answer in answers if answer.reference is not None])

    def _label_overlaps(self, answers: list[Answer]) -> LabelOverlaps:
        return judge_labels(self.judge, [answer for answer in answers if answer.reference is not None])

    def _open_sets(self, answers: list[Answer]) -> OpenSets:
        return OpenSets.of(*self._word_sets(answers), self._synonyms)

    def _wheel_sets(self, answers: list[Answer]) -> WheelSets:
        assert self._wheels is not None
        return WheelSets.of(*self._word_sets(answers), self._wheels)

    def _word_sets(self, answers: list[Answer]) -> tuple[list[str], list[Sequence[str]], list[Sequence[str]]]:
        """Return three lists (names, true words, predicted words), without samples whose words could not be extracted."""
        assert self._openset is not None
        predictions = {answer.name: answer.prediction for answer in answers if answer.name in self._openset}
        predicted = extract_words(predictions, self.judge or JUDGES.built({"type": "lexical"}, "judge"))
        failed = [name for name, words in predicted.items() if words is None]
        if failed:
            text = f"ov and ew leave out {listing(failed, 'sample')}, because the judge found no emotion words"
            logging.getLogger("emollama").warning("%s", self._spelling.in_block(text))
        names = [name for name, words in predicted.items() if words is not None]
        return names, [self._openset[name] for name in names], [predicted[name] or () for name in names]


def _usage_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return a judge's usage between two reports: the counts of ``after`` less those of ``before``."""
    counts = {key: after[key] - (before[key] or 0) for key in COUNTED if after.get(key) is not None}
    return {**after, **counts}
