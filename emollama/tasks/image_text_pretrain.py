"""The task of answering an instruction about a sample: its weighted training loss, and its predictions in evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from emollama.components import EvaluationItem, Model
from emollama.data.batch import IGNORED, Batch, Record, collate
from emollama.data.dataset import SampleDataset
from emollama.data.loader import mix_seed
from emollama.data.prompts.configs import TRAIN
from emollama.data.prompts.prompt import PromptFormat
from emollama.decoding.generate import generate
from emollama.decoding.likelihoods import candidate_probabilities
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
        weights: Tensor = batch.loss_weights[batch.labels != IGNORED]
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
        members: Sequence[Model],
        prompt: PromptFormat,
        dataset: SampleDataset,
        cfg: ImageTextPretrainConfig,
        items: Sequence[EvaluationItem],
        seed: int,
    ) -> list[PredictionRecord]:
        """Predict a batch of evaluation items, and compute the loss of their targets.

        Args:
            members: the model in eval mode, or the members of an ensemble.
            prompt: the prompt format of the model.
            dataset: the dataset of the samples.
            cfg: how to generate answers.
            items: items of one batch.
            seed: random seed of sampling, which is used if the temperature is above 0.
        """
        records = [_masked(dataset.record(item.index, item.task, item.instruction), cfg.mask_slots) for item in items]
        seeds = [mix_seed(seed, item.index, dataset.pool.tasks.index(item.task)) for item in items]
        by_label = {row for row, item in enumerate(items) if item.task == "emotion" and cfg.answer_by == "likelihood"}
        outputs: dict[int, Output] = {}
        for rows in (sorted(by_label), [row for row in range(len(records)) if row not in by_label]):
            if not rows:
                continue
            samples = [prompt.tokenize(records[row], layout=cfg.prompt_layout, for_generation=True) for row in rows]
            batch = collate(samples).to(members[0].device)
            if rows[0] in by_label:
                batch_outputs = _most_likely_labels(members, prompt, batch, dataset, cfg.aliases)
            else:
                batch_outputs = _generate(members, prompt, batch, cfg, [seeds[row] for row in rows])
            outputs |= dict(zip(rows, batch_outputs, strict=True))
        losses = _losses(members, prompt, records) if cfg.prompt_layout == TRAIN else {}
        return [
            PredictionRecord(
                name=record.name,
                task=record.task,
                instruction=prompt.body(record),
                prediction=outputs[row][0],
                target=record.turns[-1][1],
                reference=record.reference,
                loss=losses.get(row),
                label_probabilities=outputs[row][1],
            )
            for row, record in enumerate(records)
        ]


def _masked(record: Record, slots: Sequence[str]) -> Record:
    """Return a copy of the record in which the features of these slots are zeros."""
    zeros = {slot: torch.zeros_like(record.features[slot]) for slot in slots}
    return dataclasses.replace(record, features=record.features | zeros)


def _generate(
    members: Sequence[Model], prompt: PromptFormat, batch: Batch, cfg: ImageTextPretrainConfig, seeds: list[int]
) -> list[Output]:
    if cfg.num_beams == 1:
        ids = generate(members, batch, cfg.sampling_params(), prompt.is_finished, seeds)
    else:
        (model,) = members
        ids = model.beam_search(batch, prompt, cfg.beam_search_options())
    return [(prompt.answer_text(answer), None) for answer in ids]


def _most_likely_labels(
    members: Sequence[Model], prompt: PromptFormat, batch: Batch, dataset: SampleDataset, aliases: Mapping[str, str]
) -> list[Output]:
    """Return the most probable label of each prompt, and the probability of each label."""
    labels = list(dataset.cfg.labels)
    # process_answer applies the text processing of training, so that labels are compared in the form that the model has learned.
    label_of = {dataset.process_answer(word): label for word, label in [*aliases.items(), *zip(labels, labels, strict=True)]}
    probabilities = candidate_probabilities(members, batch, [prompt.answer_ids(word) for word in label_of])
    outputs: list[Output] = []
    for row in probabilities.tolist():
        by_label = dict.fromkeys(labels, 0.0)
        for label, probability in zip(label_of.values(), row, strict=True):
            by_label[label] += probability
        outputs.append((max(by_label, key=by_label.__getitem__), by_label))
    return outputs


@torch.inference_mode()
def _losses(members: Sequence[Model], prompt: PromptFormat, records: list[Record]) -> dict[int, float]:
    """Return index in records -> mean loss of the record's target; an ensemble's loss is that of its mean distribution."""
    scored = [index for index, record in enumerate(records) if record.turns[-1][1] is not None]
    if not scored:
        return {}
    batch = collate([prompt.tokenize(records[index]) for index in scored]).to(members[0].device)
    counts = [int((labels != IGNORED).sum()) for labels in batch.labels.split(batch.lengths)]
    by_member = torch.stack([member(batch) for member in members])  # (members, labelled tokens)
    losses = math.log(len(members)) - by_member.neg().logsumexp(0)
    return dict(zip(scored, [part.mean().item() for part in losses.split(counts)], strict=True))
