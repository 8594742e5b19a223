"""The path from videos to answers. What is answered here is what an evaluation of the same clips would answer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emollama import checkpoint
from emollama.checkpoint_files import require_language_model
from emollama.config import RunConfig
from emollama.data.slots import IMAGE
from emollama.datasets.feature_clips import FOLDERS
from emollama.distributed import process_group
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.inference.template import Template, find_template
from emollama.inference.videos import Extracted, extract, find_videos, plan_extraction
from emollama.logs.console import dry_run_summary
from emollama.logs.logger import get_logger, set_up
from emollama.media.files import ENDINGS
from emollama.media.frame_selection import NO_PEAK
from emollama.media.source import Source
from emollama.precision import Precision
from emollama.runners import provenance
from emollama.runners.answering import Answering
from emollama.runners.build import build_models, checkpoint_paths, checkpoint_tensors, require_checkpoint
from emollama.runners.evaluation import EvaluationSet, build_blocks


@dataclass(frozen=True)
class Modality:
    """What the model is given for a slot.

    Attributes:
        state: real, rows of this video; zero, zeros in their place, since its encoder can make nothing of this video; missing,
            there is no encoder for it or no such feature in the block.
        why: where the rows come from, or why there are none.
    """

    state: Literal["real", "zero", "missing"]
    why: str


@dataclass(frozen=True)
class VideoAnswer:
    """What is said about one video.

    Attributes:
        video: its path, as given.
        task: what was asked.
        prompt: the user's turn with the marks where rows go.
        sentence: what is said in the video, as the model was told; None where it was told nothing of it.
        modalities: slot -> what the model was given.
        answer: the answer.
        label_probabilities: label -> probability among the labels, where labels were compared.
    """

    video: str
    task: str
    prompt: str
    sentence: str | None
    modalities: dict[str, Modality]
    answer: str
    label_probabilities: dict[str, float] | None


def predict(config: RunConfig, videos: Sequence[str], *, text: str | None = None, task: str | None = None) -> list[VideoAnswer]:
    """Answer about each video. Several processes share the videos; each gets all answers.

    Args:
        config: with a model and its checkpoint, ``encoders``, and the block that they are asked by: the first of
            ``evaluation_datasets``, then of ``datasets``, that asks the task.
        videos: paths.
        text: what is said in them. None: an empty sentence where the block's clips have sentences, else no sentence.
        task: emotion, reason or reason_v2. None: the first of the block.

    Raises:
        UserError: no such video, or one of which nothing reaches the model; no checkpoint; an unknown task; anything that
            would stop an extraction or an evaluation.
    """
    world = process_group.start(config.run.device)
    set_up(world.is_main)
    for warning in config.warnings if world.is_main else ():
        get_logger().warning("%s", warning)
    template, sources, sentence = world.rank_zero_first(lambda: _checked(config, videos, text, task))
    with ExitStack() as held:
        # Rank 0 removes the folder after all answers were gathered, when no other rank reads it any more.
        folder = Path(world.on_rank_zero(lambda: held.enter_context(tempfile.TemporaryDirectory(prefix="emollama-"))))
        made = extract(config, template.slots, sources, folder / "features", world)
        folders, linked = world.on_rank_zero(lambda: (_folders(template, made, folder), _linked(sources, folder)))
        asking = template.asking(config, sources, sentence, folders, linked)
        block = world.rank_zero_first(lambda: next(iter(build_blocks(asking, check=world.is_main).values())))
        given = {name: _modalities(template, block, name, made) for name in sources}
        _refuse_empty(sources, given)
        rows = {row["name"]: row for row in _answers(asking, template.key, block, world)}
    return [
        VideoAnswer(
            video=video,
            task=template.task,
            prompt=rows[name]["instruction"],
            sentence=sentence,
            modalities=given[name],
            answer=rows[name]["prediction"],
            label_probabilities=rows[name]["label_probabilities"],
        )
        for video, name in zip(videos, sources, strict=True)
    ]


def dry_run(config: RunConfig, videos: Sequence[str], *, text: str | None, task: str | None, processes: int) -> str:
    """Check everything that :func:`predict` checks before it encodes the first video.

    Args:
        config: as for :func:`predict`, and so are ``videos``, ``text`` and ``task``.
        videos: paths.
        text: what is said in them.
        task: emotion, reason or reason_v2.
        processes: number of processes that will share the videos.

    Returns:
        A summary, one line per fact; empty on ranks other than 0.

    Raises:
        UserError: anything wrong with the videos, the encoders' weights, the language model or the checkpoint.
    """
    world = process_group.start(config.run.device)
    set_up(is_main=False)

    def summary() -> str:
        template, sources, sentence = _checked(config, videos, text, task)
        with tempfile.TemporaryDirectory(prefix="emollama-") as folder:
            jobs = plan_extraction(config, template.slots, sources, Path(folder))
        require_language_model(config.model.llama_model)
        checkpoint_tensors(config, Precision(world.device, config.run.amp, config.run.amp_dtype), None, {}, training=False)
        facts = [["videos", f"{len(videos):,}"], ["processes", f"{processes} on {world.device.type}"]]
        facts += [["block", template.key], ["task", template.task]]
        facts.append(["sentence", "none" if sentence is None else f'"{sentence}"'])
        facts += [[job.slot, f"encoders.{job.label}"] for job in jobs]
        facts.append(["checkpoint", ", ".join(checkpoint_paths(config.model.ckpt)) or "none"])
        return dry_run_summary(facts)

    summary_text = world.on_rank_zero(summary)
    return summary_text if world.is_main else ""


def _checked(
    config: RunConfig, videos: Sequence[str], text: str | None, task: str | None
) -> tuple[Template, dict[str, Source], str | None]:
    """How the videos are asked, name -> video, and what is said in them; everything is checked that can be before encoding."""
    template = find_template(config, task)
    sources = find_videos(config, videos)
    require_checkpoint(config.model)
    for path in checkpoint_paths(config.model.ckpt):  # before videos are encoded, which takes longer
        checkpoint.read(path, "model.ckpt")
    return template, sources, _sentence(template, config, text)


def _sentence(template: Template, config: RunConfig, text: str | None) -> str | None:
    """What the model is told to be said in the videos; says how that was decided."""
    usual = template.has_sentences(config)
    if text is None and usual:
        get_logger().info("no --text: asked with an empty sentence, since the clips of %s have sentences", template.key)
    if text is not None and not usual:
        get_logger().warning("--text: the clips of %s have no sentences, the model may never have read one", template.key)
    return text.strip() if text is not None else "" if usual else None


def _folders(template: Template, made: Mapping[str, Extracted], folder: Path) -> dict[str, Path]:
    """First slot -> where its arrays are looked for: an empty folder where no encoder makes them."""
    nothing = folder / "nothing"
    nothing.mkdir()
    return {slot: made[slot].folder if slot in made else nothing for slot in template.slots}


def _linked(sources: Mapping[str, Source], folder: Path) -> Path:
    """A folder in which the videos are called by their clips' names."""
    videos = folder / "videos"
    for name, source in sources.items():
        ending = source.video.suffix if source.video.suffix.lower() in ENDINGS else ENDINGS[0]
        link = videos / f"{name}{ending}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source.video.resolve())
    return videos


def _modalities(template: Template, block: EvaluationSet, name: str, made: Mapping[str, Extracted]) -> dict[str, Modality]:
    """Slot -> what the model is given, as the dataset that is asked has it."""
    present = {slot: name in source for source in getattr(block.dataset, "features", ()) for slot in source.fills}
    found = {}
    for key, slots in FOLDERS.items():
        encoded = made.get(slots[0])
        online = slots == IMAGE and template.reads_frames
        source = "model.vit_weights" if online else encoded.encoder if encoded else ""
        for slot in slots:
            if slot not in present:
                found[slot] = Modality("missing", f"{template.key}.{key} is null")
            elif slot in block.options.mask_slots:
                found[slot] = Modality("zero", f"{template.key}.mask_slots")
            elif present[slot]:
                found[slot] = Modality("real", source)
            elif online:
                found[slot] = Modality("zero", f"{source}: {NO_PEAK}. {_remedy(template.key, template.key, name)}")
            elif encoded:
                why = encoded.failed[name]
                remedy = f". {_remedy('extraction', source, name)}" if why == NO_PEAK else ""
                found[slot] = Modality("zero", f"{source}: {why}{remedy}")
            else:
                found[slot] = Modality("missing", f"no block under 'encoders' makes {slot} features; zeros stand for them")
    return found


def _remedy(peaks: str, frames: str, name: str) -> str:
    """What helps where nobody knows the peak: the blocks that name the file of peaks and say which frame is taken."""
    other = f"{frames}.frame_selection=middle with run.allow_other_features=True"
    return f"Give its row, of the name '{name}', in {peaks}.peak_index_path; or ask by another frame: {other}"


def _refuse_empty(sources: Mapping[str, Source], given: Mapping[str, Mapping[str, Modality]]) -> None:
    for name, modalities in given.items():
        if not any(modality.state == "real" for modality in modalities.values()):
            told = "".join(f"\n- {slot}: {modality.state}, {modality.why}" for slot, modality in modalities.items())
            raise UserError(f"--video: nothing of '{sources[name].video}' reaches the model:{told}")


def _answers(config: RunConfig, key: str, block: EvaluationSet, world: World) -> list[dict[str, Any]]:
    """The model's answers, a dictionary a clip."""
    run, model = config.run, config.classes["model"]
    precision = Precision(world.device, run.amp, run.amp_dtype)
    features = provenance.provenance_of_run(config, [block.dataset])
    prompt = model.prompt(config.model, run.loss_average)
    tensors = world.rank_zero_first(lambda: checkpoint_tensors(config, precision, None, features, training=False))
    members = build_models(config, world, precision, tensors)
    answering = Answering(config.classes["run.task"](), [member.eval() for member in members], prompt, world, precision, run.seed)
    return answering.answers(key, block.dataset, block.options)
