"""The last stage of the engine: generation of all answers in one batch that requests join and leave at any time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from emollama.data.batch import Sample
from emollama.data.prompts.prompt import PromptFormat
from emollama.decoding.answer_generator import GeneratedAnswer, LabelAnswers, Prompt, Update
from emollama.inference.pending import PendingAnswer, StreamedText, without_tensors
from emollama.inference.prepared import PreparedRequest
from emollama.inference.requests import Answer, Checkpoint, Timings
from emollama.precision import Precision
from emollama.tasks.image_text_pretrain import most_likely


class SequenceGenerator(Protocol):
    """A language model that generates answers which join and leave its batch at any time.

    :class:`~emollama.decoding.answer_generator.AnswerGenerator` runs one in this process, and
    :class:`~emollama.inference.remote_generator.RemoteAnswerGenerator` sends prompts to a server.
    """

    prompt_format: PromptFormat

    @property
    def max_tokens(self) -> int | None:
        """Number of tokens that the language model has positions for; None without such a limit."""
        ...

    def add(self, prompts: Sequence[Prompt]) -> list[int]:
        """Process prompts, and return the numbers of their sequences."""
        ...

    def step(self) -> list[Update]:
        """Return the sequences that have got tokens, after waiting for them for a moment at most."""
        ...

    def remove(self, sequence: int) -> None:
        """Remove a sequence, whose answer is no longer needed, if it is unfinished."""
        ...

    def beam_search(self, samples: Sequence[Sample], options: Mapping[str, Any]) -> list[GeneratedAnswer]:
        """Generate answers with beam search; ``options`` are keyword arguments of transformers' ``generate``."""
        ...

    def label_probabilities(self, samples: Sequence[Sample], answers: LabelAnswers) -> list[dict[str, float]]:
        """Return label -> probability for each sample, by the likelihoods of answers."""
        ...


@dataclass
class _TextItem:
    """A prepared request.

    Attributes:
        pending: the request.
        prepared: its prompts.
        feature_seconds: time that its features took.
        stream: passes its text on; None if nobody wants pieces.
        started: when the language model got the prompt, as ``time.perf_counter`` counts.
        probabilities: label -> probability; None if they are not computed.
    """

    pending: PendingAnswer
    prepared: PreparedRequest
    feature_seconds: float
    stream: StreamedText | None
    started: float = 0.0
    probabilities: dict[str, float] | None = None


class GenerationStage:
    """Runs the language model in one thread.

    Args:
        generator: the model with its prompt format.
        precision: precision of its computations.
        checkpoint: the trained weights, for the answers.
        end_symbol: text that ends an answer.
        max_batch_size: number of answers that are generated at the same time.
    """

    def __init__(
        self, generator: SequenceGenerator, precision: Precision, checkpoint: Checkpoint, end_symbol: str, max_batch_size: int
    ) -> None:
        self._generator, self._precision, self._checkpoint = generator, precision, checkpoint
        self._end_symbol, self._max_batch_size = end_symbol, max_batch_size
        self._waiting: deque[_TextItem] = deque()
        self._running: dict[int, _TextItem] = {}  # number of a sequence -> its request
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="emollama-generation", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Number of answers that are being generated."""
        return len(self._running)

    def put(self, pending: PendingAnswer, prepared: PreparedRequest, feature_seconds: float) -> None:
        """Add a request to those that wait for a place in the batch."""
        stream = None
        if pending.on_text is not None:
            stream = StreamedText(self._generator.prompt_format, self._end_symbol, pending.on_text)
        with self._changed:
            self._waiting.append(_TextItem(pending, prepared, feature_seconds, stream))
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the requests that it has."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode(), self._precision.autocast():
            while (items := self._next_items()) is not None:
                try:
                    self._process(items)
                except Exception as error:  # the thread must live, and nobody may wait forever
                    for item in items:
                        item.pending.fail(error)
                    self._fail_running(error)

    def _process(self, items: Sequence[_TextItem]) -> None:
        """Add requests to the batch, and generate a token of each answer in it."""
        now = time.perf_counter()
        for item in items:
            item.started = now
        self._score_labels([item for item in items if item.prepared.labels is not None])
        self._start([item for item in items if not item.pending.is_over])
        self._step()

    def _next_items(self) -> list[_TextItem] | None:
        """Return requests for the free places of the batch, after waiting for one if the batch is empty; None at the end."""
        with self._changed:
            while not self._waiting and not self._running:
                if self._closed:
                    return None
                self._changed.wait()
            free = self._max_batch_size - len(self._running)
            items = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        return [item for item in items if not item.pending.is_over]

    def _score_labels(self, items: Sequence[_TextItem]) -> None:
        """Compute the probabilities of labels, for requests with the same labels together."""
        groups: dict[tuple[str, ...], list[_TextItem]] = {}
        for item in items:
            assert item.prepared.labels is not None
            groups.setdefault(tuple(item.prepared.labels.answers.label_of), []).append(item)
        for group in groups.values():
            self._apply_isolated(self._set_probabilities, group)

    def _set_probabilities(self, items: Sequence[_TextItem]) -> None:
        questions = [item.prepared.labels for item in items if item.prepared.labels is not None]
        probabilities = self._generator.label_probabilities([question.sample for question in questions], questions[0].answers)
        for item, by_label in zip(items, probabilities, strict=True):
            item.probabilities = by_label

    def _start(self, items: Sequence[_TextItem]) -> None:
        """Answer requests that need no step of the batch, and add the others to it."""
        added = []
        for item in items:
            if item.prepared.prompt is None:
                assert item.probabilities is not None
                self._finish(item, GeneratedAnswer(most_likely(item.probabilities), "stop", 0))
            elif item.prepared.beam_search is not None:
                self._apply_isolated(self._search, [item])
            else:
                added.append(item)
        if added:
            self._apply_isolated(self._add, added)

    def _search(self, items: Sequence[_TextItem]) -> None:
        (item,) = items
        assert item.prepared.prompt is not None and item.prepared.beam_search is not None
        (answer,) = self._generator.beam_search([item.prepared.prompt.sample], item.prepared.beam_search)
        self._finish(item, answer)

    def _add(self, items: Sequence[_TextItem]) -> None:
        sequences = self._generator.add([item.prepared.prompt for item in items if item.prepared.prompt is not None])
        self._running |= dict(zip(sequences, items, strict=True))

    def _apply_isolated(self, function: Callable[[Sequence[_TextItem]], None], items: Sequence[_TextItem]) -> None:
        """Apply a function to requests, or to one after the other if it fails for all of them, so that only one fails."""
        isolated = False
        try:
            function(items)
        except Exception as error:
            if len(items) == 1:
                items[0].pending.fail(without_tensors(error))
                return
            isolated = True
        # Outside of the handler, whose error refers to the tensors of the batch.
        for item in items if isolated else ():
            self._apply_isolated(function, [item])

    def _step(self) -> None:
        """Generate a token of each answer in the batch."""
        for sequence in [sequence for sequence, item in self._running.items() if item.pending.is_over]:
            self._generator.remove(sequence)
            del self._running[sequence]
        try:
            updates = self._generator.step()
        except Exception as error:
            # It is not known which request is the cause.
            self._fail_running(without_tensors(error))
            return
        for update in updates:
            self._handle_update(update)

    def _fail_running(self, error: BaseException) -> None:
        running, self._running = self._running, {}
        for sequence, item in running.items():
            item.pending.fail(error)
            self._generator.remove(sequence)

    def _handle_update(self, update: Update) -> None:
        item = self._running[update.sequence]
        if update.error is not None:
            del self._running[update.sequence]
            item.pending.fail(without_tensors(update.error))
        elif update.finish_reason is not None:
            del self._running[update.sequence]
            self._finish(item, update.answer(self._generator.prompt_format))
        elif item.stream is not None:
            try:
                item.stream.update(update.ids)
            except Exception as error:  # of the function that the caller passed
                item.pending.fail(error)

    def _finish(self, item: _TextItem, answer: GeneratedAnswer) -> None:
        prepared, now = item.prepared, time.perf_counter()
        total, generation = now - item.pending.submitted, now - item.started
        timings = Timings(max(0.0, total - generation - item.feature_seconds), item.feature_seconds, generation)
        try:
            if item.stream is not None:
                item.stream.finish(answer.text)
        except Exception as error:  # of the function that the caller passed
            item.pending.fail(error)
            return
        item.pending.succeed(
            Answer(
                text=answer.text,
                task=prepared.task,
                prompt=prepared.body,
                sentence=prepared.sentence,
                modalities=prepared.modalities,
                label_probabilities=item.probabilities,
                finish_reason=answer.finish_reason,
                prompt_tokens=prepared.num_tokens,
                cached_tokens=answer.num_cached_tokens,
                completion_tokens=answer.num_tokens,
                timings=timings,
                checkpoint=self._checkpoint,
            )
        )
