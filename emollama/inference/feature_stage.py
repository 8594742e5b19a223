"""The first stages of the engine: reading the media of requests, and extracting their features."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from emollama.inference.clip_encoders import ClipEncoders, ClipFeatures, LoadClip, LoadedClip
from emollama.inference.clip_files import NO_MEDIA, ClipFiles
from emollama.inference.clip_records import ClipRecords
from emollama.inference.pending import PendingAnswer, without_tensors
from emollama.inference.prepared import PreparedRequest
from emollama.inference.requests import Request, RequestError
from emollama.media.source import Source

CACHED_CLIPS = 32  # clips whose features are kept, so that a follow-up question does not extract them again


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
        clip_files: finds the media of requests.
        load: reads a clip for some encoders.
        forward: receives each prepared request, and the seconds that its features took.
    """

    def __init__(
        self,
        encoders: ClipEncoders,
        records: ClipRecords,
        clip_files: ClipFiles,
        load: LoadClip,
        forward: Callable[[PendingAnswer, PreparedRequest, float], None],
    ) -> None:
        self._encoders, self._records, self._clip_files = encoders, records, clip_files
        self._load, self._forward = load, forward
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
        clip = self._clip_files.clip(request, files)
        if clip is None:
            slots = [slot for slot in self._encoders.slots if slot not in request.features]
            features = ClipFeatures({}, dict.fromkeys(slots, NO_MEDIA))
            return _ClipItem(pending, self._clip_files.no_clip, features=features, files=files)
        source, identity = clip
        item = _ClipItem(pending, source, key=(identity, *request.features), files=files)
        if (cached := self._cache.get(item.key)) is not None:
            item.features = cached
        else:
            item.loaded = self._encoders.loaded(source, self._load, lambda: pending.is_over, request.features.keys())
        return item

    def _run(self) -> None:
        is_open = True
        while is_open:
            items = [self._waiting.get()]
            while not self._waiting.empty():
                items.append(self._waiting.get())
            is_open = None not in items
            requests = [item for item in items if item is not None]
            try:
                self._process(requests)
            except Exception as error:  # the thread must live, and nobody may wait forever
                for item in requests:
                    item.pending.fail(error)

    def _process(self, items: list[_ClipItem]) -> None:
        """Encode clips, and pass on their requests."""
        start = time.perf_counter()
        self._encode([item for item in items if item.loaded is not None and not item.pending.is_over])
        seconds = time.perf_counter() - start
        for item in items:
            with item.files:
                self._pass_on(item, seconds)

    def _encode(self, items: list[_ClipItem]) -> None:
        """Encode clips, or one after the other if it fails for all of them, so that only one fails."""
        isolated = False
        try:
            encoded = self._encoders.encode([item.loaded for item in items if item.loaded is not None])
        except Exception as error:
            isolated = len(items) > 1
            if not isolated:
                items[0].pending.fail(without_tensors(error))
        else:
            for item, features in zip(items, encoded, strict=True):
                item.features = features
                # A failure may have passed when the clip comes again.
                if not features.failed:
                    self._remember(item.key, features)
        # Outside of the handler, whose error refers to the tensors of the batch.
        for item in items if isolated else ():
            self._encode([item])

    def _pass_on(self, item: _ClipItem, seconds: float) -> None:
        pending, request = item.pending, item.pending.request
        if pending.is_over or item.features is None:
            return
        try:
            features = item.features
            if request.features:
                features = ClipFeatures({**features.arrays, **_arrays(request)}, features.failed)
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


def _arrays(request: Request) -> dict[str, np.ndarray]:
    """Return the features of a request as arrays of float32."""
    arrays = {}
    for slot, values in request.features.items():
        try:
            arrays[slot] = np.asarray(values, dtype=np.float32)
        except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: a tensor with gradients
            raise RequestError(f"features.{slot} cannot be converted to an array of numbers: {error}", "features") from None
    return arrays
