"""The media files of requests: paths are checked, and uploaded content is written to temporary files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import uuid
from collections.abc import Hashable
from contextlib import ExitStack
from pathlib import Path

from emollama.inference.requests import Media, Request, RequestError
from emollama.inference.videos import VideoSources
from emollama.media.source import MediaLimits, Source

NO_MEDIA = "the request contains no video, image or audio"


class ClipFiles:
    """Finds the clips of requests.

    Args:
        sources: describes videos that have a path.
        workspace: a folder that only this user can read, for uploaded content.
        limits: the largest media that are decoded.
    """

    def __init__(self, sources: VideoSources, workspace: Path, limits: MediaLimits) -> None:
        self._sources, self._workspace, self._limits = sources, workspace, limits
        self.no_clip = Source("clip", workspace)

    def clip(self, request: Request, files: ExitStack) -> tuple[Source, Hashable] | None:
        """Return the clip of a request and what identifies its content; None if the request has only features.

        Args:
            request: the request.
            files: deletes temporary files.

        Raises:
            RequestError: If fields of the request do not go together, or a file does not exist.
        """
        if request.video is not None and request.image is not None:
            raise RequestError("a request contains a video or an image, not both", "image")
        media = {"video": request.video, "image": request.image, "audio": request.audio}
        paths = {kind: self._path(kind, content, files) for kind, content in media.items() if content is not None}
        if not paths:
            if not request.features:
                raise RequestError(f"{NO_MEDIA}, and no features. Add one of them.", "video")
            return None
        kind, path = next(iter(paths.items()))
        source = Source("clip", path) if isinstance(media[kind], bytes) else self._sources.source(path)
        if kind == "audio":
            # Frames of the file are not used, even if it is a video.
            source = dataclasses.replace(source, video=self._workspace / "none")
        source = dataclasses.replace(source, audio=paths.get("audio"), limits=self._limits)
        return source, (source.name, *((kind, _identity(media[kind], path)) for kind, path in paths.items()))

    def _path(self, kind: str, media: Media, files: ExitStack) -> Path:
        """Return the path of a file, to which uploaded content is written."""
        if not isinstance(media, bytes):
            if not os.path.isfile(media):
                raise RequestError(f"no file '{os.fspath(media)}' (current directory: {os.getcwd()}). Correct the path.", kind)
            return Path(media)
        path = self._workspace / f"upload-{uuid.uuid4().hex}"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            files.callback(path.unlink)
            file.write(media)
        return path


def _identity(media: Media | None, path: Path) -> Hashable:
    """Return what identifies the content of a file."""
    if isinstance(media, bytes):
        return hashlib.sha256(media).digest()
    status = os.stat(path)
    return str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino
