"""The content of a data check: findings, figures of each block, and the whole report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from emollama.data.problems import Problem

Level = Literal["problem", "note"]


@dataclass(frozen=True)
class Finding:
    """Something to know before a run.

    Attributes:
        level: a problem stops the run or spoils it; a note does neither.
        kind: what it is about, in two or three words.
        text: names file, line or key, and the remedy.
        block: label of the block, where it is one block's.
        clips: whose it is, where it is some clips'.
        details: the clips again, each or each few with a remark; or nothing.
        names_clips: whether the text itself names the clips.
    """

    level: Level
    kind: str
    text: str
    block: str = ""
    clips: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    names_clips: bool = False

    @classmethod
    def of(cls, problem: Problem, block: str) -> Finding:
        """What a dataset itself says would stop the run."""
        return cls("problem", problem.kind, problem.text.removeprefix(f"{block}: "), block, problem.clips, problem.details, True)


@dataclass(frozen=True)
class ArrayCounts:
    """What one encoder's arrays are, for the clips of one block.

    Attributes:
        key: configuration key of the place.
        path: the place, seen from the current directory.
        slots: that they fill.
        present, missing, unusable: clips with a good or bad array, without one, with a bad one.
        values_read: how many arrays' values were looked at, now or when they were remembered.
        bytes: of the values of all good arrays.
        kinds: dtype and shape -> how many good arrays are so.
    """

    key: str
    path: str
    slots: tuple[str, ...]
    present: int
    missing: int
    unusable: int
    values_read: int
    bytes: int
    kinds: dict[str, int]


@dataclass(frozen=True)
class LengthSummary:
    """Tokens of many texts.

    Attributes:
        what: "answers of <task>" or "prompts".
        exact: counted by the tokenizer; else estimated from the number of characters.
        texts: how many.
        minimum, median, percentile_95, maximum: tokens.
        limit: beyond which text is cut.
        cut: how many texts are longer.
    """

    what: str
    exact: bool
    texts: int
    minimum: int
    median: float
    percentile_95: float
    maximum: int
    limit: int
    cut: int


@dataclass(frozen=True)
class LabelExtractionSummary:
    """How long it takes to read arrays from where they lie: measured on some clips, by one reader, before anything else."""

    clips_measured: int
    seconds_a_clip: float
    seconds_all_clips: float


@dataclass(frozen=True)
class TrainingForecast:
    """What training takes beside its clips, on one process.

    Attributes:
        steps: of the whole run.
        samples_a_step: batch_size x accum_grad_iters.
        passes: label of the block -> how often each of its clips is drawn on average.
        trained_parameters: None where the language model's config.json cannot be read.
        checkpoint_bytes: of one file, estimated; None as above.
        checkpoints: files that lie there at once, at most.
        output_dir, free_bytes: where they go, and how much space there is.
    """

    steps: int
    samples_a_step: int
    passes: dict[str, float]
    trained_parameters: int | None
    checkpoint_bytes: int | None
    checkpoints: int
    output_dir: str
    free_bytes: int


@dataclass
class BlockSummary:
    """Figures of one block.

    Attributes:
        label: such as "datasets.feature_face_caption".
        type: the registered name of its class.
        list_file: the list or table; None for a dataset that is no list of clips.
        clips: that take part.
        listed: rows of the list that could be read.
        labels: label -> clips.
        answers: task of the pool -> clips that have an answer.
        other_answers: task that is not in the pool -> clips that could answer it.
        sentences: what is said -> counts: clips, empty, different, rows of clips that are not listed; None without transcripts.
        arrays: a row for each configured place of features.
        lengths: of answers and prompts.
        reading: None where no array was read.
    """

    label: str
    type: str
    list_file: str | None
    clips: int
    listed: int
    labels: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    other_answers: dict[str, int] = field(default_factory=dict)
    sentences: dict[str, int] | None = None
    arrays: list[ArrayCounts] = field(default_factory=list)
    lengths: list[LengthSummary] = field(default_factory=list)
    reading: LabelExtractionSummary | None = None

    @property
    def imbalance(self) -> float | None:
        """Clips of the largest label for each clip of the smallest; None for fewer than two labels."""
        return max(self.labels.values()) / min(self.labels.values()) if len(self.labels) > 1 else None


@dataclass
class CheckReport:
    """Everything: the blocks' figures, the findings, arrays that no block's list names (place -> clips), and the run's needs.

    ``training`` is None where no block is trained on.
    """

    blocks: list[BlockSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unlisted_arrays: dict[str, list[str]] = field(default_factory=dict)
    training: TrainingForecast | None = None

    def of_level(self, level: Level) -> list[Finding]:
        """The problems, or the notes."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def summary(self) -> str:
        """``N problems, M notes``."""
        counts = {level: len(self.of_level(level)) for level in ("problem", "note")}
        return ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items())

    def plain(self) -> dict[str, Any]:
        """All of it as plain dicts and lists."""
        blocks = [asdict(block) | {"imbalance": block.imbalance} for block in self.blocks]
        counts = {"problems": len(self.of_level("problem")), "notes": len(self.of_level("note"))}
        findings = [asdict(finding) for finding in self.findings]
        training = asdict(self.training) if self.training else None
        return {
            **counts,
            "findings": findings,
            "blocks": blocks,
            "unlisted_arrays": self.unlisted_arrays,
            "training": training,
        }
