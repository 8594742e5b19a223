"""Contents of a data folder: annotation files, tables, captions, feature folders, models, videos and images.

The folder tree is walked once. Files are opened only when a property or function needs their content. Nothing here
imports torch.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emollama.data.annotations import NAME_COLUMNS, read_annotations, read_captions
from emollama.data.csv_files import read_csv
from emollama.data.problems import Problem
from emollama.demo.folder import demo_in
from emollama.errors import UserError
from emollama.media.files import EXTENSIONS
from emollama.starter.defaults import feature_folders
from emollama.starter.feature_folders import FeatureFolder, open_features
from emollama.stores.packed import is_packed

MAX_DEPTH, MAX_FOLDERS = 6, 10_000  # below the data folder

MAX_TEXT = 200 * 2**20  # bytes of a list, table or JSON file that is opened
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ClipFile:
    """An annotation list (.txt) or table (.csv) of clips.

    Attributes:
        path: the file.
        names: clip names in the order of the file.
        labels: label -> number of clips; empty if the file has no labels.
        columns: header of a table; empty for a list.
    """

    path: Path
    names: tuple[str, ...]
    labels: Counter[str]
    columns: tuple[str, ...] = ()


def require_data_folder(root: Path, source: str) -> None:
    """Check that a folder exists.

    Args:
        root: the folder.
        source: the option or variable that contains its path.

    Raises:
        UserError: If the folder does not exist.
    """
    if not root.is_dir():
        raise UserError(f"{source}: the folder '{root}' does not exist (current directory: {os.getcwd()}). Correct the path.")


class FolderSurvey:
    """The files in a folder and its subfolders, without hidden folders, virtual environments, results of runs, and demos.

    Args:
        root: the folder.
        source: the option or variable that contains its path, for messages.

    Attributes:
        root: absolute path of the folder.
        files: folder -> names of the files in it.
        demos: folders below the root that ``emollama demo`` wrote.

    Raises:
        UserError: If the folder does not exist.
    """

    def __init__(self, root: Path, source: str = "--data") -> None:
        require_data_folder(root, source)
        self.root = Path(os.path.abspath(root))
        self.demos: list[Path] = []
        self.files = dict(_walk(self.root, self.demos))

    def files_named(self, *names: str) -> list[Path]:
        """Return the files with one of these names, nearest to the root first."""
        return self._paths(lambda name: name in names)

    def files_with_extension(self, *extensions: str) -> list[Path]:
        """Return the files whose lowercase names have one of these extensions, nearest to the root first."""
        return self._paths(lambda name: name.lower().endswith(extensions))

    def folders_with(self, *extensions: str) -> list[tuple[Path, int]]:
        """Return the folders that contain files with these extensions and the number of such files, largest number first."""
        counts = {folder: sum(name.lower().endswith(extensions) for name in names) for folder, names in self.files.items()}
        return sorted(((folder, count) for folder, count in counts.items() if count), key=lambda item: -item[1])

    @functools.cached_property
    def lists(self) -> list[ClipFile]:
        """The .txt files that are annotation lists of clips with at least one array in a feature folder."""
        # Any text of one or two words per line reads as a list, so the names must also occur in a feature folder.
        candidates = [clip_file for path in self.files_with_extension(".txt") if (clip_file := read_list(path)) is not None]
        return [clip_file for clip_file in candidates if any(folder.coverage(clip_file.names) for folder in self.features)]

    @functools.cached_property
    def tables(self) -> list[ClipFile]:
        """The .csv files that have a column of clip names."""
        return [table for path in self.files_with_extension(".csv") if (table := read_table(path)) is not None]

    @functools.cached_property
    def features(self) -> list[FeatureFolder]:
        """The feature folders that can be read."""
        folders: dict[Path, None] = {}
        for folder, names in self.files.items():
            if any(name.endswith((".npy", ".tar")) for name in names) or is_packed(str(folder)):
                folders[self._store_folder(folder)] = None
        return [features for folder in folders if (features := open_features(folder)) is not None]

    @functools.cached_property
    def models(self) -> dict[Path, str]:
        """Hugging Face folders -> the ``model_type`` in their config.json."""
        model_types = {}
        for path in self.files_named("config.json"):
            try:
                model_type = json.loads(path.read_text(encoding="utf-8"))["model_type"]
            except (OSError, ValueError, RecursionError, KeyError, TypeError):
                continue
            model_types[path.parent] = str(model_type)
        return model_types

    def language_models(self) -> list[Path]:
        """Return the Hugging Face folders that contain a tokenizer."""
        tokenizers = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
        return [folder for folder in self.models if tokenizers & set(self.files[folder])]

    def _paths(self, matches: Callable[[str], bool]) -> list[Path]:
        paths = [folder / name for folder, names in self.files.items() for name in names if matches(name)]
        return sorted(paths, key=lambda path: (len(path.parts), _natural_key(str(path))))

    def _store_folder(self, folder: Path) -> Path:
        """Return the feature folder that a folder of arrays belongs to.

        Clip names may contain folders (``a/clip_1``). The feature folder is then a parent folder, which has a manifest or
        one of the usual names.
        """
        usual_names = {name.lower() for name in feature_folders()}
        for parent in [folder, *folder.parents]:
            if parent == self.root:
                break
            if (parent / "manifest.json").is_file() or parent.name.lower() in usual_names:
                return parent
        return folder


def _natural_key(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts checkpoint_3 before checkpoint_29."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]


def _walk(root: Path, demos: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with the names of its files; append the folders of demos below the root to ``demos``."""
    visited, count = set(), 0
    for folder, folders, files in os.walk(root, followlinks=True):
        # Each real folder is visited once, so that a cycle of links ends.
        real, depth = os.path.realpath(folder), len(Path(folder).relative_to(root).parts)
        count += 1
        if real in visited or count > MAX_FOLDERS or "pyvenv.cfg" in files:
            folders.clear()
            continue
        visited.add(real)
        if depth and demo_in(Path(folder)) is not None:
            demos.append(Path(folder))
            folders.clear()
            continue
        is_run = "config.yaml" in files
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")) and not (is_run and name == "result"))
        if depth >= MAX_DEPTH:
            folders.clear()
        yield Path(folder), sorted(name for name in files if not name.startswith(".") and (not is_run or name.endswith(".pth")))


def read_list(path: Path) -> ClipFile | None:
    """Read an annotation list; return None if the file cannot be read or most of its lines have another form."""
    problems: list[Problem] = []
    try:
        if path.stat().st_size > MAX_TEXT:
            return None
        clips = read_annotations(str(path), report=problems.append)
    except (UserError, OSError):
        return None
    if len(problems) >= len(clips):
        return None
    labels = Counter(clip.label for clip in clips if clip.label and not clip.label.isdecimal())
    return ClipFile(path, tuple(clip.name for clip in clips), labels)


def read_table(path: Path) -> ClipFile | None:
    """Read a table of clips; return None if the file cannot be read or has no column of clip names."""
    problems: list[Problem] = []
    try:
        if path.stat().st_size > MAX_TEXT:
            return None
        header, rows = read_csv(str(path), "--data", problems.append)
    except (UserError, OSError, IndexError):
        return None
    column = next((name for name in NAME_COLUMNS if name in header), None)
    label = next((name for name in ("emotion", "label", "discrete", "emotions") if name in header), None)
    if column is None or not rows:
        return None
    labels = Counter(row[label] for _, row in rows if row[label]) if label else Counter[str]()
    return ClipFile(path, tuple(row[column] for _, row in rows), labels, tuple(header))


def captioned_names(path: Path, field: str) -> frozenset[str]:
    """Return the names of the clips with a caption in this field of a JSON file; empty if the file has another form."""
    try:
        if path.stat().st_size > MAX_TEXT:
            return frozenset()
        return frozenset(read_captions(str(path), field, "--data", lambda problem: None))
    except (UserError, OSError):
        return frozenset()


def video_folders(survey: FolderSurvey) -> list[tuple[Path, int]]:
    """Return the folders that contain videos and the number of videos, largest number first."""
    return survey.folders_with(*EXTENSIONS)


def image_folders(survey: FolderSurvey) -> list[tuple[Path, int]]:
    """Return the folders that contain images and the number of images, largest number first."""
    return survey.folders_with(*IMAGE_EXTENSIONS)
