"""Keys of the ``extraction`` block of the registered extractors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emollama.config import MISSING
from emollama.errors import require_at_least


@dataclass
class VideoExtractionConfig:
    """Keys of the ``extraction`` block. Relative paths start at the current directory."""

    videos: str = MISSING
    """Folder of the videos; a clip's name is its path below it, without the ending."""
    output: str = MISSING
    """Folder to write into: a folder of features for each encoder, and failures.csv."""
    annotation_file: str | None = None
    """List of the clips to do: .txt, the name first, or .csv with a column name. Null: every video below the folder."""
    face_path: str | None = None
    """Folder of face images as OpenFace writes them: <name>/ or <name>_aligned/. Null: faces are found in the frames."""
    peak_index_path: str | None = None
    """Which frame of a clip is the most expressive: captions with peak_index (.json), or a CSV name,peak_index."""
    stored_as: Literal["npy", "packed"] = "npy"
    """A .npy file a clip, or packed shards. Those are written when every clip is done or failed; till then arrays lie in
    <folder>.npy_parts. Clips that come later are packed anew with the earlier ones, which takes space for both meanwhile."""
    failures: Literal["report", "zero"] = "report"
    """What becomes of a clip that an encoder can make nothing of: report leaves it out (the dataset's missing_features then
    says what that means), zero writes an array of zeros. Either way it is a row of failures.csv, tried again next time."""
    num_workers: int = 4
    """Threads that read videos on each process."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the encoders run. auto: CUDA where there is any. On a CPU the last bits of features depend on the number of
    threads (OMP_NUM_THREADS, which torchrun sets to 1)."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_workers")
