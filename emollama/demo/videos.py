"""Invented videos with sound and a table of labels, in the form of a user's own folder of videos.

A video shows a disc on a noisy background and plays a tone. Two emotions share each colour, two each movement, and three each
pitch. No property alone determines the emotion, but the colour together with one of the others does. Brightness, position,
speed, loudness, noise, size, length, frame rate and sample rate are random. The sentences are not related to the emotion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emollama.data.csv_files import write_csv
from emollama.data.instructions import BUILT_IN
from emollama.logs.console import track

Position = tuple[float, float]  # horizontal and vertical distance from the centre, in units of half the shorter side
Array = NDArray[np.floating]

COLOURS = {"yellow": (1.0, 0.9, 0.1), "blue": (0.1, 0.2, 0.9), "red": (0.9, 0.1, 0.1)}  # of the disc
MOTIONS: dict[str, Callable[[float], Position]] = {  # movement -> function from a phase in radians to the disc's position
    "bounces": lambda phase: (0.0, 0.5 * math.sin(phase)),
    "rests": lambda phase: (0.0, 0.0),
    "shakes": lambda phase: (0.5 * math.sin(2 * phase), 0.0),
}
PITCHES = {"high": 1300.0, "low": 220.0}  # of the tone, in Hz
LOOKS = {  # emotion -> colour, movement, pitch
    "happy": ("yellow", "bounces", "high"),
    "sad": ("blue", "rests", "low"),
    "neutral": ("yellow", "rests", "low"),
    "angry": ("red", "shakes", "low"),
    "worried": ("blue", "shakes", "high"),
    "surprise": ("red", "bounces", "high"),
}
SENTENCES = (
    "The letter came this morning", "We will see them next week", "Somebody called about the ticket", "It is on the table",
    "That is what they said to me", "I am going there tomorrow", "He took the last chair", "", "They want me to travel north",
)  # fmt: skip
SIZES = ((64, 48), (80, 64), (96, 72), (112, 112))  # width, height in pixels
FRAME_RATES, SAMPLE_RATES = (12, 15, 25), (16000, 22050, 44100)  # per second
README = (
    "A program invented everything in this folder (seed {seed}). The videos in videos/ and unseen/ show coloured discs and\n"
    "play tones; there are no people. labels.csv assigns an emotion to each. encoders/ contains the real architectures at a\n"
    "tiny size with random, untrained weights. llm/ is a tiny language model that was trained on invented texts. Results on\n"
    "this data show that the programs work, but nothing about real data.\n"
)


def make_videos(folder: Path, *, clips: int, unseen: int, seed: int) -> None:
    """Write ``videos/``, ``labels.csv`` and ``unseen/<emotion>_<number>.mp4``. The same arguments give the same files.

    Args:
        folder: the folder to write to.
        clips: number of videos with a label; all emotions are equally frequent.
        unseen: number of videos without a label.
        seed: seed of all random draws.
    """
    emotions = tuple(LOOKS)
    rows = []
    for index in track(range(clips), clips, "writing videos", unit="clips"):
        rng = np.random.default_rng([seed, 0, index])
        name, emotion = f"clip_{index:03d}", emotions[index % len(emotions)]
        write_video(folder / "videos" / f"{name}.mp4", emotion, rng)
        rows.append((name, emotion, SENTENCES[rng.integers(len(SENTENCES))]))
    for index in range(unseen):
        emotion = emotions[index % len(emotions)]
        path = folder / "unseen" / f"{emotion}_{index // len(emotions) + 1}.mp4"
        write_video(path, emotion, np.random.default_rng([seed, 1, index]))
    write_csv(folder / "labels.csv", [("name", "emotion", "sentence"), *rows], escape=False)
    (folder / "README.txt").write_text(README.format(seed=seed), encoding="utf-8")


def write_video(path: Path, emotion: str, rng: np.random.Generator) -> None:
    """Write a video of 1 to 2 seconds with sound (H.264 and AAC in MP4)."""
    import av

    width, height = SIZES[rng.integers(len(SIZES))]
    frame_rate, sample_rate = (int(rng.choice(rates)) for rates in (FRAME_RATES, SAMPLE_RATES))
    channels, seconds = int(rng.integers(1, 3)), rng.uniform(1.0, 2.0)
    colour, motion, pitch = LOOKS[emotion]
    disc = _Disc.random(rng, COLOURS[colour])
    phases = rng.uniform(0, 2 * math.pi) + rng.uniform(4, 6) * np.arange(round(seconds * frame_rate)) / frame_rate
    pictures = [disc.picture(rng, (height, width), MOTIONS[motion](phase)) for phase in phases]
    wave = _wave(PITCHES[pitch], rng, round(seconds * sample_rate), sample_rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=frame_rate, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        layout = "stereo" if channels == 2 else "mono"
        # The default coder takes most of the time of a video.
        audio = container.add_stream("aac", rate=sample_rate, layout=layout, options={"aac_coder": "fast"})
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        planes = np.repeat(wave[None], channels, 0)
        for first in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(planes[:, first : first + 1024].copy(), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = sample_rate, first
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


@dataclass(frozen=True)
class _Disc:
    """Properties that are constant in a clip: colour (3,) and background in [0, 1], radius and shift in units of Position."""

    colour: Array
    ground: float
    radius: float
    shift: Array

    @classmethod
    def random(cls, rng: np.random.Generator, colour: tuple[float, float, float]) -> _Disc:
        shade = np.array(colour) * rng.uniform(0.7, 1.0) + rng.normal(0, 0.04, 3)
        return cls(shade, rng.uniform(0.1, 0.4), rng.uniform(0.45, 0.6), rng.uniform(-0.15, 0.15, 2))

    def picture(self, rng: np.random.Generator, size: tuple[int, int], position: Position) -> NDArray[np.uint8]:
        """Return a picture (H, W, 3) with the disc at a position."""
        height, width = size
        down, across = np.mgrid[:height, :width]
        x, y = np.array(position) + self.shift
        half = min(size) / 2
        inside = ((across - width / 2) / half - x) ** 2 + ((down - height / 2) / half - y) ** 2 < self.radius**2
        picture = np.where(inside[..., None], self.colour, self.ground) + rng.normal(0, 0.06, (height, width, 3))
        return (255 * picture.clip(0, 1)).astype(np.uint8)


def _wave(pitch: float, rng: np.random.Generator, count: int, rate: int) -> Array:
    """Return ``count`` samples of sound, float32 in [-1, 1]: a tone with an overtone, and noise."""
    turns = pitch * rng.uniform(0.8, 1.25) * np.arange(count) / rate
    tone = np.sin(2 * math.pi * turns) + 0.4 * np.sin(4 * math.pi * turns)
    sound = rng.uniform(0.3, 0.5) * tone + rng.normal(0, 0.05, count)
    return sound.clip(-1, 1).astype(np.float32)


def draw_texts(seed: int, count: int, instructions: Sequence[str] = BUILT_IN["emotion"]) -> list[str]:
    """Return prompts with answers for the tiny language model, with words in place of features.

    The model learns which colour, movement and pitch belong to which emotion, but it sees no features.

    Args:
        seed: seed of all random draws.
        count: number of texts.
        instructions: the instructions of the prompts.
    """
    rng = np.random.default_rng([seed, 2])
    labels, lines = ", ".join(LOOKS), []
    for _ in range(count):
        emotion = tuple(LOOKS)[rng.integers(len(LOOKS))]
        colour, motion, pitch = LOOKS[emotion]
        sentence = SENTENCES[rng.integers(len(SENTENCES))]
        transcript = f"The person in video says: {sentence}.  " if rng.integers(4) else ""
        instruction = instructions[int(rng.integers(len(instructions)))].replace("{labels}", labels)
        features = f"<video> {colour} </video> <feature> {colour} {motion} {pitch} </feature>"
        lines.append(f"[INST] {features} {transcript}[emotion] {instruction}  [/INST] {emotion}")
    return lines
