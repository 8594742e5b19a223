"""Real video and sound files, written in milliseconds: each frame shows its number, the sound is a tone."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
STEADY = {"libx264": {"x264-params": "mbtree=0"}}  # options that make an encoder deterministic
BITS = 8  # bits of a frame's number, drawn as white and black fields along the top
TONE = 440  # Hz


def picture(number):
    """(48, 64, 3): the number on top; below it red on the left and blue on the right, which shows the orientation."""
    image = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    for bit in range(BITS):
        image[:16, bit * 8 : bit * 8 + 8] = 235 if number >> bit & 1 else 20
    image[32:, :24] = 200, 30, 30
    image[32:, 40:] = 30, 30, 200
    return image


def number_of(image):
    """The number that an upright image shows."""
    return sum(int(image[4:12, bit * 8 + 2 : bit * 8 + 6].mean() > 127) << bit for bit in range(BITS))


def tone(seconds, rate, *amplitudes):
    """(channels, samples) float32 of :data:`TONE`, one channel for each amplitude."""
    wave = np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave * amplitude for amplitude in amplitudes]).astype(np.float32)


def write_video(
    path, frames=12, *, fps=25, codec="mpeg4", pixels="yuv420p", gop=12, times=None, turned=None, sound=(0.5,), rate=44100,
    index_first=False, pictures=None, tags=None,
):  # fmt: skip
    """Write a video and return its path.

    Args:
        times: of the frames in milliseconds, if they do not follow ``fps``.
        turned: arguments of PyAV's ``set_display_rotation``.
        sound: amplitude of each channel's tone; () for no audio track.
        index_first: write an .mp4 with its index before the frames, so that its first part can be read without the rest.
        pictures: images to use instead of the numbered ones.
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
    """Trim the first frames of a video without re-encoding: they stay in the file but are marked as not shown."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        original = whole.streams.video[0]
        video = container.add_stream_from_template(original)
        early = round(frames / original.average_rate / original.time_base)
        for packet in whole.demux(original):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, video
                container.mux(packet)
    return Path(path)


def write_shortened(path, source, kind, seconds):
    """Copy a file so that its sound or its video ends early."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in whole.streams}
        for packet in whole.demux():
            if packet.dts is not None and (packet.stream.type != kind or packet.dts * packet.time_base < seconds):
                packet.stream = streams[packet.stream_index]
                container.mux(packet)
    return path


def write_broken(folder):
    """Files that are not videos with frames, named after their fault."""
    whole = write_video(folder / "whole.mp4").read_bytes()
    contents = {"text": b"This is no video.\n" * 50, "empty": b"", "cut": whole[: len(whole) // 2], "noise": noise(5000)}
    paths = {kind: folder / f"{kind}.mp4" for kind in contents}
    for kind, content in contents.items():
        paths[kind].write_bytes(content)
    return paths | {"absent": folder / "absent.mp4", "folder": folder, "sound": write_video(folder / "sound.mp4", pictures=[])}


def noise(size):
    """Random bytes."""
    return np.random.default_rng(0).bytes(size)


def cut(path, share):
    """Truncate a file like an interrupted copy."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def damage(path, number, kind="video"):
    """Overwrite a frame of a video, or a packet of its sound, with random bytes in place."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(**{kind: 0}) if packet.size][number]
    data = bytearray(path.read_bytes())
    data[packet.pos : packet.pos + packet.size] = noise(packet.size)
    path.write_bytes(data)
    return path
