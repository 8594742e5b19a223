"""MER2024: the form of MERR under the names of that year's features and transcripts."""

from __future__ import annotations

from emollama.datasets.configs import MER2024CaptionConfig
from emollama.datasets.feature_face_caption import FeatureFaceCaption


class MER2024Caption(FeatureFaceCaption):
    """The dataset behind a ``mer2024_caption`` block; other defaults than ``feature_face_caption``, nothing else.

    Six labels are scored; the prompt shows the nine of training.
    """

    Config = MER2024CaptionConfig
