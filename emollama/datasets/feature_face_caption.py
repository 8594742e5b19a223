"""MERR and MER2023: an annotation list, captions as JSON, transcripts as CSV, and features in folders next to the list."""

from __future__ import annotations

from emollama.data.annotations import Table, read_annotations, read_captions
from emollama.data.text_checks import file_exists
from emollama.datasets.configs import FeatureFaceCaptionConfig
from emollama.datasets.feature_clips import FeatureClips
from emollama.errors import UserError
from emollama.paths import require_file

CAPTIONS = {  # task -> (configuration key, field of the clip's JSON object)
    "reason": ("coarse_grained_json_path", "caption"),
    "reason_v2": ("fine_grained_json_path", "smp_reason_caption"),
}


class FeatureFaceCaption(FeatureClips):
    """The dataset of a ``feature_face_caption`` block: MERR, MER2023, and other data in the same format."""

    Config = FeatureFaceCaptionConfig

    cfg: FeatureFaceCaptionConfig

    def read_table(self) -> Table:
        """Read the list, and the captions that the tasks need."""
        clips = read_annotations(self.list_path(), self.cfg.annotation_format, self.report, self.list_key)
        return Table(clips, None, {task: self._read_captions(task) for task in self.pool.tasks if task in CAPTIONS})

    def text_files(self) -> list[str]:
        """Return the paths of the list and of the captions that the tasks need."""
        keys = [CAPTIONS[task][0] for task in self.pool.tasks if task in CAPTIONS]
        paths = [getattr(self.cfg, key) for key in keys]
        return [*super().text_files(), *(self.resolve_path(path) for path in paths if path is not None)]

    def caption_source(self, task: str) -> str:
        """Return the field, key and path of the captions, for messages."""
        key, field = CAPTIONS[task]
        return f"'{field}' in {key}: {getattr(self.cfg, key)}"

    def caption_entries(self, task: str) -> set[str]:
        """Return the clips whose object in the caption file has the field, empty or not."""
        key, field = CAPTIONS[task]
        return self.names_with_field(getattr(self.cfg, key), field)

    def _read_captions(self, task: str) -> dict[str, str]:
        key, field = CAPTIONS[task]
        configured: str | None = getattr(self.cfg, key)
        default = self.Config.__dataclass_fields__[key].default
        if configured is None and self.training:
            raise UserError(
                f"{self.block_path}.{key} is null, but task_pool contains '{task}'. Set it to the file with the captions."
            )
        path = None if configured is None else self.resolve_path(configured)
        # Evaluation needs no reference answers, so the default file may be absent.
        if not self.training and (configured is None or (configured == default and not file_exists(path))):
            return {}
        return read_captions(require_file(str(path), f"{self.block_path}.{key}"), field, key, self.report)
