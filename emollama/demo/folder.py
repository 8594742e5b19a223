"""The folder of a demo: checks before writing, removal of an earlier demo, and errors of the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emollama.disk import reason, remedy
from emollama.errors import UserError
from emollama.paths import require_utf8, require_writable

# A folder with this file was written by a demo, and a new demo may replace the parts listed below.
MARK_FILE = "demo.json"
WHAT = "parts of the emollama demo; everything is synthetic, and a new demo replaces it"
CORPUS, VIDEOS, CAPTIONS, PAGE = "corpus", "videos", "captions", "page"
VIDEO_CLIPS = 120  # labelled videos of the demo of videos
# demo -> its files and folders, including the results of the commands that it prints. The first one identifies
# folders of earlier versions, whose mark file does not name the demo.
PARTS = {
    CORPUS: ("corpus", "llm", "stage_1", "stage_2", "recognition", "reasoning", "reasoning_stage_1"),
    VIDEOS: ("videos", "unseen", "labels.csv", "llm", "encoders", "clips", "trained"),
    CAPTIONS: ("flickr30k", "second", "encoders", "llm", "projection.pth", "prompts.txt", "visual_cache", "trained"),
    PAGE: ("clips.csv", "videos", "unseen", "labels.csv", "llm", "encoders", "features", "trained"),
}
# Not every library raises OSError for a full disk. The messages of safetensors and tokenizers contain the system's error,
# those of torch.save the name of its writer.
FAILED_WRITES = ("(os error ", "PytorchStreamWriter", "inline_container")


def require_demo_folder(folder: str, demo: str) -> Path:
    """Check that a demo may write to a folder: it does not exist, is empty, or was written by the same demo.

    Args:
        folder: the value of ``--folder``.
        demo: ``corpus``, ``videos``, ``captions`` or ``page``.

    Returns:
        The absolute path of the folder.

    Raises:
        UserError: If the folder contains other files or another demo, or is not writable.
    """
    if not folder:
        raise UserError("--folder: the name is empty. Specify a folder.")
    root = Path(require_utf8(folder, "--folder"))
    require_writable(root, "--folder")
    if root.is_dir() and any(root.iterdir()):
        existing_demo = demo_in(root)
        if existing_demo is None:
            raise UserError(f"--folder: '{root}' contains files that are not part of a demo. Specify a new or empty folder.")
        if existing_demo != demo:
            raise UserError(f"--folder: '{root}' contains another demo ({existing_demo}). Specify a new or empty folder.")
    return root.resolve()


def prepare_demo_folder(folder: str, demo: str) -> Path:
    """Create a demo's folder with its mark file, and remove the parts of an earlier demo.

    Args:
        folder: the value of ``--folder``.
        demo: ``corpus``, ``videos``, ``captions`` or ``page``.

    Returns:
        The absolute path of the folder.

    Raises:
        UserError: If the demo must not write there (see :func:`require_demo_folder`), or the earlier demo cannot be removed.
    """
    root = require_demo_folder(folder, demo)
    with disk_errors(root):
        for part in PARTS[demo]:
            # rmtree refuses links; a link is removed, not what it points to.
            if (root / part).is_dir() and not (root / part).is_symlink():
                shutil.rmtree(root / part)
            else:
                (root / part).unlink(missing_ok=True)
        root.mkdir(parents=True, exist_ok=True)
        (root / MARK_FILE).write_text(json.dumps({"what": WHAT, "demo": demo}) + "\n", encoding="utf-8")
    return root


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn disk errors of this block, which writes a demo's files, into a user error.

    Args:
        root: the demo's folder.

    Raises:
        UserError: If a file cannot be written, because the disk is full or read-only for example.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in FAILED_WRITES):
            raise
        what = remedy(error, "specify another folder")
        raise UserError(f"--folder: cannot write '{root}': {reason(error)}. {what}") from error


def demo_in(folder: Path) -> str | None:
    """Return the demo that wrote a folder: ``corpus``, ``videos``, ``captions`` or ``page``; None if no demo did."""
    try:
        mark = json.loads((folder / MARK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(mark, dict) or mark.get("what") != WHAT:
        return None
    by_parts = next((demo for demo, parts in PARTS.items() if (folder / parts[0]).exists()), CORPUS)
    demo = mark.get("demo", by_parts)
    return demo if demo in PARTS else None
