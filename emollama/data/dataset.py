"""The Protocol of a dataset. A dataset class implements it without inheriting from a class of this package.

The class is registered in ``DATASETS`` and built as ``cls(cfg, slot_shapes=..., block_path=..., training=...)``; ``cfg`` is an
object of its nested dataclass ``Config``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from emollama.data.array_cache import DigestCheck, FeatureCheck
from emollama.data.batch import Record
from emollama.data.instructions import TaskPool
from emollama.data.problems import Problem
from emollama.data.sampling import DatasetSampling
from emollama.data.slots import FrameSelection, SlotShape


class DatasetConfig(Protocol):
    """What the ``Config`` of a dataset class must provide; its other fields are up to the class."""

    @property
    def batch_size(self) -> int:
        """Samples per micro-batch in one process."""
        ...

    @property
    def held_out(self) -> float:
        """Fraction of the samples that a block under ``datasets`` leaves out and an evaluation uses; 0 without such a split."""
        ...

    @property
    def labels(self) -> Sequence[str]:
        """Labels that answers to the task ``emotion`` are compared with; may be empty."""
        ...

    def pool(self) -> TaskPool:
        """Create the pool of tasks with their instructions."""
        ...

    def turns(self) -> list[str]:
        """Return all user texts of a sample without a spoken sentence, for ``emollama plan``."""
        ...


@dataclass(frozen=True)
class DatasetContent:
    """The texts of a dataset, which ``emollama check-data`` counts and checks.

    Attributes:
        listed: names of all valid entries of the annotation file, in use or not.
        answers: task in the pool -> name -> answer as the model is trained to produce it, the longest if there are several. None
            marks a sample without an answer, which is reported; samples can be left out instead.
        list_file: the annotation file; None without one.
        labels: name -> label, for the samples that have one.
        sentences: name -> spoken sentence, "" without speech; None if prompts contain no sentence. May contain unlisted names.
        captions: where captions are read from -> name -> caption as stored. May contain unlisted names.
        other_answers: task outside the pool -> number of samples with an answer to it.
        exclude_key: the configuration key that leaves out samples by name; None without such a key.
        notes: remarks about the samples in ``clips``, whose names are printed after the text. They do not stop a run.
    """

    listed: Collection[str]
    answers: Mapping[str, Mapping[str, str | None]]
    list_file: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    sentences: Mapping[str, str] | None = None
    captions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    other_answers: Mapping[str, int] = field(default_factory=dict)
    exclude_key: str | None = None
    notes: Sequence[Problem] = ()


class FeatureSource(Protocol):
    """Arrays that a dataset reads, one for each sample.

    :class:`~emollama.data.features.Features` implements it for array stores.
    """

    @property
    def key(self) -> str:
        """The configuration key that named the arrays, for messages."""
        ...

    @property
    def path(self) -> str:
        """The place of the arrays. A manifest in this folder describes how they were extracted."""
        ...

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots of the arrays that :meth:`read` returns, or ("frame",) for pixels that the model encodes."""
        ...

    @property
    def filled_slots(self) -> tuple[str, ...]:
        """The slots whose feature vectors the fusion module gets from an array: ``slots``, or ("image", "cls") for pixels."""
        ...

    @property
    def frame_selection(self) -> FrameSelection | None:
        """For pixels, which frame of a video they are, such as "first"; None for features."""
        ...

    def __contains__(self, name: object) -> bool: ...

    def names(self) -> Iterable[str]:
        """Return the names of all samples that have an array, whether the dataset contains them or not; may be empty."""
        ...

    def read(self, name: str) -> dict[str, Tensor]:
        """Return slot -> feature vectors (n, D), float32, of a sample that has an array.

        Raises:
            UserError: If the array cannot be used.
        """
        ...

    def check(self, names: Iterable[str], advance: Callable[[int], Any] = int) -> FeatureCheck:
        """Check the arrays of these samples without training on them; samples without an array are skipped.

        ``emollama check-data`` calls it before :meth:`SampleDataset.problems`, which should not read the arrays again.

        Args:
            names: names of the samples.
            advance: called with the number of arrays that were checked since the last call.
        """
        ...


@runtime_checkable
class VerifiableSource(Protocol):
    """What a feature source provides in addition if ``emollama check-data --deep`` can find changed bytes in its arrays."""

    def verify(self, names: Iterable[str], advance: Callable[[int], Any] = int) -> DigestCheck:
        """Compare the arrays of these samples with recorded digests; samples without an array are skipped.

        Args:
            names: names of the samples.
            advance: called with the number of arrays that were read since the last call.

        Raises:
            UserError: If a remote file cannot be downloaded.
        """
        ...


class SampleDataset(Protocol):
    """What a registered dataset class must provide.

    Args:
        cfg: the dataset's block of the configuration.
        slot_shapes: slot -> the shape that the model expects.
        block_path: path of the block, such as ``datasets.merr``, for messages.
        training: whether the samples are trained on; an evaluation does not need reference answers.

    Attributes:
        notes: lines for the log.

    Raises:
        UserError: If a file is missing or unreadable. :meth:`problems` returns problems of single samples.
    """

    notes: list[str]

    def __init__(self, cfg: Any, *, slot_shapes: Mapping[str, SlotShape], block_path: str, training: bool) -> None: ...

    @property
    def cfg(self) -> DatasetConfig:
        """The dataset's block of the configuration."""
        ...

    @property
    def pool(self) -> TaskPool:
        """The tasks with their instructions."""
        ...

    @property
    def features(self) -> Sequence[FeatureSource]:
        """The arrays that records are read from; empty if the dataset has none."""
        ...

    @property
    def slot_sources(self) -> Mapping[str, str | None]:
        """The slots that the samples fill -> where the features come from, as tables show it.

        None marks a slot that is empty on purpose. A run with a slot that no dataset mentions is rejected.
        """
        ...

    def __len__(self) -> int: ...

    def names(self) -> Sequence[str]:
        """Return the names of the samples in order."""
        ...

    def digest(self) -> str:
        """Return a hash of the prompts and targets; a resumed run compares it with the stored one."""
        ...

    def inspect(self) -> DatasetContent:
        """Return the texts for ``emollama check-data``."""
        ...

    def problems(self) -> list[Problem]:
        """Check the data and return everything that would stop the run later."""
        ...

    def sampling(self) -> DatasetSampling:
        """Return how training draws the samples."""
        ...

    def has_reference(self, task: str) -> bool:
        """Return whether any sample has a reference answer to a task."""
        ...

    def process_answer(self, text: str) -> str:
        """Apply the text processor of training to an answer."""
        ...

    def user_text(self, index: int, task: str | None, instruction: str) -> str:
        """Return the user text of sample ``index`` as in its record, without reading features; without a task, it has no tag."""
        ...

    def record(self, index: int, task: str, instruction: str, rng: np.random.Generator | None = None) -> Record:
        """Return sample ``index`` with an instruction of a task. ``rng`` is for augmentation in training, None in evaluation."""
        ...


@runtime_checkable
class ReadsOnce(Protocol):
    """What a dataset class provides in addition if ``run.tasks_per_clip`` should read features once, not for each task.

    If a subclass overrides ``record``, but not ``records``, ``record`` is called for each task.
    """

    def records(self, index: int, questions: Sequence[tuple[str, str]], rng: np.random.Generator) -> list[Record]:
        """Return what ``record`` returns for each (task, instruction), with the same features for all of them."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """What a dataset class provides in addition if it can start to read samples that will be needed soon."""

    @property
    def is_streamed(self) -> bool:
        """Whether this dataset reads samples from a server."""

    def read_ahead(self, index: int) -> None:
        """Start to read sample ``index`` in the background. The call returns at once and raises no error of reading."""


@dataclass(frozen=True)
class ClipsToPredict:
    """Video clips that are in no annotation file, for which ``emollama predict`` needs records.

    Attributes:
        names: names of the clips, in order.
        task: the task that is asked about each clip.
        sentence: the sentence that is spoken in the clips; None for prompts without a sentence.
        features: slot -> folder of .npy arrays, for the slots of :meth:`ClipDataset.clip_slots`. A clip without an array gets
            zeros. The arrays of "frame" are normalized pixels, (1, 3 x side x side) float32.
    """

    names: Sequence[str]
    task: str
    sentence: str | None
    features: Mapping[str, str]


@runtime_checkable
class ClipDataset(Protocol):
    """What a dataset class provides in addition if ``emollama predict`` can use its blocks; other blocks are skipped."""

    @classmethod
    def clip_slots(cls, cfg: Any) -> Collection[str]:
        """Return the slots that a block has features for, and "frame" if the model encodes frames of the block's videos."""
        ...

    @classmethod
    def has_sentences(cls, cfg: Any, *, block_path: str) -> bool:
        """Return whether the prompts of a block contain spoken sentences.

        Raises:
            UserError: If a file that decides this cannot be read.
        """
        ...

    @classmethod
    def for_clips(
        cls, cfg: Any, clips: ClipsToPredict, *, slot_shapes: Mapping[str, SlotShape], block_path: str
    ) -> SampleDataset:
        """Build a dataset for evaluation whose samples are new clips, with the prompts and features of the block."""
        ...
