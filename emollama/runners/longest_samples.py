"""The lengths of the samples of a run in tokens, before their features are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping

import numpy as np

from emollama.component_configs import ModelConfig
from emollama.data.dataset import SampleDataset
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.slots import SlotShape, without_pixels
from emollama.data.validation_cache import ValidationCache
from emollama.errors import UserError

MARGIN = 8  # tokens around the texts of a sample, such as BOS
Candidate = tuple[int, str, int, str, str]  # estimated text tokens, block name, index, task, instruction


def require_fitting_samples(
    datasets: Mapping[str, SampleDataset],
    prompt: PromptFormat,
    model: ModelConfig,
    shapes: Mapping[str, SlotShape],
    max_tokens: int,
) -> None:
    """Check that no sample has more than the maximum number of tokens.

    Lengths are estimated from texts and the shapes of slots, and computed exactly for samples that seem to be too long. The
    estimate is too small for samples with several turns, or with several feature vectors in a slot of any number of them.

    Args:
        datasets: block name -> training dataset.
        prompt: prompt format of the model.
        model: the ``model`` block, with the limits of texts.
        shapes: slot -> the shape that the model expects.
        max_tokens: the value of ``run.max_tokens``.

    Raises:
        UserError: If a sample is longer. The message names it.
    """
    max_text_tokens = max_tokens - _feature_tokens(prompt, shapes)
    if model.max_context_len + model.max_txt_len + MARGIN <= max_text_tokens:
        return
    candidates = [
        candidate
        for block_name, dataset in datasets.items()
        for candidate in _candidates(block_name, dataset, prompt, model, max_text_tokens)
    ]
    for _, block_name, index, task, instruction in sorted(candidates, key=lambda candidate: -candidate[0]):
        # Empty slots, and the parts of a prompt that depend on them, make a sample shorter than its estimate.
        sample = prompt.tokenize(datasets[block_name].record(index, task, instruction))
        if (tokens := len(sample.input_ids)) > max_tokens:
            raise UserError(
                f"run.max_tokens is {max_tokens}, but the sample '{sample.name}' of datasets.{block_name} has {tokens} tokens"
                f" (task {task}). Set it to at least {tokens}, lower model.max_txt_len or model.max_context_len, or leave the"
                " sample out."
            )


def longest_sample(
    datasets: Mapping[str, SampleDataset], prompt: PromptFormat, model: ModelConfig, shapes: Mapping[str, SlotShape]
) -> int:
    """Return the estimated number of tokens of the longest sample; see :func:`require_fitting_samples`.

    All texts are tokenized. The number is cached until they change.
    """
    cache = ValidationCache.load("longest", os.path.abspath(model.llama_model), repr(model))
    lengths = []
    for block_name, dataset in datasets.items():
        pool = json.dumps([dataset.digest(), dataset.pool.instructions])
        stamp = (int.from_bytes(hashlib.sha256(pool.encode()).digest()[:7]),)
        if (cached := cache.get(block_name, stamp)) is None:
            cached = str(max((tokens for tokens, *_ in _candidates(block_name, dataset, prompt, model, 0)), default=0))
            cache.add(block_name, stamp, cached)
        lengths.append(int(cached))
    cache.save()
    return max(lengths) + _feature_tokens(prompt, shapes)


def _feature_tokens(prompt: PromptFormat, shapes: Mapping[str, SlotShape]) -> int:
    vectors = {slot: shape.num_zeros for slot, shape in without_pixels(shapes).items()}
    return sum(prompt.feature_tokens.fusion.num_feature_tokens(vectors).values())


def _candidates(
    block_name: str, dataset: SampleDataset, prompt: PromptFormat, model: ModelConfig, max_text_tokens: int
) -> Iterator[Candidate]:
    """Yield the samples of a dataset that have more text tokens, by their estimate."""
    names, answers = dataset.names(), dataset.inspect().answers
    template = prompt.prompt_lengths([""])[0] + prompt.answer_lengths([""])[0] + MARGIN
    for task in dataset.pool.tasks:
        instructions = dataset.pool.instructions[task]
        instruction = instructions[int(np.argmax(prompt.prompt_lengths(instructions)))]
        texts = [(dataset.user_text(index, task, instruction), answers[task].get(name) or "") for index, name in enumerate(names)]
        # A token has at least one byte, so that few texts are tokenized if the maximum is not tight.
        long = [
            index
            for index, pair in enumerate(texts)
            if template + sum(len(text.encode("utf-8", "surrogatepass")) for text in pair) > max_text_tokens
        ]
        prompts = prompt.prompt_lengths([texts[index][0] for index in long])
        targets = prompt.answer_lengths([texts[index][1] for index in long])
        for index, prompt_tokens, answer_tokens in zip(long, prompts, targets, strict=True):
            tokens = min(prompt_tokens, model.max_context_len) + min(answer_tokens, model.max_txt_len) + 1
            if tokens > max_text_tokens:
                yield tokens, block_name, index, task, instruction
