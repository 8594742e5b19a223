"""Which datasets have an index of their texts (:mod:`emollama.data.text_index`), and on which keys it depends."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from emollama.config.aliases import PATH_SUFFIX
from emollama.data import text_index
from emollama.data.instructions import TaskPool
from emollama.data.text_index import IndexedTexts, TextFile
from emollama.data.text_table import ClipRows
from emollama.data.validation_cache import ValidationCache, cache_path, code_stamps
from emollama.remote.manager import is_remote

# Keys of a block that change neither its table nor the selection of clips.
_AUGMENTATION = ("enable_augmentation", "augmentation_prob", "augmentations", "augmentation_noise", "augmentation_mask")
_SAMPLING = ("shuffle", "shuffle_window", "batch_size", "sample_ratio", "curriculum")
_FEATURES = ("features", "image_path", "frame_selection", "peak_index_path", "missing_features", "check_values")
OTHER_KEYS = {*_AUGMENTATION, *_SAMPLING, *_FEATURES, "instructions", "prompt_labels", "text_processor", "max_words"}
# Methods whose results are in the digest of texts.
ANSWERS = ("answer", "reference", "process_answer")


class FromFiles(Protocol):
    """What an index needs of a dataset of clips."""

    cfg: Any
    block_path: str
    training: bool
    pool: TaskPool
    clips: ClipRows

    def text_files(self) -> list[str]:
        """Return the paths of the files with the clips and their captions, whether they exist or not."""
        ...

    def resolve_path(self, path: str) -> str:
        """Resolve a path of the block."""
        ...


@dataclasses.dataclass(frozen=True)
class TextIndex:
    """The index of one dataset.

    Attributes:
        settings: everything besides the files that the texts depend on.
        path: the file.
        sources: the annotation files.
    """

    settings: str
    path: Path
    sources: list[TextFile]

    @classmethod
    def of_dataset(cls, dataset: FromFiles) -> Self | None:
        """Return where the texts of a dataset are indexed; None if files that it reads are not known, or are remote.

        Args:
            dataset: a dataset that has not yet read its texts.
        """
        cfg = dataset.cfg
        if not _is_own(dataset, "read_table"):
            return None
        paths = dataset.text_files()
        if cfg.transcription_path is not None:
            paths = [*paths, dataset.resolve_path(cfg.transcription_path)]
        if any(map(is_remote, paths)):
            return None
        keys = [item.name for item in dataclasses.fields(cfg) if not item.name.endswith(PATH_SUFFIX)]
        values = {key: getattr(cfg, key) for key in keys if key not in OTHER_KEYS}
        sources = [TextFile.of(path) for path in paths]
        files = [source.path for source in sources]
        code = code_stamps("data", "datasets")
        settings = repr((type(dataset).__qualname__, dataset.block_path, dataset.training, files, values, code))
        return cls(settings, cache_path("texts", "bin", settings), sources)

    def read(self) -> IndexedTexts | None:
        """Open the index; None if there is none of the current files."""
        return text_index.read(self.path, self.sources)

    def write(self, texts: IndexedTexts) -> bool:
        """Write the index, and return whether it was written."""
        return text_index.write(self.path, self.sources, texts)

    def digest(self, dataset: FromFiles, compute: Callable[[], str]) -> str:
        """Return the digest of a dataset's prompts and targets, which is computed once.

        Args:
            dataset: the dataset of this index.
            compute: returns the digest.
        """
        if not all(_is_own(dataset, method) for method in ANSWERS):
            return compute()
        rows = hashlib.sha256(dataset.clips.rows.tobytes()).hexdigest()
        name = repr((rows, dataset.cfg.text_processor, dataset.cfg.max_words, dataset.pool.tasks))
        stamp = tuple(number for source in self.sources for number in source.stamp)
        cache = ValidationCache.load("text-digests", self.settings)
        if (digest := cache.get(name, stamp)) is None:
            digest = compute()
            cache.add(name, stamp, digest)
            cache.save()
        return digest


def _is_own(dataset: FromFiles, method: str) -> bool:
    """Return whether a method of a dataset is that of this package, and not of a class of the user."""
    return str(getattr(type(dataset), method).__module__).startswith("emollama.")
