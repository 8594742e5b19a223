"""The tokens of a sample, and a micro-batch of such samples, from a configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emollama.components import Model
from emollama.config import RunConfig
from emollama.data.batch import IGNORED, Batch, Record, Sample, collate
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.slots import IMAGE, PIXELS, without_pixels
from emollama.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
CHARACTERS_PER_TOKEN = 4  # estimate for English text if the folder of the language model has no tokenizer
SENTENCE_TOKENS, ANSWER_TOKENS = 20, 100  # assumed lengths of a sample's texts
ANSWERS = "sentence, answer"


@dataclass(frozen=True)
class SampleTokens:
    """The numbers of tokens of a sample.

    Attributes:
        by_part: part of a sample -> number of tokens.
        features: part of the fusion module's output -> number of feature tokens.
        notes: how they were determined.
    """

    by_part: dict[str, int]
    features: dict[str, int]
    notes: list[str]

    @property
    def total(self) -> int:
        """Number of tokens of a sample, with its assumed sentence and answer."""
        return sum(self.by_part.values())

    @property
    def least(self) -> int:
        """Number of tokens that every sample has: those of features and prompt, and one of an answer."""
        return self.total - self.by_part[ANSWERS] + 1


def prompt_of(config: RunConfig) -> PromptFormat | None:
    """Return the prompt format of a run; None if the folder of the language model has no tokenizer."""
    has_tokenizer = any(Path(config.model.llama_model, name).is_file() for name in TOKENIZER_FILES)
    return config.model_class.prompt_format(config.model) if has_tokenizer else None


def tokens_of(config: RunConfig, model: Model, prompt: PromptFormat | None) -> SampleTokens:
    """Return the tokens of a sample with the longest instruction.

    Args:
        config: the resolved configuration.
        model: the model on the meta device.
        prompt: the result of :func:`prompt_of`.
    """
    shapes = without_pixels(model.slot_shapes(config.model))
    texts = [text for block in config.datasets.values() for text in block.turns()] or [""]
    layout = model.feature_layout(config.model)
    feature_tokens = layout.num_feature_tokens({slot: shape.num_zeros for slot, shape in shapes.items()})
    if prompt is not None:
        features = {slot: torch.zeros(shape.num_zeros, shape.dim) for slot, shape in shapes.items()}
        lengths = [len(prompt.tokenize(Record("", "", [(text, None)], features)).input_ids) for text in texts]
        text_tokens = max(lengths) - sum(feature_tokens.values())
    else:
        text_tokens = max(len(text) for text in texts) // CHARACTERS_PER_TOKEN + 30
    estimate = f"estimated with {CHARACTERS_PER_TOKEN} characters per token: {config.model.llama_model} has no tokenizer"
    method = "tokenized" if prompt is not None else estimate
    # The names are keys of the --json output; the tables have plainer ones.
    named = {f"rows: {name}": count for name, count in feature_tokens.items()}
    notes = [f"prompt text is {method}"]
    if any_number := [slot for slot, shape in shapes.items() if shape.num_vectors is None]:
        text = "samples have any number of feature vectors in the slots {}; feature tokens and memory are for one vector in each"
        notes.append(text.format(", ".join(any_number)))
    parts = {**named, "prompt text": text_tokens, ANSWERS: SENTENCE_TOKENS + ANSWER_TOKENS}
    return SampleTokens(parts, feature_tokens, notes)


@dataclass(frozen=True)
class MicroBatch:
    """The size of the largest micro-batch of a process.

    Attributes:
        samples: number of samples.
        tokens: number of tokens of all samples.
        of_step: number of samples of a step on the process, which are copied to the device together.
    """

    samples: int
    tokens: int
    of_step: int

    @property
    def number(self) -> int:
        """Number of micro-batches of a step."""
        return -(-self.of_step // self.samples)


def micro_batch_of(config: RunConfig, sample: SampleTokens, gpus: int, max_tokens: int | None) -> MicroBatch:
    """Return the size of the largest micro-batch of samples with this number of tokens.

    Args:
        config: the resolved configuration.
        sample: the tokens of a sample.
        gpus: number of processes.
        max_tokens: the value of ``run.max_tokens``.

    Raises:
        UserError: If no sample fits into ``run.max_tokens``.
    """
    run = config.run
    if not config.datasets:
        samples = max((block.dataset.batch_size for block in config.evaluation_datasets.values()), default=1)
        return MicroBatch(samples, samples * sample.total, samples)
    batch_size = max(block.batch_size for block in config.datasets.values())
    of_step = run.global_batch // gpus if run.global_batch else batch_size * run.accum_grad_iters
    if max_tokens is None:
        return MicroBatch(batch_size, batch_size * sample.total, max(batch_size, of_step))
    if max_tokens < sample.least:
        features, text = sum(sample.features.values()), sample.by_part["prompt text"]
        raise UserError(
            f"run.max_tokens is {max_tokens}, but every sample has at least {sample.least} tokens: {features} of features,"
            f" {text} of its prompt and 1 of an answer. Set run.max_tokens to at least the tokens of the longest sample."
        )
    samples = max(1, min(of_step, max_tokens // sample.total))
    # The samples of a step may be fewer than fit.
    tokens = max_tokens if samples < of_step else samples * sample.total
    return MicroBatch(samples, tokens, of_step)


def example_batch(config: RunConfig, model: Model, sample: SampleTokens, size: MicroBatch) -> Batch:
    """Return a micro-batch of this size whose feature vectors are on the meta device."""
    shapes = model.slot_shapes(config.model)
    with torch.device("meta"):
        # An encoder inside the model is finished before the language model begins, so that features stand for its pixels.
        slots = {slot: torch.zeros(0 if slot == PIXELS else shape.num_zeros, shape.dim) for slot, shape in shapes.items()}
    layout = model.feature_layout(config.model)
    placeholders = [torch.full((sample.features[part],), -1 - index) for index, part in enumerate(layout.parts)]
    # The lengths differ by at most 1, so that a language model that pads samples has about as many tokens.
    length, remainder = divmod(size.tokens, size.samples)
    lengths = [length + (index < remainder) for index in range(size.samples)]
    return collate([_sample(torch.cat(placeholders), length, slots) for length in lengths])


def _sample(placeholders: torch.Tensor, length: int, slots: dict[str, Any]) -> Sample:
    ids = torch.cat([placeholders, torch.ones(max(1, length - len(placeholders)), dtype=torch.int64)])
    labels = torch.full_like(ids, IGNORED)
    labels[-min(ANSWER_TOKENS, len(ids) - len(placeholders)) :] = 1
    weights = (labels != IGNORED).float()
    # With a seed, dropout is computed as in a run.
    return Sample("", "", ids, labels, weights, slots, dropout_seed=1)


def feature_bytes(config: RunConfig, model: Model) -> int:
    """Return the bytes of the float32 feature vectors of a sample, or of its pixels."""
    shapes = model.slot_shapes(config.model)
    replaced = IMAGE if PIXELS in shapes else ()
    return sum(4 * shape.num_zeros * shape.dim for slot, shape in shapes.items() if slot not in replaced)
