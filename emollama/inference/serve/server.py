"""Run the server: bind the address, load the engine, listen, and answer all accepted requests before the end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.middleware import Middleware

from emollama.errors import Interrupted
from emollama.inference.serve.allowed_files import AllowedFiles
from emollama.inference.serve.app import Services, build_app
from emollama.inference.serve.bodies import Bodies
from emollama.inference.serve.connections import BACKLOG, server_config
from emollama.inference.serve.downloads import UrlReader
from emollama.inference.serve.guard import Guard
from emollama.inference.serve.listening import SignalledServer, bind, listening_errors
from emollama.inference.serve.loading import EngineLoader
from emollama.inference.serve.media_inputs import MediaInputs
from emollama.inference.serve.metrics import Metrics
from emollama.inference.serve.outermost import Outermost
from emollama.inference.serve.private_folder import private_temporary_folder
from emollama.inference.serve.served_model import ServedModel
from emollama.inference.serve.settings import ServeSettings
from emollama.logs.logger import get_logger

if TYPE_CHECKING:
    from emollama.inference.engine import Engine

SLACK_SECONDS = 30.0  # beside receiving the body and waiting for the answer: decoding, and sending the response


class Server:
    """A server that is bound to its address.

    Args:
        settings: the settings.
        load: loads the engine.
        trained_tasks: the tasks of the training of the checkpoint; None if they are unknown.

    Attributes:
        address: the address and the port.

    Raises:
        UserError: If the address cannot be used.
    """

    def __init__(self, settings: ServeSettings, load: Callable[[], Engine], trained_tasks: Sequence[str] | None = None) -> None:
        self._settings, self._trained_tasks = settings, trained_tasks
        allowed = AllowedFiles(settings.allow_files)
        self._socket = bind(settings.host, settings.port)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._loader = EngineLoader(load)
        downloads = None
        if settings.allow_urls is not None:
            downloads = UrlReader(settings.body_timeout, settings.networks())
        self._media = MediaInputs(allowed, downloads)
        self._metrics = Metrics(lambda: self._loader.engine)
        self._stop_requested = threading.Event()
        self._uvicorn: SignalledServer | None = None
        self._error: BaseException | None = None

    @property
    def url(self) -> str:
        """The URL of the API."""
        host, port = self.address
        return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"

    @property
    def is_loading(self) -> bool:
        """Whether a thread still loads the engine after :meth:`run` was asked to end."""
        return self._loader.is_loading()

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or :meth:`stop`; then answer all accepted requests.

        Raises:
            UserError: If the engine cannot be loaded.
            Interrupted: If a second signal ended the server before all requests were answered.
        """
        with contextlib.closing(self._socket), private_temporary_folder() as deleted, contextlib.closing(self._loader):
            if deleted:
                get_logger().info("deleted the temporary files of %d servers that were killed", deleted)
            if self._settings.preload:
                self._loader.load()
            asyncio.run(self._serve())
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let :meth:`run` return; another thread may call it."""
        self._stop_requested.set()
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True

    def _loading_failed(self, error: BaseException) -> None:
        # A server that ends takes away files and processes that the loading may need.
        if self._uvicorn is not None and not self._uvicorn.should_exit:
            self._error = error
            self.stop()

    async def _serve(self) -> None:
        settings = self._settings
        config = server_config(self._app(), grace_seconds=math.ceil(self._seconds()))
        self._uvicorn = server = SignalledServer(config)
        # Before anybody can learn that the server listens, so that a signal ends it properly from then on.
        with server.capture_signals():
            with listening_errors(settings.host, settings.port):
                self._socket.listen(BACKLOG)
            get_logger().info("listening on %s, model '%s'", self.url, settings.model)
            if self._loader.engine is None:
                self._loader.load_in_background(self._loading_failed)
            server.should_exit |= self._stop_requested.is_set()
            await server.serve(sockets=[self._socket])
        if server.force_exit:
            raise Interrupted("stopped before all requests were answered", server.last_signal)

    def _app(self) -> FastAPI:
        settings = self._settings
        bodies = Bodies(settings.max_bytes, settings.body_timeout, settings.max_waiting + settings.max_batch_size)
        model = ServedModel(settings.model, self._trained_tasks, has_probabilities=settings.engine_url is None)
        services = Services(self._loader, bodies, self._media, self._metrics, model, settings.timeout)
        address = ipaddress.ip_address(self.address[0])
        hosts = {settings.host.lower(), self.address[0], *(name.lower() for name in settings.allowed_hosts)}
        outermost = Middleware(Outermost, metrics=self._metrics, seconds=self._seconds())
        guard = Middleware(Guard, key=settings.key, hosts=hosts, any_address=address.is_unspecified)
        return build_app(services, [outermost, guard])

    def _seconds(self) -> float:
        """Maximum time of a request."""
        return self._settings.body_timeout + self._settings.timeout + SLACK_SECONDS
