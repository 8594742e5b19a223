"""Continuous batching: sequences of different lengths that get one token per step, and that join and leave at any time.

Shape letters: B = unfinished sequences, V = size of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from emollama.components import Model
from emollama.data.batch import Batch
from emollama.decoding.sampling_params import SamplingParams, SequenceParams
from emollama.decoding_state import DecodingState

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class NewToken:
    """The next token of a sequence.

    Attributes:
        sequence: id of the sequence.
        token: id of the token.
        finish_reason: stop if the token ended the answer, length if it is the last that the sequence may have, else None.
        states: the state of each model after all tokens but this one, if the sequence is finished, its parameters ask for it,
            and the model has a cache of keys and values.
        error: why the sequence ended without its next token, in which case ``token`` is -1; None otherwise.
    """

    sequence: int
    token: int
    finish_reason: FinishReason | None
    states: list[DecodingState] | None = None
    error: Exception | None = None


class RunningBatch:
    """Unfinished sequences, each of which gets one token per step; sequences can be added and removed at any time.

    An ensemble averages the next-token distributions of its members.

    Args:
        models: one model in eval mode, or the members of an ensemble.
        is_finished: returns whether the last of a sequence's new ids ended it.
    """

    def __init__(self, models: Sequence[Model], is_finished: Callable[[list[int]], bool]) -> None:
        self._models = list(models)
        self._is_finished = is_finished
        self._rows: list[_Row] = []  # in the order of the rows of the states
        self._states: list[DecodingState] = []  # one per model; empty without sequences
        self._scores: Tensor | None = None  # (B, V) of the next tokens
        self._num_added = 0
        self._failed: list[NewToken] = []  # sequences that the next step reports

    def __len__(self) -> int:
        """Return the number of sequences of which a step has something to return."""
        return len(self._rows) + len(self._failed)

    @torch.inference_mode()
    def add(self, batch: Batch, params: Sequence[SequenceParams]) -> list[int]:
        """Prefill prompts, which get their first token in the next step.

        Args:
            batch: prompts without answers, at least one.
            params: parameters of each prompt.

        Returns:
            The id of each sequence, which no other sequence of this object has or gets.

        Raises:
            UserError: If a prompt is longer than the language model can process.
        """
        prefilled = [model.prefill(batch) for model in self._models]
        return self._join([state for _, state in prefilled], _mean_scores([logits for logits, _ in prefilled]), params)

    @torch.inference_mode()
    def add_continued(self, states: Sequence[DecodingState], ids: Tensor, params: SequenceParams) -> int:
        """Add a sequence whose first tokens were processed before.

        Args:
            states: the state of each model after these tokens, for a single sequence. They are changed.
            ids: (1, Q) the other tokens of the prompt, which are not feature tokens.
            params: its parameters.

        Returns:
            The id of the sequence, as for :meth:`add`.

        Raises:
            UserError: If the prompt is longer than the language model can process.
        """
        logits = [model.decode(ids, state)[:, -1] for model, state in zip(self._models, states, strict=True)]
        return self._join(states, _mean_scores(logits), [params])[0]

    def _join(self, states: Sequence[DecodingState], scores: Tensor, params: Sequence[SequenceParams]) -> list[int]:
        """Add sequences with their states and the scores of their next tokens, (B, V); return their ids."""
        if self._scores is None:
            self._states, self._scores = list(states), scores
        else:
            try:
                for state, added in zip(self._states, states, strict=True):
                    state.append(added)
                self._scores = torch.cat([self._scores, scores])
            except Exception as error:
                # Some layers have the rows, others do not.
                self._fail(error)
                raise
        rows = [_Row(self._num_added + index, one, scores.device) for index, one in enumerate(params)]
        self._rows += rows
        self._num_added += len(rows)
        return [row.sequence for row in rows]

    @torch.inference_mode()
    def step(self) -> list[NewToken]:
        """Return one new token of every sequence, and remove the sequences that it finishes.

        If a model fails, the unfinished sequences end, and the next step returns the error of each.
        """
        if self._failed or self._scores is None:
            failed, self._failed = self._failed, []
            return failed
        # The only point at which the host waits for the device.
        ids, errors = self._selected(self._scores)
        new, finished = [], []
        for index, (row, token) in enumerate(zip(self._rows, ids.tolist(), strict=True)):
            if index in errors:
                new.append(NewToken(row.sequence, -1, None, error=errors[index]))
                finished.append(index)
                continue
            row.ids.append(token)
            reason = self._finish_reason(row)
            states = self._copied(index) if reason and row.keeps_state else None
            new.append(NewToken(row.sequence, token, reason, states))
            if reason:
                finished.append(index)
        for index in reversed(finished):
            self._drop(index)
            ids = _without(ids, index)
        if self._rows:
            pairs = zip(self._models, self._states, strict=True)
            try:
                self._scores = _mean_scores([model.decode(ids[:, None], state)[:, -1] for model, state in pairs])
            except Exception as error:
                self._fail(error)
        return new

    def _fail(self, error: Exception) -> None:
        """End all sequences with an error."""
        # The frames of the traceback refer to the tensors of the batch.
        error = error.with_traceback(None)
        self._failed += [NewToken(row.sequence, -1, None, error=error) for row in self._rows]
        self._rows, self._states, self._scores = [], [], None

    @torch.inference_mode()
    def remove(self, sequence: int) -> None:
        """Remove a sequence, if it is unfinished."""
        self._failed = [new for new in self._failed if new.sequence != sequence]
        for index, row in enumerate(self._rows):
            if row.sequence == sequence:
                self._drop(index)
                return

    def _copied(self, index: int) -> list[DecodingState] | None:
        if not all(hasattr(state.cache, "copied") for state in self._states):
            return None
        return [state.copied(index, state.lengths[index]) for state in self._states]

    def _finish_reason(self, row: _Row) -> FinishReason | None:
        if self._is_finished(row.ids):
            return "stop"
        return "length" if len(row.ids) >= row.params.max_new_tokens else None

    def _drop(self, index: int) -> None:
        """Remove a row. The last row takes its place, so that only one row moves."""
        last = self._rows.pop()
        if not self._rows:
            self._states, self._scores = [], None
            return
        if index < len(self._rows):
            self._rows[index] = last
        for state in self._states:
            state.drop(index)
        assert self._scores is not None
        self._scores = _without(self._scores, index)

    def _selected(self, scores: Tensor) -> tuple[Tensor, dict[int, Exception]]:
        """Return the next token of each row, (B,), and index of a row -> why it has none."""
        selected = scores.argmax(-1)
        errors: dict[int, Exception] = {}
        for index, row in enumerate(self._rows):
            if not row.is_plain:
                try:
                    selected[index] = row.select(scores[index])
                except RuntimeError as error:  # of torch.multinomial, if probabilities are not finite
                    errors[index] = error.with_traceback(None)
        return selected, errors


class _Row:
    """A sequence: its id, its parameters and its new ids.

    Tokens are sampled for one row after the other, because torch.multinomial takes a single generator.
    """

    def __init__(self, sequence: int, params: SequenceParams, device: torch.device) -> None:
        self.sequence, self.params, self.keeps_state = sequence, params.sampling, params.keeps_state
        self.ids: list[int] = []
        self._processors = _processors(params.sampling)
        sampled = params.sampling.temperature > 0
        self._generator = torch.Generator(device).manual_seed(params.seed) if sampled else None

    @property
    def is_plain(self) -> bool:
        """Whether the token with the highest score is selected."""
        return not self._processors

    def select(self, scores: Tensor) -> Tensor:
        """Return the next token, (), given its scores (V,)."""
        # Before the first token there are no ids, from which torch could infer the dtype.
        ids: Any = torch.tensor([self.ids], device=scores.device, dtype=torch.long)
        processed: Tensor = self._processors(ids, scores[None])[0]
        if self._generator is None:
            return processed.argmax(-1)
        return torch.multinomial(processed.softmax(-1), 1, generator=self._generator)[0]


def _mean_scores(logits: list[Tensor]) -> Tensor:
    """Return the log-probabilities of the mean distribution; for a single model, its logits, which differ by a constant."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([part.log_softmax(-1) for part in logits]).logsumexp(0) - math.log(len(logits))


def _without(tensor: Tensor, index: int) -> Tensor:
    """Return the tensor without one row, whose place the last row takes."""
    if index < len(tensor) - 1:
        tensor[index] = tensor[-1]
    return tensor[:-1]


def _processors(params: SamplingParams) -> LogitsProcessorList:
    """Return the logits processors of transformers that the parameters need."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature > 0:
        processors.append(TemperatureLogitsWarper(params.temperature))
        if params.top_p < 1:
            processors.append(TopPLogitsWarper(params.top_p))
    return processors
