"""A cache of a judge's replies in one SQLite file, so that no question is paid for twice and interrupted scoring can continue.

Several threads and processes can use one file. Each access opens its own connection, so no connection is shared between threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.evaluation.judges.judge import JudgeUnreachable
from emollama.paths import cache_folder, require_writable

_LOCK_SECONDS = 60.0  # how long to wait for another writer
_TABLE = """CREATE TABLE IF NOT EXISTS replies
    (key TEXT PRIMARY KEY, model TEXT, text TEXT, finish TEXT, prompt_tokens INTEGER, completion_tokens INTEGER)"""
_SELECT = "SELECT text, finish, prompt_tokens, completion_tokens FROM replies WHERE key = ?"


@dataclass(frozen=True)
class Reply:
    """The reply of a judge.

    Attributes:
        text: text of the reply, whether or not it can be parsed.
        finish: ``finish_reason`` of the protocol: "stop", or "length" for a truncated reply; "" if the judge does not state it.
        prompt_tokens: tokens of the question as counted by the judge; None if it does not state them.
        completion_tokens: tokens of the reply as counted by the judge; None if it does not state them.
    """

    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None


class ReplyCache:
    """Replies by key. Each access raises JudgeUnreachable if the file cannot be used, so that no reply is paid for and lost.

    Args:
        path: the file, which is created if necessary; None for the file in the user's cache folder.

    Raises:
        UserError: If the file is not a reply cache, is damaged, or cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self.path = Path(path) if path else _user_cache() / "judge_replies.sqlite3"
        require_writable(self.path.parent, "cache_path")
        if self.path.exists():
            with self._connected() as file:
                tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and tables != {"replies"}:
                raise UserError(f"cache_path: '{self.path}' is a database with other tables. Specify another file.")

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """Return the replies of the keys that are in the cache."""
        replies = {}
        with self._connected() as file:
            file.execute(_TABLE)
            for key in keys:
                row = file.execute(_SELECT, (key,)).fetchone()
                if row:
                    replies[key] = Reply(*row)
        return replies

    def store(self, key: str, model: str, reply: Reply) -> None:
        """Write a reply to disk; it replaces an earlier reply with the same key."""
        row = (key, model, reply.text, reply.finish, reply.prompt_tokens, reply.completion_tokens)
        with self._connected() as file:
            file.execute(_TABLE)
            file.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)", row)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_LOCK_SECONDS)) as file, file:
                yield file
        except (sqlite3.Error, OSError) as error:
            raise JudgeUnreachable(
                f"cache_path: cannot store the judge's replies in '{self.path}': {error}. {_remedy(error)}"
            ) from None


def _remedy(error: Exception) -> str:
    if isinstance(error, OSError):
        return remedy(error, "specify another file")
    # The lower eight bits are the kind of the error.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "Free disk space, or specify another file."
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return "Move this damaged file away (its questions are then asked again), or specify another file."
    return "Check the file and its permissions, or specify another file."


def _user_cache() -> Path:
    try:
        return cache_folder()
    except RuntimeError:
        raise UserError("cache_path: the user has no home folder for the judge's replies. Set cache_path to a file.") from None
