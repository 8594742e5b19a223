"""What clients learn about the model of the server, and what they should know about an answer of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emollama.inference.remote_support import NO_LIKELIHOODS
from emollama.inference.requests import EMOTION, Answer, Request
from emollama.inference.serve.errors import ApiError

if TYPE_CHECKING:
    from emollama.inference.engine import Engine


@dataclass(frozen=True)
class ServedModel:
    """The model of the server.

    Attributes:
        name: its name in requests.
        trained_tasks: the tasks of the training of its checkpoint; None if they are unknown.
        has_probabilities: whether it can compute label probabilities.
    """

    name: str
    trained_tasks: Sequence[str] | None
    has_probabilities: bool = True

    def require(self, name: str) -> None:
        """Check the name of the model in a request.

        Raises:
            ApiError: If it is another one.
        """
        if name != self.name:
            message = f"The model of this server is '{self.name}'."
            raise ApiError(404, message, param="model", code="model_not_found")

    def require_probabilities(self) -> None:
        """Check that the model can compute label probabilities.

        Raises:
            ApiError: If it cannot.
        """
        if not self.has_probabilities:
            message = f"{NO_LIKELIHOODS[0].upper()}{NO_LIKELIHOODS[1:]} Use /v1/chat/completions."
            raise ApiError(400, message, code="no_label_probabilities")

    def description(self, engine: Engine | None) -> dict[str, Any] | None:
        """Return the extension field of the model; None while the engine is loaded."""
        if engine is None:
            return None
        labels = engine.labels if EMOTION in engine.tasks else []
        return {"tasks": engine.tasks, "trained_tasks": self.trained_tasks, "labels": labels, "slots": engine.slots}

    def warnings(self, engine: Engine, request: Request, answer: Answer) -> list[str]:
        """Return what makes an answer less reliable than others."""
        warnings = []
        if self.trained_tasks is not None and answer.task is not None and answer.task not in self.trained_tasks:
            warnings.append(f"The model was not trained on the task '{answer.task}', but on {', '.join(self.trained_tasks)}.")
        modality = answer.modalities.get("video")
        if request.image is not None and modality is not None and modality.state == "real":
            text = "The features of the slot video are those of a still image that is repeated."
            warnings.append(f"{text} Add 'video' to mask_slots to leave them out.")
        return warnings


def trained_tasks(checkpoints: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Return the tasks that checkpoints were trained on; None if one of them does not record its tasks."""
    pools = [_recorded_tasks(content.get("config")) for content in checkpoints]
    if not pools or None in pools:
        return None
    return list(dict.fromkeys(task for pool in pools for task in pool or ()))


def _recorded_tasks(stored: object) -> list[str] | None:
    """Return the tasks in the configuration that a checkpoint contains; None if it does not list them all."""
    blocks = stored.get("datasets") if isinstance(stored, dict) else None
    pools = [block.get("task_pool") if isinstance(block, dict) else None for block in (blocks or {}).values()]
    tasks: dict[str, None] = {}
    for pool in pools:
        names = [pool] if isinstance(pool, str) else list(pool or ())
        if not names or any(not isinstance(name, str) or "${" in name for name in names):
            return None
        tasks |= {name: None for name in names if not isinstance(pool, dict) or pool[name] != 0}
    return list(tasks) or None
