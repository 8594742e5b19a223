"""Answers about videos, with the same features, prompts and decoding as an evaluation of the same video clips."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emollama import checkpoint
from emollama.checkpoint_files import require_language_model
from emollama.config import RunConfig
from emollama.data.dataset import ClipsToPredict, FeatureSource
from emollama.data.slots import PIXELS, without_pixels
from emollama.distributed import process_group
from emollama.errors import UserError
from emollama.inference.prediction_block import PredictionBlock, find_prediction_block
from emollama.inference.videos import Extracted, extract, find_videos, plan_extraction
from emollama.logs.console import dry_run_summary
from emollama.logs.logger import get_logger, set_up
from emollama.media.files import EXTENSIONS
from emollama.media.frame_selection import NO_PEAK
from emollama.media.source import Source
from emollama.precision import Precision
from emollama.runners.build import checkpoint_paths, checkpoint_tensors, require_checkpoint
from emollama.runners.evaluation import EvaluationSet
from emollama.runners.preparation import Preparation


@dataclass(frozen=True)
class Modality:
    """The input of the model for one slot.

    Attributes:
        state: "real" for feature vectors of this video; "zero" for zeros, because the encoder failed on this video or the slot
            is masked; "missing" if the slot has no encoder, or the block does not use it.
        why: the source of the feature vectors, or why there are none.
    """

    state: Literal["real", "zero", "missing"]
    why: str


@dataclass(frozen=True)
class VideoAnswer:
    """The answer about one video.

    Attributes:
        video: the path as the caller passed it.
        task: name of the task.
        prompt: the user turn, with tags at the positions of feature tokens.
        sentence: the spoken sentence in the prompt; None if the prompt has no sentence.
        modalities: slot -> the model's input for it.
        answer: the generated answer.
        label_probabilities: label -> probability among the labels; None unless the answer is selected by label likelihood.
    """

    video: str
    task: str
    prompt: str
    sentence: str | None
    modalities: dict[str, Modality]
    answer: str
    label_probabilities: dict[str, float] | None


def predict(config: RunConfig, videos: Sequence[str], *, text: str | None = None, task: str | None = None) -> list[VideoAnswer]:
    """Generate an answer about each video. With several processes, each process encodes a part and returns all answers.

    Args:
        config: a configuration with a model, its checkpoint, ``encoders`` and at least one dataset block. The first block that
            has the task, of ``evaluation_datasets`` and then of ``datasets``, provides labels, instructions and decoding.
        videos: paths of the videos.
        text: the spoken sentence of the videos. With None, the sentence is empty if the video clips of the block have sentences,
            and left out otherwise.
        task: name of the task, such as emotion. None selects the first task of the block.

    Raises:
        UserError: If a video does not exist or provides no features at all, the checkpoint is missing, the task is unknown, or an
            extraction or evaluation with this configuration fails.
    """
    world = process_group.start(config.run.device)
    set_up(world.is_main)
    for warning in config.warnings if world.is_main else ():
        get_logger().warning("%s", warning)
    block, sources, sentence = world.rank_zero_first(lambda: _checked(config, videos, text, task))
    with ExitStack() as stack:
        # Rank 0 removes the folder after all answers are gathered, when no other rank reads it any more.
        folder = Path(world.on_rank_zero(lambda: stack.enter_context(tempfile.TemporaryDirectory(prefix="emollama-"))))
        extracted = extract(config, set(block.slots), sources, folder / "features", world)
        folders, links = world.on_rank_zero(lambda: (_folders(block, extracted, folder), _link_videos(sources, folder)))
        clips = ClipsToPredict(list(sources), block.task, sentence, folders, str(links))
        preparation = Preparation(block.evaluation(config), world, training=False, clips=clips)
        ((label, evaluation),) = preparation.blocks.items()
        modalities = {name: _modalities(block, config, evaluation, extracted, name) for name in sources}
        _require_features(sources, modalities)
        prediction_runner = preparation.prediction_runner([member.eval() for member in preparation.build_models()])
        answers = {answer.name: answer for answer in prediction_runner.predict(label, evaluation.dataset, evaluation.options)}
    return [
        VideoAnswer(
            video=video,
            task=block.task,
            prompt=answers[name].instruction,
            sentence=sentence,
            modalities=modalities[name],
            answer=answers[name].prediction,
            label_probabilities=answers[name].label_probabilities,
        )
        for video, name in zip(videos, sources, strict=True)
    ]


def dry_run(config: RunConfig, videos: Sequence[str], *, text: str | None, task: str | None, processes: int) -> str:
    """Check everything that :func:`predict` checks before it encodes the first video.

    Args:
        config: as for :func:`predict`.
        videos: as for :func:`predict`.
        text: as for :func:`predict`.
        task: as for :func:`predict`.
        processes: number of processes that would encode the videos.

    Returns:
        A summary of several lines on rank 0, "" on other ranks.

    Raises:
        UserError: If a video, the weights of an encoder, the language model or the checkpoint cannot be used.
    """
    world = process_group.start(config.run.device)
    set_up(is_main=False)

    def summary() -> str:
        block, sources, sentence = _checked(config, videos, text, task)
        with tempfile.TemporaryDirectory(prefix="emollama-") as folder:
            jobs = plan_extraction(config, set(block.slots), sources, Path(folder))
        require_language_model(config.model.llama_model)
        checkpoint_tensors(config, Precision(world.device, config.run.amp, config.run.amp_dtype), None, {}, training=False)
        entries = [["videos", f"{len(videos):,}"], ["processes", f"{processes} on {world.device.type}"]]
        entries += [["block", block.key], ["task", block.task]]
        entries.append(["sentence", "none" if sentence is None else f'"{sentence}"'])
        entries += [[job.slot, f"encoders.{job.label}"] for job in jobs]
        entries.append(["checkpoint", ", ".join(checkpoint_paths(config.model.ckpt)) or "none"])
        return dry_run_summary(entries)

    summary_text = world.on_rank_zero(summary)
    return summary_text if world.is_main else ""


def _checked(
    config: RunConfig, videos: Sequence[str], text: str | None, task: str | None
) -> tuple[PredictionBlock, dict[str, Source], str | None]:
    """Return the block to use, name -> video, and the sentence, after all checks that are possible before encoding."""
    block = find_prediction_block(config, task)
    sources = find_videos(config, videos)
    require_checkpoint(config.model)
    # A damaged checkpoint must be detected before the videos are encoded, which is expensive.
    for path in checkpoint_paths(config.model.ckpt):
        checkpoint.read(path, "model.ckpt")
    return block, sources, _sentence(block, text)


def _sentence(block: PredictionBlock, text: str | None) -> str | None:
    """Return the sentence of the prompts, or None for prompts without a sentence; log the choice if it may surprise."""
    has_sentences = block.has_sentences()
    if text is None and has_sentences:
        get_logger().info("no --text: the prompt has an empty sentence, because the samples of %s have sentences", block.key)
    if text is not None and not has_sentences:
        get_logger().warning(
            "--text: the samples of %s have no sentences, so the model may not be trained to use them", block.key
        )
    return text.strip() if text is not None else "" if has_sentences else None


def _folders(block: PredictionBlock, extracted: Mapping[str, Extracted], folder: Path) -> dict[str, str]:
    """Return slot -> folder of its arrays; the folder is empty for slots without an encoder."""
    empty = folder / "nothing"
    empty.mkdir()
    slots = [slot for slot in block.slots if slot != PIXELS]
    return {slot: str(extracted[slot].folder if slot in extracted else empty) for slot in slots}


def _link_videos(sources: Mapping[str, Source], folder: Path) -> Path:
    """Create a folder with links to the videos, named after their clips."""
    videos = folder / "videos"
    for name, source in sources.items():
        extension = source.video.suffix if source.video.suffix.lower() in EXTENSIONS else EXTENSIONS[0]
        link = videos / f"{name}{extension}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source.video.resolve())
    return videos


def _modalities(
    block: PredictionBlock, config: RunConfig, evaluation: EvaluationSet, extracted: Mapping[str, Extracted], name: str
) -> dict[str, Modality]:
    """Return slot -> the model's input for one video clip, for each slot of the model but pixels."""
    sources: dict[str, FeatureSource] = {slot: source for source in evaluation.dataset.features for slot in source.filled_slots}
    modalities = {}
    for slot in without_pixels(config.model_class.slot_shapes(config.model)):
        if slot not in sources:
            modalities[slot] = Modality("missing", f"{block.key} has no {slot} features")
        elif slot in evaluation.options.mask_slots:
            modalities[slot] = Modality("zero", f"{block.key}.mask_slots")
        else:
            modalities[slot] = _modality(block, slot, sources[slot], extracted.get(sources[slot].slots[0]), name)
    return modalities


def _modality(block: PredictionBlock, slot: str, source: FeatureSource, encoded: Extracted | None, name: str) -> Modality:
    """Return the model's input for a slot with a source. ``encoded`` are the features that were extracted for it."""
    online = source.frame_selection is not None
    encoder = "model.vit_weights" if online else encoded.encoder if encoded else ""
    if name in source:
        return Modality("real", encoder)
    if online:
        return Modality("zero", f"{encoder}: {NO_PEAK}. {_remedy(block.key, block.key, name)}")
    if encoded is None:
        return Modality("missing", f"no block under 'encoders' computes {slot} features; zeros replace them")
    why = encoded.failed.get(name, "no array")
    remedy = f". {_remedy('extraction', encoder, name)}" if why == NO_PEAK else ""
    return Modality("zero", f"{encoder}: {why}{remedy}")


def _remedy(peaks: str, frames: str, name: str) -> str:
    """Return how to fix an unknown peak frame.

    Args:
        peaks: the block with the key ``peak_index_path``.
        frames: the block with the key ``frame_selection``.
        name: the clip.
    """
    other = f"{frames}.frame_selection=middle with run.allow_other_features=True"
    return f"Add a row with the name '{name}' to {peaks}.peak_index_path, or select another frame: {other}"


def _require_features(sources: Mapping[str, Source], modalities_by_name: Mapping[str, Mapping[str, Modality]]) -> None:
    """Raise a UserError for a video without any features, whose answer would be meaningless."""
    for name, modalities in modalities_by_name.items():
        if not any(modality.state == "real" for modality in modalities.values()):
            reasons = "".join(f"\n- {slot}: {modality.state}, {modality.why}" for slot, modality in modalities.items())
            raise UserError(f"--video: the model gets no features of '{sources[name].video}':{reasons}")
