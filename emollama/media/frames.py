"""Frames of videos, rotated as in a video player.

decord reads the videos that it decodes correctly, PyAV all others, with the same pixels (in MPEG-4, a few in a million differ by
2). Both read frame by frame from the start, because decord's seeking (``get_batch``, ``reader[i]``) returns wrong frames for
H.264 and MPEG-2 in .avi, .wmv and .mpg, and for H.264 and H.265 with open groups of pictures.

decord chooses the demuxer itself, among all of its version of FFmpeg. It gets only files that PyAV has opened with one of the
accepted demuxers and that contain none of the texts by which FFmpeg recognizes formats that refer to other files.

Letters: F frames, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from emollama.media.containers import MIN_COMPLETE, open_media, opened, packets
from emollama.media.image_files import is_image, probe_image, read_image, require_pixels
from emollama.media.source import DEFAULT_LIMITS, MediaLimits, UnusableMedia

ChooseFrames = Callable[[int], Sequence[int]]
FIXED_POINT_ONE = 1 << 16  # the number 1 in a display matrix
# By default, decord silently replaces a fraction of broken frames by copies of others. This fraction allows none.
FAULT_TOLERANCE = 1e-9
# FFmpeg chooses a demuxer by at most this many bytes.
PROBED_BYTES = 2**20
# FFmpeg's formats that refer to other files and are recognized by content: HLS, ffconcat, DASH, SDP, VobSub, MLV; in lower case.
REFERRING = (b"#extm3u", b"ffconcat", b"<mpd", b"c=in ip", b"# vobsub index file", b"mlvi")


def read_frames(path: str | os.PathLike[str], choose: ChooseFrames, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Read frames of a video, (F, H, W, 3) uint8 RGB.

    Args:
        path: the video. An image counts as a video of one frame, which is returned for every index.
        choose: function from the number of frames to the indices of the frames to read, in any order and possibly repeated. If
            the video is damaged before the last of them, the function is called again with the number of decodable frames.
        limits: the largest video that is decoded.

    Raises:
        UnusableMedia: If the file cannot be opened (:func:`emollama.media.containers.open_media`), is cut off
            (:func:`emollama.media.containers.packets`), or is beyond the limits; if fewer than nine tenths of the frames can be
            decoded and the others are needed; or if a requested frame does not exist.
    """
    if is_image(path):
        return np.stack([read_image(os.fspath(path), limits.max_pixels, upright=True)] * len(choose(1)))
    outline = _outline(path, limits)
    indices = choose(outline.frames)
    if not any(indices):
        return np.stack([outline.first] * len(indices))
    frames = read_with_decord(path, set(indices)) if outline.plain else None
    if frames is None:
        frames, decoded = read_with_pyav(path, set(indices), limits)
        if len(frames) < len(set(indices)):
            if decoded < MIN_COMPLETE * outline.frames:
                raise UnusableMedia(f"only {decoded} of its {outline.frames} frames can be decoded: the file is damaged")
            indices = choose(decoded)
            frames, _ = read_with_pyav(path, set(indices), limits)
            if len(frames) < len(set(indices)):
                raise UnusableMedia(f"only {decoded} of its frames can be decoded")
    return np.stack([frames[index] for index in indices])


def probe(path: str | os.PathLike[str]) -> None:
    """Check that a file has a video track or is an image, without decoding it.

    Raises:
        UnusableMedia: If the file cannot be opened, or has no video track.
    """
    if is_image(path):
        probe_image(path)
    else:
        with open_media(path, "video"):
            pass


def read_with_pyav(
    path: str | os.PathLike[str], indices: set[int], limits: MediaLimits = DEFAULT_LIMITS
) -> tuple[dict[int, np.ndarray], int]:
    """Read frames by index with PyAV, (H, W, 3) each, in the size of the first frame.

    Returns:
        The frames by index, up to the first frame that cannot be decoded, and the number of decoded frames.

    Raises:
        UnusableMedia: If the first frame cannot be decoded.
    """
    frames: dict[int, np.ndarray] = {}
    decoded, last = 0, max(indices)
    with open_media(path, "video", limits) as (container, stream):
        try:
            for frame in container.decode(stream):
                require_pixels(frame.width, frame.height, limits.max_pixels)
                if not decoded:
                    size = {"width": frame.width, "height": frame.height}
                if decoded in indices:
                    frames[decoded] = _upright(frame.to_ndarray(format="rgb24", **size), _rotation(frame))
                decoded += 1
                if decoded > last:
                    break
        except av.FFmpegError:
            if not decoded:
                raise
    return frames, decoded


def read_with_decord(path: str | os.PathLike[str], indices: set[int]) -> dict[int, np.ndarray] | None:
    """Read frames by index with decord, (H, W, 3) each.

    None if decord is missing, fails, would replace broken frames, or could open other files.
    """
    try:
        import decord
        from decord._ffi.base import DECORDLimitReachedError
    except ImportError:
        return None
    decord.logging.set_level(decord.logging.QUIET)
    frames = {}
    try:
        # The name of a descriptor, because FFmpeg's demuxer of image sequences is chosen by the name of a file.
        with opened(path) as name:
            if _may_refer_to_files(name):
                return None
            reader = decord.VideoReader(name, num_threads=1, fault_tol=FAULT_TOLERANCE)
            for index in range(max(indices) + 1):
                image = reader.next()
                # For some narrow videos, decord returns images of four or six channels without content.
                if image.shape[-1] != 3:
                    return None
                if index in indices:
                    frames[index] = image.asnumpy()
    except (decord.DECORDError, DECORDLimitReachedError, RuntimeError, AssertionError, StopIteration):
        return None
    return frames


def _may_refer_to_files(name: str) -> bool:
    """Return whether any version of FFmpeg could take a file for one of the formats that refer to other files."""
    with open(name, "rb") as file:
        first = file.read(PROBED_BYTES).lower()
    return any(text in first for text in REFERRING)


class _Outline(NamedTuple):
    """Properties of a video after decoding its first frame only.

    Attributes:
        first: the first frame, (H, W, 3) uint8 RGB.
        frames: number of frames, counted by packets; fewer can be decoded if the video is damaged.
        plain: whether decord reads the video correctly. It does not if frames are rotated or mirrored, if colours have more than
            8 bits, or if the file seems incomplete: it is cut off, does not start with a key frame, or has packets to discard.
            In an MPEG transport stream (.ts), decord skips the first frames.
    """

    first: np.ndarray
    frames: int
    plain: bool


def _outline(path: str | os.PathLike[str], limits: MediaLimits = DEFAULT_LIMITS) -> _Outline:
    frames, first, complete = 0, None, True
    with open_media(path, "video", limits) as (container, stream):
        try:
            for packet in packets(container, stream, limits.max_seconds):
                if first is None:
                    first = next(iter(packet.decode()), None)
                if packet.size:
                    complete = complete and not packet.is_discard and (packet.is_keyframe or frames > 0)
                    frames += not packet.is_discard
                    if frames > limits.max_frames:
                        raise UnusableMedia(f"it has more than {limits.max_frames:,} frames")
        except av.FFmpegError:
            if first is None:
                raise
            complete = False
        if first is None or not frames:
            raise UnusableMedia("none of its frames can be decoded")
        require_pixels(first.width, first.height, limits.max_pixels)
        eight_bits = all(component.bits == 8 for component in first.format.components)
        image, rotation = first.to_ndarray(format="rgb24"), _rotation(first)
        complete = complete and container.format.name != "mpegts"
    return _Outline(_upright(image, rotation), frames, complete and eight_bits and rotation is None)


def _rotation(frame: Any) -> tuple[int, int, int, int] | None:
    """Return a, b, c, d in {0, 1, -1}, with which a player moves pixels from (x, y) to (a x + c y, b x + d y).

    None if the frame is not rotated, or not by a multiple of 90 degrees, which is ignored.
    """
    if (stored := frame.side_data.get("DISPLAYMATRIX")) is None:
        return None
    a, b, _, c, d = np.rint(np.frombuffer(stored, np.int32)[:5] / FIXED_POINT_ONE).astype(int).tolist()
    quarters = [abs(number) for number in (a, b, c, d)] in ([1, 0, 0, 1], [0, 1, 1, 0])
    return (a, b, c, d) if quarters and (a, d) != (1, 1) else None


def _upright(image: np.ndarray, rotation: tuple[int, int, int, int] | None) -> np.ndarray:
    """Rotate and mirror a frame: (H, W, 3) -> (H, W, 3), or (W, H, 3) for a rotation by 90 degrees."""
    if rotation is None:
        return image
    a, b, c, d = rotation
    across, down = a, d
    if not a:
        image, across, down = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[::down, ::across])
