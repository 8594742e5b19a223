"""The Python API: a session with a configuration and its checkpoint, which evaluates, trains and answers.

Evaluations and training are those of ``emollama eval`` and ``emollama train``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias, TypedDict, Unpack

from emollama.commands.running import run_config
from emollama.config import RunConfig
from emollama.config import load as load_config
from emollama.distributed.launcher import processes_for
from emollama.distributed.stop_requests import STOP_REQUESTS
from emollama.distributed.worker_variables import integer
from emollama.errors import UserError
from emollama.logs.logger import get_logger, set_up
from emollama.reporting.run_files import TaskResult, metrics_by_key, read_results
from emollama.run_folder import CONFIG, RESULT, PredictionRecord
from emollama.system_errors import as_user_errors

if TYPE_CHECKING:
    import numpy as np

    from emollama.inference.engine import Engine, EngineOptions
    from emollama.inference.pending import AnswerStream
    from emollama.inference.requests import Answer, GenerationOptions, Media, Turn

StrPath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class EvaluationResult:
    """What :meth:`Session.evaluate` returns. The same is in files.

    Attributes:
        folder: the folder with the files of predictions and metrics and with ``report.html``.
        metrics: ``block/task/metric`` -> value; None if the metric is undefined.
        tasks: the predictions, metrics and confusion matrix of each task of each block.
    """

    folder: Path
    metrics: dict[str, float | None]
    tasks: list[TaskResult]

    @property
    def predictions(self) -> list[PredictionRecord]:
        """The predictions for all tasks of all blocks."""
        return [record for task in self.tasks for record in task.predictions]


class RequestFields(TypedDict, total=False):
    """The fields of :class:`emollama.Request`, which describes them, besides ``video``."""

    image: Media | None
    audio: Media | None
    features: Mapping[str, np.ndarray]
    text: str | None
    task: str | None
    question: str | None
    history: Sequence[Turn]
    mask_slots: Sequence[str]
    label_probabilities: bool
    options: GenerationOptions


def load(
    path: StrPath,
    options: Mapping[str, object] | Sequence[str] = (),
    *,
    checkpoint: StrPath | Sequence[StrPath] | None = None,
    engine_options: EngineOptions | None = None,
) -> Session:
    """Load a configuration, which is checked completely. Weights are loaded when they are first needed.

    Args:
        path: a YAML file as ``--cfg-path`` of the command line, or the folder of a run, which stands for its config.yaml with its
            checkpoint_best.pth as ``model.ckpt``, or its checkpoint of the highest step if there is none.
        options: values that override those of the file: ``{"run.max_epoch": 1}``, or texts as ``--options`` of the command line.
        checkpoint: ``model.ckpt``: a checkpoint, or the members of an ensemble. It takes precedence over the folder of a run, as
            the option ``model.ckpt`` does.
        engine_options: limits of the engine; None uses the defaults.

    Raises:
        UserError: If the file or an option is not valid, or the folder has no intact checkpoint. Messages contain the options of
            the command line.
    """
    settings, cfg_path = options_of(options), os.fspath(path)
    with as_user_errors():
        if os.path.isdir(cfg_path):
            folder, cfg_path = Path(path), os.path.join(path, CONFIG)
            if not os.path.isfile(cfg_path):
                raise UserError(f"'{folder}' is not the folder of a run: it has no {CONFIG}. Specify output_dir/<job_id>.")
            if checkpoint is None and not any(option.startswith("model.ckpt=") for option in settings):
                # This module imports torch.
                from emollama.runners.checkpoints import best_or_newest

                checkpoint = best_or_newest(folder)
        if checkpoint is not None:
            files = checkpoint if isinstance(checkpoint, Sequence) and not isinstance(checkpoint, str) else [checkpoint]
            names = [os.fspath(file) for file in files]
            settings += options_of({"model.ckpt": names[0] if len(names) == 1 else names})
        return Session(cfg_path, settings, engine_options)


def options_of(options: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Return options as texts for ``--options``. The values of a mapping are written as JSON, which is YAML, too.

    Raises:
        UserError: If a value of a mapping cannot be written in YAML, or the options are a single text.
    """
    if isinstance(options, str):
        raise UserError(f"options: {options!r} is a single text. Write a list: options=[{options!r}]")
    if not isinstance(options, Mapping):
        return list(options)
    texts = []
    for key, value in options.items():
        try:
            texts.append(f"{key}={json.dumps(value, ensure_ascii=False, default=os.fspath)}")
        except (TypeError, ValueError) as error:
            raise UserError(f"options: the value of '{key}' cannot be written in YAML: {error}") from None
    return texts


class Session:
    """A configuration with its checkpoint, from :func:`emollama.load`. Any number of threads can ask for answers.

    Weights are loaded by the first answer, and stay loaded until :meth:`close` or the end of a ``with`` block.

    Attributes:
        config: the resolved configuration. ``help(session.config.run)`` describes the keys of a block.
    """

    config: RunConfig

    def __init__(self, cfg_path: str, options: list[str], engine_options: EngineOptions | None = None) -> None:
        self._cfg_path, self._options, self._engine_options = cfg_path, options, engine_options
        self._engine: Engine | None = None
        self._lock = threading.RLock()
        self.config = load_config(cfg_path, options)

    def __repr__(self) -> str:
        return f"Session({self._cfg_path!r}, options={self._options!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def answer(self, video: Media | None = None, **fields: Unpack[RequestFields]) -> Answer:
        """Answer a question about a video, an image or features, as an evaluation of the same clip would.

        ``session.answer("clip.mp4")`` asks the first task of the evaluation block, and ``question="..."`` your own question.

        Args:
            video: path or content of a video file.
            fields: other fields of :class:`emollama.Request`.

        Raises:
            UserError: If the request is not valid or its media cannot be used, or the model cannot be loaded.
        """
        from emollama.inference.requests import Request

        with as_user_errors():
            (answer,) = self.engine().answer([Request(video=video, **fields)])
            return answer

    def stream(self, video: Media | None = None, **fields: Unpack[RequestFields]) -> AnswerStream:
        """Answer as :meth:`answer` does, and return the pieces of the text while they are generated.

        The stream is iterable. ``stream.answer`` is the complete answer, and ``stream.close()`` ends the generation.

        Args:
            video: path or content of a video file.
            fields: other fields of :class:`emollama.Request`.

        Raises:
            UserError: If the request is not valid or its media cannot be used, or the model cannot be loaded.
        """
        from emollama.inference.requests import Request

        with as_user_errors():
            return self.engine().stream(Request(video=video, **fields))

    def engine(self) -> Engine:
        """Return the engine, which answers many requests at the same time. The first call loads the weights.

        Raises:
            UserError: If weights or the checkpoint are missing, damaged or do not fit the configuration.
        """
        with self._lock:
            if self._engine is None:
                # This module imports torch.
                from emollama.inference.engine import Engine, EngineOptions

                set_up(is_main=integer("RANK", 0) == 0)
                for warning in self.config.warnings:
                    get_logger().warning("%s", warning)
                with as_user_errors():
                    self._engine = Engine(self.config, self._engine_options or EngineOptions())
            return self._engine

    def close(self) -> None:
        """Complete the accepted requests and free the memory of the model. A later answer loads it again."""
        with self._lock:
            engine, self._engine = self._engine, None
            if engine is not None:
                engine.close()
                del engine
                # Models contain circular references.
                gc.collect()

    def evaluate(self, *, nproc: int | None = None) -> EvaluationResult:
        """Evaluate the blocks under ``evaluation_datasets`` as ``emollama eval`` does, and write predictions and metrics.

        The model of earlier answers is closed before, so that its memory is free.

        Args:
            nproc: number of processes, as ``--nproc``. None is one per visible GPU; without GPUs, one.

        Raises:
            UserError: If the data, the checkpoint or a judge cannot be used.
        """
        folder = self._run("eval", nproc) / RESULT
        blocks = list(self.config.evaluation_datasets or self.config.datasets)
        tasks = [result for result in read_results(folder, [], blocks, answers=True) if result.block in blocks]
        return EvaluationResult(folder, metrics_by_key(tasks), tasks)

    def train(self, *, nproc: int | None = None) -> Session:
        """Train as ``emollama train`` does, from ``model.ckpt`` if it is set, and return the session of the run's folder.

        The model of earlier answers is closed before, so that its memory is free.

        Args:
            nproc: number of processes, as ``--nproc``. None is one per visible GPU; without GPUs, one.

        Raises:
            UserError: If the data, the configuration or a checkpoint cannot be used.
        """
        if self.config.run.evaluate_only:
            raise UserError("run.evaluate_only is True, so there is no training. Call evaluate(), or set it to False.")
        return load(self._run("train", nproc), engine_options=self._engine_options)

    def _run(self, command: str, nproc: int | None) -> Path:
        """Train or evaluate, and return the run's folder."""
        if nproc is not None and nproc < 1:
            raise UserError(f"nproc is {nproc}; it must be at least 1")
        line = [command, "--cfg-path", self._cfg_path, *(["--options", *self._options] if self._options else [])]
        arguments = argparse.Namespace(nproc=nproc, gpus=None, master_port=None, argv=line)
        self.close()
        with as_user_errors(), STOP_REQUESTS.handled():
            # Worker processes load the configuration again.
            if load_config(self._cfg_path, self._options).resolved() != self.config.resolved():
                raise UserError(f"{self._cfg_path} was changed after it was loaded. Load it again.")
            processes = processes_for(arguments, self.config.run.device)
            try:
                return run_config(self.config, arguments, processes, training=command == "train")
            finally:
                gc.collect()
