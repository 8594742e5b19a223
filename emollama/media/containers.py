"""Opening of video and audio files, and detection of files that are cut off.

A file is opened only with the demuxers in :data:`DEMUXERS`. FFmpeg chooses one of them by the content of the file. Formats that
refer to other files or to URLs, such as HLS, DASH, ffconcat, SDP and image sequences, are not among them, because such a file
could make the program read any other file of its user.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import av

from emollama.media.image_files import is_image, require_pixels
from emollama.media.source import DEFAULT_LIMITS, MediaLimits, UnusableMedia

# Fraction of the announced duration or frames that must exist. No features are computed from files with less.
MIN_COMPLETE = 0.9
# Duration that may always be missing, because headers of short clips are inaccurate by as much.
TOLERANCE_SECONDS = 0.1
# FFmpeg's demuxers that read nothing but the file itself: those of the extensions in emollama.media.files, then those of audio.
DEMUXERS = (
    "mov", "avi", "matroska", "flv", "asf", "mpeg", "mpegvideo", "mpegts", "ogg", "mxf", "dv", "rm", "wtv", "nut", "yuv4mpegpipe",
    "m4v", "wav", "w64", "mp3", "flac", "aac", "aiff", "caf", "amr", "au", "ac3",
)  # fmt: skip
OPTIONS = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "file"}


@contextmanager
def open_media(
    path: str | os.PathLike[str], kind: Literal["video", "audio"], limits: MediaLimits = DEFAULT_LIMITS
) -> Iterator[tuple[Any, Any]]:
    """Open a file as a context manager that returns its container and its best stream of a kind.

    Raises:
        UnusableMedia: If the file does not exist, has a format that is not accepted, has no such stream, is beyond the limits, or
            cannot be decoded.
    """
    if is_image(path):
        raise UnusableMedia(f"it has no {kind} track")
    # While FFmpeg looks for the properties of the streams, it already decodes frames.
    options = OPTIONS | _decoder_options(limits)
    try:
        # A descriptor has no file name, so the name cannot influence which demuxer FFmpeg chooses. Tags may have any encoding.
        with opened(path) as name, av.open(name, metadata_errors="ignore", options=options) as container:
            stream: Any = container.streams.best(kind)
            # The cover picture of an audio file is a video stream, too.
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                raise UnusableMedia(f"it has no {kind} track")
            if kind == "video" and stream.codec_context is not None:
                require_pixels(stream.codec_context.width, stream.codec_context.height, limits.max_pixels)
                stream.codec_context.options = _decoder_options(limits)
            yield container, stream
    except av.ArgumentError:
        raise UnusableMedia(f"its {kind} cannot be read (it is damaged, or its format or size is not accepted)") from None
    except (av.FFmpegError, OSError) as error:
        raise UnusableMedia(f"its {kind} cannot be read ({str(error.strerror).lower()})") from None


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[str]:
    """Open a regular file and return a name of its descriptor that libraries can open in this block.

    Raises:
        OSError: If the file cannot be opened.
        UnusableMedia: If it is not a regular file.
    """
    # Opening a named pipe would wait for its writer.
    if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
        raise UnusableMedia("it is not a regular file")
    with open(path, "rb") as file:
        yield f"/proc/self/fd/{file.fileno()}"


def _decoder_options(limits: MediaLimits) -> dict[str, str]:
    """Return options that let a decoder refuse to allocate absurd frames."""
    # FFmpeg compares sizes with margins, so that its bound is not exact.
    return {"max_pixels": str(2 * limits.max_pixels + 2**20)}


def require_seconds(seconds: float, max_seconds: float) -> None:
    """Check a duration in seconds.

    Raises:
        UnusableMedia: If it is above the limit.
    """
    if seconds > max_seconds:
        raise UnusableMedia(f"it is longer than {max_seconds:g} seconds")


def packets(container: Any, stream: Any, max_seconds: float = DEFAULT_LIMITS.max_seconds) -> Iterator[Any]:
    """Yield the packets of a stream, and at the end an empty packet, which flushes the decoder.

    Files announce their duration: for each stream in .mp4, .mov and .avi, for the longest stream in .mkv and .webm. For other
    formats, and for files that were not closed, FFmpeg only guesses the duration, so they are not checked.

    Raises:
        UnusableMedia: If the packets are longer than ``max_seconds``. At the end, if less than :data:`MIN_COMPLETE` of the
            announced duration exists, so that the file is damaged.
        av.FFmpegError: the file cannot be read to its end.
    """
    ends: dict[int, float] = {}
    start: float | None = None
    try:
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0.0))
                if packet.stream.index == stream.index:
                    start = end if start is None else min(start, end)
                    require_seconds(end - start, max_seconds)
            # packet.stream_index is 0 for all empty packets.
            if packet.stream.index == stream.index:
                yield packet
    except av.FFmpegError:
        _require_complete(container, stream, ends)
        raise
    _require_complete(container, stream, ends)


def _require_complete(container: Any, stream: Any, ends: Mapping[int, float]) -> None:
    """Compare the announced duration with the end of the packets of each stream, in seconds. Streams without packets pass."""
    kind = container.format.name
    announced, existing = 0.0, ends.get(stream.index, 0.0)
    if kind == "avi":
        # FFmpeg guesses the duration of .avi files from a part of the file. Writers count one frame too many.
        announced = float((stream.frames - 1) * stream.time_base)
    elif "mp4" in kind and stream.duration is not None:
        announced = float(stream.duration * stream.time_base)
    elif "matroska" in kind and container.duration is not None:
        announced, existing = container.duration / av.time_base, max(ends.values(), default=0.0)
    if stream.index in ends and existing < min(MIN_COMPLETE * announced, announced - TOLERANCE_SECONDS):
        raise UnusableMedia(
            f"only {existing:.1f} of {announced:.1f} seconds of its {stream.type} exist: the file is cut off or damaged"
        )
