"""Descriptions of the synthetic videos, and texts with questions about them, for the demo of the page.

A description names the colour and the movement of the disc, the pitch of the tone, and the emotion that they have in common.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emollama.data.csv_files import read_csv, write_csv
from emollama.data.instructions import BUILT_IN
from emollama.demo.videos import LOOKS, SENTENCES

# Without capitals and full stops, which training removes from descriptions.
DESCRIPTION = "the disc is {colour} and {motion}, the tone is {pitch}, and this points to {emotion}"
QUESTIONS = {  # question -> its answer
    "What colour is the disc?": "The disc is {colour}.",
    "How does the disc move?": "The disc {motion}.",
    "How high is the tone?": "The tone is {pitch}.",
    "Which emotion is it?": "The emotion is {emotion}.",
}


def add_descriptions(folder: Path) -> None:
    """Write ``clips.csv``, which is ``labels.csv`` with the further column ``reason``.

    Args:
        folder: the folder of :func:`emollama.demo.videos.make_videos`.
    """
    header, rows = read_csv(str(folder / "labels.csv"), "labels.csv")
    described = [[*cells.values(), _filled(DESCRIPTION, cells["emotion"])] for _, cells in rows]
    write_csv(folder / "clips.csv", [[*header, "reason"], *described], escape=False)


def draw_conversations(seed: int, count: int) -> list[str]:
    """Return prompts with answers for the tiny language model, with words in place of features.

    Each text has one or two turns. The first turn asks for the label, for a description, or a free-form question.

    Args:
        seed: seed of all random draws.
        count: number of texts.
    """
    rng = np.random.default_rng([seed, 3])
    return [_conversation(rng) for _ in range(count)]


def _conversation(rng: np.random.Generator) -> str:
    emotion = _pick(rng, tuple(LOOKS))
    colour, motion, pitch = LOOKS[emotion]
    features = f"<video> {colour} </video> <feature> {colour} {motion} {pitch} </feature>"
    sentence = _pick(rng, SENTENCES)
    transcript = f"The person in video says: {sentence}.  " if rng.integers(4) else ""
    kind = rng.integers(3)
    if kind == 0:
        instruction = _pick(rng, BUILT_IN["emotion"]).replace("{labels}", ", ".join(LOOKS))
        question, answer = f"[emotion] {instruction} ", emotion
    elif kind == 1:
        question, answer = f"[reason] {_pick(rng, BUILT_IN['reason'])} ", _filled(DESCRIPTION, emotion)
    else:
        question, answer = _question(rng, emotion)
    first = f"[INST] {features} {transcript}{question} [/INST] {answer}"
    if rng.integers(2):
        return first
    second, reply = _question(rng, emotion)
    return f"{first}</s>[INST] {second} [/INST] {reply}"


def _question(rng: np.random.Generator, emotion: str) -> tuple[str, str]:
    """Return a free-form question about a video, and its answer."""
    question = _pick(rng, tuple(QUESTIONS))
    return question, _filled(QUESTIONS[question], emotion)


def _filled(template: str, emotion: str) -> str:
    colour, motion, pitch = LOOKS[emotion]
    return template.format(colour=colour, motion=motion, pitch=pitch, emotion=emotion)


def _pick(rng: np.random.Generator, items: tuple[str, ...] | list[str]) -> str:
    return items[int(rng.integers(len(items)))]
