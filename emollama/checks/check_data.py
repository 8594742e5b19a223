"""The data check: each dataset block on its own, then all blocks together."""

from __future__ import annotations

import gc
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from emollama.checks import arrays, forecast, texts
from emollama.checks.arrays import ClipDigests
from emollama.checks.findings import BlockSummary, CheckReport, Finding, LengthSummary
from emollama.checks.tokens import TokenLengths
from emollama.config import RunConfig
from emollama.data.dataset import DatasetContent, FeatureSource, SampleDataset, VerifiableSource
from emollama.data.prompts.configs import TRAIN
from emollama.data.slots import PIXELS
from emollama.errors import UserError
from emollama.remote.manager import is_remote
from emollama.runners import provenance
from emollama.runners.datasets import batch_size, slot_shapes_of_run, unfilled_slot_problems
from emollama.runners.model_ckpt import missing_files
from emollama.runners.step_layout import samples_per_step


def check(config: RunConfig, *, deep: bool = False) -> CheckReport:
    """Check all blocks under ``datasets`` and ``evaluation_datasets``, and return a report with all findings.

    An error in one block becomes a finding, and the other blocks are still checked. No file of the user is changed.

    Args:
        config: the resolved configuration.
        deep: also compare every array with its recorded digest.

    Raises:
        UserError: If the configuration has no block.
    """
    if not config.datasets and not config.evaluation_datasets:
        raise UserError("no block under 'datasets' or 'evaluation_datasets', so there is nothing to check. Add a block.")
    data_check = _DataCheck(config, deep)
    data_check.check_model()
    # Without this, each garbage collection would scan all objects of the imported libraries.
    gc.freeze()
    try:
        for label, cfg in config.datasets.items():
            data_check.check_block(f"datasets.{label}", cfg)
        for label, block in config.evaluation_datasets.items():
            data_check.check_block(f"evaluation_datasets.{label}", block.dataset, block.task)
        data_check.check_across_blocks()
        data_check.forecast_training()
    finally:
        gc.unfreeze()
    return data_check.report


class _DataCheck:
    """The steps of a data check, and the data of each block that later steps compare with other blocks."""

    def __init__(self, config: RunConfig, deep: bool) -> None:
        self._deep = deep
        self.report = CheckReport(findings=[Finding("note", "configuration", text) for text in config.warnings])
        self._config = config
        self._shapes = slot_shapes_of_run(config)
        self._token_lengths = TokenLengths(config)
        self._datasets: dict[str, SampleDataset] = {}
        self._trained: dict[str, SampleDataset] = {}
        self._digests: dict[str, ClipDigests] = {}
        self._sources: dict[str, FeatureSource] = {}  # path of features -> their source
        self._listed: dict[str, set[str]] = defaultdict(set)  # path of features -> clips of all annotation files that use it

    def check_model(self) -> None:
        """Check that the files in the ``model`` block exist."""
        self._add(*(Finding("problem", "model", text) for text in missing_files(self._config.model)))

    def check_block(self, label: str, cfg: Any, options: Any = None) -> None:
        """Check one block. ``options`` is the task Config of an evaluation block, None for a training block."""
        training, dataset_class = options is None, self._config.dataset_class(label)
        dataset = self._attempt(
            "unreadable", label, lambda: dataset_class(cfg, slot_shapes=self._shapes, block_path=label, training=training)
        )
        if dataset is None:
            return
        self._datasets[label] = dataset
        if training:
            self._trained[label] = dataset
        self._attempt("unreadable", label, lambda: self._check_dataset(label, dataset, options))

    def _check_dataset(self, label: str, dataset: SampleDataset, options: Any) -> None:
        group, _, name = label.partition(".")
        content, type_name = dataset.inspect(), self._config.resolved()[group][name]["type"]
        block = BlockSummary(label, type_name, content.list_file, len(dataset), len(content.listed))
        self.report.blocks.append(block)
        self._digests[label] = ClipDigests(dataset.names(), options is None)
        self._features(block, dataset, content)
        self._texts(block, dataset, content, training=options is None)
        if len(dataset):
            self._attempt("prompt format", label, lambda: self._prompts(block, dataset, options))
        self._token_lengths.save()
        self._add(*(Finding("note", "dataset", note.removeprefix(f"{label}."), label) for note in dataset.notes))
        self._add(*(Finding.of(problem, label) for problem in dataset.problems()))

    def check_across_blocks(self) -> None:
        """Find clips in both training and evaluation, features that do not fit each other, and arrays without a clip."""
        self._add(*arrays.overlaps(self._digests))
        for group in ("datasets", "evaluation_datasets"):
            datasets = {label: dataset for label, dataset in self._datasets.items() if label.startswith(f"{group}.")}
            unfilled = unfilled_slot_problems(self._shapes, datasets, group) if datasets else []
            self._add(*(Finding("problem", "empty slot", text) for text in unfilled))
        mismatches = provenance.mismatches(self._config, self._datasets.values())
        self._add(*(Finding("problem", "different features", f"{text}. {provenance.REMEDY}") for text in mismatches))
        for path, source in self._sources.items():
            unlisted = sorted(name for name in source.names() if name not in self._listed[path])
            if unlisted:
                self.report.unlisted_arrays[path] = unlisted
        why = self._token_lengths.why_estimated
        if why and why.startswith("model.llama_model"):
            text = "lengths are estimated from the number of characters, because the language model cannot be read"
            self._add(Finding("note", "lengths", f"{text}: {why}"))
        elif why:
            self._add(Finding("problem", "prompt format", why))

    def forecast_training(self) -> None:
        """Compute the epochs of each dataset, and compare the size of the checkpoints with the free disk space."""
        blocks = {label: dataset.cfg for label, dataset in self._trained.items()}
        size = self._attempt("batch_size", "", lambda: batch_size(blocks)) if blocks else None
        if size is None:
            return
        self.report.training = forecast.training_forecast(
            self._config, self._trained, samples_per_step(self._config.run, size, processes=1)
        )
        self._add(*filter(None, [forecast.disk_finding(self.report.training)]))

    def _attempt(self, kind: str, block: str, step: Callable[[], Any]) -> Any:
        """Return the result of a step. If it raises a UserError, add the error as a problem and return None."""
        try:
            return step()
        except UserError as error:
            self._add(Finding("problem", kind, str(error).removeprefix(f"{block}: "), block))
            return None

    def _add(self, *findings: Finding) -> None:
        self.report.findings += findings

    def _features(self, block: BlockSummary, dataset: SampleDataset, content: DatasetContent) -> None:
        """Check the arrays of a block."""
        names = dataset.names()
        # Measured first, because the check would leave the files in the memory of the operating system.
        block.reading = arrays.measure_reading(dataset.features, names)
        for source in dataset.features:
            checked = arrays.checked(source, names, block.label)
            block.arrays.append(arrays.count_arrays(source, names, checked))
            self._add(*arrays.array_notes(source, checked, block.label))
            if self._deep and source.slots != (PIXELS,) and isinstance(source, VerifiableSource):
                self._compare_digests(source, names, block.label)
            self._digests[block.label].digests[source.slots[0]] = arrays.identifying_digests(source, checked)
            path = source.path if is_remote(source.path) else os.path.abspath(source.path)
            self._sources[path] = source
            self._listed[path].update(content.listed)

    def _compare_digests(self, source: FeatureSource, names: Sequence[str], label: str) -> None:
        """Add findings about arrays whose bytes have changed. If a shard cannot be downloaded, other slots are still checked."""
        self._attempt("unreadable", label, lambda: self._add(*arrays.digest_findings(source, names, label)))

    def _texts(self, block: BlockSummary, dataset: SampleDataset, content: DatasetContent, *, training: bool) -> None:
        """Count and check labels, captions, sentences and answers of a block."""
        names, label = dataset.names(), block.label
        block.labels = dict(Counter(content.labels.values()).most_common())
        block.sentences = texts.sentence_counts(content, names)
        block.other_answers = dict(content.other_answers)
        self._add(*texts.caption_findings(content, names, dataset.cfg.labels, label))
        self._add(*(Finding("note", note.kind, note.text, label, note.clips, note.details) for note in content.notes))
        self._add(*texts.answer_findings(content, label, training=training))
        for task, answers in content.answers.items():
            existing = {name: answer for name, answer in answers.items() if answer is not None}
            block.answers[task] = len(existing)
            if existing:
                lengths, cut = self._token_lengths.answers(label, task, existing)
                self._add_lengths(block, lengths, cut if self._uses_loss(label) else [])

    def _prompts(self, block: BlockSummary, dataset: SampleDataset, options: Any) -> None:
        """Measure the prompts of a block with at least one sample."""
        layout = options.prompt_layout if options else TRAIN
        self._config.model.require_layout(layout, f"{block.label}.prompt_layout")
        instructions = texts.instructions_in_use(dataset.pool, options.instruction if options else None)
        user_texts = [dataset.user_text(0, *instruction) for instruction in instructions]
        if user_texts == [instruction for _, instruction in instructions]:
            # Prompts without texts of the samples are the same for all of them.
            prompts = {text: text for text in user_texts}
        else:
            # Only prompts with the longest instruction are measured for all samples.
            longest = instructions[self._token_lengths.longest(block.label, user_texts, layout)]
            prompts = {name: dataset.user_text(index, *longest) for index, name in enumerate(dataset.names())}
        self._add_lengths(block, *self._token_lengths.prompts(block.label, prompts, layout))

    def _uses_loss(self, label: str) -> bool:
        """Return whether a block computes the loss of its answers, for which a cut answer matters."""
        group, _, name = label.partition(".")
        metrics = self._config.evaluation_datasets[name].scoring.metrics if group == "evaluation_datasets" else []
        return not metrics or "loss" in metrics

    def _add_lengths(self, block: BlockSummary, lengths: LengthSummary, findings: list[Finding]) -> None:
        block.lengths.append(lengths)
        self._add(*findings)
