"""An array store that reads the images in tars, which the model encodes itself, and their captions."""

from __future__ import annotations

import hashlib
import os
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from emollama.data.problems import Problem
from emollama.datasets.image_text_index import ImageTextIndex, file_status, open_index, parse_text, read_member
from emollama.errors import UserError
from emollama.listing import LINES, abbreviated
from emollama.logs.console import Progress
from emollama.media.image_files import read_image
from emollama.media.image_transforms import blip2_image
from emollama.paths import PATHS
from emollama.remote.manager import is_remote
from emollama.remote.streaming import StreamedFile, cache_gib
from emollama.stores.tar_paths import list_shards


@dataclass(frozen=True)
class ImageTars:
    """The samples of several tars, numbered tar by tar. Implements ``emollama.stores.store.ArrayStore``.

    The name of a sample is the path of its tar below their common folder, without the extension, and its key:
    ``00000/000000012``. Names are composed when they are needed, because a list of all takes gigabytes for millions of samples.

    Attributes:
        path: the configured tars.
        tars: the paths of the tars.
        indexes: the index of each tar.
        side: width and height to which images are resized, in pixels.
        is_streamed: whether the tars are remote and have no copies.
    """

    path: str
    tars: Sequence[str]
    indexes: Sequence[ImageTextIndex]
    side: int
    is_streamed: bool = False

    @classmethod
    def open(cls, patterns: Sequence[str], side: int, key: str, stream: bool = False) -> ImageTars:
        """Open tars, and index those that are new or have changed.

        Args:
            patterns: folders of tars, tars, or several tars as ``{00000..00012}.tar`` or ``*.tar``.
            side: width and height to which images are resized, in pixels.
            key: the configuration key that named the tars, for messages.
            stream: whether remote tars are read in parts when they are needed, and not downloaded.

        Raises:
            UserError: If tars do not exist or cannot be used. The message lists all of them.
        """
        tars = [tar if is_remote(tar) else os.path.abspath(tar) for pattern in patterns for tar in list_shards(pattern)]
        real = [tar if is_remote(tar) else os.path.realpath(tar) for tar in tars]
        if len(set(real)) < len(real):
            repeated = tars[real.index(Counter(real).most_common(1)[0][0])]
            raise UserError(f"{key}: '{repeated}' appears twice. Remove one of them.")
        if len({is_remote(tar) for tar in tars}) > 1:
            raise UserError(f"{key}: some tars are local and others are at URLs. Use two blocks, one for each.")
        if other := next((tar for tar in tars if not tar.endswith(".tar")), None):
            raise UserError(f"{key}: '{other}' is not an uncompressed tar (.tar). Correct the path, or decompress the file.")
        indexes, errors = [], []
        # Threads would not be faster, because indexing is limited by Python itself.
        with Progress(len(tars), "indexing tars", unit="tars") as bar:
            for tar in tars:
                try:
                    indexes.append(open_index(tar, stream))
                except UserError as error:
                    errors.append(str(error))
                bar.update(1)
        if errors:
            text = errors[0] if len(errors) == 1 else f"{len(errors)} tars cannot be used:{LINES}{abbreviated(errors, LINES)}"
            raise UserError(f"{key}: {text}")
        if stream:
            cache_gib()
        return cls(", ".join(patterns), tars, indexes, side, stream and is_remote(tars[0]))

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, index: int) -> str:
        """Return the name of a sample."""
        tar, sample = self._find(index)
        return f"{self._prefixes[tar]}/{self.indexes[tar].key(sample)}"

    def caption(self, index: int) -> str:
        """Read the caption of a sample.

        Raises:
            UserError: If the tar has changed.
        """
        tar = self.tars[self._find(index)[0]]
        try:
            return parse_text(self._bytes(index, "text"))
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(f"{tar}, sample '{self.name(index)}': {error}. The tar has changed; start the run again.") from None

    def image(self, index: int) -> bytes:
        """Read the image file of a sample.

        Raises:
            OSError: If the tar cannot be read.
            UserError: If the tar has changed.
        """
        return self._bytes(index, "image")

    @property
    def values_digest(self) -> str:
        """Hash of all images."""
        return hashlib.sha256("".join(index.images_digest for index in self.indexes).encode()).hexdigest()[:16]

    def tar_ids(self) -> np.ndarray:
        """Return the (len(self),) int64 number of each sample's tar."""
        return np.repeat(np.arange(len(self.indexes)), [len(index) for index in self.indexes])

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for each sample without a usable image or caption."""
        for tar, prefix, index in zip(self.tars, self._prefixes, self.indexes, strict=True):
            for sample in index.unusable:
                name = f"{prefix}/{sample.key}"
                yield Problem(sample.kind, f"{tar}, sample '{name}': {sample.reason}", (name,))

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def names(self) -> Iterable[str]:
        """Return no names: all samples of the tars are in use or left out on purpose."""
        return ()

    def load(self, name: str) -> np.ndarray:
        """Read the pixels, (1, 3 x side x side) float32.

        Raises:
            OSError: If the tar cannot be read.
            UnusableMedia: If the image cannot be decoded.
        """
        return self.pixels(self.image(self._numbers[name]))

    def pixels(self, image: bytes) -> np.ndarray:
        """Decode an image file to normalised pixels, (1, 3 x side x side) float32.

        Raises:
            UnusableMedia: If the image cannot be decoded.
        """
        return blip2_image(read_image(image), self.side).reshape(1, -1).numpy()

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype. The image was opened when its tar was indexed."""
        return (1, 3 * self.side**2), np.dtype(np.float32)

    def location(self, name: str) -> str:
        """Return tar and name, for messages."""
        return f"{self.tars[self._find(self._numbers[name])[0]]}, sample '{name}'"

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return nothing, because a check of an indexed image is not worth being cached."""
        return ()

    def is_intact(self, name: str) -> None:
        """Return None, because images have no recorded digests."""

    def shard_ids(self, names: Sequence[str]) -> np.ndarray | None:
        """Return the (len(names),) int64 number of each sample's tar."""
        return np.array([self._find(self._numbers[name])[0] for name in names], np.int64)

    def _bytes(self, index: int, member: str) -> bytes:
        tar, sample = self._find(index)
        fields = self.indexes[tar].samples[sample]
        if self.is_streamed:
            return self._streamed_bytes(index, tar, fields, member)
        with open(PATHS.get_local_path(self.tars[tar]), "rb") as file:
            # The positions in the index are those of the tar at the start.
            if file_status(file) != self.indexes[tar].status:
                raise UserError(f"{self.tars[tar]}, sample '{self.name(index)}': the tar has changed; start the run again.")
            return read_member(file, int(fields[member]), int(fields[f"{member}_bytes"]))

    def _streamed_bytes(self, index: int, tar: int, fields: np.void, member: str) -> bytes:
        begin, size, checksum = (int(fields[name]) for name in (member, f"{member}_bytes", f"{member}_crc"))
        content = self._file(tar).read(begin, size)
        if zlib.crc32(content) != checksum:
            content = self._file(tar).read_again(begin, size)
        if zlib.crc32(content) != checksum:
            raise UserError(f"{self.tars[tar]}, sample '{self.name(index)}': the tar has changed; start the run again.")
        return content

    def read_ahead(self, index: int) -> None:
        """Start to read the image and the caption of a sample."""
        tar, sample = self._find(index)
        fields = self.indexes[tar].samples[sample]
        for member in ("image", "text"):
            self._file(tar).read_ahead(int(fields[member]), int(fields[f"{member}_bytes"]))

    def _file(self, tar: int) -> StreamedFile:
        if tar not in self._files:
            index = self.indexes[tar]
            self._files[tar] = StreamedFile(self.tars[tar], index.status[0], f"{index.digest}{index.images_digest}")
        return self._files[tar]

    @cached_property
    def _files(self) -> dict[int, StreamedFile]:
        return {}

    def _find(self, index: int) -> tuple[int, int]:
        """Return the number of a sample's tar, and of the sample in it."""
        tar = bisect_right(self._ends, index)
        return tar, index - (self._ends[tar - 1] if tar else 0)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(index) for index in self.indexes))

    @cached_property
    def _prefixes(self) -> list[str]:
        common = os.path.commonpath([os.path.dirname(tar) for tar in self.tars])
        return [os.path.relpath(tar, common).removesuffix(".tar") for tar in self.tars]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Name -> number of the sample; only check-data reads samples by name."""
        return {self.name(index): index for index in range(len(self))}
