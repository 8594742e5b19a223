"""The first stages of the engine: reading the media of requests, and extracting their features."""

from __future__ import annotations

import hashlib
import os
import queue
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emollama.inference.clip_encoders import ClipEncoders, ClipFeatures, LoadClip, LoadedClip
from emollama.inference.clip_records import ClipRecords, PreparedRequest
from emollama.inference.pending import PendingAnswer
from emollama.inference.requests import Media, Request, RequestError
from emollama.inference.videos import VideoSources
from emollama.media.source import Source

CACHED_CLIPS = 32  # clips whose features are kept, so that a follow-up question does not extract them again
NO_MEDIA = "the request contains no video, image or audio"


@dataclass
class _ClipItem:
    """A request with its clip.

    Attributes:
        pending: the request.
        source: its clip.
        loaded: the clip after reading; None if its features are in the cache.
        features: the features; None before they are extracted.
        key: key of the features in the cache; None if they are not cached.
        seconds: time that reading and encoding took.
        files: deletes temporary files.
    """

    pending: PendingAnswer
    source: Source
    loaded: LoadedClip | None = None
    features: ClipFeatures | None = None
    key: Hashable = None
    seconds: float = 0.0
    files: ExitStack = field(default_factory=ExitStack)


class FeatureStage:
    """Extracts the features of requests in one thread, those of all waiting requests together.

    Args:
        encoders: the encoders.
        records: prepares requests with features.
        sources: describes videos that have a path.
        workspace: a folder that only this user can read, for the content of uploaded files.
        forward: receives each prepared request, and the seconds that its features took.
    """

    def __init__(
        self,
        encoders: ClipEncoders,
        records: ClipRecords,
        sources: VideoSources,
        workspace: Path,
        forward: Callable[[PendingAnswer, PreparedRequest, float], None],
    ) -> None:
        self._encoders, self._records, self._sources, self._workspace = encoders, records, sources, workspace
        self._forward = forward
        self._load: LoadClip = encoders.load
        self._waiting: queue.SimpleQueue[_ClipItem | None] = queue.SimpleQueue()
        self._cache: OrderedDict[Hashable, ClipFeatures] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="emollama-features", daemon=True)
        self._thread.start()

    def read(self, pending: PendingAnswer) -> None:
        """Read the media of a request, in the calling thread."""
        start, files = time.perf_counter(), ExitStack()
        try:
            if pending.is_over:
                return
            item = self._item(pending, files)
        except BaseException as error:
            files.close()
            pending.fail(error)
            return
        item.seconds = time.perf_counter() - start
        self._waiting.put(item)

    def close(self) -> None:
        """End the thread after the requests that are waiting."""
        self._waiting.put(None)
        self._thread.join()

    def _item(self, pending: PendingAnswer, files: ExitStack) -> _ClipItem:
        request = pending.request
        _check(request)
        media = {"video": request.video, "image": request.image, "audio": request.audio}
        paths = {kind: self._path(kind, content, files) for kind, content in media.items() if content is not None}
        if not paths:
            slots = [slot for slot in self._encoders.slots if slot not in request.features]
            features = ClipFeatures({}, dict.fromkeys(slots, NO_MEDIA))
            return _ClipItem(pending, Source("clip", self._workspace), features=features, files=files)
        kind, path = next(iter(paths.items()))
        uploaded = isinstance(media[kind], bytes)
        source = Source("clip", path) if uploaded else self._sources.source(path)
        key = (source.name, *(_identity(media[kind], path) for kind, path in paths.items()), *request.features)
        item = _ClipItem(pending, source, key=key, files=files)
        if (cached := self._cache.get(key)) is not None:
            item.features = cached
        else:
            item.loaded = self._encoders.loaded(source, self._load, request.features.keys())
        return item

    def _path(self, kind: str, media: Media, files: ExitStack) -> Path:
        """Return the path of a file, to which uploaded content is written."""
        if not isinstance(media, bytes):
            if not os.path.isfile(media):
                raise RequestError(f"no file '{os.fspath(media)}' (current directory: {os.getcwd()}). Correct the path.", kind)
            return Path(media)
        # mkstemp creates files that only this user can read.
        descriptor, name = tempfile.mkstemp(dir=self._workspace, prefix="upload-")
        files.callback(os.unlink, name)
        with open(descriptor, "wb") as file:
            file.write(media)
        return Path(name)

    def _run(self) -> None:
        is_open = True
        while is_open:
            items = [self._waiting.get()]
            while not self._waiting.empty():
                items.append(self._waiting.get())
            is_open = None not in items
            self._process([item for item in items if item is not None])

    def _process(self, items: list[_ClipItem]) -> None:
        """Encode clips, and pass on their requests."""
        start = time.perf_counter()
        unread = [item for item in items if item.loaded is not None and not item.pending.is_over]
        try:
            encoded = self._encoders.encode([item.loaded for item in unread if item.loaded is not None])
            for item, features in zip(unread, encoded, strict=True):
                item.features = features
                self._remember(item.key, features)
        except Exception as error:
            for item in unread:
                item.pending.fail(error)
        seconds = time.perf_counter() - start
        for item in items:
            with item.files:
                self._pass_on(item, seconds)

    def _pass_on(self, item: _ClipItem, seconds: float) -> None:
        pending, request = item.pending, item.pending.request
        if pending.is_over or item.features is None:
            return
        try:
            features = item.features
            if request.features:
                arrays = {slot: np.asarray(array) for slot, array in request.features.items()}
                features = ClipFeatures({**features.arrays, **arrays}, features.failed)
            prepared = self._records.prepare(request, item.source, features)
        except Exception as error:
            pending.fail(error)
            return
        self._forward(pending, prepared, item.seconds + seconds)

    def _remember(self, key: Hashable, features: ClipFeatures) -> None:
        # Only this thread adds and removes entries.
        self._cache[key] = features
        if len(self._cache) > CACHED_CLIPS:
            self._cache.popitem(last=False)


def _check(request: Request) -> None:
    """Check that the fields of a request go together."""
    if request.video is not None and request.image is not None:
        raise RequestError("a request contains a video or an image, not both", "image")
    if not (request.video is not None or request.image is not None or request.audio is not None or request.features):
        raise RequestError(f"{NO_MEDIA}, and no features. Add one of them.", "video")


def _identity(media: Media | None, path: Path) -> Hashable:
    """Return what identifies the content of a file."""
    if isinstance(media, bytes):
        return hashlib.sha256(media).digest()
    status = os.stat(path)
    return str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino
