"""Load the engine before or while the server listens."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from emollama.config import RunConfig
from emollama.inference.requests import EMOTION
from emollama.inference.serve.errors import unavailable
from emollama.inference.serve.settings import ServeSettings
from emollama.logs.logger import get_logger
from emollama.media.source import MediaLimits

if TYPE_CHECKING:
    from emollama.inference.engine import Engine


class EngineLoader:
    """The engine of the server, once it is loaded.

    Args:
        load: loads the engine, which can take minutes.

    Attributes:
        engine: the engine; None before it is loaded.
    """

    def __init__(self, load: Callable[[], Engine]) -> None:
        self._load = load
        self._thread: threading.Thread | None = None
        self.engine: Engine | None = None

    def load(self) -> None:
        """Load the engine.

        Raises:
            UserError: If the configuration, the checkpoint or the weights cannot be used.
        """
        self.engine = self._load()

    def load_in_background(self, failed: Callable[[BaseException], None]) -> None:
        """Start to load the engine in a thread; if that fails, pass the exception to ``failed``."""

        def work() -> None:
            try:
                self.load()
            except BaseException as error:
                failed(error)

        self._thread = threading.Thread(target=work, name="emollama: load the engine", daemon=True)
        self._thread.start()

    def is_loading(self) -> bool:
        """Return whether a thread is loading the engine."""
        return self._thread is not None and self._thread.is_alive()

    def ready(self) -> Engine:
        """Return the engine.

        Raises:
            ApiError: If it is not loaded yet.
        """
        if self.engine is None:
            raise unavailable("The model is being loaded. Send the request again later.", "model_loading")
        return self.engine

    def close(self) -> None:
        """Answer all accepted requests, and release the engine."""
        if self.engine is not None:
            self.engine.close(drain=True)


def load_engine(config: RunConfig, settings: ServeSettings) -> Engine:
    """Load the engine of a server, and log which inputs the model gets.

    Raises:
        UserError: If the configuration, the checkpoint or the weights cannot be used.
    """
    from emollama.encoders.decoding_worker import DecodingLimits
    from emollama.inference.engine import Engine, EngineOptions

    log = get_logger()
    options = EngineOptions(
        max_batch_size=settings.max_batch_size,
        max_waiting=settings.max_waiting,
        media_limits=MediaLimits(settings.max_pixels, settings.max_seconds, settings.max_frames),
        decoding=DecodingLimits(cpu_seconds=math.ceil(settings.timeout), seconds=settings.timeout),
        engine_url=settings.engine_url,
    )
    engine = Engine(config, options)
    blocks = {slot: f"encoders.{label}" for label in config.encoders for slot in config.encoder_class(f"encoders.{label}").SLOTS}
    for slot in engine.slots:
        log.info("slot %s: %s", slot, blocks.get(slot, "no block under 'encoders'"))
    # The labels are read from the data now, because this can take a while.
    labels = ", ".join(engine.labels if EMOTION in engine.tasks else []) or "none"
    log.info("loaded %s, tasks: %s, labels: %s", ", ".join(engine.checkpoint.files), ", ".join(engine.tasks), labels)
    return engine
