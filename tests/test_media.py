"""Finding videos and reading their frames, sound and faces, from real files of many kinds, intact and broken."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from media_files import (
    TONE,
    cut,
    damage,
    noise,
    number_of,
    picture,
    tone,
    write_broken,
    write_shortened,
    write_sound,
    write_trimmed,
    write_video,
)
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from emollama.errors import UserError
from emollama.media.audio import read_audio
from emollama.media.faces import central_square, face_images
from emollama.media.files import EXTENSIONS, find_video, find_videos
from emollama.media.frame_selection import choose_frame, read_peaks, segment_middles
from emollama.media.frames import _outline, probe, read_frames, read_with_decord, read_with_pyav
from emollama.media.image_transforms import MEAN, STD, blip2_image
from emollama.media.source import Source, UnusableMedia

SCATTERED = [7, 0, 39, 39, 12, 25]
KINDS = {
    "mpeg4.mp4": {},
    "mpeg4.avi": {"codec": "mpeg4", "fps": 15, "sound": (0.5, 0.2)},
    "h264.mp4": {"codec": "libx264", "fps": 30},
    "h264.avi": {"codec": "libx264"},
    "h264.mkv": {"codec": "libx264", "fps": 50},
    "long_groups.mp4": {"codec": "libx264", "gop": 250},
    "mpeg2.avi": {"codec": "mpeg2video"},
    "wmv2.wmv": {"codec": "wmv2"},
    "vp8.webm": {"codec": "libvpx", "sound": ()},
    "one_a_second.mp4": {"fps": 1, "sound": ()},
    "deep_colours.mp4": {"codec": "libx264", "pixels": "yuv420p10le"},
    "uneven_times.mkv": {"codec": "libx264", "times": [40 * n + n % 3 * 11 for n in range(40)], "sound": ()},
}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Names and paths of videos of 40 frames."""
    folder = tmp_path_factory.mktemp("films")
    return {name: write_video(folder / name, 40, **options) for name, options in KINDS.items()}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return write_broken(tmp_path_factory.mktemp("broken"))


def frame_numbers(path, *choices):
    """Return the numbers in the frames and the frame counts that were passed to the choice function."""
    counts = []

    def choose(count):
        counts.append(count)
        return [choice if choice >= 0 else count + choice for choice in choices]

    return [number_of(image) for image in read_frames(path, choose)], counts


def reason(path, read=lambda path: read_frames(path, lambda count: [0])):
    """Return the reason why a file is unusable, after checking that it is one short line."""
    with pytest.raises(UnusableMedia) as caught:
        read(path)
    text = str(caught.value)
    assert 0 < len(text) < 300 and "\n" not in text
    return text


def every_frame(path):
    return read_frames(path, range)


# Frames


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_returned_in_the_requested_order(films, name):
    assert frame_numbers(films[name], *SCATTERED) == (SCATTERED, [40])
    assert frame_numbers(films[name], 20) == ([20], [40])
    assert frame_numbers(films[name], -1) == ([39], [40])


@pytest.mark.parametrize("name", KINDS)
def test_both_readers_give_the_same_pixels(films, name):
    outline = _outline(films[name])
    assert outline[1:] == (40, name != "deep_colours.mp4")
    if outline.plain:
        by_decord = read_with_decord(films[name], set(SCATTERED))
        by_pyav, decoded = read_with_pyav(films[name], set(SCATTERED))
        assert by_decord.keys() == by_pyav.keys() == set(SCATTERED) and decoded == 40
        assert all(np.array_equal(by_decord[number], by_pyav[number]) for number in SCATTERED)


@pytest.mark.parametrize("width", [16, 24, 48, 72])
def test_narrow_videos_that_decord_reads_wrongly_have_three_channels(tmp_path, width):
    pictures = [np.full((64, width, 3), 20 * number, np.uint8) for number in range(4)]
    frames = read_frames(write_video(tmp_path / "narrow.mp4", pictures=pictures), range)
    assert frames.shape == (4, 64, width, 3)
    assert [round(frame.mean() / 20) for frame in frames] == [0, 1, 2, 3]


def test_without_decord_the_frames_are_the_same(films, monkeypatch):
    expected = {name: read_frames(path, lambda count: SCATTERED) for name, path in films.items()}
    monkeypatch.setitem(sys.modules, "decord", None)
    assert read_with_decord(films["h264.mp4"], {0}) is None
    assert all(np.array_equal(read_frames(path, lambda count: SCATTERED), expected[name]) for name, path in films.items())


def test_frames_are_rgb_of_the_size_of_the_video(films):
    frames = read_frames(films["mpeg4.mp4"], lambda count: range(5))
    assert frames.shape == (5, 48, 64, 3) and frames.dtype == np.uint8
    assert np.abs(frames[3].astype(int) - picture(3)).mean() < 12


def test_a_video_with_a_single_frame_is_read(tmp_path):
    for name in ("one.mp4", "one.avi"):
        assert frame_numbers(write_video(tmp_path / name, 1), 0, -1, 0) == ([0, 0, 0], [1])


def test_a_video_without_sound_has_frames(tmp_path):
    assert frame_numbers(write_video(tmp_path / "mute.avi", 21, fps=15, sound=()), -1) == ([20], [21])


def test_frames_before_the_start_of_a_trimmed_video_are_not_counted(films, tmp_path):
    cut = write_trimmed(tmp_path / "cut.mp4", films["h264.mp4"], 5)
    with av.open(str(cut)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert len(packets) == 40 and any(packet.is_discard for packet in packets)
    assert frame_numbers(cut, 0, -1) == ([5, 39], [35])


@pytest.mark.parametrize("turned", [(90,), (180,), (270,), (-90,), (0, True), (0, False, True), (90, True)], ids=str)
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_rotated_and_mirrored_videos_are_returned_upright(tmp_path, turned, codec):
    degrees, across, down = (*turned, False, False)[:3]
    stored = read_frames(write_video(tmp_path / "stored.mp4", 4, codec=codec), lambda count: [2])[0]
    shown = np.rot90(stored, degrees // 90)
    shown = shown[:: -1 if down else 1, :: -1 if across else 1]
    path = write_video(tmp_path / "turned.mp4", 4, codec=codec, turned=turned)
    assert np.array_equal(read_frames(path, lambda count: [2])[0], shown)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_videos_look_as_in_opencv(tmp_path, degrees):
    path = write_video(tmp_path / "turned.mp4", 4, turned=(degrees,))
    player = cv2.VideoCapture(str(path))
    read, shown = player.read()
    assert read
    ours = read_frames(path, lambda count: [0])[0]
    assert ours.shape == shown.shape
    assert np.abs(ours.astype(int) - shown[..., ::-1]).mean() < 3


def test_a_rotation_by_an_angle_other_than_a_quarter_turn_is_ignored(tmp_path):
    path = write_video(tmp_path / "tilted.mp4", 4, turned=(135,))
    assert frame_numbers(path, 2)[0] == [2]


def test_several_threads_read_the_same_frames_as_one_thread(films, tmp_path):
    turned = write_video(tmp_path / "turned.mp4", 40, turned=(90,))
    paths = [*films.values(), turned]
    alone = [read_frames(path, lambda count: SCATTERED) for path in paths] * 2
    paths *= 2
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda path: read_frames(path, lambda count: SCATTERED), paths))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_file_names_may_contain_colons_spaces_and_non_latin_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a: b.mp4", "файл 1%03d.avi", "-i.mp4", "concat:x.mp4"):
        assert frame_numbers(write_video(tmp_path / name, 3).name, 2)[0] == [2]
        assert len(read_audio(name)) > 0


def test_metadata_tags_in_another_encoding_do_not_prevent_reading(tmp_path):
    path = write_video(tmp_path / "a.avi", 3, tags={"title": "TITLE"})
    data = path.read_bytes()
    assert b"TITLE" in data
    path.write_bytes(data.replace(b"TITLE", b"\xb2\xe2\xca\xd4\xff"))
    assert frame_numbers(path, 2)[0] == [2]
    assert len(read_audio(path)) > 0


# Broken videos


def test_unreadable_videos_are_reported_with_the_reason(broken):
    reasons = {kind: reason(path) for kind, path in broken.items()}
    for kind in ("text", "empty", "cut", "noise"):
        assert reasons[kind] == "its video cannot be read (invalid data found when processing input)"
    assert reasons["absent"] == "its video cannot be read (no such file or directory)"
    assert reasons["folder"] == "its video cannot be read (is a directory)"
    assert reasons["sound"] == "it has no video track"


def test_a_probe_finds_a_video_or_gives_the_reason(films, broken):
    for path in films.values():
        probe(path)
    for path in broken.values():
        reason(path, probe)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.avi", "a.mkv"])
@pytest.mark.parametrize(("codec", "share"), [("mpeg4", 0.5), ("libx264", 0.8)])
def test_files_that_are_cut_off_are_unusable_for_any_request(tmp_path, name, codec, share):
    path = cut(write_video(tmp_path / name, 60, codec=codec, index_first=name in ("a.mp4", "a.mov"), gop=6), share)
    reasons = [reason(path), reason(path, every_frame), reason(path, read_audio)]
    assert all(
        re.fullmatch(r"only [012]\.. of 2\.. seconds of its (video|audio) exist: the file is cut off or damaged", x)
        for x in reasons
    )


def test_a_slightly_truncated_file_or_one_without_a_duration_is_read_to_its_end(tmp_path):
    path = cut(write_video(tmp_path / "a.mp4", 60, index_first=True, sound=(), gop=6), 0.97)
    (first, last), counts = frame_numbers(path, 0, -1)
    assert first == 0 and 53 < last < 59
    assert counts[-1] == last + 1
    path = cut(write_video(tmp_path / "a.wmv", 60, codec="wmv2"), 0.5)
    assert 20 < len(read_frames(path, range)) < 40
    assert 0.8 < len(read_audio(path)) / 16000 < 1.6


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one.mp4", {"frames": 1}),
        ("one.mkv", {"frames": 1}),
        ("one.avi", {"frames": 1}),
        ("slow.avi", {"frames": 1, "fps": 1}),  # its header states two
        ("uneven.avi", {"frames": 40, "times": [80 * number for number in range(40)], "sound": ()}),
        ("late.mkv", {"frames": 40, "times": [*range(0, 1560, 40), 20000], "sound": ()}),
        ("late.avi", {"frames": 40, "times": [*range(0, 1560, 40), 20000], "sound": ()}),
    ],
)
def test_complete_files_with_unusual_durations_are_not_taken_for_truncated(tmp_path, name, options):
    path = write_video(tmp_path / name, **options)
    assert len(read_frames(path, range)) == options["frames"]
    assert options.get("sound") == () or len(read_audio(path)) > 0


@pytest.mark.parametrize(("extension", "source"), [("mp4", "h264.mp4"), ("avi", "h264.avi"), ("mkv", "h264.mp4")])
def test_sound_and_pictures_may_be_of_different_lengths(films, tmp_path, extension, source):
    path = films[source]
    seconds = len(read_audio(path)) / 16000
    assert len(read_frames(write_shortened(tmp_path / f"a.{extension}", path, "audio", 0.3), range)) == 40
    assert 0.2 < len(read_audio(tmp_path / f"a.{extension}")) / 16000 < 0.4
    assert 5 <= len(read_frames(write_shortened(tmp_path / f"b.{extension}", path, "video", 0.3), range)) < 20
    assert len(read_audio(tmp_path / f"b.{extension}")) / 16000 == pytest.approx(seconds, abs=0.03)


def test_reading_only_the_first_frame_decodes_it_once_with_the_same_result(films, tmp_path, monkeypatch):
    paths = [*films.values(), write_video(tmp_path / "turned.mp4", 4, turned=(90,))]
    first = [read_frames(path, lambda count: [0, 1])[:1] for path in paths]
    for reader in ("read_with_decord", "read_with_pyav"):
        monkeypatch.delattr(f"emollama.media.frames.{reader}")
    assert all(np.array_equal(read_frames(path, lambda count: [0]), one) for path, one in zip(paths, first, strict=True))


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_the_intact_frames_of_a_video_damaged_halfway_are_returned(tmp_path, name, codec):
    path = damage(write_video(tmp_path / name, 60, codec=codec, sound=(), gop=6), 30)
    assert frame_numbers(path, 0, 12, 20)[0] == [0, 12, 20]
    assert re.fullmatch("only [23]. of its 60 frames can be decoded: the file is damaged", reason(path, every_frame))


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_video_damaged_near_its_end_is_read_up_to_the_damage(tmp_path, name, codec):
    path = damage(write_video(tmp_path / name, 60, codec=codec, sound=(), gop=6), 57)
    numbers = [number_of(image) for image in every_frame(path)]
    assert numbers[:54] == list(range(54)) and len(numbers) < 60


def test_a_video_that_is_damaged_before_the_requested_frame_is_unusable(tmp_path):
    path = damage(write_video(tmp_path / "a.mp4", 60, codec="libx264", sound=()), 57)
    text = reason(path, lambda path: read_frames(path, lambda count: [59]))
    assert re.fullmatch(r"only \d+ of its frames can be decoded", text)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "mpeg2video"])
def test_the_frames_of_a_damaged_video_are_the_same_without_decord(tmp_path, monkeypatch, name, codec):
    path = damage(write_video(tmp_path / name, 60, codec=codec, sound=(), gop=6), 57)
    by_decord = frame_numbers(path, 0, 20, -1)
    monkeypatch.setitem(sys.modules, "decord", None)
    assert frame_numbers(path, 0, 20, -1) == by_decord


def test_frames_are_resized_to_the_size_of_the_first_frame(tmp_path):
    small = write_video(tmp_path / "small.avi", 2, codec="mjpeg", pixels="yuvj420p", sound=())
    large = [np.array(Image.fromarray(picture(number)).resize((128, 96))) for number in (2, 3)]
    large = write_video(tmp_path / "large.avi", pictures=large, codec="mjpeg", pixels="yuvj420p", sound=())
    with av.open(str(small)) as first, av.open(str(large)) as second, av.open(str(tmp_path / "both.avi"), "w") as both:
        stream = both.add_stream_from_template(first.streams.video[0])
        packets = [packet for file in (first, second) for packet in file.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream, packet.pts, packet.dts = stream, number, number
            both.mux(packet)
    assert frame_numbers(tmp_path / "both.avi", 0, 1, 2, 3)[0] == [0, 1, 2, 3]
    by_pyav, _ = read_with_pyav(tmp_path / "both.avi", {0, 3})
    assert by_pyav[3].shape == by_pyav[0].shape and number_of(by_pyav[3]) == 3


def test_a_video_damaged_in_its_first_frame_is_unusable(tmp_path):
    reason(damage(write_video(tmp_path / "a.mp4", 10, codec="libx264", sound=(), gop=100), 0))


def test_randomly_damaged_files_are_read_or_reported_as_unusable(tmp_path):
    rng = np.random.default_rng(1)
    sources = [write_video(tmp_path / "whole.mp4", codec="libx264"), write_video(tmp_path / "whole.avi")]
    outcomes = []
    for number in range(60):
        data = bytearray(sources[number % 2].read_bytes())
        for offset in rng.integers(0, len(data), rng.integers(1, 60)):
            data[offset] = rng.integers(256)
        path = tmp_path / f"damaged{sources[number % 2].suffix}"
        path.write_bytes(data[: rng.integers(len(data) * 19 // 20, len(data) + 1)])
        for read in (lambda path: read_frames(path, lambda count: [0, count - 1]), read_audio):
            try:
                outcomes.append(len(read(path)) > 0)
            except UnusableMedia:
                outcomes.append(False)
    assert 10 < sum(outcomes) < 110


def test_no_library_writes_to_stderr(films, broken, tmp_path, capfd):
    holed = write_video(tmp_path / "holed.avi", 60, sound=())
    data = holed.read_bytes()
    begin, end = len(data) // 2, len(data) * 8 // 10
    holed.write_bytes(data[:begin] + bytes(end - begin) + data[end:])
    for path in (*films.values(), *broken.values(), holed):
        for read in (probe, lambda path: read_frames(path, lambda count: [0, count - 1]), read_audio):
            with contextlib.suppress(UnusableMedia):
                read(path)
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_a_frame_selection_can_refuse_a_clip(films):
    source = Source("a", films["h264.mp4"])
    assert "peak" in reason(source.video, lambda path: read_frames(path, lambda count: [choose_frame("peak", count, source)]))


# Sound


def loudest(sound, rate=16000):
    """Return the strongest frequency in Hz."""
    return np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("amplitudes", [(0.5,), (0.6, 0.4)], ids=["mono", "stereo"])
def test_resampling_preserves_pitch_loudness_and_length_of_a_tone(tmp_path, rate, amplitudes):
    sound = read_audio(write_sound(tmp_path / "a.wav", tone(1.0, rate, *amplitudes), rate))
    assert sound.dtype == np.float32 and sound.ndim == 1
    assert abs(len(sound) - 16000) <= 2
    assert abs(loudest(sound) - TONE) < 1
    expected = tone(1.0, 16000, 0.5)[0]
    assert np.abs(sound[200:15800] - expected[200:15800]).max() < 2e-3


@pytest.mark.parametrize(
    ("name", "rate"), [("a.mp4", 8000), ("a.mp4", 44100), ("a.mp4", 48000), ("a.avi", 44100), ("a.mkv", 48000), ("a.mov", 8000)]
)
def test_the_sound_of_a_video_is_as_long_as_the_video(tmp_path, name, rate):
    sound = read_audio(write_video(tmp_path / name, 50, rate=rate, sound=(0.5, 0.5)))
    frames = 3 if name.endswith(".avi") else 1  # MP3 in .avi contains the encoder's delay, which the file does not state
    assert 0 <= len(sound) - 32000 <= frames * 1152 * 16000 / rate
    assert abs(loudest(sound[8000:24000]) - TONE) < 1
    assert np.sqrt(2 * (sound[8000:24000] ** 2).mean()) == pytest.approx(0.5, rel=0.06)


def test_stereo_becomes_the_mean_of_its_channels(tmp_path):
    def peak(*amplitudes):
        return np.abs(read_audio(write_sound(tmp_path / "a.wav", tone(1.0, 16000, *amplitudes), 16000))).max()

    assert peak(0.8, 0) == pytest.approx(0.4, abs=1e-3)
    assert peak(0.8, 0.8) == pytest.approx(0.8, abs=1e-3)
    assert peak(0.8, -0.8) == pytest.approx(0, abs=1e-3)
    assert peak(0.6, 0.3, 0.0, 0.0, 0.0, 0.0) == pytest.approx(0.15, abs=1e-3)


def test_sound_stays_within_one(tmp_path):
    square = np.sign(tone(0.5, 44100, 1.0, 1.0))
    sound = read_audio(write_sound(tmp_path / "a.wav", square, 44100))
    assert np.abs(sound).max() == 1


def test_sound_that_needs_no_resampling_is_read(tmp_path):
    sound = read_audio(write_video(tmp_path / "a.mp4", 50, rate=16000))
    assert np.array_equal(sound, read_audio(tmp_path / "a.mp4", 16000))
    assert 32000 <= len(sound) <= 33024


def test_another_sampling_rate_can_be_requested(tmp_path):
    sound = read_audio(write_sound(tmp_path / "a.wav", tone(1.0, 44100, 0.5), 44100), rate=24000)
    assert abs(len(sound) - 24000) <= 2
    assert abs(loudest(sound, 24000) - TONE) < 1


def test_sound_shorter_than_a_frame_is_read(tmp_path):
    assert abs(len(read_audio(write_sound(tmp_path / "a.wav", tone(0.01, 48000, 0.5), 48000))) - 160) <= 1
    assert len(read_audio(write_video(tmp_path / "a.mp4", 1, fps=50))) > 0


def test_without_audio_the_reason_is_given(broken, tmp_path):
    assert reason(write_video(tmp_path / "mute.mp4", 3, sound=()), read_audio) == "it has no audio track"
    assert "cannot be read" in reason(broken["text"], read_audio)
    assert "cannot be read" in reason(broken["empty"], read_audio)
    assert len(read_audio(broken["sound"])) > 0


def test_an_audio_track_without_packets_is_unusable(tmp_path):
    for name in ("a.wav", "a.mp4"):
        path = write_sound(tmp_path / name, tone(0, 44100, 0.5), 44100)
        assert reason(path, read_audio)
    path = write_video(tmp_path / "a.avi", 3, rate=44100)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"01wb", b"JUNK"))
    assert reason(path, read_audio) == "its audio track is empty"
    assert frame_numbers(path, 2)[0] == [2]


def test_truncated_sound_is_unusable(tmp_path):
    for name in ("a.mp4", "a.avi", "a.mkv"):
        path = cut(write_video(tmp_path / name, pictures=[], frames=100, index_first=name == "a.mp4"), 0.6)
        assert reason(path, read_audio).endswith("seconds of its audio exist: the file is cut off or damaged")


def test_sound_damaged_near_its_end_is_read_up_to_the_damage(tmp_path):
    path = damage(write_video(tmp_path / "a.mp4", pictures=[], frames=100), 160, "audio")
    assert 55000 < len(read_audio(path)) < 62000
    path = damage(write_video(tmp_path / "a.mp4", pictures=[], frames=100), 80, "audio")
    assert re.fullmatch(r"only [78]. of 17. audio packets can be decoded: the file is damaged", reason(path, read_audio))


# Other content than a video


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp"])
def test_an_image_counts_as_a_video_of_one_frame(tmp_path, kind):
    Image.fromarray(picture(5)).save(tmp_path / f"a.{kind}")
    path = (tmp_path / f"a.{kind}").rename(tmp_path / "a.mp4")
    assert frame_numbers(path, 0, -1, 0) == ([5, 5, 5], [1])
    assert reason(path, read_audio) == "it has no audio track"
    probe(path)


def test_an_image_of_a_phone_is_upright(tmp_path):
    image, tags = Image.fromarray(picture(5)), Image.Exif()
    tags[0x0112] = 6  # orientation: to be rotated by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=tags)
    assert np.array_equal(read_frames(tmp_path / "a.png", lambda count: [0])[0], picture(5))


def test_audio_alone_has_no_frames_even_with_a_cover_picture(tmp_path):
    for name in ("a.wav", "a.m4a"):
        path = write_sound(tmp_path / name, tone(1.0, 16000, 0.5), 16000)
        assert reason(path) == "it has no video track" and len(read_audio(path)) > 15900
    with av.open(str(tmp_path / "a.mp3"), "w") as container:
        stream = container.add_stream("png", rate=1, width=64, height=48, pix_fmt="rgb24")
        stream.disposition = av.stream.Disposition.attached_pic
        audio = container.add_stream("mp3", rate=16000, layout="mono")
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(5), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(tone(1.0, 16000, 0.5), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*audio.encode(frame), *audio.encode(None)])
    assert reason(tmp_path / "a.mp3") == "it has no video track" and len(read_audio(tmp_path / "a.mp3")) > 15900


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.flv", "a.mpg", "a.ts", "a.mxf", "a.nut", "a.y4m", "a.rm"])
def test_the_format_is_determined_by_the_content(tmp_path, name):
    codecs = {".flv": "flv", ".mpg": "mpeg2video", ".mxf": "mpeg2video", ".rm": "rv20", ".y4m": "wrapped_avframe"}
    path = write_video(tmp_path / name, 6, codec=codecs.get(Path(name).suffix, "mpeg4"), sound=())
    expected = read_frames(path, range)
    assert len(expected) == 6
    assert np.array_equal(read_frames(path.rename(tmp_path / "a.m3u8"), range), expected)


# Files


def test_find_videos_lists_videos_by_their_path_below_the_folder(tmp_path):
    for name in ("b.avi", "a.MP4", "deep/er/c.d.mkv", ".hidden.mp4", ".folder/x.mp4", "notes.txt", "label.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    videos, others = find_videos(tmp_path, "extraction.videos")
    assert {path.name for path in others} == {"notes.txt", "label.csv"}
    assert {name: path.name for name, path in videos.items()} == {"a": "a.MP4", "b": "b.avi", "deep/er/c.d": "c.d.mkv"}
    assert find_videos(str(tmp_path), "extraction.videos") == (videos, others)


def test_a_folder_without_usable_videos_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"extraction.videos: no folder '.*absent'"):
        find_videos(tmp_path / "absent", "extraction.videos")
    with pytest.raises(UserError, match="extraction.videos: no video in"):
        find_videos(tmp_path, "extraction.videos")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.avi").touch()
    with pytest.raises(UserError, match=r"'a' is the name of two videos, .*a.avi and .*a.mp4. Rename one"):
        find_videos(tmp_path, "extraction.videos")


def test_find_video_returns_the_video_with_a_name_or_none(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("b.AVI", "x/c.mkv", "d.mp4", "d.mkv", "e.f.mov"):
        (tmp_path / name).touch()
    (tmp_path / "g.mp4").mkdir()
    paths = {name: find_video(tmp_path, name) for name in ("b", "x/c", "d", "e.f", "e", "g")}
    assert {name: path and path.name for name, path in paths.items()} == {
        "b": "b.AVI", "x/c": "c.mkv", "d": "d.mp4", "e.f": "e.f.mov", "e": None, "g": None,
    }  # fmt: skip
    assert EXTENSIONS[:2] == (".mp4", ".avi")


# Choice


def test_choose_frame_supports_the_first_the_middle_and_the_peak_frame():
    source = Source("a", Path("a.mp4"), peak=12)
    assert [choose_frame("first", count, source) for count in (1, 40)] == [0, 0]
    assert [choose_frame("middle", count, source) for count in (1, 2, 40, 41)] == [0, 1, 20, 20]
    assert [choose_frame("peak", count, source) for count in (1, 12, 13, 40)] == [0, 11, 12, 12]


def test_a_random_frame_depends_on_the_name_alone():
    def choose(name, count=1000):
        return choose_frame("random", count, Source(name, Path("x.mp4")))

    numbers = [choose(str(number)) for number in range(200)]
    assert len(set(numbers)) > 150 and 0 <= min(numbers) < 50 and 950 < max(numbers) < 1000
    assert {choose(name, 1) for name in "abc"} == {0}
    assert numbers[:3] == [752, 96, 973]  # the same in every process, for any seed of Python's hashes


def test_segment_middles_returns_the_middle_frame_of_each_segment():
    assert segment_middles(16, 16) == list(range(16))
    assert segment_middles(160, 16) == list(range(5, 160, 10))
    assert segment_middles(9, 1) == [4]
    assert segment_middles(1, 3) == [0, 0, 0]
    assert segment_middles(2, 4) == [0, 0, 1, 1]
    assert all(0 <= number < count for count in range(1, 50) for number in segment_middles(count, 16))


def test_peak_frames_are_read_from_caption_files_and_tables(tmp_path):
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"a": {"peak_index": "12", "text": "x"}, "00012": {"peak_index": 3}, "c": {"text": "y"}}))
    assert read_peaks(str(captions)) == {"a": 12, "00012": 3}
    table = tmp_path / "peaks.csv"
    table.write_text("name,peak_index,remark\na,12,\n00012, 3,x\na,12,again\n")
    assert read_peaks(str(table)) == {"a": 12, "00012": 3}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", '{"a": {"peak_index": "-1"}}', "peak_index of 'a' is '-1'"),
        ("p.json", '{"a": {"peak_index": true}}', "peak_index of 'a' is True"),
        ("p.json", '{"a": {"peak_index": "2.5"}}', "expected the index of a frame"),
        ("p.json", '{"a": {"caption": "x"}}', "expected one JSON object with clip names as keys"),
        ("p.json", '["a"]', "expected one JSON object with clip names as keys"),
        ("p.json", "{", "line 1: not valid JSON"),
        ("p.csv", "name,peak_index\na,\n", "line 2: the peak_index of 'a' is ''"),
        ("p.csv", "name,peak_index\na,1\na,2\n", "line 3: 'a' already has a different peak_index"),
        ("p.csv", "name,peak\na,1\n", "peak_index"),
    ],
)
def test_invalid_peaks_are_rejected(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_peaks(str(tmp_path / name))
    assert message in str(caught.value) and name in str(caught.value)


def test_a_missing_file_of_peak_frames_is_reported(tmp_path):
    with pytest.raises(UserError, match="peak_index_path: no file"):
        read_peaks(str(tmp_path / "absent.json"))


# Images


@pytest.mark.parametrize("shape", [(48, 64), (600, 512), (1, 1), (13, 700)], ids=str)
@pytest.mark.parametrize("size", [28, 448])
def test_blip2_image_gives_the_same_tensor_as_torchvision(shape, size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    theirs = Compose([Resize((size, size), InterpolationMode.BICUBIC), ToTensor(), Normalize(MEAN, STD)])(Image.fromarray(image))
    ours = blip2_image(image, size)
    assert ours.shape == (3, size, size) and ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


# Faces


@pytest.fixture(scope="module")
def portrait():
    """A photograph of Grace Hopper, (600, 512, 3); it is in the public domain and comes with matplotlib."""
    import matplotlib.cbook

    with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="module")
def face_film(portrait, tmp_path_factory):
    """A grey frame, three frames of the portrait whose face moves to the right, and a grey frame."""
    grey = np.full((600, 800, 3), 90, np.uint8)
    pictures = [grey, *(grey.copy() for _ in range(3)), grey]
    for shown, at in zip(pictures[1:4], (0, 100, 200), strict=True):
        shown[:, at : at + 512] = portrait
    return write_video(tmp_path_factory.mktemp("faces") / "a.mp4", pictures=pictures, sound=())


def test_the_face_in_each_frame_is_cropped_to_a_square(face_film):
    faces = face_images(Source("a", face_film))
    assert len(faces) == 3
    for face, at in zip(faces, (0, 100, 200), strict=True):
        side = face.shape[0]
        assert face.shape == (side, side, 3) and side < 300
        frame = read_frames(face_film, lambda count, number=1 + at // 100: [number])[0]
        left, top = cv2.minMaxLoc(cv2.matchTemplate(frame, np.ascontiguousarray(face), cv2.TM_SQDIFF))[2]
        # The crop contains her eyes and her chin.
        assert left - at < 205 and left - at + side > 320
        assert top < 165 and top + side > 315


@pytest.mark.parametrize("scale", [0.2, 3])
def test_small_and_large_faces_are_detected(portrait, tmp_path, scale):
    size = (int(512 * scale) // 2 * 2, int(600 * scale) // 2 * 2)
    path = write_video(tmp_path / "a.mp4", pictures=[np.array(Image.fromarray(portrait).resize(size))], sound=())
    (face,) = face_images(Source("a", path))
    assert 0.4 < face.shape[0] / size[0] < 0.75


def test_the_larger_of_two_faces_is_used(portrait, tmp_path):
    shown = np.full((600, 900, 3), 90, np.uint8)
    shown[:, :512] = portrait
    shown[:300, 600:856] = np.array(Image.fromarray(portrait).resize((256, 300)))
    (face,) = face_images(Source("a", write_video(tmp_path / "a.mp4", pictures=[shown], sound=())))
    assert face.shape[0] > 200


@pytest.mark.parametrize("shown", [np.s_[80:, 150:430], np.s_[:336, 60:384]], ids=["top and left", "bottom and right"])
def test_a_face_at_the_edge_is_a_square_inside_the_frame(portrait, tmp_path, shown):
    path = write_video(tmp_path / "a.mp4", pictures=[portrait[shown]], sound=())
    (face,) = face_images(Source("a", path))
    assert face.shape[0] == face.shape[1] > 230


def test_face_images_uses_at_most_max_frames_frames(face_film):
    assert len(face_images(Source("a", face_film), max_frames=1)) == 1
    assert len(face_images(Source("a", face_film), "centre", 3)) == 3
    assert len(face_images(Source("a", face_film), "centre")) == 5


@pytest.mark.slow
def test_threads_find_the_same_faces(face_film):
    alone = face_images(Source("a", face_film))
    with ThreadPoolExecutor(4) as threads:
        for images in threads.map(lambda _: face_images(Source("a", face_film)), range(4)):
            assert all(np.array_equal(one, other) for one, other in zip(alone, images, strict=True))


def test_a_video_without_a_face_is_unusable(films, broken):
    source = Source("a", films["h264.mp4"])
    assert reason(source, face_images) == "no face found in 32 of its frames"
    assert "cannot be read" in reason(Source("a", broken["text"]), face_images)


def test_the_centre_crop_is_a_square_with_the_shorter_side(films):
    image = np.arange(6 * 10 * 3).reshape(6, 10, 3)
    assert np.array_equal(central_square(image), image[:, 2:8])
    assert np.array_equal(central_square(image.transpose(1, 0, 2)), image.transpose(1, 0, 2)[2:8])
    faces = face_images(Source("a", films["h264.mp4"]), "centre", 4)
    frames = read_frames(films["h264.mp4"], lambda count: segment_middles(count, 4))
    assert np.array_equal(np.stack(faces), frames[:, :, 8:56])


@pytest.mark.parametrize("folder", ["x/a", "x/a_aligned", "x/a/a_aligned"])
def test_all_openface_images_are_used_in_order(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    for number, extension in ((2, "bmp"), (1, "png"), (3, "BMP")):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / folder / f"frame_det_00_{number:06}.{extension}")
    (tmp_path / folder / "frames.csv").touch()
    faces = face_images(Source("x/a", Path("absent.mp4"), tmp_path), max_frames=1)
    assert [face[0, 0, 0] for face in faces] == [1, 2, 3]


def test_missing_and_unreadable_face_images_are_reported(tmp_path):
    source = Source("a", Path("absent.mp4"), tmp_path)
    assert "no face image of '" in reason(source, face_images)
    (tmp_path / "a").mkdir()
    for content in (b"", noise(100), b"BM" + noise(100)):
        (tmp_path / "a" / "1.bmp").write_bytes(content)
        assert f"{os.path.join('a', '1.bmp')} cannot be read" in reason(source, face_images)
