"""Answers about videos, with the same features, prompts and decoding as an evaluation of the same video clips."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from emollama.checkpoint_files import require_language_model
from emollama.config import RunConfig
from emollama.distributed import process_group
from emollama.inference.engine import Engine
from emollama.inference.prediction_block import PredictionBlock, find_prediction_block
from emollama.inference.requests import Answer, Request
from emollama.inference.start_checks import checked_checkpoints
from emollama.inference.videos import plan_extraction, require_videos
from emollama.logs.console import dry_run_summary
from emollama.logs.logger import get_logger, set_up
from emollama.precision import Precision
from emollama.runners.build import checkpoint_tensors, model_without_weights
from emollama.runners.model_ckpt import checkpoint_paths


def predict(
    config: RunConfig, videos: Sequence[str], *, text: str | None = None, task: str | None = None, question: str | None = None
) -> list[Answer]:
    """Generate an answer about each video. With several processes, each process encodes a part and returns all answers.

    Args:
        config: a configuration with a model, its checkpoint, ``encoders`` and at least one dataset block. The first block that
            has the task, of ``evaluation_datasets`` and then of ``datasets``, provides labels, instructions and decoding.
        videos: paths of the videos.
        text: the spoken sentence of the videos. With None, the sentence is empty if the video clips of the block have sentences,
            and left out otherwise.
        task: name of the task, such as emotion. None selects the first task of the block, or no task with a question.
        question: a question in place of the task's instruction.

    Raises:
        UserError: If a video does not exist or provides no features at all, the checkpoint is missing, the task is unknown, or an
            extraction or evaluation with this configuration fails.
    """
    world = process_group.start(config.run.device)
    set_up(world.is_main)
    for warning in config.warnings if world.is_main else ():
        get_logger().warning("%s", warning)
    block = world.rank_zero_first(lambda: _checked(config, videos, task))
    if world.is_main:
        _log_sentence(block, text)
    # Each process answers a part of the videos.
    own = range(world.rank, len(videos), world.size)
    with Engine(config, world=world) as engine:
        part = engine.answer([Request(video=videos[index], text=text, task=task, question=question) for index in own])
    parts = world.gather(dict(zip(own, part, strict=True)))
    answers = {index: answer for answers_of_rank in parts for index, answer in answers_of_rank.items()}
    return [answers[index] for index in range(len(videos))]


def dry_run(
    config: RunConfig, videos: Sequence[str], *, text: str | None, task: str | None, question: str | None, processes: int
) -> str:
    """Check everything that :func:`predict` checks before it encodes the first video.

    Args:
        config: as for :func:`predict`.
        videos: as for :func:`predict`.
        text: as for :func:`predict`.
        task: as for :func:`predict`.
        question: as for :func:`predict`.
        processes: number of processes that would encode the videos.

    Returns:
        A summary of several lines on rank 0, "" on other ranks.

    Raises:
        UserError: If a video, the weights of an encoder, the language model or the checkpoint cannot be used.
    """
    world = process_group.start(config.run.device)
    set_up(is_main=False)

    def summary() -> str:
        block = _checked(config, videos, task)
        with tempfile.TemporaryDirectory(prefix="emollama-") as folder:
            jobs = plan_extraction(config, set(block.slots), Path(folder))
        require_language_model(config.model.llama_model)
        shapes = model_without_weights(config, Precision(world.device, config.run.amp, config.run.amp_dtype))
        checkpoint_tensors(config, shapes, None, {}, training=False)
        entries = [["videos", f"{len(videos):,}"], ["processes", f"{processes} on {world.device.type}"]]
        entries += [["block", block.key]]
        entries += [["task", block.task]] if question is None or task is not None else []
        entries += [["question", question]] if question is not None else []
        sentence = "none" if text is None and not block.has_sentences() else f'"{(text or "").strip()}"'
        entries.append(["sentence", sentence])
        entries += [[job.slot, f"encoders.{job.label}"] for job in jobs]
        entries.append(["checkpoint", ", ".join(checkpoint_paths(config.model.ckpt)) or "none"])
        return dry_run_summary(entries)

    summary_text = world.on_rank_zero(summary)
    return summary_text if world.is_main else ""


def _checked(config: RunConfig, videos: Sequence[str], task: str | None) -> PredictionBlock:
    """Return the block to use, after all checks that are possible before encoding."""
    block = find_prediction_block(config, task)
    require_videos(videos)
    checked_checkpoints(config)
    return block


def _log_sentence(block: PredictionBlock, text: str | None) -> None:
    """Log whether the prompts have a sentence, if that may surprise."""
    has_sentences = block.has_sentences()
    if text is None and has_sentences:
        get_logger().info("no --text: the prompt has an empty sentence, because the samples of %s have sentences", block.key)
    if text is not None and not has_sentences:
        get_logger().warning(
            "--text: the samples of %s have no sentences, so the model may not be trained to use them", block.key
        )
