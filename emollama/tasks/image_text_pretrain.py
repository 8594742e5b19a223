"""Answering questions about a clip: the weighted loss of its answer tokens, and answers generated for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emollama.data.batch import IGNORED, Batch, Record, collate
from emollama.data.loader import ClipDataset, seed_of
from emollama.data.prompt import Prompt, PromptLayout
from emollama.errors import require_at_least
from emollama.registry import TASKS


@dataclass(frozen=True)
class Prediction:
    """One clip's answer to one task.

    Attributes:
        instruction: the turn's text with the marks where feature rows go.
        prediction: what was generated.
        target: the answer of the data, or None where there is none.
        loss: mean cross-entropy (natural logarithm) over the target's tokens, in the training layout; None without a target.
    """

    name: str
    task: str
    instruction: str
    prediction: str
    target: str | None
    loss: float | None


@TASKS.register("image_text_pretrain")
class ImageTextPretrain:
    """The task behind ``run.task: image_text_pretrain``."""

    @dataclass
    class Config:
        """Keys of a block under ``evaluation_datasets`` beside the dataset's own: how answers are asked for and generated."""

        max_new_tokens: int = 500
        """Tokens of an answer at most."""
        num_beams: int = 1
        """Beams of the search; 1 searches greedily."""
        temperature: float = 0.0
        """0 takes the most likely token; above 0 samples, the same for the same run.seed, processes and batch_size."""
        top_p: float = 1.0
        """Share of probability that sampling draws from; needs a temperature above 0."""
        repetition_penalty: float = 1.0
        """Above 1 makes tokens that were generated before less likely."""
        prompt_layout: PromptLayout = "train"
        """train: as in training. upstream_eval: as the released checkpoints were evaluated (no loss is given then)."""
        instruction: str = "first"
        """first: the first wording of each task. Anything else is itself the wording; {labels} in it is replaced."""

        def __post_init__(self) -> None:
            require_at_least(1, self, "max_new_tokens", "num_beams")
            if self.temperature < 0 or self.repetition_penalty <= 0 or not 0 < self.top_p <= 1:
                raise ValueError("temperature must be at least 0, repetition_penalty above 0, top_p above 0 and at most 1")
            if self.top_p < 1 and self.temperature == 0:
                raise ValueError("top_p has no effect at temperature 0. Set a temperature above 0, or leave top_p out.")

        def generation(self) -> dict[str, Any]:
            """Keyword arguments for transformers' ``generate``."""
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
            greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            return {
                "max_new_tokens": self.max_new_tokens,
                "num_beams": self.num_beams,
                "repetition_penalty": self.repetition_penalty,
                **(sampling if self.temperature > 0 else greedy),
            }

    def loss(self, model: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """Sum over the batch's answer tokens of weight x cross-entropy: a scalar, to be divided by the step's weights."""
        weights: Tensor = batch.loss_weights[batch.labels != IGNORED]
        return (model(batch) * weights).sum()

    def evaluate(
        self, model: Any, prompt: Prompt, dataset: ClipDataset, cfg: Config, places: range, device: torch.device, seed: int
    ) -> Iterator[list[Prediction]]:
        """Generate answers, a micro-batch at a time, and score the targets where there are any.

        Args:
            model: in eval mode.
            prompt: the model's renderer.
            dataset: asked for every task of its pool, clip by clip.
            cfg: how to generate.
            places: which (clip, task) pairs to do, by number; this rank's share.
            device: where the model is.
            seed: of the sampling, where temperature is above 0.
        """
        tasks = dataset.pool.tasks
        size = dataset.cfg.batch_size
        for first in range(0, len(places), size):
            chunk = places[first : first + size]
            records = []
            for place in chunk:
                clip, task = place // len(tasks), tasks[place % len(tasks)]
                wording = dataset.pool.first(task) if cfg.instruction == "first" else dataset.pool.filled(cfg.instruction)
                records.append(dataset.record(clip, task, wording))
            yield self._predictions(model, prompt, records, cfg, device, seed_of(seed, chunk[0]))

    def _predictions(
        self, model: Any, prompt: Prompt, records: list[Record], cfg: Config, device: torch.device, seed: int
    ) -> list[Prediction]:
        asked = collate([prompt.sample(record, layout=cfg.prompt_layout, to_generate=True) for record in records])
        torch.manual_seed(seed)
        texts = [prompt.answer_text(ids) for ids in model.generate(asked.to(device), prompt, cfg.generation())]
        losses = self._losses(model, prompt, records, device) if cfg.prompt_layout == "train" else {}
        return [
            Prediction(record.name, record.task, prompt.body(record), text, record.turns[-1][1], losses.get(place))
            for place, (record, text) in enumerate(zip(records, texts, strict=True))
        ]

    @torch.inference_mode()
    def _losses(self, model: Any, prompt: Prompt, records: list[Record], device: torch.device) -> dict[int, float]:
        """place in records -> mean loss of that record's target."""
        scored = [place for place, record in enumerate(records) if record.turns[-1][1] is not None]
        if not scored:
            return {}
        batch = collate([prompt.sample(records[place]) for place in scored]).to(device)
        counts = [int((labels != IGNORED).sum()) for labels in batch.labels.split(batch.lengths)]
        means = [losses.mean().item() for losses in model(batch).split(counts)]
        return dict(zip(scored, means, strict=True))
