"""Checks of the texts of a block: labels, answers, sentences, captions and prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from emollama.checks.captions import LabelWords, is_refusal
from emollama.checks.findings import Finding
from emollama.data.dataset import DatasetContent
from emollama.data.instructions import TaskPool


def sentence_counts(content: DatasetContent, names: Collection[str]) -> dict[str, int] | None:
    """Count samples with a sentence, empty sentences, different ones, and those of samples that are not listed.

    Args:
        content: the texts of the block.
        names: names of the samples in use.

    Returns:
        what is counted -> number; None if prompts contain no sentence.
    """
    if content.sentences is None:
        return None
    listed = set(content.listed)
    sentences = [content.sentences[name] for name in names if name in content.sentences]
    return {
        "clips": len(sentences),
        "empty": sum(not sentence for sentence in sentences),
        "different": len(set(sentences)),
        "of clips not listed": sum(name not in listed for name in content.sentences),
    }


def caption_findings(content: DatasetContent, names: Collection[str], labels: Sequence[str], block: str) -> Iterator[Finding]:
    """Yield findings about refusals, captions that name another label, repeated captions, and captions of unlisted samples.

    Args:
        content: the texts of the block.
        names: names of the samples in use.
        labels: all labels of the block.
        block: label of the block.
    """
    listed, label_words = set(content.listed), LabelWords(labels)
    for source, captions in content.captions.items():
        own = {name: captions[name] for name in names if name in captions}
        refusals = tuple(name for name, text in own.items() if is_refusal(text))
        if refusals:
            remedy = "Leave these samples out" if content.exclude_key is None else f"Exclude them with {content.exclude_key}"
            text = f"{source}: captions in which a language model refuses to describe. {remedy}"
            yield Finding("problem", "refusal", text, block, refusals)
        others = {
            name: other
            for name, text in own.items()
            if (other := label_words.other(text, content.labels.get(name, ""))) is not None
        }
        if others:
            details = tuple(f"{name} ({content.labels[name]}; the caption: {other})" for name, other in others.items())
            text = f"{source}: captions that name a label other than the clip's (only a hint; read these captions)"
            yield Finding("note", "label and caption", text, block, tuple(others), details)
        counts = Counter(own.values())
        repeated = tuple(name for name, text in own.items() if counts[text] > 1)
        if repeated:
            text = f"{source}: these clips have exactly the same caption as another clip"
            yield Finding("note", "repeated caption", text, block, repeated)
        unlisted = tuple(name for name in captions if name not in listed)
        if unlisted:
            text = f"{source}: captions of clips that {content.list_file or 'the dataset'} does not contain"
            yield Finding("note", "unlisted captions", text, block, unlisted)


def answer_findings(content: DatasetContent, block: str, *, training: bool) -> Iterator[Finding]:
    """Yield notes about empty answers, and about samples of an evaluation without an answer.

    Args:
        content: the texts of the block.
        block: label of the block.
        training: whether the block is used for training, in which missing answers are problems and not notes.
    """
    for task, answers in content.answers.items():
        empty = tuple(name for name, answer in answers.items() if answer == "")
        if empty:
            text = f"task {task}: the answers of these clips are empty after text processing, so the model learns empty answers"
            yield Finding("note", "empty answer", text, block, empty)
        none = tuple(name for name, answer in answers.items() if answer is None)
        if none and not training:
            text = f"task {task}: these clips have no reference answer, so their predictions are not scored"
            yield Finding("note", "no answer", text, block, none)


def instructions_in_use(pool: TaskPool, instruction: str | None) -> list[tuple[str, str]]:
    """Return the (task, instruction) pairs in use.

    Args:
        pool: the task pool of the dataset.
        instruction: key ``instruction`` of an evaluation block; None for training, which uses all instructions.
    """
    if instruction is None:
        return [(task, instruction) for task in pool.tasks for instruction in pool.instructions[task]]
    return [
        (task, pool.first_instruction(task) if instruction == "first" else pool.fill_labels(instruction)) for task in pool.tasks
    ]
