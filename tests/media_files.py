"""Real files of video and sound, made in milliseconds: each frame bears its number, the sound is a tone."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
STEADY = {"libx264": {"x264-params": "mbtree=0"}}  # what makes an encoder write the same bytes each time
BITS = 8  # of a frame's number, as white and black fields along the top
TONE = 440  # Hz


def picture(number):
    """(48, 64, 3): the number on top; below red on the left and blue on the right, which tells how a picture is turned."""
    image = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    for bit in range(BITS):
        image[:16, bit * 8 : bit * 8 + 8] = 235 if number >> bit & 1 else 20
    image[32:, :24] = 200, 30, 30
    image[32:, 40:] = 30, 30, 200
    return image


def number_of(image):
    """Which frame an upright image is."""
    return sum(int(image[4:12, bit * 8 + 2 : bit * 8 + 6].mean() > 127) << bit for bit in range(BITS))


def tone(seconds, rate, *amplitudes):
    """(channels, samples) float32 of :data:`TONE`, a channel for each amplitude."""
    wave = np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave * amplitude for amplitude in amplitudes]).astype(np.float32)


def write_video(
    path, frames=12, *, fps=25, codec="mpeg4", pixels="yuv420p", gop=12, times=None, turned=None, sound=(0.5,), rate=44100,
    index_first=False, pictures=None, tags=None,
):  # fmt: skip
    """Write a video and return its path.

    Args:
        times: of the frames in milliseconds, where they do not keep to ``fps``.
        turned: arguments of PyAV's ``set_display_rotation``.
        sound: amplitude of each channel's tone; () is no audio track.
        index_first: .mp4 with its index before the frames, of which a part can be read without the rest.
        pictures: in place of the numbered ones.
        tags: of the container.
    """
    pictures = [picture(number) for number in range(frames)] if pictures is None else pictures
    path = Path(path)
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        container.metadata.update(tags or {})
        if pictures:
            video = container.add_stream(codec, rate=fps, options=STEADY.get(codec, {}))
            video.height, video.width = pictures[0].shape[:2]
            video.pix_fmt, video.gop_size = pixels, gop
            if turned is not None:
                video.set_display_rotation(*turned)
        if sound:
            audio = container.add_stream(_codec(path), rate=rate, layout=_layout(sound))
        for number, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(video.encode(frame))
        if pictures:
            container.mux(video.encode())
        if sound:
            _mux_sound(container, audio, tone((len(pictures) or frames) / fps, rate, *sound), rate)
    return path


def write_sound(path, samples, rate):
    """Write (channels, samples) float32 as a sound file and return its path."""
    path = Path(path)
    with av.open(str(path), "w") as container:
        audio = container.add_stream(_codec(path), rate=rate, layout=_layout(samples))
        _mux_sound(container, audio, samples, rate)
    return path


def _codec(path):
    return {".avi": "mp3", ".wav": "pcm_s16le"}.get(path.suffix, "aac")


def _layout(channels):
    return {1: "mono", 2: "stereo", 3: "2.1", 6: "5.1"}[len(channels)]


def _mux_sound(container, audio, samples, rate):
    if samples.shape[1]:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=_layout(samples))
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(audio.encode(frame))
    container.mux(audio.encode())


def write_trimmed(path, source, frames):
    """Cut the first frames off a video without encoding it anew: they stay in the file, marked as not to be shown."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        given = whole.streams.video[0]
        video = container.add_stream_from_template(given)
        early = round(frames / given.average_rate / given.time_base)
        for packet in whole.demux(given):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, video
                container.mux(packet)
    return Path(path)


def write_shortened(path, source, kind, seconds):
    """Write a file anew whose sound, or whose pictures, end early."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        streams = {given.index: container.add_stream_from_template(given) for given in whole.streams}
        for packet in whole.demux():
            if packet.dts is not None and (packet.stream.type != kind or packet.dts * packet.time_base < seconds):
                packet.stream = streams[packet.stream_index]
                container.mux(packet)
    return path


def write_broken(folder):
    """Files that are no videos with frames, by what is wrong with them."""
    whole = write_video(folder / "whole.mp4").read_bytes()
    contents = {"text": b"This is no video.\n" * 50, "empty": b"", "cut": whole[: len(whole) // 2], "noise": noise(5000)}
    paths = {kind: folder / f"{kind}.mp4" for kind in contents}
    for kind, content in contents.items():
        paths[kind].write_bytes(content)
    return paths | {"absent": folder / "absent.mp4", "folder": folder, "sound": write_video(folder / "sound.mp4", pictures=[])}


def noise(size):
    """Bytes that mean nothing."""
    return np.random.default_rng(0).bytes(size)


def cut(path, share):
    """Leave the first part of a file, as a copy that was stopped does."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def damage(path, number, kind="video"):
    """Overwrite a frame of a video, or a packet of its sound, with noise, as it lies in the file."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(**{kind: 0}) if packet.size][number]
    data = bytearray(path.read_bytes())
    data[packet.pos : packet.pos + packet.size] = noise(packet.size)
    path.write_bytes(data)
    return path
