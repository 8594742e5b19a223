"""Cached image features on disk."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from emollama.errors import UserError
from emollama.stores.feature_cache import FeatureCache
from emollama.stores.manifest import Manifest

SHAPE = (3, 4)
FEATURES = np.arange(12, dtype=np.float32).reshape(SHAPE)
MANIFEST = Manifest(("image",), *SHAPE, {"encoder": "eva, q-former", "image_size": 56}, "abc", "float32")


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(str(tmp_path / "cache"), SHAPE)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "one.jpg"
    path.write_bytes(b"pixels")
    return path


def test_cached_features_are_bit_identical(cache, image):
    key = cache.cache_key(str(image))
    assert cache.read(key) is None
    cache.write(key, FEATURES)
    assert cache.read(key).tobytes() == FEATURES.tobytes()


def test_a_changed_image_has_another_key_even_with_the_same_name_size_and_time(cache, image):
    before, times = cache.cache_key(str(image)), (image.stat().st_atime_ns, image.stat().st_mtime_ns)
    image.write_bytes(b"pixelS")
    os.utime(image, ns=times)
    assert cache.cache_key(str(image)) != before


def test_a_copy_with_another_name_has_the_same_key(cache, image, tmp_path):
    copy = tmp_path / "moved" / "two.jpg"
    copy.parent.mkdir()
    copy.write_bytes(image.read_bytes())
    assert cache.cache_key(str(image)) == cache.cache_key(str(copy))


@pytest.mark.parametrize("what", ["cut", "empty", "other shape", "other dtype", "nan", "text"])
def test_a_damaged_cache_file_counts_as_missing(cache, image, what):
    key = cache.cache_key(str(image))
    cache.write(key, FEATURES)
    path = Path(cache.folder, key)
    content = path.read_bytes()
    spoiled = {"cut": content[:-5], "empty": b"", "text": b"no array"}
    if what in spoiled:
        path.write_bytes(spoiled[what])
    elif what == "nan":
        np.save(path, np.full(SHAPE, np.nan, np.float32))
    else:
        np.save(path, FEATURES.reshape(4, 3) if what == "other shape" else FEATURES.astype(np.float64))
    assert cache.read(key) is None


def test_an_unwritable_disk_is_reported_once_and_stops_nothing(cache, image, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    Path(cache.folder).touch()  # a file where the folder should be
    for _ in range(3):
        cache.write(cache.cache_key(str(image)), FEATURES)
    (message,) = {id(record): record.getMessage() for record in caplog.records}.values()  # other tests may have added handlers
    assert "features cannot be cached" in message and "Set another folder" in message


def test_a_new_cache_folder_receives_the_manifest_and_accepts_it_again(cache):
    cache.require_same_manifest(MANIFEST, "model.visual_cache_path", write=True)
    assert Manifest.read(cache.folder).fields() == MANIFEST.fields()
    cache.require_same_manifest(MANIFEST, "model.visual_cache_path", write=True)


def test_checking_the_manifest_without_write_creates_no_folder(cache):
    cache.require_same_manifest(MANIFEST, "model.visual_cache_path", write=False)
    assert not os.path.exists(cache.folder)


@pytest.mark.parametrize("write", [True, False])
def test_features_of_other_encoders_are_rejected_with_the_differences(cache, write):
    cache.require_same_manifest(MANIFEST, "model.visual_cache_path", write=True)
    other = Manifest(("image",), *SHAPE, {"encoder": "eva, q-former", "image_size": 112}, "def", "float32")
    message = r"features in the folder were computed differently.*image_size: 56 and 112; weights: 'abc' and 'def'\. Delete '.*'"
    with pytest.raises(UserError, match=f"^model.visual_cache_path: the {message}"):
        cache.require_same_manifest(other, "model.visual_cache_path", write=write)


@pytest.mark.parametrize("spoiled", ["gone", "no JSON"])
def test_features_without_a_readable_manifest_are_rejected(cache, image, spoiled):
    cache.require_same_manifest(MANIFEST, "model.visual_cache_path", write=True)
    cache.write(cache.cache_key(str(image)), FEATURES)
    manifest = Path(cache.folder, "manifest.json")
    manifest.unlink() if spoiled == "gone" else manifest.write_text("{")
    with pytest.raises(UserError, match=r"^model.visual_cache_path: .*records how .* were computed\. Delete '.*'"):
        cache.require_same_manifest(MANIFEST, "model.visual_cache_path", write=True)


@pytest.mark.parametrize("write", [True, False])
def test_a_folder_that_cannot_be_created_is_reported_with_its_key(tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="^model.visual_cache_path: "):
        FeatureCache(str(tmp_path / "file"), SHAPE).require_same_manifest(MANIFEST, "model.visual_cache_path", write=write)
    with pytest.raises(UserError, match="^model.visual_cache_path: cannot write"):
        FeatureCache("/proc/cache", SHAPE).require_same_manifest(MANIFEST, "model.visual_cache_path", write=write)


def test_a_manifest_file_keeps_the_keys_of_format_version_1(tmp_path):
    MANIFEST.write(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert (content["rows"], content["width"], content["recipe"]) == (3, 4, {"encoder": "eva, q-former", "image_size": 56})
    assert set(content) == {"format", "version", "slots", "rows", "width", "recipe", "weights", "dtype", "versions", "inputs"}
    assert Manifest.read(str(tmp_path)) == MANIFEST
