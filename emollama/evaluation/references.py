"""References of all samples, merged from reference files and from the references in prediction files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from emollama.data.label_map import LABELS, LabelMap
from emollama.errors import UserError
from emollama.evaluation.input_files import PredictionFile, ReferenceFile
from emollama.evaluation.predictions import CAPTION, DESCRIPTION_TASKS, Prediction, Reference
from emollama.listing import abbreviated


@dataclass(frozen=True)
class References:
    """The references of all samples.

    Attributes:
        by_task: task -> sample name -> label, description, or captions.
        openset: sample name -> emotion words; empty if there are none.
        openset_path: file that contains the emotion words.
        digits: number of digits to which numeric names are padded with zeros; 0 leaves names unchanged.
        is_emer: whether the descriptions may be EMER's.
        ids: image number -> image name.
    """

    by_task: dict[str, Mapping[str, Reference]] = field(default_factory=dict)
    openset: dict[str, tuple[str, ...]] = field(default_factory=dict)
    openset_path: str | None = None
    digits: int = 0
    is_emer: bool = False
    ids: dict[str, str] = field(default_factory=dict)

    def cover(self, task: str) -> bool:
        """Return whether a task has references; emotion words are references of every task."""
        return bool(self.openset) or task in self.by_task


def task_name(task: str) -> str:
    """Return the name of a task as it appears in messages."""
    return f"the task '{task}'" if task else "predictions without a task"


def allowed_labels(references: References, labels: Sequence[str] | None) -> list[str]:
    """Return the labels that answers may have: ``labels``, or those of the references in their usual order.

    Raises:
        UserError: If the references have labels that are not in ``labels`` (all are listed).
    """
    reference_labels = set(map(str, references.by_task.get("emotion", {}).values()))
    if labels is None:
        return sorted(reference_labels, key=lambda label: (LABELS.index(label) if label in LABELS else len(LABELS), label))
    allowed = {label.casefold() for label in labels}
    if not_allowed := sorted(label for label in reference_labels if label.casefold() not in allowed):
        listed = abbreviated(map(repr, not_allowed))
        raise UserError(f"--labels: the references have other labels: {listed}. Add them, or map them with --aliases.")
    return list(labels)


def relabel(references: References, aliases: Mapping[str, str], labels: Sequence[str] | None) -> References:
    """Replace labels by those that they stand for, as lists and imports do: case is ignored, and synonyms count.

    Args:
        references: the references of all tasks.
        aliases: raw label -> label.
        labels: the allowed labels; None allows all labels of the references, of which only the case is unified.
    """
    if "emotion" not in references.by_task:
        return references
    label_map = LabelMap(labels or (), [aliases])
    raw_labels = {name: str(label) for name, label in references.by_task["emotion"].items()}
    new_labels = {name: label_map.resolve(label) or label_map.mapped(label) for name, label in raw_labels.items()}
    if labels is None:
        ordered = sorted({*new_labels.values()}, key=lambda label: (label not in LABELS, label != label.lower(), label))
        spellings = LabelMap(ordered)
        new_labels = {name: spellings.resolve(label) or label for name, label in new_labels.items()}
    return replace(references, by_task=references.by_task | {"emotion": new_labels})


def merge_references(reference_files: Sequence[ReferenceFile], files: Sequence[PredictionFile], task: str | None) -> References:
    """Merge all reference files, and add the references in the prediction files (of ``task``, or of all tasks if None).

    Raises:
        UserError: If two files have references for the same samples and task, or no file has any.
    """
    by_task: dict[str, Mapping[str, Reference]] = {}
    for file in reference_files:
        for file_task, table in file.references.items():
            if file_task in by_task:
                content = {"emotion": "labels", CAPTION: "captions"}.get(file_task, "descriptions")
                raise UserError(f"--truth: both {file.path} and a previous file contain {content}. Specify one of the two.")
            by_task[file_task] = table
    word_files = [file for file in reference_files if file.openset is not None]
    if len(word_files) > 1:
        paths = " and in ".join(file.path for file in word_files)
        raise UserError(f"--truth: there are emotion words in {paths}. Specify one of these files.")
    own = _own_references(files, [name for file in files for name in file.tasks if name not in by_task and task in (None, name)])
    if not by_task and not own and not word_files:
        tasks = sorted({name for file in files for name in file.tasks} - {""})
        hint = f"; the predictions are for {abbreviated(tasks)}" if tasks else ""
        about = f" for the task '{task}'" if task is not None else ""
        raise UserError(
            f"--truth is required: none of the predictions{about} has a reference{hint}. Specify a file with the references."
        )
    return References(
        by_task=by_task | own,
        openset={name: tuple(words) for file in word_files for name, words in (file.openset or {}).items()},
        openset_path=word_files[0].path if word_files else None,
        digits=max((file.digits for file in reference_files), default=0),
        is_emer=any(file.is_emer for file in reference_files) or any(name in own for name in DESCRIPTION_TASKS),
        ids={number: name for file in reference_files for number, name in file.ids.items()},
    )


def _own_references(files: Iterable[PredictionFile], tasks: Collection[str]) -> dict[str, dict[str, Reference]]:
    """Map task and sample name to the references that the prediction files contain.

    Raises:
        UserError: If a sample has two different references.
    """
    references: dict[str, dict[str, Reference]] = {}
    for path, prediction in ((file.path, prediction) for file in files for prediction in file.predictions):
        reference = _reference(prediction)
        if not reference or prediction.task not in tasks:
            continue
        if references.setdefault(prediction.task, {}).setdefault(prediction.name, reference) != reference:
            problem = f"the reference of '{prediction.name}' ({task_name(prediction.task)}) differs from that in a previous file"
            raise UserError(f"{path}: {problem}. Specify the correct references with --truth.")
    return references


def _reference(prediction: Prediction) -> Reference:
    """Return the reference that a prediction contains: a list for captions."""
    return prediction.captions if prediction.task == CAPTION else prediction.reference_text or ""
