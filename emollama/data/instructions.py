"""Tasks of the emotion datasets: which answers they have, how they are asked, and the weighted pool they are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from emollama.registry import did_you_mean

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


def user_text(task: str, instruction: str, sentence: str | None) -> str:
    """What the user's turn says: the transcript (absent when None), the task's tag, the instruction.

    Source: the training prompt of the published Emotion-LLaMA; the double space before the tag is theirs.
    """
    spoken = "" if sentence is None else f"The person in video says: {sentence}.  "
    return f"{spoken}[{task}] {instruction} "


def check_labels(labels: Sequence[str], key: str) -> None:
    """Refuse labels that repeat, are empty, or would break a prompt.

    Raises:
        ValueError: naming the key, the label and the characters that a label cannot hold.
    """
    for label in labels:
        if not label.strip() or label != label.strip() or _BREAKS_A_PROMPT & set(label):
            raise ValueError(
                f"{key}: the label {label!r} would break the prompt. A label has text, no space at its ends, and none of"
                " { } [ ] < > , or line breaks."
            )
    if len(set(labels)) != len(labels):
        raise ValueError(f"{key}: a label is given twice in {list(labels)}")


class TaskPool:
    """A weighted pool of tasks, each with its instructions.

    Args:
        pool: a task's name, several (one that is repeated weighs more), or a mapping name -> weight.
        instructions: replaces the built-in instructions of the tasks that it names; ``{labels}`` in one is replaced.
        prompt_labels: the labels shown for ``{labels}``, in this order.
        built_in: the tasks that there are, with their instructions.

    Attributes:
        tasks: names of the tasks with a weight above 0.
        instructions: task -> its instructions, labels filled in.

    Raises:
        ValueError: an unknown task, no positive weight, or a task without instructions; names the key.
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
                raise ValueError(f"task_pool: {name!r} is not a task's name; weights are given as a mapping {{name: weight}}")
        weights = dict(pool) if isinstance(pool, Mapping) else {name: float(names.count(name)) for name in names}
        for key, given in (("task_pool", weights), ("instructions", instructions)):
            for name in given:
                if name not in built_in:
                    hint = did_you_mean(str(name), built_in)
                    raise ValueError(f"{key}: unknown task '{name}'.{hint} Known: {', '.join(built_in)}")
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ValueError(f"task_pool: the weight of '{name}' is {weight!r}; a weight is a number of at least 0")
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        if not weights:
            raise ValueError(f"task_pool: no task in it. Known: {', '.join(built_in)}")
        self.tasks = tuple(weights)
        self._cumulative = np.cumsum(list(weights.values())) / sum(weights.values())
        self._shown = ", ".join(prompt_labels)
        self.instructions = {task: [self.filled(text) for text in instructions.get(task, built_in[task])] for task in self.tasks}
        for task, texts in self.instructions.items():
            if not texts:
                raise ValueError(f"instructions: '{task}' has no instruction. Give at least one, or leave the key out.")

    def draw(self, rng: np.random.Generator) -> tuple[str, str]:
        """A task by its weight, and one of its instructions."""
        index = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        task = self.tasks[min(index, len(self.tasks) - 1)]
        return task, str(rng.choice(self.instructions[task]))

    def filled(self, instruction: str) -> str:
        """The instruction with the prompt labels in place of ``{labels}``; other braces are text."""
        return instruction.replace("{labels}", self._shown)

    def first(self, task: str) -> str:
        """The first instruction of a task: the one that evaluation asks with."""
        return self.instructions[task][0]
