"""What clients learn about the model of the server, and what they should know about an answer of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emollama.inference.requests import Answer, Request
from emollama.inference.serve.errors import ApiError

if TYPE_CHECKING:
    from emollama.inference.engine import Engine

LABELLED = "emotion"  # the task whose answers are labels


@dataclass(frozen=True)
class ServedModel:
    """The model of the server.

    Attributes:
        name: its name in requests.
        trained_tasks: the tasks of the training of its checkpoint; None if they are unknown.
    """

    name: str
    trained_tasks: Sequence[str] | None

    def require(self, name: str) -> None:
        """Check the name of the model in a request.

        Raises:
            ApiError: If it is another one.
        """
        if name != self.name:
            message = f"The model of this server is '{self.name}'."
            raise ApiError(404, message, param="model", code="model_not_found")

    def description(self, engine: Engine | None) -> dict[str, Any] | None:
        """Return the extension field of the model; None while the engine is loaded."""
        if engine is None:
            return None
        labels = engine.labels if LABELLED in engine.tasks else []
        return {"tasks": engine.tasks, "trained_tasks": self.trained_tasks, "labels": labels, "slots": engine.slots}

    def warnings(self, engine: Engine, request: Request, answer: Answer) -> list[str]:
        """Return what makes an answer less reliable than others."""
        warnings = []
        task, trained = answer.task, engine.tasks if self.trained_tasks is None else self.trained_tasks
        if task is not None and task not in trained:
            warnings.append(f"The model was not trained on the task '{task}', but on {', '.join(trained)}.")
        modality = answer.modalities.get("video")
        if request.image is not None and modality is not None and modality.state == "real":
            warnings.append("The features of the slot video are those of a still image that is repeated. mask_slots masks them.")
        return warnings
