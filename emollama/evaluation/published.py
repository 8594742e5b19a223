"""Results published for EMER, printed next to other scores for orientation only: the judges differ."""

from __future__ import annotations

EMER = {  # model -> clue overlap, label overlap; source: the paper that describes Emotion-LLaMA
    "Emotion-LLaMA": (7.83, 6.25),
    "Valley": (7.24, 5.77),
    "VideoChat-Embed": (7.15, 5.65),
    "PandaGPT": (7.14, 5.51),
    "Video-ChatGPT": (6.95, 5.74),
    "Video-LLaMA": (6.64, 4.89),
    "VideoChat-Text": (6.42, 3.94),
}
CAUTION = (
    "Published for EMER (100 clips), with a different judge that is no longer available: NOT comparable with the values above.",
    "Only scores of the same judge on the same clips are comparable.",
)
