"""The kinds of starter configurations: which shipped file each is made from, and how it is filled in."""

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

Fill = Callable[[Draft], list[str]]  # returns the commands that come before training; raises NothingUsable

LIST = "a list of clips (a .txt file with 'name label' or 'name count label' on each line) whose clips have arrays"
FEATURES = f"feature folders ({', '.join(feature_folders())}: .npy files, packed or tar shards)"


class NothingUsable(Exception):
    """The data folder has nothing that this kind needs."""


@dataclass(frozen=True)
class StarterKind:
    """A purpose that a starter configuration is written for.

    Attributes:
        text: for the help.
        template: the shipped configuration that it is made from.
        demo: the shipped configuration for the folder of ``emollama demo``.
        demo_part: the subfolder by which a demo folder is known to contain this kind's data.
        fill: writes what was found into a draft.
        wanted: what the data folder must have one of, for messages.
        command: that comes next.
    """

    text: str
    template: str
    demo: str
    demo_part: str
    fill: Fill
    wanted: tuple[str, ...]
    command: str


def _clips(path: str, files: Sequence[WeightFile] = (), *, stage: str | None = None, start: str | None = None) -> Fill:
    """The block's usual list, else the list that suits it best.

    Args:
        path: of the block.
        files: of weights.
        stage: the kind that this configuration trains, if it is a stage.
        start: the stage whose checkpoint it starts from or evaluates.
    """

    def fill(draft: Draft) -> list[str]:
        block = StarterBlock.of(draft, path)
        listed = blocks.find_usual(draft, block) or blocks.find_any(draft, block)
        if listed is None:
            raise NothingUsable
        blocks.fill(draft, block, listed)
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
    """Keep the blocks whose data is there; without any, one block for the list that suits best."""
    paths = [f"evaluation_datasets.{label}" for label in draft.text.get("evaluation_datasets", {})]
    found = {path: listed for path in paths if (listed := blocks.find_usual(draft, StarterBlock.of(draft, path))) is not None}
    if not found:
        listed = blocks.find_any(draft, StarterBlock.of(draft, paths[0]))
        if listed is None:
            raise NothingUsable
        draft.text.rename(paths[0], "clips")
        draft.text.drop("evaluation_datasets.clips.preset")
        found, paths = {"evaluation_datasets.clips": listed}, paths[1:]
    for path in paths:
        if path not in found:
            draft.text.drop(path)
    for path, listed in found.items():
        blocks.fill(draft, StarterBlock.of(draft, path), listed)
    models.fill(draft, [])
    stages.start_from(draft, ["stage2", "stage1"])
    return []


def _videos(draft: Draft) -> list[str]:
    folders, paths = video_folders(draft.survey), ("datasets.feature_face_caption", "evaluation_datasets.held_out")
    listed = blocks.find_usual(draft, StarterBlock.of(draft, paths[0])) or blocks.find_any(
        draft, StarterBlock.of(draft, paths[0])
    )
    if not folders:
        raise NothingUsable
    usual = draft.expected("extraction.videos")
    videos, count = next((item for item in folders if item[0] == usual), folders[0])
    draft.have("extraction.videos", draft.written(videos), f"{count:,} videos")
    if "model.preset" not in draft.text:  # the demo's encoders are of another size
        models.fill_encoders(draft)
    before = []
    if listed is None:
        table = next((table for table in draft.survey.tables if table.labels), None)
        output = draft.expected(f"{paths[0]}.data_root") or draft.root / "clips"
        source = "TABLE.csv" if table is None else str(table.path)
        before.append(
            f"emollama import videos {shlex.quote(str(videos))} {shlex.quote(source)} --output {shlex.quote(str(output))}"
        )
        for path in paths:
            draft.lack(f"{path}.annotation_file", "no list yet", "emollama import videos writes it")
            if table is not None:
                draft.have(f"{path}.labels", [label for label, _ in table.labels.most_common()], f"labels in {table.path.name}")
    else:
        draft.have("extraction.annotation_file", draft.written(listed.path), f"{len(listed.names):,} clips")
        draft.have("extraction.output", draft.written(listed.path.parent), "beside the list")
        for path in paths:
            blocks.fill(draft, StarterBlock.of(draft, path), listed)
    remedy = f"{_MINIGPT_V2.remedy}, or train stage 1"
    models.fill(draft, [WeightFile("model.ckpt", (*_MINIGPT_V2.patterns, *PATTERNS["stage1"]), remedy)])
    return before


def _flickr30k(draft: Draft) -> list[str]:
    before = captions.fill(draft, "datasets.flickr30k_caption")
    if before is None:
        raise NothingUsable
    files = [
        WeightFile("model.ckpt", ("pre*rained_minigpt4*.pth", "*minigpt4*.pth"), "download MiniGPT-4's projection"),
        WeightFile("model.vit_weights", ("eva_vit_g.pth", "eva_vit*"), "download eva_vit_g.pth, as BLIP-2 uses it"),
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
        "evaluate labels on MER2023, MER2024, DFEW or a list of yours",
        "eval_configs/eval_emotion.yaml", "eval_configs/demo_emotion.yaml", "corpus", _recognition,
        ("relative_test3_NCEV.txt, MER2024-noise_NCE.txt, test(single-labeled)/set_1.csv", LIST, FEATURES), _EVAL,
    ),
    "custom": StarterKind(
        "train on a table of your clips, mixed with MERR if it is there",
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
