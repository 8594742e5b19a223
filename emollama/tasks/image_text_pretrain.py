"""The task of answering an instruction about a sample: its weighted training loss, and its predictions in evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from emollama.components import EvaluationItem
from emollama.data.batch import IGNORED, Batch, Record, Sample, collate
from emollama.data.dataset import ReadsAhead, SampleDataset
from emollama.data.loader import mix_seed
from emollama.data.prompts.configs import TRAIN
from emollama.decoding.answer_generator import AnswerGenerator, LabelAnswers, Prompt, tokenize
from emollama.decoding.sampling_params import SequenceParams
from emollama.evaluation.scoring import Scoring
from emollama.run_folder import PredictionRecord
from emollama.tasks.configs import ImageTextPretrainConfig

Output = tuple[str, dict[str, float] | None]  # the model's answer, and with answer_by: likelihood the labels' probabilities


class ImageTextPretrain:
    """The task of ``run.task: image_text_pretrain``."""

    scoring: ClassVar[type[Scoring]] = Scoring

    Config = ImageTextPretrainConfig

    def loss(self, model: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """Return the weighted sum of the answer tokens' cross-entropies, a scalar to be divided by the step's total weight."""
        weights: Tensor = batch.loss_weights[batch.label_positions]
        return (model(batch) * weights).sum(dtype=torch.float64)

    def evaluation_items(self, dataset: SampleDataset, cfg: ImageTextPretrainConfig) -> list[EvaluationItem]:
        """Return one item for every sample and every task of the dataset."""
        pool = dataset.pool
        texts = {
            task: pool.first_instruction(task) if cfg.instruction == "first" else pool.fill_labels(cfg.instruction)
            for task in pool.tasks
        }
        return [EvaluationItem(index, task, instruction) for index in range(len(dataset)) for task, instruction in texts.items()]

    def predict(
        self,
        generator: AnswerGenerator,
        dataset: SampleDataset,
        cfg: ImageTextPretrainConfig,
        items: Sequence[EvaluationItem],
        seed: int,
    ) -> list[PredictionRecord]:
        """Predict a batch of evaluation items, and compute the loss of their targets.

        Args:
            generator: the model, or an ensemble, with its prompt format.
            dataset: the dataset of the samples.
            cfg: how to generate answers.
            items: items of one batch.
            seed: random seed of sampling, which is used if the temperature is above 0.
        """
        if isinstance(dataset, ReadsAhead):
            for item in items:
                dataset.read_ahead(item.index)
        records = [masked(dataset.record(item.index, item.task, item.instruction), cfg.mask_slots) for item in items]
        seeds = [mix_seed(seed, item.index, dataset.pool.tasks.index(item.task)) for item in items]
        by_label = {row for row, item in enumerate(items) if item.task == "emotion" and cfg.answer_by == "likelihood"}
        outputs: dict[int, Output] = {}
        for rows in (sorted(by_label), [row for row in range(len(records)) if row not in by_label]):
            if not rows:
                continue
            samples = [tokenize(generator.prompt_format, records[row], cfg.prompt_layout) for row in rows]
            if rows[0] in by_label:
                probabilities = generator.label_probabilities(samples, label_answers(dataset, cfg.aliases))
                batch_outputs: list[Output] = [(most_likely(shares), shares) for shares in probabilities]
            else:
                batch_outputs = _generate(generator, samples, cfg, [seeds[row] for row in rows])
            outputs |= dict(zip(rows, batch_outputs, strict=True))
        losses = _losses(generator, records) if cfg.prompt_layout == TRAIN else {}
        return [
            PredictionRecord(
                name=record.name,
                task=record.task,
                instruction=generator.prompt_format.body(record),
                prediction=outputs[row][0],
                target=record.turns[-1][1],
                reference=record.reference,
                loss=losses.get(row),
                label_probabilities=outputs[row][1],
            )
            for row, record in enumerate(records)
        ]


def masked(record: Record, slots: Sequence[str]) -> Record:
    """Return a copy of the record in which the features of these slots are zeros."""
    zeros = {slot: torch.zeros_like(record.features[slot]) for slot in slots}
    return dataclasses.replace(record, features=record.features | zeros)


def label_answers(dataset: SampleDataset, aliases: Mapping[str, str]) -> LabelAnswers:
    """Return the labels of a dataset with their answers; ``aliases`` are further words and the labels that they stand for."""
    labels = list(dataset.cfg.labels)
    # process_answer applies the text processing of training, so that labels are compared in the form that the model has learned.
    label_of = {dataset.process_answer(word): label for word, label in [*aliases.items(), *zip(labels, labels, strict=True)]}
    return LabelAnswers(labels, label_of)


def most_likely(probabilities: Mapping[str, float]) -> str:
    """Return the label with the highest probability, the first one of equal ones."""
    return max(probabilities, key=probabilities.__getitem__)


def _generate(
    generator: AnswerGenerator, samples: Sequence[Sample], cfg: ImageTextPretrainConfig, seeds: Sequence[int]
) -> list[Output]:
    if cfg.num_beams > 1:
        answers = generator.beam_search(samples, cfg.beam_search_options())
    else:
        params, pairs = cfg.sampling_params(), zip(samples, seeds, strict=True)
        answers = generator.generate([Prompt(sample, SequenceParams(params, seed)) for sample, seed in pairs])
    return [(answer.text, None) for answer in answers]


@torch.inference_mode()
def _losses(generator: AnswerGenerator, records: list[Record]) -> dict[int, float]:
    """Return index in records -> mean loss of the record's target; an ensemble's loss is that of its mean distribution."""
    scored = [index for index, record in enumerate(records) if record.turns[-1][1] is not None]
    if not scored:
        return {}
    members = generator.members
    samples = [generator.prompt_format.tokenize(records[index]) for index in scored]
    counts = [int((sample.labels != IGNORED).sum()) for sample in samples]
    batch = collate(samples).to(members[0].device)
    by_member = torch.stack([member(batch) for member in members])  # (members, labelled tokens)
    losses = math.log(len(members)) - by_member.neg().logsumexp(0)
    return dict(zip(scored, [part.mean().item() for part in losses.split(counts)], strict=True))
