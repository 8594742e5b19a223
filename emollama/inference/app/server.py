"""Run the page: bind the address, open the page, load the models, and answer accepted questions before the end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import math
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from emollama.errors import Interrupted, UserError
from emollama.inference.app.failures import tracebacks_without_messages
from emollama.inference.app.guard import GuardOptions, PageGuard
from emollama.inference.app.host_guard import HostGuard
from emollama.inference.app.listeners import Listeners
from emollama.inference.app.models import Models
from emollama.inference.app.session_files import SessionFiles
from emollama.inference.serve.connections import BACKLOG, server_config
from emollama.inference.serve.listening import SignalledServer, bind, listening_errors
from emollama.inference.serve.private_folder import private_temporary_folder
from emollama.inference.serve.settings import MEBIBYTE, is_loopback
from emollama.logs.logger import get_logger

if TYPE_CHECKING:
    from emollama.inference.app.previews import ReadPreviews

PASSWORD = "EMOLLAMA_APP_PASSWORD"
LIMITS = ("max_file_mb", "max_seconds", "timeout", "body_timeout")


@dataclass(frozen=True)
class AppSettings:
    """The settings of the page's server, which are the options of ``emollama app``.

    Attributes:
        host: address or name to listen on.
        port: port to listen on; 0 selects a free one.
        allowed_hosts: further names of the server in Host headers.
        insecure: listen on other addresses than those of loopback without a password.
        max_file_mb: maximum size of a recording, in MiB.
        max_seconds: maximum length of a recording, in seconds.
        timeout: maximum time of an answer, in seconds.
        body_timeout: maximum time of receiving a recording or a question, in seconds.
        password: the password; None requires none.
        examples: example videos.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    allowed_hosts: Sequence[str] = ()
    insecure: bool = False
    max_file_mb: int = 100
    max_seconds: float = 120.0
    timeout: float = 120.0
    body_timeout: float = 60.0
    password: str | None = None
    examples: Sequence[Path] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: If a value is out of its range, or the page would be open to everybody.
        """
        for name in LIMITS:
            if not 0 < (value := getattr(self, name)) < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} is {value:g}; it must be above 0 and finite.")
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"--port is {self.port}; a port is a number from 0 to 65535.")
        if self.password is not None and not self.password:
            raise UserError(f"{PASSWORD} is empty. Set it to a password, or remove the variable.")
        if self.password is None and not self.insecure and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host}: other machines can reach this address. Set the environment variable {PASSWORD} to a"
                " password that visitors have to enter, listen on 127.0.0.1, or add --insecure to let everybody use the page."
            )


def read_password() -> str | None:
    """Return the password of the environment, and remove it there, so that no child process gets it."""
    return os.environ.pop(PASSWORD, None)


def import_gradio() -> None:
    """Import Gradio without its telemetry.

    Raises:
        UserError: If it cannot be imported.
    """
    # Gradio and huggingface_hub read these variables when they are imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        importlib.import_module("emollama.inference.app.page")
    except ImportError as error:
        raise UserError(f"gradio cannot be imported: {error}. Install it again: pip install --upgrade 'emollama[app]'") from None


class AppServer:
    """A server of the page that is bound to its address.

    Args:
        settings: the settings.
        models: the models, which are not loaded yet.
        read_previews: decodes a clip for display.

    Attributes:
        host: the address.
        port: the port.
        url: the URL of the page.

    Raises:
        UserError: If the address cannot be used.
    """

    def __init__(self, settings: AppSettings, models: Models, read_previews: ReadPreviews) -> None:
        self._settings, self._models, self._read_previews = settings, models, read_previews
        self._socket = bind(settings.host, settings.port)
        self.host, self.port = self._socket.getsockname()[:2]
        self.url = f"http://[{self.host}]:{self.port}/" if ":" in self.host else f"http://{self.host}:{self.port}/"
        self._error: BaseException | None = None
        self._server: _PageServer | None = None
        self._loader: threading.Thread | None = None

    def run(self) -> None:
        """Serve the page until SIGTERM or SIGINT; then complete the answers that were accepted.

        Raises:
            UserError: If the models cannot be loaded.
            Interrupted: If a second signal ended the server.
        """
        with contextlib.closing(self._socket), private_temporary_folder() as deleted, tracebacks_without_messages():
            if deleted:
                get_logger().info("deleted the temporary files of %d servers that were killed", deleted)
            app = self._app(Path(tempfile.gettempdir(), "page"))
            guard = HostGuard(app, hosts=self._hosts(), any_address=ipaddress.ip_address(self.host).is_unspecified)
            seconds = math.ceil(self._settings.body_timeout + self._settings.timeout)
            self._server = server = _PageServer(server_config(guard, grace_seconds=seconds, lifespan="auto"), app)
            # Before anybody can learn the address, so that a signal ends the server properly from then on.
            with server.capture_signals():
                with listening_errors(self.host, self.port):
                    self._socket.listen(BACKLOG)
                get_logger().info("open the page at %s", self.url)
                self._loader = threading.Thread(target=self._load, name="emollama: load the models", daemon=True)
                self._loader.start()
                asyncio.run(server.serve(sockets=[self._socket]))
            self._models.close()
        if self._error is not None:
            raise self._error
        if server.force_exit:
            raise Interrupted("stopped before all questions were answered", server.last_signal)

    @property
    def is_loading(self) -> bool:
        """Whether a thread still loads the models after :meth:`run` was asked to end."""
        return self._loader is not None and self._loader.is_alive()

    def stop(self) -> None:
        """Let :meth:`run` return; another thread may call it."""
        if self._server is not None:
            self._server.should_exit = True

    def _load(self) -> None:
        try:
            self._models.load()
            get_logger().info("the page is ready after %.1f s", self._models.seconds)
        except BaseException as error:
            # A server that ends takes away files and processes that the loading may need.
            if self._server is not None and not self._server.should_exit:
                self._error = error
                self.stop()

    def _app(self, folder: Path) -> PageGuard:
        """Build the application, which stores uploads and copies of the examples in a private folder."""
        settings = self._settings
        import_gradio()
        # Gradio reads this variable when components are created.
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        from emollama.inference.app.events import Events
        from emollama.inference.app.page import mount_page

        examples = folder / "examples"
        examples.mkdir(parents=True)
        copies = [Path(shutil.copyfile(path, examples / path.name)) for path in settings.examples]
        max_bytes, listeners = settings.max_file_mb * MEBIBYTE, Listeners()
        events = Events(self._models, self._read_previews, listeners, settings.timeout)
        app, numbers_of_values = mount_page(events, copies, max_bytes)
        files = SessionFiles(folder, settings.body_timeout, copies)
        # Browsers send a cookie to all ports of a host.
        options = GuardOptions(f"emollama_{self.port}", settings.password, max_bytes, settings.body_timeout)
        return PageGuard(app, numbers_of_values, files, listeners, options)

    def _hosts(self) -> set[str]:
        """Return the names that a Host header may have."""
        return {self._settings.host.lower(), self.host, *(name.lower() for name in self._settings.allowed_hosts)}


class _PageServer(SignalledServer):
    """A server that ends the connections of idle pages first when it ends, and waits only for answers.

    Args:
        config: the settings.
        guard: knows the connections.
    """

    def __init__(self, config: uvicorn.Config, guard: PageGuard) -> None:
        super().__init__(config)
        self._guard = guard

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the answers that were accepted."""
        self._guard.close_pages()
        await super().shutdown(sockets)
