"""Replies of a judge, kept in one SQLite file as they come, so that nothing is paid for twice and an interrupted scoring goes on.

Several threads and processes may use one file. A connection is opened for each access, so that nothing is held between them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from emollama.errors import UserError
from emollama.evaluation.judges.judge import JudgeUnreachable
from emollama.paths import cache_folder, require_writable

_SECONDS = 60.0  # to wait for another process that writes
_TABLE = """CREATE TABLE IF NOT EXISTS replies
    (key TEXT PRIMARY KEY, model TEXT, text TEXT, finish TEXT, prompt_tokens INTEGER, completion_tokens INTEGER)"""
_RECALL = "SELECT text, finish, prompt_tokens, completion_tokens FROM replies WHERE key = ?"


@dataclass(frozen=True)
class Reply:
    """What a judge answered.

    Attributes:
        text: the answer, readable or not.
        finish: why it ended, in the protocol's words: "stop", "length" where it was cut off; "" where the judge does not say.
        prompt_tokens, completion_tokens: as the judge counts them; None where it does not say.
    """

    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None


class ReplyCache:
    """Replies by key. A judge whose replies cannot be kept is not asked: each access may raise JudgeUnreachable.

    Args:
        path: the file, which need not be there yet; null for the one in the user's cache folder.

    Raises:
        UserError: it is no such file, it is damaged, or nothing can be written there.
    """

    def __init__(self, path: str | None) -> None:
        self.path = Path(path) if path else _user_cache() / "judge_replies.sqlite3"
        require_writable(self.path.parent, "cache_path")
        if self.path.exists():
            with self._connected() as file:
                tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and tables != {"replies"}:
                raise UserError(f"cache_path: '{self.path}' is a database of something else. Name another file.")

    def recall(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that are known, by key."""
        known = {}
        with self._connected() as file:
            file.execute(_TABLE)
            for key in keys:
                row = file.execute(_RECALL, (key,)).fetchone()
                if row:
                    known[key] = Reply(*row)
        return known

    def store(self, key: str, model: str, reply: Reply) -> None:
        """Write a reply, in place of an earlier one under its key; it is on the disk when this returns."""
        row = (key, model, reply.text, reply.finish, reply.prompt_tokens, reply.completion_tokens)
        with self._connected() as file:
            file.execute(_TABLE)
            file.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)", row)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_SECONDS)) as file, file:
                yield file
        except (sqlite3.Error, OSError) as error:
            raise JudgeUnreachable(
                f"cache_path: the judge's replies cannot be kept in '{self.path}': {error}. "
                "Move a damaged file away (its replies are then asked for again), make room, or name another file."
            ) from None


def _user_cache() -> Path:
    try:
        return cache_folder()
    except RuntimeError:
        raise UserError("cache_path: there is no home folder to keep the judge's replies in. Name a file.") from None
