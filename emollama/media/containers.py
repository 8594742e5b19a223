"""Opening files of video and sound. PyAV writes nothing to stderr by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import av

from emollama.media.source import Unusable


@contextmanager
def opened(path: str | os.PathLike[str], kind: Literal["video", "audio"]) -> Iterator[tuple[Any, Any]]:
    """A file's container and its best stream of a kind, for as long as it is open.

    Raises:
        Unusable: the file is not there, is none of these, breaks while it is read, or has no such stream.
    """
    try:
        # An absolute path: FFmpeg takes what stands before a colon for a protocol. Tags may be in any encoding.
        with av.open(os.path.abspath(path), metadata_errors="ignore") as container:
            stream = container.streams.best(kind)
            if stream is None:
                raise Unusable(f"no {kind} track in it")
            yield container, stream
    except av.FFmpegError as error:
        raise Unusable(f"its {kind} cannot be read ({str(error.strerror).lower()})") from None
