"""The kinds of starter configurations: the shipped file of each, and how it is filled in."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emollama.starter import blocks, captions, models, stages
from emollama.starter.blocks import StarterBlock
from emollama.starter.defaults import feature_folders
from emollama.starter.draft import Draft
from emollama.starter.models import WeightFile
from emollama.starter.stages import PATTERNS
from emollama.starter.survey import video_folders

Fill = Callable[[Draft], list[str]]  # returns the commands to run before training; raises NothingUsable

LIST = "an annotation file (.txt with 'name label' or 'name count label' on each line) whose clips have arrays"
FEATURES = f"feature folders ({', '.join(feature_folders())}: .npy files, packed or tar shards)"


class NothingUsable(Exception):
    """The data folder contains no data for this kind of configuration."""


@dataclass(frozen=True)
class StarterKind:
    """A kind of starter configuration.

    Attributes:
        text: its purpose, for the help.
        template: the shipped configuration that is copied.
        demo: the shipped configuration for a folder of ``emollama demo``.
        demo_part: the subfolder of a demo that contains data for this kind.
        fill: fills in a draft.
        required_data: descriptions of the data that it needs, for messages. The folder must contain at least one of them.
        command: the emollama command that uses the configuration: ``train`` or ``eval``.
    """

    text: str
    template: str
    demo: str
    demo_part: str
    fill: Fill
    required_data: tuple[str, ...]
    command: str


def _clips(path: str, files: Sequence[WeightFile] = (), *, stage: str | None = None, start: str | None = None) -> Fill:
    """Return a function that fills in one dataset block with its usual annotation file or the file that suits it best.

    Args:
        path: dotted path of the block.
        files: the weights that the model needs.
        stage: the stage that this configuration trains; None if it is not a stage.
        start: the stage whose checkpoint it starts from or evaluates; None for no stage.
    """

    def fill(draft: Draft) -> list[str]:
        block = StarterBlock.of(draft, path)
        clip_file = blocks.find_usual(draft, block) or blocks.find_any(draft, block)
        if clip_file is None:
            raise NothingUsable
        blocks.fill(draft, block, clip_file)
        models.fill(draft, files)
        if start is not None:
            stages.start_from(draft, [start])
        if stage is not None:
            stages.name_run(draft, stage)
        return []

    return fill


def _custom(draft: Draft) -> list[str]:
    block, mixed = StarterBlock.of(draft, "datasets.custom"), StarterBlock.of(draft, "datasets.feature_face_caption")
    table = blocks.find_usual(draft, block) or blocks.find_any(draft, block)
    if table is None:
        raise NothingUsable
    blocks.fill(draft, block, table)
    merr = blocks.find_usual(draft, mixed) if mixed.path in draft.text else None
    if merr is None:
        draft.text.drop(mixed.path)
    else:
        blocks.fill(draft, mixed, merr)
    models.fill(draft, [])
    stages.start_from(draft, ["stage1"])
    return []


def _recognition(draft: Draft) -> list[str]:
    """Keep the blocks whose annotation files exist; if no file exists, one block for the file that suits it best."""
    paths = [f"evaluation_datasets.{label}" for label in draft.text.get("evaluation_datasets", {})]
    usual = {path: blocks.find_usual(draft, StarterBlock.of(draft, path)) for path in paths}
    clip_files = {path: clip_file for path, clip_file in usual.items() if clip_file is not None}
    if not clip_files:
        clip_file = blocks.find_any(draft, StarterBlock.of(draft, paths[0]))
        if clip_file is None:
            raise NothingUsable
        draft.text.rename(paths[0], "clips")
        draft.text.drop("evaluation_datasets.clips.preset")
        clip_files, paths = {"evaluation_datasets.clips": clip_file}, paths[1:]
    for path in paths:
        if path not in clip_files:
            draft.text.drop(path)
    for path, clip_file in clip_files.items():
        blocks.fill(draft, StarterBlock.of(draft, path), clip_file)
    models.fill(draft, [])
    stages.start_from(draft, ["stage2", "stage1"])
    return []


def _videos(draft: Draft) -> list[str]:
    folders, paths = video_folders(draft.survey), ("datasets.feature_face_caption", "evaluation_datasets.held_out")
    block = StarterBlock.of(draft, paths[0])
    clip_file = blocks.find_usual(draft, block) or blocks.find_any(draft, block)
    if not folders:
        raise NothingUsable
    usual = draft.configured_path("extraction.videos")
    videos, count = next((item for item in folders if item[0] == usual), folders[0])
    draft.set_found("extraction.videos", draft.config_path(videos), f"{count:,} videos")
    if "model.preset" not in draft.text:  # the demo's configuration already contains its tiny encoders
        models.fill_encoders(draft)
    before = []
    if clip_file is None:
        table = next((table for table in draft.survey.tables if table.labels), None)
        output = draft.configured_path(f"{paths[0]}.data_root") or draft.root / "clips"
        source = "TABLE.csv" if table is None else str(table.path)
        before.append(
            f"emollama import videos {shlex.quote(str(videos))} {shlex.quote(source)} --output {shlex.quote(str(output))}"
        )
        for path in paths:
            draft.mark_missing(f"{path}.annotation_file", "no such file yet", "emollama import videos writes it")
            if table is not None:
                draft.set_found(
                    f"{path}.labels", [label for label, _ in table.labels.most_common()], f"labels in {table.path.name}"
                )
    else:
        draft.set_found("extraction.annotation_file", draft.config_path(clip_file.path), f"{len(clip_file.names):,} clips")
        draft.set_found("extraction.output", draft.config_path(clip_file.path.parent), "next to the annotation file")
        for path in paths:
            blocks.fill(draft, StarterBlock.of(draft, path), clip_file)
    remedy = f"{_MINIGPT_V2.remedy}, or train stage 1"
    models.fill(draft, [WeightFile("model.ckpt", (*_MINIGPT_V2.patterns, *PATTERNS["stage1"]), remedy)])
    return before


def _flickr30k(draft: Draft) -> list[str]:
    before = captions.fill(draft, "datasets.flickr30k_caption")
    if before is None:
        raise NothingUsable
    files = [
        WeightFile("model.ckpt", ("pre*rained_minigpt4*.pth", "*minigpt4*.pth"), "download MiniGPT-4's projection"),
        WeightFile("model.vit_weights", ("eva_vit_g.pth", "eva_vit*"), "download BLIP-2's eva_vit_g.pth"),
        WeightFile("model.q_former_model", ("blip2*.pth", "q_former*"), "download BLIP-2's Q-Former"),
    ]
    models.fill(draft, files, preferred="vicuna")
    return before


_TRAIN, _EVAL = "train", "eval"
_BLOCK = "datasets.feature_face_caption"
_MINIGPT_V2 = WeightFile("model.ckpt", ("minigptv2_checkpoint*.pth", "*minigpt*v2*.pth"), "download the MiniGPT-v2 checkpoint")
KINDS = {
    "stage1": StarterKind(
        "train stage 1: emotion labels and short reasons",
        *stages.SHIPPED["stage1"], "corpus",
        _clips(_BLOCK, [_MINIGPT_V2], stage="stage1"), (f"MERR_coarse_grained.txt or {LIST}", FEATURES), _TRAIN,
    ),
    "stage2": StarterKind(
        "train stage 2: full descriptions, from a checkpoint of stage 1",
        *stages.SHIPPED["stage2"], "corpus",
        _clips(_BLOCK, stage="stage2", start="stage1"), (f"MERR_fine_grained.txt or {LIST}", FEATURES), _TRAIN,
    ),
    "emer": StarterKind(
        "evaluate descriptions on EMER",
        "eval_configs/eval_emotion_EMER.yaml", "eval_configs/demo_EMER.yaml", "corpus",
        _clips("evaluation_datasets.emer", start="stage2"),
        ("EMER_NCE.txt, an EMER table (.csv with reasons or english)", LIST, FEATURES), _EVAL,
    ),
    "recognition": StarterKind(
        "evaluate labels on MER2023, MER2024, DFEW or your own list",
        "eval_configs/eval_emotion.yaml", "eval_configs/demo_emotion.yaml", "corpus", _recognition,
        ("relative_test3_NCEV.txt, MER2024-noise_NCE.txt, test(single-labeled)/set_1.csv", LIST, FEATURES), _EVAL,
    ),
    "custom": StarterKind(
        "train on a table of your clips, mixed with MERR if the folder contains it",
        "train_configs/custom.yaml", "train_configs/custom.yaml", "",
        _custom, ("a .csv table with the columns name and emotion or reason", FEATURES), _TRAIN,
    ),
    "videos": StarterKind(
        "extract features from your videos, and train on them",
        "train_configs/demo_videos.yaml", "train_configs/demo_videos.yaml", "encoders",
        _videos, ("a folder of videos (.mp4, .avi, .mov, .mkv, ...)",), _TRAIN,
    ),
    "flickr30k": StarterKind(
        "train MiniGPT-4's projection on images with captions",
        "train_configs/minigpt4_flickr_finetune.yaml", "train_configs/demo_flickr.yaml", "flickr30k", _flickr30k,
        ("flickr30k_train.json or another caption file (.json)", f"{' or '.join(captions.PUBLISHED)}"), _TRAIN,
    ),
}  # fmt: skip
