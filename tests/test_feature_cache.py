"""Rows that a model made of images, kept on disk."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from emollama.errors import UserError
from emollama.stores.feature_cache import FeatureCache
from emollama.stores.manifest import Manifest

SHAPE = (3, 4)
ROWS = np.arange(12, dtype=np.float32).reshape(SHAPE)
MADE = Manifest(("image",), *SHAPE, {"encoder": "eva, q-former", "image_size": 56}, "abc", "float32")


@pytest.fixture
def kept(tmp_path):
    return FeatureCache(str(tmp_path / "cache"), SHAPE)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "one.jpg"
    path.write_bytes(b"pixels")
    return path


def test_rows_come_back_to_the_bit(kept, image):
    place = kept.cache_key(str(image))
    assert kept.read(place) is None
    kept.write(place, ROWS)
    assert kept.read(place).tobytes() == ROWS.tobytes()


def test_an_image_that_was_changed_has_another_place_though_name_size_and_time_are_the_same(kept, image):
    before, times = kept.cache_key(str(image)), (image.stat().st_atime_ns, image.stat().st_mtime_ns)
    image.write_bytes(b"pixelS")
    os.utime(image, ns=times)
    assert kept.cache_key(str(image)) != before


def test_a_copy_of_another_name_has_the_same_place(kept, image, tmp_path):
    copy = tmp_path / "moved" / "two.jpg"
    copy.parent.mkdir()
    copy.write_bytes(image.read_bytes())
    assert kept.cache_key(str(image)) == kept.cache_key(str(copy))


@pytest.mark.parametrize("what", ["cut", "empty", "other shape", "other dtype", "nan", "text"])
def test_a_spoiled_file_counts_as_not_there(kept, image, what):
    place = kept.cache_key(str(image))
    kept.write(place, ROWS)
    path = Path(kept.folder, place)
    content = path.read_bytes()
    spoiled = {"cut": content[:-5], "empty": b"", "text": b"no array"}
    if what in spoiled:
        path.write_bytes(spoiled[what])
    elif what == "nan":
        np.save(path, np.full(SHAPE, np.nan, np.float32))
    else:
        np.save(path, ROWS.reshape(4, 3) if what == "other shape" else ROWS.astype(np.float64))
    assert kept.read(place) is None


def test_a_disk_that_refuses_is_told_once_and_stops_nothing(kept, image, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("emollama"), "propagate", True)
    Path(kept.folder).touch()  # a file where the folder should be
    for _ in range(3):
        kept.write(kept.cache_key(str(image)), ROWS)
    (told,) = {id(record): record.getMessage() for record in caplog.records}.values()  # other tests may have added handlers
    assert "features cannot be cached" in told and "set another folder" in told


def test_a_new_folder_gets_the_manifest_and_takes_the_same_again(kept):
    kept.require_same_manifest(MADE, "model.visual_cache_path", write=True)
    assert Manifest.read(kept.folder).fields() == MADE.fields()
    kept.require_same_manifest(MADE, "model.visual_cache_path", write=True)


def test_only_looking_writes_nothing(kept):
    kept.require_same_manifest(MADE, "model.visual_cache_path", write=False)
    assert not os.path.exists(kept.folder)


@pytest.mark.parametrize("write", [True, False])
def test_rows_of_other_encoders_are_refused_with_what_differs(kept, write):
    kept.require_same_manifest(MADE, "model.visual_cache_path", write=True)
    other = Manifest(("image",), *SHAPE, {"encoder": "eva, q-former", "image_size": 112}, "def", "float32")
    message = r"features in the folder were computed differently.*image_size: 56 and 112; weights: 'abc' and 'def'\. Delete '.*'"
    with pytest.raises(UserError, match=f"^model.visual_cache_path: the {message}"):
        kept.require_same_manifest(other, "model.visual_cache_path", write=write)


@pytest.mark.parametrize("spoiled", ["gone", "no JSON"])
def test_rows_of_which_nobody_knows_how_they_were_made_are_refused(kept, image, spoiled):
    kept.require_same_manifest(MADE, "model.visual_cache_path", write=True)
    kept.write(kept.cache_key(str(image)), ROWS)
    manifest = Path(kept.folder, "manifest.json")
    manifest.unlink() if spoiled == "gone" else manifest.write_text("{")
    with pytest.raises(UserError, match=r"^model.visual_cache_path: .*records how .* were computed\. Delete '.*'"):
        kept.require_same_manifest(MADE, "model.visual_cache_path", write=True)


@pytest.mark.parametrize("write", [True, False])
def test_a_folder_that_cannot_be_made_is_told_with_its_key(tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="^model.visual_cache_path: "):
        FeatureCache(str(tmp_path / "file"), SHAPE).require_same_manifest(MADE, "model.visual_cache_path", write=write)
    with pytest.raises(UserError, match="^model.visual_cache_path: cannot write"):
        FeatureCache("/proc/kept", SHAPE).require_same_manifest(MADE, "model.visual_cache_path", write=write)
