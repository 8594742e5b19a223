"""Answers of a language model in a vLLM server: encoders and projections run here, and prompts are sent as embeddings."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

from emollama.data.batch import Sample, collate
from emollama.decoding.answer_generator import GeneratedAnswer, LabelAnswers, Prompt, Update
from emollama.errors import UserError
from emollama.inference.remote_llm import RemoteAnswer, RemoteLanguageModel
from emollama.inference.remote_support import NO_BEAM_SEARCH, NO_LIKELIHOODS
from emollama.inference.requests import RequestError
from emollama.models.packed_llm import PackedLLM
from emollama.models.prompt_embeddings import prompt_embeddings
from emollama.runners.preparation import Preparation

# Seconds after which step() returns without news, so that requests can join and be cancelled.
POLL_SECONDS = 0.02


class _Event(NamedTuple):
    """What happened to a sequence: its ids so far, or its end."""

    sequence: int
    ids: Sequence[int] = ()
    end: Future[RemoteAnswer] | None = None


class RemoteAnswerGenerator:
    """A model whose language model runs in a server: a :class:`~emollama.inference.generation_stage.SequenceGenerator`.

    Args:
        preparation: the checked configuration, which :func:`~emollama.inference.remote_support.require_supported` accepts.
        url: address of the server.

    Raises:
        UserError: If the server cannot be reached.
    """

    def __init__(self, preparation: Preparation, url: str) -> None:
        self._client = RemoteLanguageModel(url, preparation.prompt)
        try:
            (model,) = preparation.build_models(embeddings_only=True)
        except BaseException:
            self._client.close()
            raise
        assert isinstance(model, PackedLLM)
        self._embedder = model.eval()
        self.prompt_format = preparation.prompt
        self._news: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._calls: dict[int, Future[RemoteAnswer]] = {}
        self._num_added = 0

    @property
    def max_tokens(self) -> int | None:
        """Number of tokens that the language model has positions for; None without such a limit."""
        return self._embedder.max_tokens

    def close(self) -> None:
        """End all requests to the server."""
        self._client.close()

    def add(self, prompts: Sequence[Prompt]) -> list[int]:
        """Send prompts to the server, and return the numbers of their sequences."""
        batch = collate([prompt.sample for prompt in prompts]).to(self._embedder.device)
        embeddings = prompt_embeddings(self._embedder, batch)
        first = self._num_added
        self._num_added += len(prompts)
        sequences = range(first, self._num_added)
        try:
            for sequence, prompt, one in zip(sequences, prompts, embeddings, strict=True):
                call = self._client.start(one, prompt.params, partial(self._put, sequence))
                self._calls[sequence] = call
                call.add_done_callback(partial(self._end, sequence))
        except BaseException:
            for sequence in sequences:
                self.remove(sequence)
            raise
        return list(sequences)

    def step(self) -> list[Update]:
        """Return what has changed since the last call, after waiting for it for a moment."""
        if not self._calls:
            return []
        latest: dict[int, _Event] = {}
        try:
            news = self._news.get(timeout=POLL_SECONDS)
            while True:
                latest[news.sequence] = news
                news = self._news.get_nowait()
        except queue.Empty:
            pass
        return [self._update(news) for news in latest.values() if news.sequence in self._calls]

    def remove(self, sequence: int) -> None:
        """Cancel an unfinished sequence, whose answer is no longer needed."""
        if (call := self._calls.pop(sequence, None)) is not None:
            call.cancel()

    def beam_search(self, samples: Sequence[Sample], options: Mapping[str, Any]) -> list[GeneratedAnswer]:
        """Refuse it.

        Raises:
            UserError: Always.
        """
        raise UserError(f"num_beams: {NO_BEAM_SEARCH}")

    def label_probabilities(self, samples: Sequence[Sample], answers: LabelAnswers) -> list[dict[str, float]]:
        """Refuse it.

        Raises:
            RequestError: Always. The message has the reason.
        """
        raise RequestError(f"{NO_LIKELIHOODS} Leave them out.", "label_probabilities")

    def _put(self, sequence: int, ids: list[int]) -> None:
        self._news.put(_Event(sequence, ids))

    def _end(self, sequence: int, call: Future[RemoteAnswer]) -> None:
        self._news.put(_Event(sequence, end=call))

    def _update(self, news: _Event) -> Update:
        if news.end is None:
            return Update(news.sequence, news.ids, None)
        del self._calls[news.sequence]
        if (error := news.end.exception()) is not None:
            return Update(news.sequence, (), None, error)
        answer = news.end.result()
        return Update(news.sequence, answer.ids, answer.finish_reason)
