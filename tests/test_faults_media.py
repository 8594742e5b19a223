"""Files that try to make the decoders read other files, allocate too much memory, or crash."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import os
import struct
import zlib

import numpy as np
import pytest
import yaml
from media_files import noise, picture, write_video
from PIL import Image

from emollama import config as configuration
from emollama.datasets.frame_store import FrameStore
from emollama.errors import UserError
from emollama.inference.videos import require_videos
from emollama.media.audio import read_audio
from emollama.media.faces import face_images
from emollama.media.frames import probe, read_frames, read_with_decord
from emollama.media.image_files import probe_image, read_image
from emollama.media.source import MediaLimits, Source, UnusableMedia

pytestmark = pytest.mark.faults

# Files of these formats name another file, {path}. Each is valid for at least one version of FFmpeg.
REFERENCES = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{path}\n#EXT-X-ENDLIST\n",
    "hls_with_protocol": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{path}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>file://{path}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>\n",
    "ffconcat": "ffconcat version 1.0\nfile '{path}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "xspf": '<?xml version="1.0"?><playlist version="1" xmlns="http://xspf.org/ns/0/"><trackList><track>'
    "<location>file://{path}</location></track></trackList></playlist>\n",
    "m3u": "{path}\n",
    "pls": "[playlist]\nFile1={path}\nNumberOfEntries=1\n",
    "vobsub": "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n",
}


class Watched:
    """Counts how often a file is opened, by this process or others."""

    def __init__(self, path):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self.libc.inotify_init1(os.O_NONBLOCK)
        opened = 0x20
        assert self.libc.inotify_add_watch(self.descriptor, os.fsencode(path), opened) > 0

    def opened(self):
        try:
            return len(os.read(self.descriptor, 4096)) > 0
        except BlockingIOError:
            return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video named secret.mp4, and a file of each format that refers to it, all named .mp4."""
    folder = tmp_path_factory.mktemp("references")
    secret = write_video(folder / "secret.mp4", 30)
    for name, text in REFERENCES.items():
        (folder / f"{name}.mp4").write_text(text.format(path=secret))
    # FFmpeg skips such a tag before it looks for the format.
    hls = (folder / "hls.mp4").read_bytes()
    (folder / "tagged_hls.mp4").write_bytes(b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10) + hls)
    return folder


@pytest.fixture
def secret(folder):
    return Watched(folder / "secret.mp4")


def references(folder):
    return sorted(path for path in folder.glob("*.mp4") if path.name != "secret.mp4")


def unusable(read, *arguments):
    with pytest.raises(UnusableMedia) as caught:
        read(*arguments)
    return str(caught.value)


def test_no_reader_follows_a_reference_to_another_file(folder, secret):
    assert len(references(folder)) == len(REFERENCES) + 1
    for path in references(folder):
        assert "cannot be read" in unusable(read_frames, path, range)
        assert "cannot be read" in unusable(probe, path)
        assert "cannot be read" in unusable(read_audio, path)
        assert "cannot be read" in unusable(face_images, Source("x", path))
        assert "cannot be read" in unusable(FrameStore(str(folder), 28, "first").load, path.stem)
        assert read_with_decord(path, {0}) is None
    assert not secret.opened()
    read_frames(folder / "secret.mp4", range)
    assert secret.opened()


def test_decord_alone_would_follow_a_playlist(folder, secret):
    decord = pytest.importorskip("decord")
    assert len(decord.VideoReader(str(folder / "hls.mp4"))) == 30
    assert secret.opened()


def test_a_video_file_that_contains_a_playlist_is_decoded_without_decord(tmp_path, folder, secret):
    path = write_video(tmp_path / "x.mp4", 12)
    frames = read_frames(path, range)
    path.write_bytes(path.read_bytes() + struct.pack(">I4s", 0, b"free") + (folder / "hls.mp4").read_bytes())
    assert np.array_equal(read_frames(path, range), frames)
    assert read_with_decord(path, {0}) is None
    assert not secret.opened()


def test_the_name_of_a_file_does_not_make_it_an_image_sequence(tmp_path):
    paths = [tmp_path / name for name in ("a%02d.png", "a*.jpg", "a01.png")]
    for path in paths[:2]:
        path.write_bytes(write_video(tmp_path / "x.mp4", 12).read_bytes())
    Image.fromarray(picture(1)).save(paths[2])
    watched = Watched(paths[2])
    assert [len(read_frames(path, range)) for path in paths[:2]] == [12, 12]
    assert len(read_with_decord(paths[0], {0, 11})) == 2
    assert not watched.opened()


def boxes(data):
    """Yield (kind, content) of the boxes of an .mp4 file."""
    while data:
        size, kind = struct.unpack(">I4s", data[:8])
        yield kind, data[8:size]
        data = data[size:]


def with_external_data(data, path):
    """Return the boxes of an .mp4 file with a Macintosh alias, an absolute path, in the place of each data reference."""
    alias = bytes(10) + bytes([0]) + bytes(27) + bytes(12) + bytes([0]) + bytes(63) + bytes(16)
    alias += struct.pack(">HH", 0, 0) + bytes(16) + struct.pack(">HH", 2, len(path)) + path + struct.pack(">HH", 0xFFFF, 0)
    reference = bytes(4) + struct.pack(">II4sI", 1, 12 + len(alias), b"alis", 0) + alias
    result = b""
    for kind, content in boxes(data):
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            content = with_external_data(content, path)
        content = reference if kind == b"dref" else content
        result += struct.pack(">I4s", 8 + len(content), kind) + content
    return result


def test_media_data_in_another_file_is_not_opened(tmp_path, folder, secret):
    import av

    path = write_video(tmp_path / "x.mov", 12)
    target = os.fsencode(folder / "secret.mp4")
    # FFmpeg expects an even number of bytes.
    path.write_bytes(with_external_data(path.read_bytes(), b"/" * (len(target) % 2) + target))
    with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}):
        assert secret.opened()
    for read in (lambda: read_frames(path, range), lambda: read_audio(path), lambda: read_with_decord(path, {0, 11})):
        with contextlib.suppress(UnusableMedia):
            read()
        assert not secret.opened()


def test_extraction_and_prediction_do_not_follow_references(tmp_path, folder, secret):
    encoder = {"random_weights": True, "weights": "none", "image_size": 28, "width": 88, "depth": 1, "frame_selection": "middle"}
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "good.mp4", 12)
    for path in references(folder):
        (videos / path.name).write_bytes(path.read_bytes())
    tree = {"encoders": {"eva": encoder}, "extraction": {"videos": str(videos), "output": str(tmp_path / "out"), "device": "cpu"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    config = configuration.load(str(tmp_path / "config.yaml"), needs_model=False)
    config.extractor_class(config).run()
    with open(tmp_path / "out/failures.csv", newline="") as file:
        failures = list(csv.DictReader(file))
    assert {row["name"] for row in failures} == {path.stem for path in references(folder)}
    assert all("cannot be read" in row["reason"] for row in failures)
    with pytest.raises(UserError, match="hls.mp4' cannot be used: its video cannot be read"):
        require_videos([str(path) for path in references(folder)])
    assert not secret.opened()


# Sizes


def png(width, height):
    """A small file that announces a large picture."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(12000, 12000), (60000, 60000)], ids=["warning of Pillow", "error of Pillow"])
def test_pictures_with_too_many_pixels_are_unusable(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size))
    assert "pixels" in unusable(read_image, str(path))
    assert "pixels" in unusable(probe_image, str(path))
    assert "pixels" in unusable(read_frames, path, lambda count: [0])
    (tmp_path / "x").mkdir()
    (tmp_path / "x/1.png").write_bytes(png(*size))
    assert "1.png cannot be used: it" in unusable(face_images, Source("x", path, tmp_path))


def test_videos_with_absurd_dimensions_are_unusable(tmp_path):
    frame = b"FRAME\n" + bytes(64 * 48 * 3 // 2)
    (tmp_path / "a.y4m").write_bytes(b"YUV4MPEG2 W60000 H60000 F25:1 Ip C420\n" + frame)
    path = write_video(tmp_path / "b.avi", 3, codec="mjpeg", pixels="yuvj420p", sound=())
    data = path.read_bytes()
    small, large = struct.pack(">BHH", 8, 48, 64), struct.pack(">BHH", 8, 65000, 65000)
    assert data.count(small) == 3
    path.write_bytes(data.replace(small, large).replace(struct.pack("<II", 64, 48), struct.pack("<II", 65000, 65000)))
    for path in (tmp_path / "a.y4m", tmp_path / "b.avi"):
        assert any(text in unusable(read_frames, path, range) for text in ("pixels", "cannot be read"))


def test_limits_of_pixels_seconds_and_frames_apply_to_every_reader(tmp_path):
    path = write_video(tmp_path / "x.mp4", 50)
    small, short = MediaLimits(max_pixels=64 * 48 - 1), MediaLimits(max_seconds=1.5)
    assert "64 x 48 pixels, more than 3,071" in unusable(read_frames, path, range, small)
    assert "longer than 1.5 seconds" in unusable(read_frames, path, range, short)
    assert "longer than 1.5 seconds" in unusable(read_audio, path, 16000, short)
    assert "more than 49 frames" in unusable(read_frames, path, range, MediaLimits(max_frames=49))
    enough = MediaLimits(max_pixels=64 * 48, max_seconds=2.5, max_frames=50)
    assert len(read_frames(path, range, enough)) == 50 and len(read_audio(path, 16000, enough)) > 0
    # These formats do not announce a duration.
    for name, codec in (("x.ts", "libx264"), ("x.flv", "flv")):
        path = write_video(tmp_path / name, 50, codec=codec)
        assert "longer than 1.5 seconds" in unusable(read_frames, path, range, short)
        assert "longer than 1.5 seconds" in unusable(read_audio, path, 16000, short)


def test_tiny_and_random_files_are_unusable(tmp_path):
    contents = [
        b"",
        b"x",
        b"\xff",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"BM",
        b"RIFF\0\0\0\0AVI ",
        b"ID3",
    ]
    contents += [b"\0\0\0\x18ftypmp42", b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"FLV\x01", b"G" * 400]
    contents += [content + noise(3000) for content in contents]
    path = tmp_path / "x.mp4"
    for content in contents:
        path.write_bytes(content)
        assert unusable(read_frames, path, range)
        assert unusable(read_audio, path)
        assert unusable(probe, path)


def test_a_named_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x.mp4")
    assert unusable(read_frames, tmp_path / "x.mp4", range) == "it is not a regular file"
