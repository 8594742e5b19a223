"""The index of one tar of images with captions: the positions of its images and captions, and the samples that cannot be used.

The tars are those of img2dataset and webdataset: a sample consists of ``<key>.jpg``, ``.jpeg`` or ``.png`` and ``<key>.json``, an
object with ``caption``. As in webdataset, a key ends at the first dot of the member's name. Nothing but images and JSON is ever
decoded. A tar with members that webdataset would unpickle is rejected, and other members, such as ``<key>.txt``, are ignored.

An index is written once into the user's cache folder, because creating it reads the whole tar.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from emollama.data.captions import parse_caption
from emollama.disk import reason, remedy
from emollama.errors import DownloadError, UserError
from emollama.media.image_files import EXTENSIONS, probe_image
from emollama.media.source import UnusableMedia
from emollama.paths import PATHS, atomic_write, cache_folder
from emollama.remote.direct import download_temporarily, file_version
from emollama.remote.manager import is_remote
from emollama.remote.transport import RESTART, Version, shown
from emollama.stores.tar_members import open_complete_tar, unsafe_member
from emollama.stores.tar_paths import is_local

_CACHE = "image-text-3"  # subfolder of the user's cache folder; with the version of the file format
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
_SAMPLE = np.dtype(
    [("image", "<u8"), ("image_bytes", "<u8"), ("text", "<u8"), ("text_bytes", "<u8"), ("image_crc", "<u4"), ("text_crc", "<u4")]
)
_Extent = tuple[int, int]  # position of the first byte of a member in its tar, and number of bytes


@dataclass(frozen=True)
class UnusableSample:
    """A sample without a usable image or caption.

    Attributes:
        key: its key.
        kind: "image" or "caption".
        reason: what is wrong with it.
    """

    key: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ImageTextIndex:
    """The index of a tar.

    Attributes:
        samples: (n,) array of the usable samples with the fields ``image``, ``image_bytes``, ``text`` and ``text_bytes``: the
            position and size of the image and of the JSON object in the tar, and their checksums (CRC-32) ``image_crc`` and
            ``text_crc``.
        keys: the keys of the usable samples, UTF-8, without separators.
        ends: (n,) position in ``keys`` at which each key ends.
        unusable: the other samples.
        digest: hash of the keys and captions of the usable samples.
        images_digest: hash of their images.
        status: size, modification time and inode of the tar.
    """

    samples: np.ndarray
    keys: bytes
    ends: np.ndarray
    unusable: tuple[UnusableSample, ...]
    digest: str
    images_digest: str
    status: tuple[int, int, int] = (0, 0, 0)

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        """Return the key of a usable sample."""
        begin = int(self.ends[index - 1]) if index else 0
        return self.keys[begin : int(self.ends[index])].decode("utf-8", "surrogateescape")


def open_index(tar: str, stream: bool = False) -> ImageTextIndex:
    """Return the index of a tar from the user's cache folder, and create it first if the tar is new or has changed.

    Args:
        tar: the tar.
        stream: whether no copy of a remote tar is kept: it is only downloaded if there is no index of it.

    Raises:
        UserError: If the tar does not exist, is damaged, or contains a member that must not be read. The message names the tar.
    """
    if stream and is_remote(tar):
        return _open_streamed(tar)
    is_local(tar)
    try:
        local = PATHS.get_local_path(tar)
        with open(local, "rb") as file:
            status = file_status(file)
        fingerprint = _fingerprint(local)
    except OSError as error:
        raise UserError(f"{tar}: cannot be read: {error.strerror or error}. Correct the path or its permissions.") from None
    return dataclasses.replace(_cached(fingerprint, lambda: _scan(local, tar)), status=status)


def _open_streamed(tar: str) -> ImageTextIndex:
    version = file_version(tar)
    fingerprint = hashlib.sha256(json.dumps([shown(tar), *dataclasses.astuple(version)]).encode()).hexdigest()[:32]
    return dataclasses.replace(_cached(fingerprint, lambda: _scan_remote(tar, version)), status=(version.size or 0, 0, 0))


def _scan_remote(tar: str, version: Version) -> ImageTextIndex:
    """Create the index of a remote tar from a copy that is not kept."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # The file has no name, so that nothing is left if the process is killed.
        with tempfile.TemporaryFile(dir=folder) as file:
            if download_temporarily(tar, file) != version:
                raise DownloadError(f"'{shown(tar)}': the file has changed on the server. {RESTART}")
            file.flush()
            return _scan(f"/dev/fd/{file.fileno()}", tar)
    except (OSError, RuntimeError) as error:
        what = remedy(error, "set the environment variable XDG_CACHE_HOME to another folder")
        raise UserError(f"'{shown(tar)}': cannot write a copy of the tar, to index it: {reason(error)}. {what}") from None


def _cached(fingerprint: str, scan: Callable[[], ImageTextIndex]) -> ImageTextIndex:
    """Return an index from the user's cache folder, or create it and write it there."""
    path = None
    # Without a home folder there is no cache folder.
    with suppress(RuntimeError):
        path = cache_folder() / _CACHE / f"{fingerprint}.npz"
    if path is not None and (index := _read(path)) is not None:
        return index
    index = scan()
    if path is not None:
        # The index is only created again the next time if it cannot be written.
        with suppress(OSError):
            _write(index, path)
    return index


def file_status(file: IO[bytes]) -> tuple[int, int, int]:
    """Return size, modification time and inode of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ino


def parse_text(content: bytes) -> str:
    """Return the caption in the JSON object of a sample.

    Raises:
        ValueError: If there is no caption. The message says why.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is not JSON ({error})") from None
    if not isinstance(fields, dict) or not fields.get("caption"):
        raise ValueError('its .json has no "caption"')
    return parse_caption(fields["caption"])


def _fingerprint(local: str) -> str:
    status = os.stat(local)
    fields = [os.path.realpath(local), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:32]


def _scan(local: str, shown: str) -> ImageTextIndex:
    images: dict[str, _Extent] = {}
    texts: dict[str, _Extent] = {}
    with open_complete_tar(local, shown) as (members, file):
        for member in members:
            if problem := _add(member, images, texts):
                raise UserError(f"{shown}: member '{member.name}' {problem}. Write the tar again without it.")
        index = _check_samples(file, images, texts)
    if not images or not texts:
        missing = "image (.jpg, .jpeg, .png)" if not images else ".json"
        raise UserError(f"{shown}: the tar contains no {missing}. Correct the path, or write the tar again.")
    return index


def _add(member: tarfile.TarInfo, images: dict[str, _Extent], texts: dict[str, _Extent]) -> str | None:
    """Add an image or a JSON file to the samples. Return what is wrong with the member, or None."""
    if problem := unsafe_member(member):
        return problem
    if member.isdir():
        return None
    folder, name = posixpath.split(posixpath.normpath(member.name))
    stem, _, extension = name.partition(".")
    if extension.lower().rpartition(".")[2] in _PICKLES:
        return "is a pickle, which could execute code when it is read"
    extents = images if f".{extension.lower()}" in EXTENSIONS else texts if extension.lower() == "json" else None
    key = posixpath.join(folder, stem)
    if extents is not None:
        if key in extents:
            return "is a second image or a second .json of its sample"
        extents[key] = member.offset_data, member.size
    return None


def _check_samples(file: IO[bytes], images: Mapping[str, _Extent], texts: Mapping[str, _Extent]) -> ImageTextIndex:
    """Check each sample, and return the index."""
    usable: list[tuple[int, ...]] = []
    keys: list[bytes] = []
    unusable: list[UnusableSample] = []
    digest, images_digest = hashlib.sha256(), hashlib.sha256()
    for key in dict.fromkeys([*images, *texts]):
        raw = key.encode("utf-8", "surrogateescape")
        if (printable := raw.decode("utf-8", "backslashreplace")) != key:
            unusable.append(UnusableSample(printable, "image", "its name is not UTF-8"))
            continue
        try:
            text, caption = _caption(file, texts.get(key))
        except ValueError as error:
            unusable.append(UnusableSample(key, "caption", str(error)))
            continue
        try:
            image = _checked_image(file, images.get(key))
        except ValueError as error:
            unusable.append(UnusableSample(key, "image", str(error)))
            continue
        images_digest.update(image)
        usable.append((*images[key], *texts[key], zlib.crc32(image), zlib.crc32(text)))
        keys.append(raw)
        digest.update(json.dumps([raw.hex(), caption]).encode())
    ends = np.cumsum([len(raw) for raw in keys], dtype=np.uint64)
    digests = digest.hexdigest()[:16], images_digest.hexdigest()[:16]
    return ImageTextIndex(np.array(usable, _SAMPLE), b"".join(keys), ends, tuple(unusable), *digests)


def _caption(file: IO[bytes], extent: _Extent | None) -> tuple[bytes, str]:
    """Return the JSON object of a sample and the caption in it."""
    if extent is None:
        raise ValueError("it has no .json with a caption")
    text = read_member(file, *extent)
    return text, parse_text(text)


def _checked_image(file: IO[bytes], extent: _Extent | None) -> bytes:
    if extent is None:
        raise ValueError("it has no image (.jpg, .jpeg, .png)")
    image = read_member(file, *extent)
    try:
        probe_image(image)
    except UnusableMedia as error:
        raise ValueError(f"its image cannot be read: {error}") from None
    return image


def read_member(file: IO[bytes], offset: int, size: int) -> bytes:
    """Return the bytes of a member of a tar."""
    file.seek(offset)
    return file.read(size)


def _write(index: ImageTextIndex, path: Path) -> None:
    about = {
        "digests": [index.digest, index.images_digest],
        "unusable": [[item.key, item.kind, item.reason] for item in index.unusable],
    }
    about_bytes, keys = np.frombuffer(json.dumps(about).encode(), np.uint8), np.frombuffer(index.keys, np.uint8)
    with atomic_write(path, "wb", durable=False) as file:
        np.savez(file, about=about_bytes, samples=index.samples, keys=keys, ends=index.ends)


def _read(path: Path) -> ImageTextIndex | None:
    """Read an index from the cache folder; None if there is none or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            samples, keys, ends = arrays["samples"].astype(_SAMPLE), arrays["keys"].tobytes(), arrays["ends"]
        unusable = tuple(UnusableSample(*fields) for fields in about["unusable"])
        return ImageTextIndex(samples, keys, ends, unusable, *about["digests"])
    except Exception:  # numpy and zipfile raise errors of many classes for a damaged file
        return None
