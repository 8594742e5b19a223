"""The inference engine: a model, its checkpoint and encoders are loaded once and answer requests about clips.

A request passes three stages: threads read its media, one thread extracts features, and one thread generates. The last one runs
all requests in one batch: each step adds a token to every answer, a finished answer leaves the batch, and a waiting request takes
its place (continuous batching).
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from emollama.config import RunConfig
from emollama.data.slots import without_pixels
from emollama.decoding.answer_generator import AnswerGenerator
from emollama.distributed import process_group
from emollama.distributed.process_group import World
from emollama.encoders.decoding_process import DecodingProcess
from emollama.encoders.decoding_worker import DecodingLimits
from emollama.inference.clip_encoders import ClipEncoders, LoadClip
from emollama.inference.clip_files import ClipFiles
from emollama.inference.clip_records import ClipRecords, clips_to_predict
from emollama.inference.feature_stage import FeatureStage
from emollama.inference.generation_stage import GenerationStage, SequenceGenerator
from emollama.inference.pending import AnswerStream, PendingAnswer
from emollama.inference.prediction_block import find_prediction_block, prediction_blocks
from emollama.inference.remote_support import require_supported
from emollama.inference.requests import EMOTION, Answer, Checkpoint, EngineClosed, QueueFull, Request
from emollama.inference.videos import VideoSources
from emollama.media.source import DEFAULT_LIMITS, MediaLimits, Source
from emollama.paths import sha256
from emollama.runners.model_ckpt import checkpoint_paths, require_checkpoint
from emollama.runners.preparation import Preparation


@dataclass(frozen=True)
class EngineOptions:
    """Limits of an engine.

    Attributes:
        max_batch_size: number of answers that are generated at the same time.
        max_waiting: number of further requests that are accepted. More are rejected with :class:`QueueFull`.
        reading_threads: number of threads that read media.
        media_limits: the largest media that are decoded.
        decoding: limits of a separate process that decodes media, so that a file which crashes a decoder or needs too much memory
            fails alone; None decodes in this process.
        cached_conversations: number of answers whose keys and values are kept for follow-up questions; 0 keeps none.
        engine_url: address of a vLLM server that runs the language model, with the adapters merged into it; None runs it here.
    """

    max_batch_size: int = 32
    max_waiting: int = 64
    reading_threads: int = 2
    media_limits: MediaLimits = DEFAULT_LIMITS
    decoding: DecodingLimits | None = None
    cached_conversations: int = 4
    engine_url: str | None = None


@dataclass(frozen=True)
class EngineStatistics:
    """Numbers of requests since the engine was loaded.

    Attributes:
        accepted: requests that have no answer yet.
        generating: requests whose answer is being generated.
        answered: requests with an answer.
        failed: requests that ended with an error.
        cancelled: requests that were cancelled.
        rejected: requests that were not accepted because the engine had too many.
    """

    accepted: int
    generating: int
    answered: int
    failed: int
    cancelled: int
    rejected: int


class Engine:
    """Answers requests about clips, with the features, prompts and decoding of an evaluation. All methods are thread-safe.

    Args:
        config: a configuration with a model, its checkpoint and at least one dataset block. The first block that has the task of
            a request, of ``evaluation_datasets`` and then of ``datasets``, provides labels, instructions and decoding.
        options: limits.
        world: the processes, each of which has an engine of its own; None joins those of torchrun, or is a single process.

    Attributes:
        config: the resolved configuration.
        checkpoint: the trained weights.

    Raises:
        UserError: If weights or a checkpoint are missing, damaged or do not fit, or no block can be used.
    """

    def __init__(self, config: RunConfig, options: EngineOptions = EngineOptions(), world: World | None = None) -> None:
        world = process_group.start(config.run.device) if world is None else world
        self.config = config
        self._capacity = options.max_batch_size + options.max_waiting
        self._idle = threading.Condition()
        self._closed = False
        self._accepted: set[PendingAnswer] = set()
        self._unread = 0  # requests that wait for a thread that reads them, which are cancelled ones, too
        self._counts = {"answered": 0, "failed": 0, "cancelled": 0, "rejected": 0}
        with ExitStack() as self._resources:
            workspace = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="emollama-")))
            self._load(options, world, workspace)
            self._resources = self._resources.pop_all()

    def _load(self, options: EngineOptions, world: World, workspace: Path) -> None:
        config = self.config
        require_checkpoint(config.model)
        if options.engine_url is not None:
            require_supported(config)
        block = find_prediction_block(config, None)
        clip_files = ClipFiles(VideoSources(config), workspace, options.media_limits)
        manifests, empty = workspace / "manifests", workspace / "empty"
        manifests.mkdir()
        empty.mkdir()
        encoders = ClipEncoders(config, prediction_blocks(config), manifests, world)
        clips = clips_to_predict(block, Source("clip", empty), None, encoders.folders, empty)
        preparation = Preparation(block.evaluation(config), world, training=False, clips=clips)
        # It imports its libraries while the model is loaded.
        process = self._decoding_process(encoders, options)
        generator = self._generator(preparation, options)
        paths = checkpoint_paths(config.model.ckpt)
        self.checkpoint = Checkpoint(tuple(Path(path).name for path in paths), tuple(map(sha256, paths)))
        self._records = ClipRecords(config, preparation.prompt, encoders, empty, generator.max_tokens)
        close = self._resources.callback
        self._generation = GenerationStage(
            generator, preparation.precision, self.checkpoint, config.model.end_sym, options.max_batch_size
        )
        close(self._generation.close)
        load: LoadClip = encoders.load
        if process is not None:
            load = process.load
            process.wait_until_ready()
        self._features = FeatureStage(encoders, self._records, clip_files, load, self._generation.put)
        close(self._features.close)
        self._readers = ThreadPoolExecutor(options.reading_threads, thread_name_prefix="emollama-read")
        close(self._readers.shutdown)
        if process is not None:
            # Closed first, because a reader may wait for it.
            close(process.close)

    def _decoding_process(self, encoders: ClipEncoders, options: EngineOptions) -> DecodingProcess | None:
        if options.decoding is None:
            return None
        process = DecodingProcess(encoders.loaders, options.decoding)
        self._resources.callback(process.close)
        process.start()
        return process

    def _generator(self, preparation: Preparation, options: EngineOptions) -> SequenceGenerator:
        if options.engine_url is None:
            members = [member.eval() for member in preparation.build_models()]
            return AnswerGenerator(members, preparation.prompt, options.cached_conversations)
        # Imported here because the clients of the server take a second to import.
        from emollama.inference.remote_generator import RemoteAnswerGenerator

        generator = RemoteAnswerGenerator(preparation, options.engine_url)
        self._resources.callback(generator.close)
        return generator

    @property
    def block_key(self) -> str:
        """Dotted name of the block whose settings answer requests without a task."""
        return self._records.block(None).key

    @property
    def labels(self) -> list[str]:
        """The labels of the task emotion; empty if its block has none."""
        return list(self._records.block(EMOTION).block.dataset.labels)

    @property
    def tasks(self) -> list[str]:
        """The tasks of all blocks, those of the first one first."""
        return list(dict.fromkeys(task for block in prediction_blocks(self.config) for task in block.tasks))

    @property
    def slots(self) -> list[str]:
        """The slots of the model."""
        return list(without_pixels(self.config.model_class.slot_shapes(self.config.model)))

    @property
    def statistics(self) -> EngineStatistics:
        """Numbers of requests."""
        with self._idle:
            return EngineStatistics(len(self._accepted), self._generation.num_running, **self._counts)

    def submit(self, request: Request, on_text: Callable[[str], None] | None = None) -> PendingAnswer:
        """Accept a request, and return immediately.

        Args:
            request: the request.
            on_text: receives each piece of the answer's text, in the thread that generates. It must return quickly.

        Raises:
            QueueFull: If the engine has as many requests as it may.
            EngineClosed: If the engine is closed.
        """
        pending = PendingAnswer(request, on_text)
        with self._idle:
            if self._closed:
                raise EngineClosed("the engine is closed")
            if max(len(self._accepted), self._unread) >= self._capacity:
                self._counts["rejected"] += 1
                raise QueueFull(f"{self._capacity} requests are waiting or being answered. Try again later.")
            self._accepted.add(pending)
            self._unread += 1
            self._readers.submit(self._read, pending)
        pending.future.add_done_callback(lambda _: self._remove(pending))
        return pending

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests, in order. Waits while the engine has as many requests as it may.

        Raises:
            UserError: If a request cannot be answered: that of the first such request. The others are cancelled.
            EngineClosed: If the engine is closed.
        """
        pending: list[PendingAnswer] = []
        try:
            for request in requests:
                pending.append(self._submit_when_possible(request))
            return [one.result() for one in pending]
        except BaseException:
            for one in pending:
                one.cancel()
            raise

    def stream(self, request: Request) -> AnswerStream:
        """Answer a request piece by piece.

        Raises:
            QueueFull: If the engine has as many requests as it may.
            EngineClosed: If the engine is closed.
        """
        return AnswerStream(lambda on_text: self.submit(request, on_text))

    def close(self, *, drain: bool = True) -> None:
        """Accept no further requests, and free all resources.

        Args:
            drain: answer the accepted requests first. Otherwise they fail with :class:`EngineClosed`.
        """
        with self._idle:
            self._closed = True
            accepted = list(self._accepted)
        for pending in () if drain else accepted:
            pending.fail(EngineClosed("the engine was closed before it could answer"))
        with self._idle:
            self._idle.wait_for(lambda: not self._accepted)
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_class: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(drain=error is None)

    def _read(self, pending: PendingAnswer) -> None:
        self._features.read(pending)
        with self._idle:
            self._unread -= 1
            self._idle.notify_all()

    def _submit_when_possible(self, request: Request) -> PendingAnswer:
        while True:
            with self._idle:
                self._idle.wait_for(lambda: self._closed or max(len(self._accepted), self._unread) < self._capacity)
            try:
                return self.submit(request)
            except QueueFull:
                # Another thread was faster.
                continue

    def _remove(self, pending: PendingAnswer) -> None:
        """Count a request that is over."""
        future = pending.future
        outcome = "cancelled" if future.cancelled() else "answered" if future.exception() is None else "failed"
        with self._idle:
            self._accepted.discard(pending)
            self._counts[outcome] += 1
            self._idle.notify_all()
