"""Opening of video and audio files, and detection of files that are cut off."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import av

from emollama.media.source import UnusableMedia

# Fraction of the announced duration or frames that must exist. No features are computed from files with less.
MIN_COMPLETE = 0.9
# Duration that may always be missing, because headers of short clips are inaccurate by as much.
TOLERANCE_SECONDS = 0.1


@contextmanager
def open_media(path: str | os.PathLike[str], kind: Literal["video", "audio"]) -> Iterator[tuple[Any, Any]]:
    """Open a file as a context manager that returns its container and its best stream of a kind.

    Raises:
        UnusableMedia: If the file does not exist, has an unknown format or no such stream, or cannot be decoded.
    """
    try:
        # The path is absolute because FFmpeg interprets text before a colon as a protocol. Tags may have any encoding.
        with av.open(os.path.abspath(path), metadata_errors="ignore") as container:
            stream = container.streams.best(kind)
            if stream is None:
                raise UnusableMedia(f"it has no {kind} track")
            yield container, stream
    except av.FFmpegError as error:
        raise UnusableMedia(f"its {kind} cannot be read ({str(error.strerror).lower()})") from None


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream, and at the end an empty packet, which flushes the decoder.

    Files announce their duration: for each stream in .mp4, .mov and .avi, for the longest stream in .mkv and .webm. For other
    formats, and for files that were not closed, FFmpeg only guesses the duration, so they are not checked.

    Raises:
        UnusableMedia: At the end, if less than :data:`MIN_COMPLETE` of the announced duration exists, so that the file is
            damaged.
        av.FFmpegError: the file cannot be read to its end.
    """
    ends: dict[int, float] = {}
    try:
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0.0))
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
