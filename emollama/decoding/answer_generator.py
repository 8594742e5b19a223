"""Answers of a language model to records: tokenization, generation, and probabilities of labels.

Evaluation and the :class:`~emollama.inference.engine.Engine` share this module, so that they give the same answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emollama.components import Model
from emollama.data.batch import Batch, Record, Sample, collate
from emollama.data.prompts.prompt import PromptFormat
from emollama.decoding.likelihoods import candidate_probabilities
from emollama.decoding.prefix_cache import Prefix, PrefixCache
from emollama.decoding.running_batch import FinishReason, RunningBatch
from emollama.decoding.sampling_params import SequenceParams


@dataclass(frozen=True)
class Prompt:
    """A tokenized record whose last answer is to be generated.

    Attributes:
        sample: the result of :func:`tokenize`.
        params: how tokens are selected.
    """

    sample: Sample
    params: SequenceParams


@dataclass(frozen=True)
class LabelAnswers:
    """The labels of a dataset, and the answers that stand for them.

    Attributes:
        labels: the labels.
        label_of: answer, as the model is trained to produce it -> label. Several answers may have the same label.
    """

    labels: Sequence[str]
    label_of: Mapping[str, str]


@dataclass(frozen=True)
class GeneratedAnswer:
    """A generated answer.

    Attributes:
        text: the answer.
        finish_reason: "stop" if the model ended the answer, "length" if it reached the maximum number of tokens.
        num_tokens: number of generated tokens.
        num_cached_tokens: number of tokens of the prompt that an earlier turn of the conversation had processed.
    """

    text: str
    finish_reason: FinishReason
    num_tokens: int
    num_cached_tokens: int = 0


@dataclass(frozen=True)
class Update:
    """The state of a sequence after a step.

    Attributes:
        sequence: number of the sequence.
        ids: all its generated ids, including the end of the answer.
        finish_reason: None while the sequence is not finished.
        error: why the sequence ended without an answer; None otherwise.
        num_cached_tokens: number of tokens of the prompt that an earlier turn of the conversation had processed.
    """

    sequence: int
    ids: Sequence[int]
    finish_reason: FinishReason | None
    error: BaseException | None = None
    num_cached_tokens: int = 0

    def answer(self, prompt_format: PromptFormat) -> GeneratedAnswer:
        """Return the answer of a finished sequence."""
        assert self.finish_reason is not None, "the sequence is not finished"
        text = prompt_format.answer_text(list(self.ids))
        return GeneratedAnswer(text, self.finish_reason, len(self.ids), self.num_cached_tokens)


def tokenize(prompt_format: PromptFormat, record: Record, layout: str) -> Sample:
    """Tokenize a record without its last answer, which is to be generated.

    Args:
        prompt_format: the prompt format of the model.
        record: texts and features.
        layout: layout of the prompt format.

    Raises:
        UserError: If the record cannot be tokenized within the limits. The message names the sample.
    """
    return prompt_format.tokenize(record, layout=layout, for_generation=True)


@dataclass
class _Sequence:
    """A sequence that is being generated: its prompt, its new ids, and how many tokens of the prompt were in the cache."""

    sample: Sample
    num_cached_tokens: int
    ids: list[int] = field(default_factory=list)


class AnswerGenerator:
    """A model, or an ensemble, with its prompt format.

    Sequences can be added to those that are being generated, and each step adds one token to all of them.

    Args:
        members: the model in eval mode, or the members of an ensemble.
        prompt_format: the prompt format of the model.
        num_prefixes: number of finished sequences whose keys and values are kept, so that the next turn of a conversation does
            not process the earlier ones again.
    """

    def __init__(self, members: Sequence[Model], prompt_format: PromptFormat, num_prefixes: int = 0) -> None:
        self.members = members
        self.prompt_format = prompt_format
        self._running = RunningBatch(members, prompt_format.is_finished)
        self._sequences: dict[int, _Sequence] = {}
        self._prefixes = PrefixCache(num_prefixes) if num_prefixes else None

    def __len__(self) -> int:
        """Number of unfinished sequences."""
        return len(self._running)

    @property
    def max_tokens(self) -> int | None:
        """Number of tokens that the language model has positions for; None without such a limit."""
        limit: int | None = getattr(self.members[0], "max_tokens", None)
        return limit

    def add(self, prompts: Sequence[Prompt]) -> list[int]:
        """Process prompts, and return the numbers of their sequences.

        Raises:
            UserError: If a prompt is longer than the language model can process. Nothing is added then.
        """
        if self._prefixes is None:
            return self._add_new(prompts)
        prefixes = [self._prefixes.longest(prompt.sample) for prompt in prompts]
        new = [index for index, prefix in enumerate(prefixes) if prefix is None]
        sequences = dict(zip(new, self._add_new([prompts[index] for index in new]), strict=True))
        try:
            for index, prefix in enumerate(prefixes):
                if prefix is not None:
                    sequences[index] = self._add_continued(prompts[index], prefix)
        except BaseException:
            for sequence in sequences.values():
                self.remove(sequence)
            raise
        return [sequences[index] for index in range(len(prompts))]

    def _add_new(self, prompts: Sequence[Prompt]) -> list[int]:
        if not prompts:
            return []
        keeps = self._prefixes is not None
        params = [dataclasses.replace(prompt.params, keeps_state=keeps) for prompt in prompts]
        sequences = self._running.add(self._batch([prompt.sample for prompt in prompts]), params)
        self._sequences |= {sequence: _Sequence(prompt.sample, 0) for sequence, prompt in zip(sequences, prompts, strict=True)}
        return sequences

    def _add_continued(self, prompt: Prompt, prefix: Prefix) -> int:
        ids = prompt.sample.input_ids[None, prefix.num_tokens :].to(self.members[0].device)
        params = dataclasses.replace(prompt.params, keeps_state=True)
        sequence = self._running.add_continued(prefix.states, ids, params)
        self._sequences[sequence] = _Sequence(prompt.sample, prefix.num_tokens)
        return sequence

    def step(self) -> list[Update]:
        """Generate the next token of each sequence. Finished and failed sequences are removed."""
        updates = []
        for new in self._running.step():
            sequence = self._sequences[new.sequence]
            if new.error is not None:
                del self._sequences[new.sequence]
                updates.append(Update(new.sequence, sequence.ids, None, new.error))
                continue
            sequence.ids.append(new.token)
            cached = sequence.num_cached_tokens
            updates.append(Update(new.sequence, sequence.ids, new.finish_reason, num_cached_tokens=cached))
            if new.finish_reason is not None:
                del self._sequences[new.sequence]
            if self._prefixes is not None and new.states is not None:
                self._prefixes.add(sequence.sample, sequence.ids, new.states)
        return updates

    def remove(self, sequence: int) -> None:
        """Remove a sequence, whose answer is no longer needed, if it is unfinished."""
        self._running.remove(sequence)
        self._sequences.pop(sequence, None)

    def generate(self, prompts: Sequence[Prompt]) -> list[GeneratedAnswer]:
        """Generate all answers, in one batch. No other sequence may be unfinished.

        Raises:
            UserError: If a prompt is longer than the language model can process.
        """
        assert not len(self), "sequences of another call are unfinished"
        sequences = self.add(prompts)
        answers: dict[int, GeneratedAnswer] = {}
        try:
            while len(self):
                for update in self.step():
                    if update.error is not None:
                        raise update.error
                    if update.finish_reason is not None:
                        answers[update.sequence] = update.answer(self.prompt_format)
        except BaseException:
            for sequence in list(self._sequences):
                self.remove(sequence)
            raise
        return [answers[sequence] for sequence in sequences]

    def beam_search(self, samples: Sequence[Sample], options: Mapping[str, Any]) -> list[GeneratedAnswer]:
        """Generate answers with beam search.

        Args:
            samples: results of :func:`tokenize`.
            options: keyword arguments of transformers' ``generate``.

        Raises:
            UserError: If a prompt is longer than the language model can process.
        """
        (model,) = self.members
        generated = model.beam_search(self._batch(samples), self.prompt_format, options)
        reasons: list[FinishReason] = ["stop" if self.prompt_format.is_finished(ids) else "length" for ids in generated]
        return [
            GeneratedAnswer(self.prompt_format.answer_text(ids), reason, len(ids))
            for ids, reason in zip(generated, reasons, strict=True)
        ]

    def label_probabilities(self, samples: Sequence[Sample], answers: LabelAnswers) -> list[dict[str, float]]:
        """Return label -> probability for each sample, by the likelihoods of answers.

        The probabilities of answers that have the same label are added.

        Args:
            samples: results of :func:`tokenize`.
            answers: the labels and their answers.

        Raises:
            UserError: If a prompt is longer than the language model can process.
        """
        candidates = [self.prompt_format.answer_ids(answer) for answer in answers.label_of]
        results = []
        for row in candidate_probabilities(self.members, self._batch(samples), candidates).tolist():
            by_label = dict.fromkeys(answers.labels, 0.0)
            for label, probability in zip(answers.label_of.values(), row, strict=True):
                by_label[label] += probability
            results.append(by_label)
        return results

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        return collate(list(samples)).to(self.members[0].device)
