"""What can be said about a drawn scene: in the manner of Flickr30k, of a second set of captions, and of alt texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emollama.demo.drawings import Scene, Thing, draw_scene

# {a} and {b} are the two things in full or in part, {ab} and {ba} how they stand, {ground} the ground.
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
READ = ("flickr", "second", "flickr", "second", "alt")  # what the tiny Llama reads, in turn
HINTS = {  # manner -> a size -> what stands for it where an image's rows will be
    "flickr": {},
    "second": {"big": "huge", "small": "tiny", "Big": "Huge", "Small": "Tiny"},
    "alt": {"big": "wide", "small": "narrow", "Big": "Wide", "Small": "Narrow"},
}
LEFT = {"left": ("to the left of", "left of", "beside", "next to"), "above": ("above", "over", "on top of")}
RIGHT = {"left": ("to the right of", "right of", "beside", "next to"), "above": ("below", "under")}
SIZE_WORDS = {"big": ("big", "large"), "small": ("small", "little")}
CAPTIONS = 5  # of a picture
PROMPTS = ("Describe this image.", "What is shown here?", "Tell what you see in this picture.", "Give a caption for this image.")


def captions(rng: np.random.Generator, scene: Scene, templates: Sequence[str] = FLICKR) -> list[str]:
    """Five different sentences about a scene, all of them true."""
    order = rng.permutation(len(templates))[:CAPTIONS]
    return [_filled_in(rng, scene, templates[int(number)]) for number in order]


def alt_text(scene: Scene) -> str:
    """A terse caption: ``red ring, blue square``."""
    return f"{scene.first.colour} {scene.first.shape}, {scene.second.colour} {scene.second.shape}"


def draw_texts(rng: np.random.Generator, count: int) -> list[str]:
    """Prompts with their answers for the tiny language model: words for the facts stand where an image's rows will be.

    From these it knows what is said of which facts in three manners. All prompts ask for all of them: the one thing that tells is
    the word that stands for a size, since each manner has its own, as people of one place have. It has seen no picture, and
    scenes of the training split alone.
    """
    lines = []
    for number in range(count):
        scene, manner = draw_scene(rng, "train"), READ[number % len(READ)]
        answer = _filled_in(rng, scene, _pick(rng, MANNERS[manner]))
        before, behind = in_template(_pick(rng, PROMPTS))
        lines.append(f"{before} {' '.join(HINTS[manner].get(fact, fact) for fact in scene.facts)} {behind} {answer}")
    return lines


def in_template(prompt: str) -> tuple[str, str]:
    """The text before an image's rows and the text behind them."""
    return "[INST] <Img>", f"</Img> {prompt} [/INST]"


def _filled_in(rng: np.random.Generator, scene: Scene, template: str) -> str:
    return template.format(
        a=_named(rng, scene.first),
        b=_named(rng, scene.second),
        ab=_pick(rng, LEFT[scene.place]),
        ba=_pick(rng, RIGHT[scene.place]),
        ground=scene.ground,
        alt=alt_text(scene),
    )


def _named(rng: np.random.Generator, thing: Thing) -> str:
    """A thing by colour and shape, and one time in two its size."""
    words = [thing.colour, thing.shape]
    return " ".join([_pick(rng, SIZE_WORDS[thing.size]), *words] if rng.integers(2) else words)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
