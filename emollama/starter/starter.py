"""Build the text of a starter configuration from its kind and a data folder."""

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
from emollama.starter.stages import existing_config
from emollama.starter.survey import FolderSurvey, video_folders
from emollama.starter.yaml_text import YamlText

DEMO_PARENTS = 3  # number of parent folders of the data folder that are tried as the folder of a demo


@dataclass(frozen=True)
class Starter:
    """A starter configuration that has not been written yet.

    Attributes:
        text: content of the file.
        folder: the data folder.
        found_items: one line for each key whose file, folder or value was found.
        missing_items: one line for each key whose file or folder is still missing.
        commands: the commands to run next.
    """

    text: str
    folder: Path
    found_items: list[str]
    missing_items: list[str]
    commands: list[str]


def build_starter(name: str, data: Path, output: str, source: str = "--data") -> Starter:
    """Fill in the shipped configuration of a kind with the contents of a data folder.

    Args:
        name: name of the kind.
        data: the data folder; it may also be the folder of ``emollama demo``, a folder inside it, or one that contains it.
        output: the file that will be written, which appears in the commands.
        source: the option or variable that contains the folder's path, for messages.

    Raises:
        UserError: If the folder does not exist, or contains no data for this kind.
    """
    kind, survey, output_folder = KINDS[name], FolderSurvey(data, source), Path(output).parent
    for template, folder, is_demo in _candidates(kind, survey):
        text = _own_videos(template) if name == "videos" and not is_demo else _shipped(template)
        draft = Draft(text, folder, folder.root, output_folder, is_demo)
        draft.text.set("paths.root", str(draft.root), "the folder that contains all files below")
        try:
            before = kind.fill(draft)
        except NothingUsable:
            continue
        steps = ["extract", "check-data", "train"] if name == "videos" else ["check-data", kind.command]
        before += [line for stage in draft.stages for line in _training(draft, stage)]
        commands = [*before, *(_command(step, output, is_demo) for step in steps)]
        draft.text.header = _header(name, template, draft, commands)
        return Starter(str(draft.text), draft.root, draft.found_items, draft.missing_items, commands)
    if contents := _contents(survey):
        needed = " or ".join(item for item in kind.required_data if item is not FEATURES)
        raise UserError(
            f"{source}: '{data}' contains {'; '.join(contents)}. For '{name}', this is missing: {needed}. Add it, or name the"
            " folder that contains it."
        )
    raise UserError(
        f"{source}: '{data}' contains no data for '{name}'. Searched for: {'; '.join(kind.required_data)}. Specify the folder"
        f" that contains them. The shipped {kind.template} can be used without init: --cfg-path {kind.template}"
    )


def _command(step: str, output: str, is_demo: bool) -> str:
    processes = " --nproc 2" if is_demo and step in ("train", "eval", "extract") else ""  # the demo runs on the CPU
    return f"emollama {step} --cfg-path {shlex.quote(output)}{processes}"


def _training(draft: Draft, stage: str) -> list[str]:
    """Return the commands that train a stage, and write its configuration if necessary; none without data for the stage."""
    file, before = str(draft.output_folder / f"{stage}.yaml"), []
    if (earlier := existing_config(draft, stage)) is not None:
        start = earlier.get("model", {}).get("ckpt")
        if stage == "stage2" and isinstance(start, str) and not draft.resolve(start).is_file():
            before = _training(draft, "stage1")
        return [*before, _command("train", file, draft.is_demo)]
    if Path(file).exists():  # it is for other data, and init does not replace files
        return []
    try:
        commands = build_starter(stage, draft.root, file).commands
    except UserError:
        return []
    output = [] if file == f"{stage}.yaml" else ["--output", file]
    return [shlex.join(["emollama", "init", stage, "--data", str(draft.root), *output]), *commands]


def _candidates(kind: StarterKind, survey: FolderSurvey) -> Iterator[tuple[str, FolderSurvey, bool]]:
    """Yield (shipped configuration, folder, whether it is a demo) in the order in which they are tried."""
    parents = [survey.root, *survey.root.parents][: DEMO_PARENTS + 1]
    enclosing_demo = next((folder for folder in parents if demo_in(folder) is not None and _has_part(folder, kind)), None)
    if enclosing_demo is not None:
        yield kind.demo, FolderSurvey(enclosing_demo), True
        return
    yield kind.template, survey, False
    for folder in survey.demos:
        if _has_part(folder, kind):
            yield kind.demo, FolderSurvey(folder), True


def _contents(survey: FolderSurvey) -> list[str]:
    """Describe the usable contents for messages: feature folders, annotation files, folders of videos and tables."""

    def named(paths: Iterable[Path]) -> str:
        return some(os.path.relpath(path, survey.root) for path in paths)

    def some(items: Iterable[str]) -> str:
        items = list(items)
        return ", ".join([*items[:4], *([f"... and {len(items) - 4:,} more"] if len(items) > 4 else [])])

    parts = {
        "the feature folders": [features.path for features in survey.features],
        "the annotation files": [clip_file.path for clip_file in survey.lists],
        "the folders of videos": [folder for folder, _ in video_folders(survey)],
    }
    tables = [f"{named([table.path])} (columns {some(table.columns)})" for table in survey.tables]
    descriptions = [f"{kind} {named(paths)}" for kind, paths in parts.items() if paths]
    return descriptions + ([f"the tables {some(tables)}"] if tables else [])


def _has_part(demo: Path, kind: StarterKind) -> bool:
    return bool(kind.demo_part) and (demo / kind.demo_part).is_dir()


def _shipped(path: str) -> YamlText:
    """Read the packaged copy of a shipped configuration."""
    copy = packaged_copy(path)
    assert copy is not None
    return YamlText(read_text(str(copy)))


def _own_videos(source: str) -> YamlText:
    """Read the demo's configuration for videos, with the model and run of stage 1 in place of the tiny ones."""
    text, stage_1 = _shipped(source), _shipped(KINDS["stage1"].template)
    text.tree.update(model=stage_1.tree["model"], run=stage_1.tree["run"])
    text.drop("extraction.device")
    text.set("datasets.feature_face_caption.batch_size", 1)
    text.set("evaluation_datasets.held_out.batch_size", 8)
    text.set("run.evaluate", True)
    return text


def _header(name: str, source: str, draft: Draft, commands: list[str]) -> list[str]:
    """Return the comment lines at the top: purpose and origin of the file, the commands to run, and missing items."""
    text = KINDS[name].text
    lines = [
        f"{text[0].upper()}{text[1:]}.",
        f"Written by `emollama init {name}` from {source}, for {draft.survey.root}.",
        "Next:",
    ]
    lines += [f"  {command}" for command in commands]
    if draft.missing_items:
        lines += ["Still missing (marked MISSING below):", *(f"  {line}" for line in draft.missing_items)]
    return lines
