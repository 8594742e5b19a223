"""The tasks of the emotion datasets: their instructions, and the weighted pool from which training draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from emollama.data.prompts.image_tag import IMAGE_TAG
from emollama.suggestions import did_you_mean

_REASONS = [
    "Look at the face, listen to the voice and read the words: which emotion does this person feel, and what shows it?",
    "Explain step by step how the facial movements, the tone of voice and the spoken words reveal the person's emotion.",
    "Which clues in the picture, in the sound and in the words tell how the person feels? Name the emotion they add up to.",
    "Describe the emotional state of the person and the visual and vocal evidence for it.",
    "What can be seen and heard that speaks for a particular emotion? Conclude with that emotion.",
]

BUILT_IN: dict[str, list[str]] = {
    "emotion": [
        "Which of these emotions does the person in the video show: {labels}?",
        "Choose the one label that fits the person's emotion best: {labels}.",
        "How does the person in the video feel? Answer with one of: {labels}.",
        "Classify the emotion that is expressed in this clip as one of {labels}.",
    ],
    "reason": _REASONS,
    "reason_v2": _REASONS,
}
TASK_NAMES = tuple(BUILT_IN)
_BREAKS_A_PROMPT = set("{}[]<>,\n\r\t")


def user_text(task: str | None, instruction: str, sentence: str | None) -> str:
    """Return the text of the user's turn: the transcript (absent if None), the task's tag (absent if None), the instruction.

    The format is that of the published Emotion-LLaMA training code, including the double space before the tag. A transcript that
    spells ``<ImageHere>`` gets a space in it, because only an instruction can be the position of an image.
    """
    spoken = None if sentence is None else sentence.replace(IMAGE_TAG, f"{IMAGE_TAG[0]} {IMAGE_TAG[1:]}")
    transcript = "" if spoken is None else f"The person in video says: {spoken}.  "
    tag = "" if task is None else f"[{task}] "
    return f"{transcript}{tag}{instruction} "


def check_labels(labels: Sequence[str], key: str) -> None:
    """Check that labels are unique, are not empty, and do not break the format of a prompt.

    Raises:
        ValueError: If a label is invalid. The message names the key, the label and the characters that a label must not contain.
    """
    for label in labels:
        if not label.strip() or label != label.strip() or _BREAKS_A_PROMPT & set(label):
            raise ValueError(
                f"{key}: the label {label!r} would break the prompt. A label must not be empty, start or end with a space, or"
                " contain any of { } [ ] < > , or line breaks."
            )
    if len(set(labels)) != len(labels):
        raise ValueError(f"{key}: {list(labels)} contains a label twice")


class TaskPool:
    """A weighted pool of tasks with their instructions.

    Args:
        pool: the name of a task, a list of names (each repetition adds to the weight), or a mapping name -> weight.
        instructions: task -> instructions, which replace the built-in ones; ``{labels}`` in them becomes the prompt labels.
        prompt_labels: the labels that replace ``{labels}``, in this order.
        built_in: task -> instructions of all existing tasks.

    Attributes:
        tasks: names of the tasks with a weight above 0.
        instructions: task -> its instructions with the labels filled in.

    Raises:
        ValueError: If a task is unknown or has no instructions, or no weight is positive. The message names the key.
    """

    def __init__(
        self,
        pool: str | Sequence[str] | Mapping[str, float],
        instructions: Mapping[str, Sequence[str]],
        prompt_labels: Sequence[str],
        built_in: Mapping[str, Sequence[str]] = BUILT_IN,
    ) -> None:
        names = [pool] if isinstance(pool, str) else list(pool)
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"task_pool: {name!r} is not the name of a task. Write weights as a mapping {{name: weight}}.")
        weights = dict(pool) if isinstance(pool, Mapping) else {name: float(names.count(name)) for name in names}
        for key, tasks in (("task_pool", weights), ("instructions", instructions)):
            for name in tasks:
                if name not in built_in:
                    hint = did_you_mean(str(name), built_in)
                    raise ValueError(f"{key}: unknown task '{name}'.{hint} Known: {', '.join(built_in)}")
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ValueError(f"task_pool: the weight of '{name}' is {weight!r}; it must be a number of at least 0")
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        if not weights:
            raise ValueError(f"task_pool contains no task with a positive weight. Known tasks: {', '.join(built_in)}")
        self.tasks = tuple(weights)
        self._cumulative = np.cumsum(list(weights.values())) / sum(weights.values())
        self._label_list = ", ".join(prompt_labels)
        self.instructions = {
            task: [self.fill_labels(text) for text in instructions.get(task, built_in[task])] for task in self.tasks
        }
        for task, texts in self.instructions.items():
            if not texts:
                raise ValueError(f"instructions: '{task}' has no instruction. Add at least one, or remove the key.")

    def draw(self, rng: np.random.Generator) -> tuple[str, str]:
        """Draw a task according to the weights, and one of its instructions."""
        index = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        task = self.tasks[min(index, len(self.tasks) - 1)]
        return task, str(rng.choice(self.instructions[task]))

    def draw_different(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """Draw different tasks, one after the other according to the weights of those that remain, each with an instruction.

        Args:
            rng: the generator.
            count: number of tasks, at most that of the pool. For one task, the result is that of :meth:`draw`.
        """
        if count == 1:
            return [self.draw(rng)]
        # Sorted by exponential variables with the weights as rates, tasks are in the order of such draws.
        times = rng.exponential(size=len(self.tasks)) / np.diff(self._cumulative, prepend=0.0)
        tasks = [self.tasks[index] for index in np.argsort(times, kind="stable")[:count]]
        return [(task, str(rng.choice(self.instructions[task]))) for task in tasks]

    def fill_labels(self, instruction: str) -> str:
        """Replace ``{labels}`` in an instruction by the prompt labels; other braces are plain text."""
        return instruction.replace("{labels}", self._label_list)

    def first_instruction(self, task: str) -> str:
        """Return the first instruction of a task, which evaluation uses by default."""
        return self.instructions[task][0]
