"""Keys of the ``extraction`` block of the registered extractors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emollama.config import MISSING
from emollama.errors import require_at_least
from emollama.field_texts import documented


@documented
@dataclass
class VideoExtractionConfig:
    """Keys of the ``extraction`` block. Paths are relative to the current directory."""

    videos: str = MISSING
    """Folder of videos. The name of a clip is the path of its video in this folder, without the extension."""
    output: str = MISSING
    """Output folder. It will contain a folder of features for each encoder, and failures.csv."""
    annotation_file: str | None = None
    """List of the clips to extract: .txt with the name at the start of each line, or .csv with a column name. If null, all videos
    in the folder and its subfolders are extracted."""
    face_path: str | None = None
    """Folder of face images that OpenFace wrote: <name>/ or <name>_aligned/. If null, faces are detected in the frames."""
    peak_index_path: str | None = None
    """File with the index of the most expressive frame of each clip: captions with peak_index (.json), or a CSV
    name,peak_index."""
    stored_as: Literal["npy", "packed"] = "npy"
    """npy: one .npy file per clip. packed: packed shards, which are written after every clip is done or has failed; until then,
    arrays are in <folder>.npy_parts. Clips that are added later are packed again together with the earlier ones. This needs
    disk space for both at the same time."""
    failures: Literal["report", "zero"] = "report"
    """What to do with a clip that an encoder cannot process. report: write no array (missing_features of the dataset decides how
    to train without it). zero: write an array of zeros. In both cases, failures.csv lists the clip, and the next extraction
    tries it again."""
    num_workers: int = 4
    """Number of threads that read videos, per process."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Device of the encoders. auto: CUDA if there is a GPU. On a CPU, the last bits of the features depend on the number of
    threads (OMP_NUM_THREADS, which torchrun sets to 1)."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_workers")
