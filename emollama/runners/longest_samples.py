"""The lengths of the samples of a run in tokens, before their features are read."""

from __future__ import annotations

import ast
import hashlib
import heapq
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emollama.component_configs import ModelConfig
from emollama.data.dataset import SampleDataset
from emollama.data.features import Features
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.slots import SlotShape, declared_slots, without_pixels
from emollama.data.validation_cache import ValidationCache, files_of
from emollama.errors import UserError
from emollama.logs.logger import get_logger

MARGIN = 8  # tokens around the texts of a sample, such as BOS
SHORT_TEXTS = 100  # texts of a task that are tokenized to find the shortest one


@dataclass(frozen=True)
class Candidate:
    """A sample with its estimated numbers of text tokens, and of those of its answer."""

    tokens: int
    answer: int
    block_name: str
    index: int
    task: str
    instruction: str


@dataclass(frozen=True)
class Longest:
    """Estimated numbers of tokens in a run. No sample exceeds the largest ones by much, or is much shorter than the smallest one.

    Attributes:
        sample: tokens of the longest sample.
        answer: tokens of the longest answer.
        shortest_prompt: tokens of the shortest prompt, without an answer.
        group: tokens of the longest samples about one clip (``run.tasks_per_clip``), without those that they share.
    """

    sample: int
    answer: int
    group: int
    shortest_prompt: int = 0


@dataclass(frozen=True)
class SampleLengths:
    """Estimates the lengths of the samples of a run from their texts and the shapes of slots.

    An estimate is too small for samples with several turns. In a slot of any number of feature vectors, all samples count with
    the largest array.

    Args:
        datasets: block name -> training dataset.
        prompt: prompt format of the model.
        model: the ``model`` block, with the limits of texts.
        shapes: slot -> the shape that the model expects.
    """

    datasets: Mapping[str, SampleDataset]
    prompt: PromptFormat
    model: ModelConfig
    shapes: Mapping[str, SlotShape]

    def require_fitting(self, max_tokens: int) -> None:
        """Check that no sample has more than ``run.max_tokens``; lengths that seem to be too long are computed exactly.

        Raises:
            UserError: If a sample is longer. The message names it.
        """
        max_text_tokens = max_tokens - self._feature_tokens()
        if self._most_text_tokens() <= max_text_tokens:
            return
        candidates = [candidate for name in self.datasets for candidate in self._candidates(name, max_text_tokens)]
        for candidate in sorted(candidates, key=lambda candidate: -candidate.tokens):
            block_name, task = candidate.block_name, candidate.task
            # Empty slots, and the parts of a prompt that depend on them, make a sample shorter than its estimate.
            record = self.datasets[block_name].record(candidate.index, task, candidate.instruction)
            sample = self.prompt.tokenize(record)
            if (tokens := len(sample.input_ids)) > max_tokens:
                raise UserError(
                    f"run.max_tokens is {max_tokens}, but the sample '{sample.name}' of datasets.{block_name} has {tokens} tokens"
                    f" (task {task}). Set it to at least {tokens}, lower model.max_txt_len or model.max_context_len, or leave the"
                    " sample out."
                )

    def warn_of_long_groups(self, max_tokens: int, tasks_per_clip: int) -> None:
        """Warn if the samples about one clip, which are never split, probably have more than ``run.max_tokens``."""
        if tasks_per_clip == 1 or tasks_per_clip * self._most_text_tokens() + self._feature_tokens() <= max_tokens:
            return
        longest = self.longest(tasks_per_clip)
        if longest.group > max_tokens:
            get_logger().warning(
                "the %d samples about a clip (run.tasks_per_clip) have up to about %d tokens, more than run.max_tokens, which is"
                " %d. They stay in one micro-batch, which needs more memory. To prevent this, raise run.max_tokens or lower"
                " run.tasks_per_clip",
                *(tasks_per_clip, longest.group, max_tokens),
            )

    def longest(self, tasks_per_clip: int) -> Longest:
        """Return the estimated numbers of tokens of the longest samples.

        All texts are tokenized. The numbers are cached until the texts or the files of the language model change.
        """
        cache = ValidationCache.load(
            "sample-lengths", files_of(self.model.llama_model), repr(self.model), f"{tasks_per_clip} tasks"
        )
        rows = []
        for block_name, dataset in self.datasets.items():
            pool = json.dumps([dataset.digest(), dataset.pool.instructions])
            stamp = (int.from_bytes(hashlib.sha256(pool.encode()).digest()[:7]),)
            if (cached := cache.get(block_name, stamp)) is None:
                candidates = list(self._candidates(block_name, 0))
                sample = max((candidate.tokens for candidate in candidates), default=0)
                answer = max((candidate.answer for candidate in candidates), default=0)
                group = sample if tasks_per_clip == 1 else self._longest_group(dataset, candidates, tasks_per_clip)
                cached = f"{sample} {answer} {group} {self._shortest_prompt(dataset)}"
                cache.add(block_name, stamp, cached)
            rows.append([int(number) for number in cached.split()])
        cache.save()
        samples, answers, groups, prompts = zip(*rows, strict=True)
        features, fewest = self._feature_tokens(), map(self._fewest_feature_tokens, self.datasets.values())
        return Longest(
            sample=max(samples) + features,
            answer=max(answers),
            group=max(groups) + features,
            shortest_prompt=min(map(sum, zip(prompts, fewest, strict=True))),
        )

    def _longest_group(self, dataset: SampleDataset, candidates: Sequence[Candidate], tasks_per_clip: int) -> int:
        """Return the text tokens of the longest tasks of a clip; those of the beginning of their user texts count once."""
        groups: dict[int, list[Candidate]] = defaultdict(list)
        for candidate in sorted(candidates, key=lambda candidate: -candidate.tokens):
            if len(group := groups[candidate.index]) < tasks_per_clip:
                group.append(candidate)
        texts = [[dataset.user_text(index, item.task, item.instruction) for item in group] for index, group in groups.items()]
        empty, *prompts = self.prompt.prompt_lengths(["", *map(os.path.commonprefix, texts)])
        shared = [1 + min(length - empty, self.model.max_context_len) for length in prompts]  # 1 for the BOS token
        return max(
            (
                sum(candidate.tokens for candidate in group) - (len(group) - 1) * tokens
                for group, tokens in zip(groups.values(), shared, strict=True)
            ),
            default=0,
        )

    def _shortest_prompt(self, dataset: SampleDataset) -> int:
        """Return the text tokens of the shortest prompt, which has one of the texts with the fewest characters."""
        lengths = []
        for task in dataset.pool.tasks:
            instructions = dataset.pool.instructions[task]
            instruction = instructions[int(np.argmin(self.prompt.prompt_lengths(instructions)))]
            texts = (dataset.user_text(index, task, instruction) for index in range(len(dataset)))
            lengths += self.prompt.prompt_lengths(heapq.nsmallest(SHORT_TEXTS, texts, key=len))
        return min(min(lengths, default=0), self.model.max_context_len)

    def _most_text_tokens(self) -> int:
        """Return a number of text tokens that no sample exceeds."""
        return self.model.max_context_len + self.model.max_txt_len + MARGIN

    def _feature_tokens(self) -> int:
        sources = self.datasets.values()
        vectors = {slot: most_vectors(sources, slot, shape) for slot, shape in without_pixels(self.shapes).items()}
        return sum(self.prompt.feature_tokens.fusion.num_feature_tokens(vectors).values())

    def _fewest_feature_tokens(self, dataset: SampleDataset) -> int:
        """Return the feature tokens of a sample that has as few feature vectors as a sample of the dataset can have."""
        sources, slots = dataset.slot_sources, declared_slots(self.shapes)
        filled = {slot for name, members in slots.items() if sources.get(name) is not None for slot in members}
        vectors = {slot: shape.num_zeros * (slot in filled) for slot, shape in without_pixels(self.shapes).items()}
        return sum(self.prompt.feature_tokens.fusion.num_feature_tokens(vectors).values())

    def _candidates(self, block_name: str, max_text_tokens: int) -> Iterator[Candidate]:
        """Yield the samples of a dataset that have more text tokens, by their estimate."""
        dataset, prompt, model = self.datasets[block_name], self.prompt, self.model
        names, answers = dataset.names(), dataset.inspect().answers
        template = prompt.prompt_lengths([""])[0] + prompt.answer_lengths([""])[0] + MARGIN
        for task in dataset.pool.tasks:
            instructions = dataset.pool.instructions[task]
            instruction = instructions[int(np.argmax(prompt.prompt_lengths(instructions)))]
            user_texts = [dataset.user_text(index, task, instruction) for index in range(len(names))]
            texts = [(text, answers[task].get(name) or "") for text, name in zip(user_texts, names, strict=True)]
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
                    yield Candidate(tokens, min(answer_tokens, model.max_txt_len), block_name, index, task, instruction)


def most_vectors(datasets: Iterable[SampleDataset], slot: str, shape: SlotShape) -> int:
    """Return the largest number of feature vectors of a slot in a sample.

    For a slot of any number, it is that of the largest array in the check of the arrays, which is cached.
    """
    if shape.num_vectors is not None:
        return shape.num_vectors
    shapes: set[str] = set()
    for dataset in datasets:
        for source in dataset.features:
            if isinstance(source, Features) and source.slots[0] == slot and source.pooling is None:
                shapes |= {check.shape for check in source.check(dataset.names()).valid.values()}
    arrays = [(1, *ast.literal_eval(text)) for text in shapes]
    return max((array[-2] - (shape.class_token is not None) for array in arrays), default=shape.num_zeros)
