"""Invented pictures for captioning: two coloured shapes on a plain background, side by side or one above the other.

A scene is described by eight attributes of one word each. One fifth of the pairs of coloured shapes occurs only in the test
split, and another fifth only in the validation split.
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
SIZES: Mapping[str, float] = {"big": 27.0, "small": 16.0}  # size of a shape -> radius in pixels
COLOURS = {
    "red": (205, 40, 40),
    "blue": (45, 70, 205),
    "green": (40, 150, 60),
    "yellow": (235, 205, 45),
    "purple": (140, 50, 160),
}
SHAPES = ("square", "triangle", "ring", "bar")
POSITIONS: Mapping[str, tuple[Point, Point]] = {  # position of the first shape relative to the second -> centres in pixels
    "left": ((38, 64), (106, 64)),
    "above": ((72, 32), (72, 96)),
}
GROUNDS = {"white": (245, 245, 245), "grey": (160, 160, 160), "black": (25, 25, 25)}
OF_FIRST = (*SIZES, *COLOURS, *SHAPES)
WORDS = (*OF_FIRST, *POSITIONS, *(word.capitalize() for word in OF_FIRST), *GROUNDS)  # all values of attributes
SPLIT_OF: tuple[Split, ...] = ("train", "train", "train", "val", "test")


@dataclass(frozen=True)
class Figure:
    """A shape in a scene.

    Attributes:
        size: one of SIZES.
        colour: one of COLOURS.
        shape: one of SHAPES.
    """

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """The content of a picture.

    Attributes:
        first: the left or upper figure.
        second: the other figure.
        position: ``left`` or ``above``.
        ground: colour of the background, one of GROUNDS.
    """

    first: Figure
    second: Figure
    position: str
    ground: str

    @property
    def attributes(self) -> tuple[str, ...]:
        """The eight attributes, words of WORDS in a fixed order. Those of the second figure start with a capital letter."""
        one, other = ((figure.size, figure.colour, figure.shape) for figure in (self.first, self.second))
        return (*one, self.position, *(word.capitalize() for word in other), self.ground)

    @property
    def split(self) -> Split:
        """The split of scenes with this pair of coloured shapes."""
        pair = (self.first, self.second)
        numbers = [tuple(COLOURS).index(figure.colour) + SHAPES.index(figure.shape) * (2 + i) for i, figure in enumerate(pair)]
        return SPLIT_OF[sum(numbers) % len(SPLIT_OF)]


def draw_scene(rng: np.random.Generator, split: Split) -> Scene:
    """Return a random scene of a split. Its figures differ in colour or shape."""
    while True:
        first, second = (Figure(_pick(rng, SIZES), _pick(rng, COLOURS), _pick(rng, SHAPES)) for _ in range(2))
        scene = Scene(first, second, _pick(rng, POSITIONS), _pick(rng, GROUNDS))
        if scene.split == split and (first.colour, first.shape) != (second.colour, second.shape):
            return scene


def draw_picture(rng: np.random.Generator, scene: Scene) -> Image.Image:
    """Draw a scene as an RGB picture, with small random variations of colours, sizes and positions."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), _shade(rng, GROUNDS[scene.ground]))
    pen = ImageDraw.Draw(picture)
    for figure, (x, y) in zip((scene.first, scene.second), POSITIONS[scene.position], strict=True):
        radius = SIZES[figure.size] * rng.uniform(0.92, 1.08)
        across, down = rng.uniform(-4, 4), rng.uniform(-3, 3)
        _draw_shape(pen, figure.shape, (x + across, y + down), radius, _shade(rng, COLOURS[figure.colour]))
    return picture


def _pick(rng: np.random.Generator, words: Mapping[str, object] | tuple[str, ...]) -> str:
    return tuple(words)[int(rng.integers(len(words)))]


def _shade(rng: np.random.Generator, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in (np.array(colour) + rng.integers(-10, 11, 3)).clip(0, 255))
    return red, green, blue


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, centre: Point, radius: float, colour: tuple[int, int, int]) -> None:
    x, y = centre
    if shape == "ring":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=round(radius / 3))
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x + radius, y + 0.8 * radius), (x - radius, y + 0.8 * radius)], fill=colour)
    else:
        height = {"bar": 0.3, "square": 0.85}[shape] * radius
        width = radius if shape == "bar" else height
        pen.rectangle((x - width, y - height, x + width, y + height), fill=colour)
