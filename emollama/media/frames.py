"""Frames of videos, as a player shows them: turned as the file says.

decord reads what it reads rightly, PyAV the rest, to the same pixels (in MPEG-4, a few in a million differ by 2). Both read from
the start, frame after frame: decord's seeking (``get_batch``, ``reader[i]``) gives other frames than were asked for in H.264 and
MPEG-2 in .avi, .wmv and .mpg, and in H.264 and H.265 whose groups of pictures are open.

Letters: F frames, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from emollama.media.containers import MIN_COMPLETE, open_media, packets
from emollama.media.source import UnusableMedia

Choose = Callable[[int], Sequence[int]]
ONE = 1 << 16  # in the fixed-point numbers of a display matrix
NONE_INVENTED = 1e-9  # share of frames that decord may make up by repeating others, without an error


def read_frames(path: str | os.PathLike[str], choose: Choose) -> np.ndarray:
    """Some frames of a video, (F, H, W, 3) uint8 RGB.

    Args:
        path: the video.
        choose: is given the number of frames, and names those wanted, from 0, in any order, repeated or not. Where a video breaks
            before the last of them, it is asked again with the number of those that decode.

    Raises:
        UnusableMedia: the file does not open, is cut off
            (:func:`emollama.media.containers.packets`), or has no frame that decodes;
            the video breaks before the last requested frame after losing a tenth of its frames; or a requested frame does not
            exist.
    """
    outline = _outline(path)
    wanted = choose(outline.frames)
    if not any(wanted):
        return np.stack([outline.first] * len(wanted))
    frames = read_with_decord(path, set(wanted)) if outline.plain else None
    if frames is None:
        frames, decoded = read_with_pyav(path, set(wanted))
        if len(frames) < len(set(wanted)):
            if decoded < MIN_COMPLETE * outline.frames:
                raise UnusableMedia(f"only {decoded} of its {outline.frames} frames can be decoded: it is damaged")
            wanted = choose(decoded)
            frames, _ = read_with_pyav(path, set(wanted))
            if len(frames) < len(set(wanted)):
                raise UnusableMedia(f"it has only {decoded} frames that can be decoded")
    return np.stack([frames[number] for number in wanted])


def probe(path: str | os.PathLike[str]) -> None:
    """Check that there is a video in a file; none of it is decoded.

    Raises:
        UnusableMedia: there is none, or the file does not open.
    """
    with open_media(path, "video"):
        pass


def read_with_pyav(path: str | os.PathLike[str], wanted: set[int]) -> tuple[dict[int, np.ndarray], int]:
    """The wanted frames by number, (H, W, 3) each, without those that do not decode; and how many frames decoded until the last.

    Frames behind a place that is broken do not count. All have the size of the first.

    Raises:
        UnusableMedia: the first frame does not decode.
    """
    frames: dict[int, np.ndarray] = {}
    decoded, last = 0, max(wanted)
    with open_media(path, "video") as (container, stream):
        try:
            for frame in container.decode(stream):
                if not decoded:
                    size = {"width": frame.width, "height": frame.height}
                if decoded in wanted:
                    frames[decoded] = _upright(frame.to_ndarray(format="rgb24", **size), _turn(frame))
                decoded += 1
                if decoded > last:
                    break
        except av.FFmpegError:
            if not decoded:
                raise
    return frames, decoded


def read_with_decord(path: str | os.PathLike[str], wanted: set[int]) -> dict[int, np.ndarray] | None:
    """The wanted frames by number, (H, W, 3) each; None where decord is not installed, fails, or would repeat some for others."""
    try:
        import decord
        from decord._ffi.base import DECORDLimitReachedError
    except ImportError:
        return None
    decord.logging.set_level(decord.logging.QUIET)
    frames = {}
    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=NONE_INVENTED)
        for number in range(max(wanted) + 1):
            image = reader.next()
            if image.shape[-1] != 3:  # of some narrow videos decord makes four or six channels of nothing
                return None
            if number in wanted:
                frames[number] = image.asnumpy()
    except (decord.DECORDError, DECORDLimitReachedError, RuntimeError, AssertionError, StopIteration):
        return None
    return frames


class _Outline(NamedTuple):
    """What is known of a video of which the first frame alone was decoded.

    Attributes:
        first: the first frame, (H, W, 3) uint8 RGB.
        frames: their number, by the packets that are to be shown; fewer decode where the video is broken.
        plain: whether decord is to be trusted: not where frames are turned or mirrored, where colours have more than 8 bits, or
            where the file seems not to be whole: it breaks off, begins amid frames, or has some that are not to be shown.
    """

    first: np.ndarray
    frames: int
    plain: bool


def _outline(path: str | os.PathLike[str]) -> _Outline:
    frames, first, whole = 0, None, True
    with open_media(path, "video") as (container, stream):
        try:
            for packet in packets(container, stream):
                if first is None:
                    first = next(iter(packet.decode()), None)
                if packet.size:
                    whole = whole and not packet.is_discard and (packet.is_keyframe or frames > 0)
                    frames += not packet.is_discard
        except av.FFmpegError:
            if first is None:
                raise
            whole = False
        if first is None or not frames:
            raise UnusableMedia("none of its frames can be decoded")
        eight_bits = all(component.bits == 8 for component in first.format.components)
        image, turn = first.to_ndarray(format="rgb24"), _turn(first)
    return _Outline(_upright(image, turn), frames, whole and eight_bits and turn is None)


def _turn(frame: Any) -> tuple[int, int, int, int] | None:
    """Numbers a, b, c, d of 0, 1 and -1: a player moves pixels from (x, y) to (a x + c y, b x + d y). None where they stay.

    Other turns than quarters are not followed.
    """
    if (stored := frame.side_data.get("DISPLAYMATRIX")) is None:
        return None
    a, b, _, c, d = np.rint(np.frombuffer(stored, np.int32)[:5] / ONE).astype(int).tolist()
    quarters = [abs(number) for number in (a, b, c, d)] in ([1, 0, 0, 1], [0, 1, 1, 0])
    return (a, b, c, d) if quarters and (a, d) != (1, 1) else None


def _upright(image: np.ndarray, turn: tuple[int, int, int, int] | None) -> np.ndarray:
    """(H, W, 3) -> (H, W, 3), or (W, H, 3) after a quarter turn."""
    if turn is None:
        return image
    a, b, c, d = turn
    across, down = a, d
    if not a:
        image, across, down = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[::down, ::across])
