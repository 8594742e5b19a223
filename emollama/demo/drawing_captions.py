"""Captions of drawn scenes in three manners: Flickr30k's, that of a second data set, and alt texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emollama.demo.drawings import Figure, Scene, draw_scene

# {a} and {b} are the two shapes, {ab} and {ba} are their relative positions, {ground} is the background.
FLICKR = (
    "A {a} is {ab} a {b}.",
    "A {a} is {ab} a {b} on a {ground} background.",
    "There is a {a} {ab} a {b}.",
    "Two shapes, a {a} and a {b}, are on a {ground} background.",
    "A {a} can be seen {ab} a {b}.",
    "A {a} sits {ab} a {b} with {ground} all around.",
    "On a {ground} background, a {a} is {ab} a {b}.",
)
SECOND = (
    "A drawing of a {a} and a {b}.",
    "The {a} is placed {ab} the {b}.",
    "A {a} with a {b} {ba} it.",
    "A sheet of {ground} paper showing a {a} {ab} a {b}.",
    "Some simple figures, one is a {a} and one is a {b}.",
    "A {a} and a {b} against {ground} paper.",
)
MANNERS = {"flickr": FLICKR, "second": SECOND, "alt": ("{alt}",)}
MANNER_CYCLE = ("flickr", "second", "flickr", "second", "alt")  # manners of the tiny Llama's training texts, in turn
# manner -> size -> word that replaces it in the prompts of training texts, so that the prompt determines the manner
HINTS = {
    "flickr": {},
    "second": {"big": "huge", "small": "tiny", "Big": "Huge", "Small": "Tiny"},
    "alt": {"big": "wide", "small": "narrow", "Big": "Wide", "Small": "Narrow"},
}
LEFT = {"left": ("to the left of", "left of", "beside", "next to"), "above": ("above", "over", "on top of")}
RIGHT = {"left": ("to the right of", "right of", "beside", "next to"), "above": ("below", "under")}
SIZE_WORDS = {"big": ("big", "large"), "small": ("small", "little")}
CAPTIONS = 5  # per picture
PROMPTS = ("Describe this image.", "What is shown here?", "Tell what you see in this picture.", "Give a caption for this image.")


def captions(rng: np.random.Generator, scene: Scene, templates: Sequence[str] = FLICKR) -> list[str]:
    """Return five different true sentences about a scene."""
    order = rng.permutation(len(templates))[:CAPTIONS]
    return [_fill_in(rng, scene, templates[int(number)]) for number in order]


def alt_text(scene: Scene) -> str:
    """Return a short caption, such as ``red ring, blue square``."""
    return f"{scene.first.colour} {scene.first.shape}, {scene.second.colour} {scene.second.shape}"


def draw_texts(rng: np.random.Generator, count: int) -> list[str]:
    """Return prompts with answers for the tiny language model, with the attributes of a scene in place of image tokens.

    From these texts it learns captions in three manners. The prompts are the same for all manners. Only the words for sizes
    depend on the manner, and thus show which one is expected. All scenes are from the training split, and there are no pictures.

    Args:
        rng: the generator.
        count: number of texts.
    """
    lines = []
    for number in range(count):
        scene, manner = draw_scene(rng, "train"), MANNER_CYCLE[number % len(MANNER_CYCLE)]
        answer = _fill_in(rng, scene, _pick(rng, MANNERS[manner]))
        before, after = prompt_parts(_pick(rng, PROMPTS))
        attributes = " ".join(HINTS[manner].get(word, word) for word in scene.attributes)
        lines.append(f"{before} {attributes} {after} {answer}")
    return lines


def prompt_parts(prompt: str) -> tuple[str, str]:
    """Return the text before and after the image tokens of a prompt."""
    return "[INST] <Img>", f"</Img> {prompt} [/INST]"


def _fill_in(rng: np.random.Generator, scene: Scene, template: str) -> str:
    return template.format(
        a=_name(rng, scene.first),
        b=_name(rng, scene.second),
        ab=_pick(rng, LEFT[scene.position]),
        ba=_pick(rng, RIGHT[scene.position]),
        ground=scene.ground,
        alt=alt_text(scene),
    )


def _name(rng: np.random.Generator, figure: Figure) -> str:
    """Return colour and shape of a figure, in half of the calls preceded by its size."""
    words = [figure.colour, figure.shape]
    return " ".join([_pick(rng, SIZE_WORDS[figure.size]), *words] if rng.integers(2) else words)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
