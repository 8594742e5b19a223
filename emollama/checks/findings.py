"""The report of a data check: findings, counts of each block, and the forecast of training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from emollama.data.problems import Problem

Level = Literal["problem", "note"]


@dataclass(frozen=True)
class Finding:
    """A problem or a note.

    Attributes:
        level: "problem" if it stops a run or makes its results unreliable, otherwise "note".
        kind: the subject, in two or three words.
        text: a message that names the file, line or key, and the remedy.
        block: label of the block; "" if the finding concerns no single block.
        clips: names of the clips that the finding concerns.
        details: the clips with remarks, one or several per entry; may be empty.
        names_clips: whether the text contains the names of the clips.
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
        """Return a problem that the dataset reports as a finding."""
        return cls("problem", problem.kind, problem.text.removeprefix(f"{block}: "), block, problem.clips, problem.details, True)


@dataclass(frozen=True)
class ArrayCounts:
    """Counts of the arrays of one encoder for the clips of one block.

    Attributes:
        key: configuration key of the path.
        path: the folder or store, relative to the current directory.
        slots: slots that the arrays fill.
        present: number of clips that have an array, good or bad.
        missing: number of clips without an array.
        unusable: number of clips with a bad array.
        values_read: number of arrays whose values were checked, now or in an earlier check.
        bytes: size of the values of all good arrays.
        kinds: dtype and shape -> number of good arrays.
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
    """Lengths of texts in tokens.

    Attributes:
        what: "answers of <task>" or "prompts".
        exact: whether the tokenizer counted the tokens; otherwise they are estimated from the number of characters.
        texts: number of texts.
        minimum: length of the shortest text.
        median: median length.
        percentile_95: 95th percentile of the lengths.
        maximum: length of the longest text.
        limit: maximum length; longer texts are cut.
        cut: number of texts above the limit.
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
class ReadingTime:
    """Time to read the arrays of a block, measured on some of its clips with a single reader.

    Attributes:
        clips_measured: number of clips that were read.
        seconds_a_clip: mean seconds per clip.
        seconds_all_clips: estimated seconds for all clips of the block.
    """

    clips_measured: int
    seconds_a_clip: float
    seconds_all_clips: float


@dataclass(frozen=True)
class TrainingForecast:
    """Steps, epochs and disk space of training with a single process.

    Attributes:
        steps: optimizer steps of the run.
        samples_a_step: samples per step over all processes.
        passes: label of the block -> number of passes over its samples.
        trained_parameters: number of trained parameters; None if the language model's config.json cannot be read.
        checkpoint_bytes: estimated size of a checkpoint; None if the number of parameters is None.
        checkpoints: maximum number of checkpoints on disk at the same time.
        output_dir: the folder of the checkpoints.
        free_bytes: free space on its disk.
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
    """Counts of one block.

    Attributes:
        label: path of the block, such as "datasets.feature_face_caption".
        type: registered name of the dataset class.
        list_file: the annotation file; None for a dataset without one.
        clips: number of clips in use.
        listed: number of valid rows in the annotation file.
        labels: label -> number of clips.
        answers: task in the task pool -> number of clips with an answer.
        other_answers: task outside the task pool -> number of clips that have an answer for it.
        sentences: counts of the transcripts: clips, empty, different, of clips not listed; None without transcripts.
        arrays: counts of each feature folder or store.
        lengths: lengths of answers and prompts.
        reading: time to read the arrays; None if the block has no arrays.
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
    reading: ReadingTime | None = None

    @property
    def imbalance(self) -> float | None:
        """Number of clips of the most frequent label divided by that of the rarest; None for fewer than two labels."""
        return max(self.labels.values()) / min(self.labels.values()) if len(self.labels) > 1 else None


@dataclass
class CheckReport:
    """The report of a data check.

    Attributes:
        blocks: counts of each block.
        findings: problems and notes of all blocks.
        unlisted_arrays: path of features -> arrays whose clips no annotation file contains.
        training: forecast of training; None if no block is used for training.
    """

    blocks: list[BlockSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unlisted_arrays: dict[str, list[str]] = field(default_factory=dict)
    training: TrainingForecast | None = None

    def of_level(self, level: Level) -> list[Finding]:
        """Return all problems or all notes."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def summary(self) -> str:
        """``N problems, M notes``."""
        counts = {level: len(self.of_level(level)) for level in ("problem", "note")}
        return ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items())

    def plain(self) -> dict[str, Any]:
        """Return the report as plain dicts and lists, for JSON."""
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
