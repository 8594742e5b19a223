"""What a data folder contains: lists of clips, tables, captions, feature folders, models, videos and images.

The folder is walked once; files are opened only when something asks about them. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emollama.data.annotations import NAME_COLUMNS, read_annotations, read_captions, read_rows
from emollama.data.problems import Problem
from emollama.demo.folder import demo_in
from emollama.errors import UserError
from emollama.media.files import ENDINGS
from emollama.starter.defaults import feature_folders
from emollama.stores.manifest import Manifest
from emollama.stores.packed import is_packed
from emollama.stores.store import ArrayStore, open_store

MAX_DEPTH, MAX_FOLDERS = 6, 10_000  # below the data folder

MAX_TEXT = 200 * 2**20  # bytes of a list, table or JSON file that is opened
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
SLOT_NAMES = (  # in this order: "maeV" and "HL" are more specific than "mae"
    ("video", re.compile(r"maev|videomae|video", re.IGNORECASE)),
    ("audio", re.compile(r"^hl\b|^hl[-_]|hubert|audio|wav|speech", re.IGNORECASE)),
    ("image", re.compile(r"eva|vit|clip|image", re.IGNORECASE)),
    ("face", re.compile(r"mae|face", re.IGNORECASE)),
)


@dataclass(frozen=True)
class ClipFile:
    """A list (.txt) or table (.csv) of clips.

    Attributes:
        path: the file.
        names: of its clips, in order.
        labels: label -> clips with it; empty where the file has none.
        columns: header of a table; empty for a list.
    """

    path: Path
    names: tuple[str, ...]
    labels: Counter[str]
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureFolder:
    """A folder of arrays, one for each clip.

    Attributes:
        path: the folder.
        slot: image, face, video or audio, by its manifest or its name; None if neither tells.
        shape: of its first array.
        store: its reader.
    """

    path: Path
    slot: str | None
    shape: tuple[int, ...]
    store: ArrayStore

    @property
    def width(self) -> int:
        """Numbers of a feature vector."""
        return self.shape[-1]

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the frames behind an EVA cache of (1 + (side / 14)^2, width); None for another number of rows."""
        patches = (self.shape[0] if len(self.shape) == 2 else 0) - 1
        side = round(max(patches, 0) ** 0.5)
        return 14 * side if side and side * side == patches else None

    def coverage(self, names: Iterable[str]) -> int:
        """How many of these clips have an array."""
        return sum(name in self.store for name in names)


def require_data_folder(root: Path, source: str) -> None:
    """Check that a folder exists.

    Args:
        root: the folder.
        source: the option or variable that named it.

    Raises:
        UserError: no such folder.
    """
    if not root.is_dir():
        raise UserError(f"{source}: no folder '{root}' (working folder: {os.getcwd()}). Correct the path.")


class FolderSurvey:
    """The files below a folder. Hidden folders, virtual environments, results of runs and demos below it are left out.

    Args:
        root: the folder.
        source: the option or variable that named it, for messages.

    Attributes:
        root: the folder, absolute.
        files: folder -> the names of its files.
        demos: folders of ``emollama demo`` below the root.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, root: Path, source: str = "--data") -> None:
        require_data_folder(root, source)
        self.root = Path(os.path.abspath(root))
        self.demos: list[Path] = []
        self.files = dict(_walk(self.root, self.demos))

    def named(self, *names: str) -> list[Path]:
        """Files with one of these names, nearest to the root first."""
        return self._paths(lambda name: name in names)

    def ending(self, *endings: str) -> list[Path]:
        """Files with one of these endings, nearest to the root first."""
        return self._paths(lambda name: name.lower().endswith(endings))

    def folders_of(self, *endings: str) -> list[tuple[Path, int]]:
        """Folders that contain files with these endings, and how many, most first."""
        counts = {folder: sum(name.lower().endswith(endings) for name in names) for folder, names in self.files.items()}
        return sorted(((folder, count) for folder, count in counts.items() if count), key=lambda item: -item[1])

    @functools.cached_property
    def lists(self) -> list[ClipFile]:
        """The .txt files that are lists of clips with at least one array in one of the feature folders."""
        found = [listed for path in self.ending(".txt") if (listed := read_list(path)) is not None]
        return [listed for listed in found if any(folder.coverage(listed.names) for folder in self.features)]

    @functools.cached_property
    def tables(self) -> list[ClipFile]:
        """The .csv files that have a column of names."""
        return [table for path in self.ending(".csv") if (table := read_table(path)) is not None]

    @functools.cached_property
    def features(self) -> list[FeatureFolder]:
        """The folders of arrays."""
        folders: dict[Path, None] = {}
        for folder, names in self.files.items():
            if any(name.endswith((".npy", ".tar")) for name in names) or is_packed(str(folder)):
                folders[self._store_of(folder)] = None
        return [found for folder in folders if (found := open_features(folder)) is not None]

    @functools.cached_property
    def models(self) -> dict[Path, str]:
        """Hugging Face folders -> the model_type of their config.json."""
        found = {}
        for path in self.named("config.json"):
            try:
                kind = json.loads(path.read_text(encoding="utf-8"))["model_type"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found[path.parent] = str(kind)
        return found

    def language_models(self) -> list[Path]:
        """Hugging Face folders with a tokenizer."""
        tokenizers = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
        return [folder for folder in self.models if tokenizers & set(self.files[folder])]

    def _paths(self, wanted: Callable[[str], bool]) -> list[Path]:
        found = [folder / name for folder, names in self.files.items() for name in names if wanted(name)]
        return sorted(found, key=lambda path: (len(path.parts), _natural(str(path))))

    def _store_of(self, folder: Path) -> Path:
        """The folder that clip names start at; names may have folders themselves, below one with a manifest or usual name."""
        usual = {name.lower() for name in feature_folders()}
        for parent in [folder, *folder.parents]:
            if parent == self.root:
                break
            if (parent / "manifest.json").is_file() or parent.name.lower() in usual:
                return parent
        return folder


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts checkpoint_3 before checkpoint_29."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]


def _walk(root: Path, demos: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Folders with the names of their files; links to folders are followed once. Demos below the root go to ``demos``."""
    seen, count = set(), 0
    for place, folders, files in os.walk(root, followlinks=True):
        real, depth = os.path.realpath(place), len(Path(place).relative_to(root).parts)
        count += 1
        if real in seen or count > MAX_FOLDERS or "pyvenv.cfg" in files:
            folders.clear()
            continue
        seen.add(real)
        if depth and demo_in(Path(place)) is not None:
            demos.append(Path(place))
            folders.clear()
            continue
        is_run = "config.yaml" in files
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")) and not (is_run and name == "result"))
        if depth >= MAX_DEPTH:
            folders.clear()
        yield Path(place), sorted(name for name in files if not name.startswith(".") and (not is_run or name.endswith(".pth")))


def read_list(path: Path) -> ClipFile | None:
    """A list of clips; None where the file is none: most of its rows have another form."""
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
    """A table with a column of clip names; None where the file has none."""
    problems: list[Problem] = []
    try:
        if path.stat().st_size > MAX_TEXT:
            return None
        header, rows = read_rows(str(path), "--data", problems.append)
    except (UserError, OSError, IndexError):
        return None
    column = next((name for name in NAME_COLUMNS if name in header), None)
    label = next((name for name in ("emotion", "label", "discrete", "emotions") if name in header), None)
    if column is None or not rows:
        return None
    labels = Counter(row[label] for _, row in rows if row[label]) if label else Counter[str]()
    return ClipFile(path, tuple(row[column] for _, row in rows), labels, tuple(header))


def captioned(path: Path, field: str) -> frozenset[str]:
    """The clips that have a caption under a field of a JSON file; empty where it has another form."""
    try:
        if path.stat().st_size > MAX_TEXT:
            return frozenset()
        return frozenset(read_captions(str(path), field, "--data", lambda problem: None))
    except (UserError, OSError):
        return frozenset()


def open_features(folder: Path) -> FeatureFolder | None:
    """The arrays of a folder; None where it has none that can be read."""
    try:
        store = open_store(str(folder), "--data")
        name = min(store.names(), default=None)
        if name is None:  # names with folders
            first = next(folder.rglob("*.npy"))
            name = first.relative_to(folder).with_suffix("").as_posix()
        shape, _ = store.header(name)
    except (UserError, OSError, ValueError, StopIteration):
        return None
    return FeatureFolder(folder, _slot(folder), shape, store) if shape else None


def _slot(folder: Path) -> str | None:
    try:
        manifest = Manifest.read(str(folder))
    except UserError:
        manifest = None
    if manifest is not None:
        return manifest.slots[0]
    return next((slot for slot, pattern in SLOT_NAMES if pattern.search(folder.name)), None)


def video_folders(survey: FolderSurvey) -> list[tuple[Path, int]]:
    """Folders of videos with their number, most first."""
    return survey.folders_of(*ENDINGS)


def image_folders(survey: FolderSurvey) -> list[tuple[Path, int]]:
    """Folders of images with their number, most first."""
    return survey.folders_of(*IMAGE_ENDINGS)
