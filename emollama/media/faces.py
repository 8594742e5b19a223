"""The faces in a video clip: images written by OpenFace, or squares of the frames.

Letters: H height, W width of an image.
"""

from __future__ import annotations

import threading
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import cv2.data
import numpy as np

from emollama.media.frame_selection import FaceChoice, segment_middles
from emollama.media.frames import read_frames
from emollama.media.image_files import open_image
from emollama.media.source import Source, UnusableMedia

EXTENSIONS = (".bmp", ".png", ".jpg", ".jpeg")
CASCADE = "haarcascade_frontalface_alt2.xml"  # one of OpenCV's detectors
MARGIN = 0.1  # fraction of the box that is added on each side; the box reaches from the forehead to the chin
SMALLEST = 8  # the side of a face is at least 1 / SMALLEST of the frame's shorter side
SEARCHED = 480  # larger frames are reduced to this shorter side, in pixels, before the search

_THREAD = threading.local()


def face_images(source: Source, find: FaceChoice = "detect", max_frames: int = 32) -> list[np.ndarray]:
    """Return images of a clip's face in the order of frames or file names, (H, W, 3) uint8 RGB each, of any size.

    Args:
        source: the clip. If it has a folder of face images, all of them are used, and its frames are not read.
        find: which part of a frame is used. ``detect``: a square around the largest face; frames without a face are left out.
            ``centre``: the central square, for videos that show little more than a face.
        max_frames: maximum number of frames, evenly spaced.

    Raises:
        UnusableMedia: If there is no face, a face image cannot be read, or the video is damaged.
    """
    if source.faces is not None:
        return [_read(path, source.limits.max_pixels) for path in _face_image_paths(source.faces, source.name)]
    frames = read_frames(source.video, lambda count: segment_middles(count, min(count, max_frames)), source.limits)
    if find == "centre":
        return [central_square(frame) for frame in frames]
    faces = [frame[square] for frame in frames if (square := _largest_face(frame)) is not None]
    if not faces:
        raise UnusableMedia(f"no face found in {len(frames)} of its frames")
    return faces


def central_square(image: np.ndarray) -> np.ndarray:
    """Return the central square of an image, with the length of its shorter side."""
    height, width = image.shape[:2]
    side = min(height, width)
    return image[_square((width - side) // 2, (height - side) // 2, side)]


def _face_image_paths(faces: Path, name: str) -> list[Path]:
    """Return the paths of a clip's face images in any of the usual folders of OpenFace."""
    last = PurePosixPath(name).name
    for folder in (faces / f"{name}_aligned", faces / name / f"{last}_aligned", faces / name):
        paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."))
        if paths:
            return paths
    raise UnusableMedia(f"no face image of '{name}' in the folder of face images (extraction.face_path)")


def _read(path: Path, max_pixels: int) -> np.ndarray:
    try:
        with open_image(path, max_pixels) as image:
            return np.array(image.convert("RGB"))
    except UnusableMedia as error:
        raise UnusableMedia(f"its face image {path} cannot be used: {error}") from None
    except (OSError, ValueError, SyntaxError):
        raise UnusableMedia(f"its face image {path} cannot be read") from None


def _largest_face(frame: np.ndarray) -> tuple[slice, slice] | None:
    """Return rows and columns of a square around the largest face of a frame, with a margin; None if there is no face."""
    height, width = frame.shape[:2]
    shorter = min(height, width)
    scale = max(1.0, shorter / SEARCHED)
    searched = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    if scale > 1:
        searched = cv2.resize(searched, (round(width / scale), round(height / scale)), interpolation=cv2.INTER_AREA)
    smallest = round(shorter / scale / SMALLEST)
    boxes = _cascade().detectMultiScale(searched, scaleFactor=1.1, minNeighbors=5, minSize=(smallest, smallest))
    if not len(boxes):
        return None
    x, y, face, _ = (int(number * scale) for number in max(boxes.tolist(), key=lambda box: (box[2], box)))
    side = min(round(face * (1 + 2 * MARGIN)), shorter)
    left, top = (min(max(at - (side - face) // 2, 0), end - side) for at, end in ((x, width), (y, height)))
    return _square(left, top, side)


def _square(left: int, top: int, side: int) -> tuple[slice, slice]:
    return slice(top, top + side), slice(left, left + side)


def _cascade() -> Any:
    """Return the detector of this thread, because two threads cannot use one detector at the same time."""
    if not hasattr(_THREAD, "cascade"):
        _THREAD.cascade = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades, CASCADE)))
    return _THREAD.cascade
