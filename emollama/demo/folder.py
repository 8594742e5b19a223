"""The folder of a demo: whether one may be written there, what of an earlier one is removed, and a disk that is full."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emollama.errors import UserError
from emollama.paths import require_utf8, require_writable

MARK = "demo.json"  # says which demo wrote a folder, and that a new one may replace its parts
WHAT = "parts of the emollama demo; everything is synthetic, and a new demo replaces it"
CORPUS, VIDEOS, CAPTIONS = "corpus", "videos", "captions"
PARTS = {  # demo -> what it consists of, with what the user makes of it by the commands that it prints
    CORPUS: ("corpus", "llm", "stage_1", "stage_2", "recognition", "reasoning", "reasoning_stage_1"),
    VIDEOS: ("videos", "unseen", "labels.csv", "llm", "encoders", "clips", "trained"),
    CAPTIONS: ("flickr30k", "second", "encoders", "llm", "projection.pth", "prompts.txt", "visual_cache", "trained"),
}
# A library that does not raise OSError names the system's error (safetensors, tokenizers) or its own writer (torch.save).
FAILED_WRITES = ("(os error ", "PytorchStreamWriter", "inline_container")


def require_demo_folder(folder: str, demo: str) -> Path:
    """The absolute path of a folder that a demo may write to: a new one, an empty one, or one that this demo wrote.

    Raises:
        UserError: it is something else, or nothing can be written there.
    """
    if not folder:
        raise UserError("--folder: the name is empty. Name a folder.")
    root = Path(require_utf8(folder, "--folder"))
    require_writable(root, "--folder")
    if root.is_dir() and any(root.iterdir()):
        author = _author(root)
        if author is None:
            raise UserError(f"--folder: '{root}' holds something that is not a demo. Name another folder.")
        if author != demo:
            raise UserError(f"--folder: '{root}' holds another demo, that of {author}. Name another folder.")
    return root.resolve()


def emptied(folder: str, demo: str) -> Path:
    """The folder of :func:`require_demo_folder`, marked, and without the parts of an earlier demo.

    Raises:
        UserError: the demo may not write there, or an earlier one cannot be removed.
    """
    root = require_demo_folder(folder, demo)
    with disk_errors(root):
        for part in PARTS[demo]:
            if (root / part).is_dir() and not (root / part).is_symlink():
                shutil.rmtree(root / part)
            else:
                (root / part).unlink(missing_ok=True)
        root.mkdir(parents=True, exist_ok=True)
        (root / MARK).write_text(json.dumps({"what": WHAT, "demo": demo}) + "\n", encoding="utf-8")
    return root


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Around writing a demo's files.

    Raises:
        UserError: the disk refuses (full, read-only).
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in FAILED_WRITES):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"--folder: cannot write '{root}': {reason}. Make room, or name another folder.") from error


def _author(root: Path) -> str | None:
    """The demo that wrote a folder; None if none did. Marks of earlier versions do not name it."""
    try:
        mark = json.loads((root / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(mark, dict) or mark.get("what") != WHAT:
        return None
    found = next((demo for demo, parts in PARTS.items() if (root / parts[0]).exists()), CORPUS)
    author = mark.get("demo", found)
    return author if author in PARTS else None
