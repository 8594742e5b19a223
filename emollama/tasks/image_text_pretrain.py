"""Answering questions about a clip: the weighted loss of its answer tokens, and answers given in evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emollama.data.batch import IGNORED, Batch, Record, collate
from emollama.data.loader import SampleDataset, mix_seed
from emollama.data.prompts.prompt import Prompt
from emollama.evaluation.scoring import Scoring
from emollama.models.decoding import continued, likelihoods
from emollama.tasks.configs import ImageTextPretrainConfig

Answered = tuple[str, dict[str, float] | None]  # an answer, and the labels' probabilities where labels were compared


@dataclass(frozen=True)
class Question:
    """One clip (its number in the dataset) asked for one task in these words."""

    clip: int
    task: str
    instruction: str


@dataclass(frozen=True)
class Prediction:
    """One clip's answer to one task.

    Attributes:
        instruction: the turn's text with the marks where feature rows go.
        prediction: what was answered.
        target: the answer of the data as it is trained on, or None where there is none.
        reference: the answer of the data as its file has it; a list where there are several.
        loss: mean cross-entropy (natural logarithm) over the target's tokens, in the training layout; None without a target.
        label_probabilities: label -> probability among the labels, where labels were compared; else None.
    """

    name: str
    task: str
    instruction: str
    prediction: str
    target: str | None
    reference: str | list[str] | None
    loss: float | None
    label_probabilities: dict[str, float] | None = None


class ImageTextPretrain:
    """The task behind ``run.task: image_text_pretrain``."""

    scoring = Scoring

    Config = ImageTextPretrainConfig

    def loss(self, model: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """Sum over the batch's answer tokens of weight x cross-entropy: a scalar, to be divided by the step's weights."""
        weights: Tensor = batch.loss_weights[batch.labels != IGNORED]
        return (model(batch) * weights).sum()

    def questions(self, dataset: SampleDataset, cfg: ImageTextPretrainConfig) -> list[Question]:
        """Every clip asked for every task of its pool."""
        pool = dataset.pool
        wordings = {
            task: pool.first_instruction(task) if cfg.instruction == "first" else pool.fill_labels(cfg.instruction)
            for task in pool.tasks
        }
        return [Question(clip, task, instruction) for clip in range(len(dataset)) for task, instruction in wordings.items()]

    def answer(
        self,
        members: Sequence[Any],
        prompt: Prompt,
        dataset: SampleDataset,
        cfg: ImageTextPretrainConfig,
        questions: Sequence[Question],
        seed: int,
    ) -> list[Prediction]:
        """Answer some questions together, and score their targets where there are any.

        Args:
            members: the model in eval mode, or the members of an ensemble.
            prompt: the models' renderer.
            dataset: the clips.
            cfg: how to answer.
            questions: one micro-batch of them.
            seed: of sampling, where temperature is above 0.
        """
        records = [_masked(dataset.record(asked.clip, asked.task, asked.instruction), cfg.mask_slots) for asked in questions]
        seeds = [mix_seed(seed, asked.clip, dataset.pool.tasks.index(asked.task)) for asked in questions]
        by_label = {place for place, asked in enumerate(questions) if asked.task == "emotion" and cfg.answer_by == "likelihood"}
        found: dict[int, Answered] = {}
        for places in (sorted(by_label), [place for place in range(len(records)) if place not in by_label]):
            if not places:
                continue
            samples = [prompt.sample(records[place], layout=cfg.prompt_layout, to_generate=True) for place in places]
            batch = collate(samples).to(members[0].device)
            if places[0] in by_label:
                answers = _most_likely(members, prompt, batch, dataset, cfg.aliases)
            else:
                answers = _generated(members, prompt, batch, cfg, [seeds[place] for place in places])
            found |= dict(zip(places, answers, strict=True))
        losses = _losses(members, prompt, records) if cfg.prompt_layout == "train" else {}
        return [
            Prediction(
                name=record.name,
                task=record.task,
                instruction=prompt.body(record),
                prediction=found[place][0],
                target=record.turns[-1][1],
                reference=record.reference,
                loss=losses.get(place),
                label_probabilities=found[place][1],
            )
            for place, record in enumerate(records)
        ]


def _masked(record: Record, slots: Sequence[str]) -> Record:
    """The record with zeros in the rows of these slots."""
    zeros = {slot: torch.zeros_like(record.features[slot]) for slot in slots}
    return dataclasses.replace(record, features=record.features | zeros)


def _generated(
    members: Sequence[Any], prompt: Prompt, batch: Batch, cfg: ImageTextPretrainConfig, seeds: list[int]
) -> list[Answered]:
    if cfg.num_beams == 1:
        ids = continued(members, batch, cfg.choice(), prompt.is_finished, seeds)
    else:
        (model,) = members
        ids = model.beam_search(batch, prompt, cfg.beams())
    return [(prompt.answer_text(answer), None) for answer in ids]


def _most_likely(
    members: Sequence[Any], prompt: Prompt, batch: Batch, dataset: SampleDataset, aliases: Mapping[str, str]
) -> list[Answered]:
    """(the most probable label, label -> probability) of each prompt; words are compared as answers are trained on."""
    labels = list(dataset.cfg.labels)
    meaning = {dataset.process_answer(word): label for word, label in [*aliases.items(), *zip(labels, labels, strict=True)]}
    shares = likelihoods(members, batch, [prompt.answer_ids(word) for word in meaning])
    answers: list[Answered] = []
    for row in shares.tolist():
        table = dict.fromkeys(labels, 0.0)
        for label, share in zip(meaning.values(), row, strict=True):
            table[label] += share
        answers.append((max(table, key=table.__getitem__), table))
    return answers


@torch.inference_mode()
def _losses(members: Sequence[Any], prompt: Prompt, records: list[Record]) -> dict[int, float]:
    """place in records -> mean loss of that record's target; of an ensemble that of its mean distribution."""
    scored = [place for place, record in enumerate(records) if record.turns[-1][1] is not None]
    if not scored:
        return {}
    batch = collate([prompt.sample(records[place]) for place in scored]).to(members[0].device)
    counts = [int((labels != IGNORED).sum()) for labels in batch.labels.split(batch.lengths)]
    by_member = torch.stack([member(batch) for member in members])  # (members, labelled tokens)
    losses = math.log(len(members)) - by_member.neg().logsumexp(0)
    return dict(zip(scored, [part.mean().item() for part in losses.split(counts)], strict=True))
