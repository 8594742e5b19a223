"""Invented pictures for captioning: two coloured shapes on a plain ground, side by side or one above the other.

A scene is eight facts, each one word. Of the pairs of coloured shapes, a fifth is kept for unseen scenes, another for validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "val", "test"]
Point = tuple[float, float]

WIDTH, HEIGHT = 144, 128  # of a picture in pixels
SIZES: Mapping[str, float] = {"big": 27.0, "small": 16.0}  # of a shape -> its radius in pixels
COLOURS = {
    "red": (205, 40, 40),
    "blue": (45, 70, 205),
    "green": (40, 150, 60),
    "yellow": (235, 205, 45),
    "purple": (140, 50, 160),
}
SHAPES = ("square", "triangle", "ring", "bar")
PLACES: Mapping[str, tuple[Point, Point]] = {  # of the first shape to the second -> the middles of both, in pixels
    "left": ((38, 64), (106, 64)),
    "above": ((72, 32), (72, 96)),
}
GROUNDS = {"white": (245, 245, 245), "grey": (160, 160, 160), "black": (25, 25, 25)}
OF_FIRST = (*SIZES, *COLOURS, *SHAPES)
WORDS = (*OF_FIRST, *PLACES, *(word.capitalize() for word in OF_FIRST), *GROUNDS)  # every word that a fact can be
SPLIT_OF: tuple[Split, ...] = ("train", "train", "train", "val", "test")


@dataclass(frozen=True)
class Thing:
    """One shape: words of SIZES, COLOURS and SHAPES."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows. The first thing is left of the second, or above it."""

    first: Thing
    second: Thing
    place: str
    ground: str

    @property
    def facts(self) -> tuple[str, ...]:
        """Its eight facts, words of WORDS, always in the same order; those of the second thing begin with a capital."""
        one, other = ((thing.size, thing.colour, thing.shape) for thing in (self.first, self.second))
        return (*one, self.place, *(word.capitalize() for word in other), self.ground)

    @property
    def split(self) -> Split:
        """Where scenes with this pair of coloured shapes go."""
        pair = (self.first, self.second)
        numbers = [tuple(COLOURS).index(thing.colour) + SHAPES.index(thing.shape) * (2 + i) for i, thing in enumerate(pair)]
        return SPLIT_OF[sum(numbers) % len(SPLIT_OF)]


def draw_scene(rng: np.random.Generator, split: Split) -> Scene:
    """A random scene of a split. Its two things differ in colour, in shape, or in both."""
    while True:
        first, second = (Thing(_pick(rng, SIZES), _pick(rng, COLOURS), _pick(rng, SHAPES)) for _ in range(2))
        scene = Scene(first, second, _pick(rng, PLACES), _pick(rng, GROUNDS))
        if scene.split == split and (first.colour, first.shape) != (second.colour, second.shape):
            return scene


def draw_picture(rng: np.random.Generator, scene: Scene) -> Image.Image:
    """An RGB picture of a scene; shades, sizes and places are a little different each time."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), _shade(rng, GROUNDS[scene.ground]))
    pen = ImageDraw.Draw(picture)
    for thing, (x, y) in zip((scene.first, scene.second), PLACES[scene.place], strict=True):
        radius = SIZES[thing.size] * rng.uniform(0.92, 1.08)
        across, down = rng.uniform(-4, 4), rng.uniform(-3, 3)
        _draw_shape(pen, thing.shape, (x + across, y + down), radius, _shade(rng, COLOURS[thing.colour]))
    return picture


def _pick(rng: np.random.Generator, words: Mapping[str, object] | tuple[str, ...]) -> str:
    return tuple(words)[int(rng.integers(len(words)))]


def _shade(rng: np.random.Generator, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in (np.array(colour) + rng.integers(-10, 11, 3)).clip(0, 255))
    return red, green, blue


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, middle: Point, radius: float, colour: tuple[int, int, int]) -> None:
    x, y = middle
    if shape == "ring":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=round(radius / 3))
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x + radius, y + 0.8 * radius), (x - radius, y + 0.8 * radius)], fill=colour)
    else:
        height = {"bar": 0.3, "square": 0.85}[shape] * radius
        width = radius if shape == "bar" else height
        pen.rectangle((x - width, y - height, x + width, y + height), fill=colour)
