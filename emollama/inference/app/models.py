"""The models of the page, which are loaded while it can already be opened."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from emollama.errors import UserError
from emollama.inference.prediction_block import find_prediction_block
from emollama.inference.requests import EMOTION
from emollama.media.source import MediaLimits

if TYPE_CHECKING:
    from emollama.config import RunConfig
    from emollama.inference.engine import Engine


class Models:
    """One model, or two that are compared.

    Args:
        names: names of the models for display.
        loaders: functions that load them, which can take minutes.

    Attributes:
        names: names of the models.
        engines: the models; empty before all are loaded.
    """

    def __init__(self, names: Sequence[str], loaders: Sequence[Callable[[], Engine]]) -> None:
        self.names = tuple(names)
        self._loaders, self._start = tuple(loaders), time.monotonic()
        self._resources = ExitStack()
        self.engines: tuple[Engine, ...] = ()

    def load(self) -> None:
        """Load the models.

        Raises:
            UserError: If a checkpoint or weights cannot be used.
        """
        self.engines = tuple(self._resources.enter_context(closing(load())) for load in self._loaders)

    def ready(self) -> tuple[Engine, ...]:
        """Return the models.

        Raises:
            UserError: If they are not loaded yet.
        """
        if not self.engines:
            raise UserError("The model is still being loaded. Try again when the page says that it is ready.")
        return self.engines

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def close(self) -> None:
        """Answer all accepted questions, and release the models."""
        self._resources.close()


def engine_loader(config: RunConfig, limits: MediaLimits) -> Callable[[], Engine]:
    """Return a function that loads the model of a configuration.

    Args:
        config: the configuration.
        limits: the largest clips that are decoded, in a separate process.
    """

    def load() -> Engine:
        # Imported here because it takes seconds.
        from emollama.encoders.decoding_worker import DecodingLimits
        from emollama.inference.engine import Engine, EngineOptions

        return Engine(config, EngineOptions(media_limits=limits, decoding=DecodingLimits()))

    return load


def labels_of(config: RunConfig) -> list[str]:
    """Return the labels of a configuration's task emotion, without loading the model."""
    return list(find_prediction_block(config, EMOTION).block.dataset.labels)


def require_same_labels(labels: Mapping[str, Sequence[str]]) -> None:
    """Check that the probabilities of models can be compared.

    Args:
        labels: name of a model -> its labels. The order of the labels does not matter.

    Raises:
        UserError: If two models have different labels.
    """
    (first, first_labels), *others = labels.items()
    for name, other in others:
        if set(other) != set(first_labels):
            raise UserError(
                f"--compare: the models have different labels, so that their probabilities cannot be compared."
                f" {first}: {', '.join(first_labels) or 'none'}. {name}: {', '.join(other) or 'none'}."
                " Select configurations with the same labels."
            )
