"""From a kind and a data folder to the text of a starter configuration."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emollama.demo.folder import demo_in
from emollama.errors import UserError
from emollama.paths import packaged_copy, read_text
from emollama.starter.draft import Draft
from emollama.starter.kinds import FEATURES, KINDS, NothingUsable, StarterKind
from emollama.starter.stages import written_file
from emollama.starter.survey import FolderSurvey, video_folders
from emollama.starter.yaml_text import YamlText

DEMO_PARENTS = 3  # levels above the data folder where a demo may begin


@dataclass(frozen=True)
class Starter:
    """A starter configuration that is not written yet.

    Attributes:
        text: of the file.
        folder: whose contents it describes.
        found, missing: a line for each thing that was found, or that the configuration still needs.
        commands: to run next.
    """

    text: str
    folder: Path
    found: list[str]
    missing: list[str]
    commands: list[str]


def make(name: str, data: Path, output: str, source: str = "--data") -> Starter:
    """Fill in the shipped configuration of a kind with what a data folder contains.

    Args:
        name: of the kind.
        data: the folder; the folder of ``emollama demo``, one inside it, or one that contains it will do too.
        output: the file that will be written, for the commands.
        source: the option or variable that named the folder, for messages.

    Raises:
        UserError: no such folder, or nothing in it that this kind can use.
    """
    kind, survey, beside = KINDS[name], FolderSurvey(data, source), Path(output).parent
    for template, folder, is_demo in _candidates(kind, survey):
        text = _own_videos(template) if name == "videos" and not is_demo else _shipped(template)
        draft = Draft(text, folder, folder.root, beside, is_demo)
        draft.text.set("paths.root", str(draft.root), "the folder that holds everything below")
        try:
            before = kind.fill(draft)
        except NothingUsable:
            continue
        steps = ["extract", "check-data", "train"] if name == "videos" else ["check-data", kind.command]
        before += [line for stage in draft.stages for line in _training(draft, stage)]
        commands = [*before, *(_command(step, output, is_demo) for step in steps)]
        draft.text.header = _header(name, template, draft, commands)
        return Starter(str(draft.text), draft.root, draft.found, draft.missing, commands)
    if found := _contents(survey):
        needed = " or ".join(item for item in kind.wanted if item is not FEATURES)
        raise UserError(
            f"{source}: '{data}' has {'; '.join(found)}. What '{name}' also needs is missing: {needed}. Add it, or name the"
            " folder that contains it."
        )
    raise UserError(
        f"{source}: nothing in '{data}' that '{name}' can use. Looked for: {'; '.join(kind.wanted)}. Name the folder that"
        f" contains them. The shipped {kind.template} can be used without init: --cfg-path {kind.template}"
    )


def _command(step: str, output: str, is_demo: bool) -> str:
    processes = " --nproc 2" if is_demo and step in ("train", "eval", "extract") else ""  # the demo runs on the CPU
    return f"emollama {step} --cfg-path {shlex.quote(output)}{processes}"


def _training(draft: Draft, stage: str) -> list[str]:
    """Commands that train a stage first, and write its configuration if need be; none where the folder has no data for it."""
    file, before = str(draft.beside / f"{stage}.yaml"), []
    if (written := written_file(draft, stage)) is not None:
        start = written.get("model", {}).get("ckpt")
        if stage == "stage2" and isinstance(start, str) and not draft.located(start).is_file():
            before = _training(draft, "stage1")
        return [*before, _command("train", file, draft.is_demo)]
    if Path(file).exists():  # for other data
        return []
    try:
        commands = make(stage, draft.root, file).commands
    except UserError:
        return []
    output = [] if file == f"{stage}.yaml" else ["--output", file]
    return [shlex.join(["emollama", "init", stage, "--data", str(draft.root), *output]), *commands]


def _candidates(kind: StarterKind, survey: FolderSurvey) -> Iterator[tuple[str, FolderSurvey, bool]]:
    """(shipped configuration, folder, whether it is a demo) in the order in which they are tried."""
    parents = [survey.root, *survey.root.parents][: DEMO_PARENTS + 1]
    around = next((folder for folder in parents if demo_in(folder) is not None and _has_part(folder, kind)), None)
    if around is not None:
        yield kind.demo, FolderSurvey(around), True
        return
    yield kind.template, survey, False
    for folder in survey.demos:
        if _has_part(folder, kind):
            yield kind.demo, FolderSurvey(folder), True


def _contents(survey: FolderSurvey) -> list[str]:
    """What a configuration could use, for messages: feature folders, lists, folders of videos and tables."""

    def named(paths: Iterable[Path]) -> str:
        return some(os.path.relpath(path, survey.root) for path in paths)

    def some(items: Iterable[str]) -> str:
        items = list(items)
        return ", ".join([*items[:4], *([f"... and {len(items) - 4:,} more"] if len(items) > 4 else [])])

    parts = {
        "the feature folders": [found.path for found in survey.features],
        "the lists": [found.path for found in survey.lists],
        "the folders of videos": [folder for folder, _ in video_folders(survey)],
    }
    tables = [f"{named([table.path])} (columns {some(table.columns)})" for table in survey.tables]
    found = [f"{kind} {named(paths)}" for kind, paths in parts.items() if paths]
    return found + ([f"the tables {some(tables)}"] if tables else [])


def _has_part(demo: Path, kind: StarterKind) -> bool:
    return bool(kind.demo_part) and (demo / kind.demo_part).is_dir()


def _shipped(path: str) -> YamlText:
    """The packaged copy of a shipped configuration."""
    copy = packaged_copy(path)
    assert copy is not None
    return YamlText(read_text(str(copy)))


def _own_videos(source: str) -> YamlText:
    """The videos' configuration for models of published sizes: the model and run of stage 1, everything else of the demo's."""
    text, stage_1 = _shipped(source), _shipped(KINDS["stage1"].template)
    text.tree.update(model=stage_1.tree["model"], run=stage_1.tree["run"])
    text.drop("extraction.device")
    text.set("datasets.feature_face_caption.batch_size", 1)
    text.set("evaluation_datasets.held_out.batch_size", 8)
    text.set("run.evaluate", True)
    return text


def _header(name: str, source: str, draft: Draft, commands: list[str]) -> list[str]:
    """What the file is for, where it comes from, what to run, and what is missing."""
    text = KINDS[name].text
    lines = [
        f"{text[0].upper()}{text[1:]}.",
        f"Written by `emollama init {name}` from {source}, for {draft.survey.root}.",
        "Next:",
    ]
    lines += [f"  {command}" for command in commands]
    if draft.missing:
        lines += ["Still missing (marked MISSING below):", *(f"  {line}" for line in draft.missing)]
    return lines
