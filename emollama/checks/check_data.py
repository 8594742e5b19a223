"""Look at everything that a run would read: each block on its own, then what they share."""

from __future__ import annotations

import gc
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from emollama.checks import arrays, captioned, forecast, texts
from emollama.checks.arrays import Fingerprints, Surveyed
from emollama.checks.findings import BlockSummary, CheckReport, Finding, LengthSummary
from emollama.checks.tokens import Ruler
from emollama.config import RunConfig
from emollama.data.instructions import user_text
from emollama.data.prompts.prompt_style import PromptLayout
from emollama.datasets.configs import CAPTION_TASK
from emollama.datasets.feature_clips import FeatureClips
from emollama.datasets.flickr30k_caption import Flickr30kCaption
from emollama.errors import UserError
from emollama.runners import provenance
from emollama.runners.build import batch_size, missing_files


def check(config: RunConfig) -> CheckReport:
    """Look at every block under ``datasets`` and ``evaluation_datasets``.

    What is wrong with one block is told, and the others are still looked at. Nothing of the user's is changed.

    Raises:
        UserError: there is no block.
    """
    if not config.datasets and not config.evaluation_datasets:
        raise UserError("no block under 'datasets' or 'evaluation_datasets': there is nothing to check")
    examination = _Examination(config)
    examination.model()
    gc.freeze()  # the libraries that were imported are not searched for garbage over and over
    try:
        for label, cfg in config.datasets.items():
            examination.block(f"datasets.{label}", cfg)
        for label, block in config.evaluation_datasets.items():
            examination.block(f"evaluation_datasets.{label}", block.dataset, block.task)
        examination.what_blocks_share()
        examination.what_training_takes()
    finally:
        gc.unfreeze()
    return examination.report


class _Examination:
    """The report as it grows, and what is kept of each block to compare it with the others."""

    def __init__(self, config: RunConfig) -> None:
        self.report = CheckReport(findings=[Finding("note", "configuration", text) for text in config.warnings])
        self._config = config
        self._shapes = config.classes["model"].slot_shapes(config.model)
        self._ruler = Ruler(config)
        self._datasets: dict[str, Any] = {}
        self._trained: dict[str, Any] = {}
        self._prints: dict[str, Fingerprints] = {}
        self._stores: dict[str, Any] = {}  # place -> the arrays there
        self._listed: dict[str, set[str]] = defaultdict(set)  # place -> clips of the lists that use it

    def model(self) -> None:
        """Whether what the model's block names exists."""
        self._tell(*(Finding("problem", "model", text) for text in missing_files(self._config.model)))

    def block(self, label: str, cfg: Any, options: Any = None) -> None:
        """Look at one block; ``options`` are an evaluation block's, how its answers are asked for."""
        training, made = options is None, self._config.classes[label]
        dataset = self._unless_refused(
            "unreadable", label, lambda: made(cfg, slot_shapes=self._shapes, label=label, training=training)
        )
        if dataset is None:
            return
        self._datasets[label] = dataset
        if training:
            self._trained[label] = dataset
        self._unless_refused("unreadable", label, lambda: self._examine(label, dataset, options))

    def _examine(self, label: str, dataset: Any, options: Any) -> None:
        group, _, name = label.partition(".")
        block = BlockSummary(label, self._config.resolved()[group][name]["type"], None, len(dataset), len(dataset))
        self.report.blocks.append(block)
        self._prints[label] = Fingerprints(dataset.names(), options is None)
        if isinstance(dataset, FeatureClips):
            self._features(block, dataset, all_values=dataset.cfg.check_values == "all")
            self._listed_clips(dataset)
            self._texts(block, dataset, options)
        elif isinstance(dataset, Flickr30kCaption):
            self._features(block, dataset, all_values=False)
            self._captions(block, dataset, options)
        else:
            self._tell(Finding("note", "block", "no list of clips with features: only its own checks were made", label))
        self._tell(*(Finding("note", "dataset", note.removeprefix(f"{label}."), label) for note in dataset.notes))
        self._tell(*(Finding.of(problem, label) for problem in dataset.problems()))

    def what_blocks_share(self) -> None:
        """Clips that are both trained on and tested with, arrays that no list names, how lengths were told."""
        self._tell(*arrays.overlaps(self._prints))
        unlike = provenance.mismatches(self._config, self._datasets.values())
        self._tell(*(Finding("problem", "features made otherwise", f"{text}. {provenance.REMEDY}") for text in unlike))
        for place, store in self._stores.items():
            unlisted = sorted(name for name in store.names() if name not in self._listed[place])
            if unlisted:
                self.report.unlisted_arrays[place] = unlisted
        if self._ruler.why_estimated:
            text = "lengths are estimated from the number of characters, because the language model cannot be read"
            self._tell(Finding("note", "lengths", f"{text}: {self._ruler.why_estimated}"))

    def what_training_takes(self) -> None:
        """Passes over the data, and the disk that checkpoints need."""
        size = self._unless_refused("batch_size", "", lambda: batch_size(self._trained)) if self._trained else None
        if size is None:
            return
        self.report.training = forecast.training_of(self._config, self._trained, size)
        self._tell(*filter(None, [forecast.disk_finding(self.report.training)]))

    def _unless_refused(self, kind: str, block: str, step: Callable[[], Any]) -> Any:
        """What a step of building a run gives; None, and a problem told, where it refuses."""
        try:
            return step()
        except UserError as error:
            self._tell(Finding("problem", kind, str(error).removeprefix(f"{block}: "), block))
            return None

    def _tell(self, *findings: Finding) -> None:
        self.report.findings += findings

    def _features(self, block: BlockSummary, dataset: FeatureClips | Flickr30kCaption, *, all_values: bool) -> None:
        names = dataset.names()
        block.reading = arrays.measure_reading(dataset.features, names)
        surveyed = [Surveyed.of(source, names, all_values=all_values, block=block.label) for source in dataset.features]
        dataset.features = list(surveyed)
        for source in surveyed:
            block.arrays.append(arrays.table_of(source, names))
            self._tell(*arrays.notes_of(source, block.label))
            self._prints[block.label].digests[source.slots[0]] = arrays.digests_of(source)

    def _listed_clips(self, dataset: FeatureClips) -> None:
        for source in dataset.features:
            place = os.path.abspath(source.path)
            self._stores[place] = source.store
            self._listed[place].update(clip.name for clip in dataset.table.clips)

    def _texts(self, block: BlockSummary, dataset: FeatureClips, options: Any) -> None:
        block.list_file, block.listed = dataset.list_path(), len(dataset.table.clips)
        block.labels = dict(Counter(clip.label for clip in dataset.clips if clip.label).most_common())
        block.sentences = texts.sentence_counts(dataset)
        block.other_answers = texts.other_answers(dataset, self._shapes)
        answers = texts.answers(dataset)
        self._tell(*texts.caption_findings(dataset), *texts.empty_captions(dataset), *texts.answer_findings(dataset, answers))
        for task, by_clip in answers.items():
            given = {name: answer for name, answer in by_clip.items() if answer is not None}
            block.answers[task] = len(given)
            if given:
                self._measured(block, self._ruler.answers(block.label, task, given))
        layout: PromptLayout = options.prompt_layout if options else "train"
        asked = texts.asked(dataset.pool, options.instruction if options else None)
        longest = asked[
            self._ruler.longest(block.label, [user_text(task, instruction, "") for task, instruction in asked], layout)
        ]
        self._measured(block, self._ruler.prompts(block.label, texts.user_texts(dataset, *longest), layout))
        self._ruler.save()

    def _captions(self, block: BlockSummary, dataset: Flickr30kCaption, options: Any) -> None:
        block.list_file, block.listed = dataset.list_path(), dataset.listed
        block.answers[CAPTION_TASK] = sum(bool(image.captions) for image in dataset.images)
        self._tell(*captioned.findings(dataset))
        if longest := captioned.longest(dataset):
            lengths, cut = self._ruler.answers(block.label, CAPTION_TASK, longest)
            self._measured(block, (lengths, cut if self._loss_counts(block.label) else []))
        layout: PromptLayout = options.prompt_layout if options else "train"
        instructions = {words: words for _, words in texts.asked(dataset.pool, options.instruction if options else None)}
        self._measured(block, self._ruler.prompts(block.label, instructions, layout))
        self._ruler.save()

    def _loss_counts(self, label: str) -> bool:
        """Whether anything rests on the loss of a block's answers: training, or a metric of an evaluation."""
        group, _, name = label.partition(".")
        metrics = self._config.evaluation_datasets[name].scoring.metrics if group == "evaluation_datasets" else []
        return not metrics or "loss" in metrics

    def _measured(self, block: BlockSummary, told: tuple[LengthSummary, list[Finding]]) -> None:
        lengths, findings = told
        block.lengths.append(lengths)
        self._tell(*findings)
