"""From answers to figures: which metrics a block's tasks and keys allow, the evidence that they need, their values.

Everything that can be wrong about the keys is found when a :class:`Scoring` is made, before anything is generated.
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
from emollama.evaluation.captions.tokenizers import TokenizerChoice
from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps, judge_clues, judge_labels
from emollama.evaluation.judges.judge import JudgeUnreachable
from emollama.evaluation.labels import AnswerRule, LabelReader, SeveralHits
from emollama.evaluation.losses import Losses
from emollama.evaluation.metrics import Metric, MetricInput, metric
from emollama.evaluation.openset import OpenSets, listed_words, read_openset, read_synonyms
from emollama.evaluation.recognition import Labels
from emollama.evaluation.spelling import KeySpelling
from emollama.evaluation.wheels import Wheels, WheelSets
from emollama.listing import listing
from emollama.registry import JUDGES, METRICS

DESCRIBING = ("reason", "reason_v2", "")  # tasks whose answers describe; "" is a file's that does not say
JUDGED = (ClueOverlaps, LabelOverlaps)
ASKING = (*JUDGED, OpenSets, WheelSets)  # words of descriptions are the judge's too
COUNTED = ("calls", "cached", "failed", "prompt_tokens", "completion_tokens", "cost")


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task's answers.

    Attributes:
        answers: what was scored.
        metrics: name -> value; None where nothing could be computed.
        evidence: what they were computed from, by class.
        judge: the judge's name where one was asked, what that took, and why it was ``unreachable`` if it was; empty where none
            was asked.
    """

    answers: Sequence[Answer]
    metrics: dict[str, float | None]
    evidence: dict[type, MetricInput]
    judge: dict[str, Any]

    @property
    def clips(self) -> int:
        """How many answers there were."""
        return len(self.answers)


class Scoring:
    """Scores the answers of a block, or of a file.

    Args:
        cfg: its keys.
        labels: that answers of the task ``emotion`` may have.
        aliases: word in an answer -> label that it stands for.
        tasks: each task that there are answers to -> what the answers come with: "reference", "loss", or nothing.
        key: what messages call the block; "" if its keys come from options.
        options: key -> the option that sets it, for messages; none for a block of a configuration.

    Raises:
        UserError: an unknown metric, one that cannot be computed here, a judge that is configured wrongly, unusable files.
    """

    @dataclass
    class Config:
        """Keys of a block under ``evaluation_datasets`` about its scores."""

        metrics: list[str] = field(default_factory=list)
        """Metrics to compute. Empty: all that the block's tasks and the keys below allow."""
        answer_rule: AnswerRule = "search"
        """How a label is read out of an answer. exact: the whole answer is a label. search: the answer is one, or names one
        as a whole word. last_word: its last word, as the predecessors did."""
        several_hits: SeveralHits = "invalid"
        """What an answer that names several labels is: invalid, or the first or last of them."""
        judge: dict[str, Any] | None = None
        """Who judges descriptions: {type: lexical}, or {type: openai, model: ..., base_url: ...}. Null: nobody does, and there is
        no clue_overlap and label_overlap."""
        openset_path: str | None = None
        """Each clip's true emotion words (name,openset as CSV, or an imported openset.json), for the metrics ov and ew. Starts
        at the current directory."""
        synonyms_path: str | None = None
        """Groups of synonyms for ov, JSON: a list of lists of words, {group: [words]} or {word: group}. Null: every word is a
        group of its own."""
        wheel_folder: str | None = None
        """Emotion wheels in the layout of MERTools, for ew."""
        wheel_level: int = 1
        """Level of the wheels at which ew compares: 1 or 2."""
        caption_tokenizer: TokenizerChoice = "auto"
        """How captions are split into words. ptb: Stanford's tokenizer, as in COCO's evaluation; needs Java. treebank: NLTK's,
        whose figures are near those of ptb, not equal. auto: ptb where Java is."""

        def __post_init__(self) -> None:
            for name in self.metrics:
                METRICS.get(name, "metrics")
            require_at_least(1, self, "wheel_level")
            if self.wheel_level > 2:
                raise ValueError(f"wheel_level is {self.wheel_level}; it is 1 or 2")
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
        self._given = tasks
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
        self._gather: dict[type, Callable[[list[Answer]], MetricInput]] = {
            Labels: self._labels,
            ClueOverlaps: self._clues,
            LabelOverlaps: self._label_overlaps,
            OpenSets: self._open_sets,
            WheelSets: self._wheel_sets,
            **{kind: partial(self._caption_numbers, kind) for kind in CAPTION_METRIC_INPUTS},
            Losses: self._losses,
        }
        self.metrics = {task: self._possible(task) for task in tasks}
        self._refuse_impossible()
        if self._captions and any(metric(name).evidence in CAPTION_METRIC_INPUTS for name in self.metrics[CAPTION]):
            self._captions.warn(without_meteor=not cfg.metrics)
        if self.judge and not any(metric(name).evidence in JUDGED for names in self.metrics.values() for name in names):
            text = "%s: the data has no description to compare with, so nothing is judged. Name data that has them."
            logging.getLogger("emollama").warning(text, spelling.path("judge"))

    def score(self, answers: Sequence[Answer], *, tolerant: bool = False) -> dict[str, TaskScores]:
        """task -> its scores. Answers of tasks that were not announced are left out.

        Args:
            answers: of any of the tasks.
            tolerant: metrics of a judge that cannot be reached, and of a Java program that fails, are None, with a warning.

        Raises:
            JudgeUnreachable, JavaFailed: unless tolerant.
        """
        by_task = {task: [answer for answer in answers if answer.task == task] for task in self.metrics}
        return {task: self._scores(by_task[task], metrics, tolerant) for task, metrics in self.metrics.items()}

    def _scores(self, answers: list[Answer], metrics: list[str], tolerant: bool) -> TaskScores:
        chosen = {name: metric(name) for name in metrics}
        kinds = [kind for kind in self._gather if any(found.evidence is kind for found in chosen.values())]
        judged = self.judge is not None and any(kind in ASKING for kind in kinds)
        before = self.judge.usage() if judged else {}
        evidence, failure = self._gathered(kinds, answers, tolerant)
        unreachable = {"unreachable": str(failure)} if failure else {}
        values = {
            name: found.value(evidence[found.evidence]) if found.evidence in evidence else None for name, found in chosen.items()
        }
        judge = {"name": self.judge.name, **_spent(before, self.judge.usage()), **unreachable} if judged else {}
        return TaskScores(answers, values, evidence, judge)

    def _gathered(
        self, kinds: list[type], answers: list[Answer], tolerant: bool
    ) -> tuple[dict[type, MetricInput], JudgeUnreachable | None]:
        """The evidence of these kinds as far as it can be had, and why the judge could not be asked, where it could not."""
        evidence: dict[type, MetricInput] = {}
        for kind in sorted(kinds, key=ASKING.__contains__):  # what a judge may be asked for comes last
            try:
                evidence[kind] = self._gather[kind](answers)
            except (JudgeUnreachable, JavaFailed) as error:
                if not tolerant:
                    raise
                logging.getLogger("emollama").warning("%s", self._spelling.in_block(error))
                if isinstance(error, JudgeUnreachable):
                    return evidence, error
            except UserError as error:
                raise UserError(self._spelling.in_block(error)) from None
        return evidence, None

    def _possible(self, task: str) -> list[str]:
        """The metrics that are wanted and can be computed for a task."""
        possible = [name for name in self.cfg.metrics or METRICS.in_order() if self._lacking(metric(name), task) is None]
        order = list(self._gather)
        return possible if self.cfg.metrics else sorted(possible, key=lambda name: order.index(metric(name).evidence))

    def _refuse_impossible(self) -> None:
        for name in self.cfg.metrics:
            if not any(name in possible for possible in self.metrics.values()):
                key = self._spelling.path("metrics")
                raise UserError(f"{key}: '{name}' cannot be computed here: it needs {self.needs(name)}")

    def needs(self, name: str) -> str:
        """What a metric would need that this block does not have."""
        lacking = {self._lacking(metric(name), task) for task in self._given}
        return f"its name in {self._spelling.path('metrics')}" if None in lacking else " or ".join(sorted(map(str, lacking)))

    def _lacking(self, found: Metric, task: str) -> str | None:
        """What a metric would need to be computed for a task; None where nothing is lacking."""
        kind = found.evidence
        if kind not in self._gather:
            return f"evidence of the kind {kind.__name__}, which nothing gathers"
        if kind is Losses and "loss" not in self._given[task]:
            return "clips with an answer to learn from, and prompt_layout: train"
        if kind is Labels and task != "emotion":
            return "the task 'emotion'"
        if kind in CAPTION_METRIC_INPUTS and task != CAPTION:
            return f"the task '{CAPTION}'"
        if kind in CAPTION_METRIC_INPUTS:
            return self._captions.lacking(kind) if self._captions else "clips whose true captions are known"
        if kind in JUDGED and task not in DESCRIBING:
            return "a task that describes (reason, reason_v2)"
        if kind in JUDGED and self.judge is None:
            return f"a judge; set {self._spelling.component('judge', 'lexical')}, or another one"
        if (kind is Labels or kind in JUDGED) and "reference" not in self._given[task]:
            return "clips whose true answer is known: labels in the list, or descriptions"
        if kind in (OpenSets, WheelSets) and self._openset is None:
            return f"{self._spelling.name('openset_path')}, the clips' true emotion words"
        return (
            f"{self._spelling.name('wheel_folder')}, the emotion wheels" if kind is WheelSets and self._wheels is None else None
        )

    def _caption_numbers(self, kind: type[CaptionNumbers], answers: list[Answer]) -> MetricInput:
        assert self._captions is not None
        return self._captions.gather(kind, answers)

    def _losses(self, answers: list[Answer]) -> Losses:
        known = [(answer.name, answer.loss) for answer in answers if answer.loss is not None]
        return Losses(tuple(name for name, _ in known), tuple(loss for _, loss in known))

    def _labels(self, answers: list[Answer]) -> Labels:
        known = [answer for answer in answers if answer.reference is not None]
        readings = [self._reader.read(answer.prediction) for answer in known]
        try:
            return Labels(
                names=tuple(answer.name for answer in known),
                truth=tuple(str(answer.truth) for answer in known),
                read=tuple(reading.label for reading in readings),
                named=tuple(reading.named for reading in readings),
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
        """(clip, its true words, its predicted words), three lists; without clips whose words nobody could find."""
        assert self._openset is not None
        counted = {answer.name: answer.prediction for answer in answers if answer.name in self._openset}
        predicted = listed_words(counted, self.judge or JUDGES.built({"type": "lexical"}, "judge"))
        unread = [name for name, words in predicted.items() if words is None]
        if unread:
            text = f"the judge found no emotion words of these clips, which ov and ew leave out, {listing(unread)}"
            logging.getLogger("emollama").warning("%s", self._spelling.in_block(text))
        names = [name for name, words in predicted.items() if words is not None]
        return names, [self._openset[name] for name in names], [predicted[name] or () for name in names]


def _spent(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What was used between two accounts of a judge."""
    counts = {key: after[key] - (before[key] or 0) for key in COUNTED if after.get(key) is not None}
    return {**after, **counts}
