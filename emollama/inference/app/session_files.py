"""The uploaded files of the page, and the sessions of browsers that may use them.

Gradio serves an uploaded file to anybody who knows its path, which consists of a digest of its content and its name. Somebody who
has the same file could therefore find out whether somebody else has uploaded it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from emollama.errors import UserError
from emollama.text_encoding import encodable

MAX_PER_SESSION = 4  # files; a page uses one, and a browser may have several pages open
MAX_FILES = 200  # of all sessions
MAX_PAGES = 10_000  # whose session is remembered
DELETED = "The recording was deleted, because its page was closed or other ones were uploaded. Upload it again."
UNATTENDED_SECONDS = 60.0  # that a session without an open page keeps an upload


class SessionFiles:
    """The files of all sessions. Not thread-safe: only the server's event loop uses it.

    Args:
        folder: the private folder of the server, into which Gradio writes uploads.
        seconds: maximum time of an upload.
        examples: files in it that all sessions may read.
    """

    def __init__(self, folder: Path, seconds: float, examples: Iterable[Path] = ()) -> None:
        self._seconds = seconds
        self._folder, self._examples = folder, {str(path) for path in examples}
        self._secret = secrets.token_bytes(32)
        # path -> sessions that uploaded this file; the oldest file first
        self._owners: dict[str, set[str]] = {}
        self._pages: dict[str, str] = {}
        self._open_pages: Counter[str] = Counter()
        self._uploads: Counter[str] = Counter()  # session -> uploads that have not ended

    def new_session(self) -> str:
        """Return a random identifier, signed so that a client cannot invent one."""
        name = secrets.token_hex(16)
        return f"{name}.{self._signature(name)}"

    def is_session(self, session: str) -> bool:
        """Return whether this server has issued an identifier."""
        name, _, signature = session.partition(".")
        return hmac.compare_digest(encodable(signature).encode(), self._signature(name).encode())

    def _signature(self, name: str) -> str:
        return hmac.new(self._secret, encodable(name).encode(), hashlib.sha256).hexdigest()

    def may_read(self, session: str, path: str) -> bool:
        """Return whether a session may read a file: it has uploaded it, or it is an example."""
        return path in self._examples or session in self._owners.get(path, ())

    def claim_page(self, session: str, page: str) -> bool:
        """Return whether a page belongs to a session; a page that is new belongs to the session from now on.

        Args:
            session: the session.
            page: the identifier that the browser chose for the page.
        """
        while page not in self._pages and len(self._pages) >= MAX_PAGES:
            del self._pages[next(iter(self._pages))]
        return self._pages.setdefault(page, session) == session

    def begin_upload(self, session: str) -> None:
        """Register that an upload of a session starts.

        Raises:
            UserError: If there are too many files.
        """
        if self._uploads[session] >= MAX_PER_SESSION:
            raise UserError(f"{MAX_PER_SESSION} recordings are already being uploaded. Wait for one of them.")
        if len(self._owners) + self._uploads.total() >= MAX_FILES and not self._release_oldest_unattended():
            raise UserError("The server has too many recordings at the moment. Try again later.")
        self._uploads[session] += 1

    def end_upload(self, session: str, paths: Iterable[str]) -> None:
        """Register the files of an upload; delete the oldest files of the session, and what is left of failed uploads.

        Args:
            session: the session.
            paths: the complete files.
        """
        self._uploads -= Counter([session])
        for path in paths:
            self._owners.setdefault(path, set()).add(session)
        for path in self._files_of(session)[:-MAX_PER_SESSION]:
            self._release(session, path)
        if not self._open_pages[session]:
            asyncio.get_running_loop().call_later(UNATTENDED_SECONDS, self._release_unattended, session)
        self._delete_parts()

    def _release_oldest_unattended(self) -> bool:
        """Delete the oldest file of sessions without an open page; return whether there was one."""
        for path, sessions in self._owners.items():
            if not any(self._open_pages[session] for session in sessions):
                for session in list(sessions):
                    self._release(session, path)
                return True
        return False

    def _delete_parts(self) -> None:
        """Delete what is left of failed uploads: files without an owner."""
        # A file that is still being written, or is not registered yet, has changed since then.
        oldest = time.time() - 2 * self._seconds
        for part in list(self._folder.rglob("*")):
            is_part = part.is_file() and str(part) not in self._owners and str(part) not in self._examples
            if is_part and (not self._uploads or part.stat().st_mtime < oldest):
                part.unlink()
                if part.parent != self._folder:
                    with suppress(OSError):
                        part.parent.rmdir()

    def open_page(self, session: str) -> None:
        """Register a page that a browser has opened."""
        self._open_pages[session] += 1

    def close_page(self, session: str) -> None:
        """Register that a page was closed; with its last page, delete the files of the session."""
        self._open_pages -= Counter([session])
        self._release_unattended(session)

    def _release_unattended(self, session: str) -> None:
        """Delete the files of a session that has no open page."""
        if self._open_pages[session]:
            return
        for path in self._files_of(session):
            self._release(session, path)
        self._pages = {page: owner for page, owner in self._pages.items() if owner != session}

    def _files_of(self, session: str) -> list[str]:
        return [path for path, sessions in self._owners.items() if session in sessions]

    def _release(self, session: str, path: str) -> None:
        """Delete a file unless another session has uploaded the same one."""
        self._owners[path].discard(session)
        if not self._owners[path]:
            del self._owners[path]
            # The folder belongs to the content of the file, which another session may have uploaded under another name.
            with suppress(OSError):
                Path(path).unlink()
                Path(path).parent.rmdir()
