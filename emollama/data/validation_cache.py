"""What was looked at before and found good, by stamp: a second look at what has not changed takes no time.

Only good results are kept, in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``); without a writable one
everything is looked at each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from emollama.paths import atomic_write, cache_folder

Stamp = tuple[int, ...]
VERSION = 1  # of what is checked; another one asks everything anew


@dataclass
class ValidationCache:
    """name -> the stamp under which it was found good, and what was found, in one string that is quick to load."""

    path: Path
    known: dict[str, str] = field(default_factory=dict)
    _grown: bool = False

    @classmethod
    def load(cls, kind: str, *what: str) -> ValidationCache:
        """What is remembered about one question; ``what`` is everything beside the stamps that the answer rests on."""
        digest = hashlib.sha256(json.dumps([VERSION, *what]).encode()).hexdigest()[:24]
        try:
            path = cache_folder() / f"{kind}-{digest}.json"
            known = json.loads(path.read_text(encoding="utf-8"))
        except RuntimeError:  # no home
            return cls(Path(os.devnull))
        except (OSError, ValueError):
            known = {}
        return cls(path, known if isinstance(known, dict) else {})

    def recall(self, name: str, stamp: Stamp) -> str | None:
        """What was found under this name and this very stamp; None where nothing good was, or the stamp is empty."""
        known, _, found = str(self.known.get(name)).partition(";")
        return found if stamp and known == str(stamp) else None

    def add(self, name: str, stamp: Stamp, found: str) -> None:
        """Remember a good one."""
        self.known[name] = f"{stamp};{found}"
        self._grown = True

    def save(self) -> None:
        """Write what was added, if the cache folder can be written."""
        if self._grown and self.path != Path(os.devnull):
            with contextlib.suppress(OSError), atomic_write(self.path) as file:
                json.dump(self.known, file)
