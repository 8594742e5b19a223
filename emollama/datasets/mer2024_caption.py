"""MER2024: the form of MERR under the names of that year's features and transcripts."""

from __future__ import annotations

from dataclasses import dataclass, field

from emollama.data.clips import LABELS
from emollama.datasets.feature_face_caption import FeatureFaceCaption
from emollama.registry import DATASETS


@DATASETS.register("mer2024_caption")
class MER2024Caption(FeatureFaceCaption):
    """The dataset behind a ``mer2024_caption`` block; other defaults than ``feature_face_caption``, nothing else.

    Six labels are scored; the prompt shows the nine of training.
    """

    @dataclass
    class Config(FeatureFaceCaption.Config):
        """Keys of a ``mer2024_caption`` block."""

        labels: list[str] = field(default_factory=lambda: ["neutral", "angry", "happy", "sad", "worried", "surprise"])
        """Labels that clips may have."""
        prompt_labels: list[str] | None = field(default_factory=lambda: list(LABELS))
        """Labels shown in the prompt, in this order. Null: the same as labels."""
        transcription_path: str | None = "transcription_all_new.csv"
        """What is said: name and sentence, sentence_en or english. Null: prompts without a sentence."""
        face_feature_path: str | None = "mae_340_23_UTT"
        """MAE features, as image_feature_path. Null: no face row."""
        video_feature_path: str | None = "maeVideo_399_23_UTT"
        """VideoMAE features, as image_feature_path. Null: no video row."""
        audio_feature_path: str | None = "HL_23_UTT"
        """HuBERT features, as image_feature_path. Null: no audio row."""
