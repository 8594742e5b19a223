"""MER2024: the format of MERR with the labels and file names of MER2024."""

from __future__ import annotations

from emollama.datasets.configs import MER2024CaptionConfig
from emollama.datasets.feature_face_caption import FeatureFaceCaption


class MER2024Caption(FeatureFaceCaption):
    """The dataset of a ``mer2024_caption`` block, which differs from ``feature_face_caption`` only in its defaults.

    Clips have six labels, while the prompt contains the nine labels of MERR.
    """

    Config = MER2024CaptionConfig
