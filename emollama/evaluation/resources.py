"""What an evaluation block offers to its metric inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from emollama.evaluation.captions.reader import CaptionReader
from emollama.evaluation.judges.judge import Judge
from emollama.evaluation.labels import LabelReader
from emollama.evaluation.spelling import KeySpelling
from emollama.evaluation.synonyms import Synonyms
from emollama.evaluation.wheel_files import Wheels

NEEDS_REFERENCE = "samples with a reference: labels in the annotation file, or descriptions"


@dataclass(frozen=True)
class ScoringResources:
    """What an evaluation block, or a command that scores files, offers to its metric inputs.

    Attributes:
        tasks: task -> what its predictions have: "reference", "loss", both or neither.
        spelling: how messages name the block and its keys.
        label_reader: extracts labels from answers; its ``labels`` are the allowed labels.
        judge: judge of descriptions, if the block has one.
        openset: sample name -> reference emotion words, if the block has them.
        published_openset: the same words as the scorer of MER2024-OV reads them, if ``synonyms`` has groups for each sample.
        synonyms: the groups of synonyms among emotion words.
        wheels: the emotion wheels, if the block has them.
        caption_reader: tokenizes captions; None if the block has no reference captions.
        cfg: the ``Config`` of the metric input for which these resources are, with the values of ``metric_inputs.<name>``.
    """

    tasks: Mapping[str, Collection[str]]
    spelling: KeySpelling
    label_reader: LabelReader
    judge: Judge | None = None
    openset: Mapping[str, tuple[str, ...]] | None = None
    published_openset: Mapping[str, tuple[str, ...]] | None = None
    synonyms: Synonyms = field(default_factory=Synonyms)
    wheels: Wheels | None = None
    caption_reader: CaptionReader | None = None
    cfg: Any = None
