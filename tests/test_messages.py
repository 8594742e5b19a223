"""Messages for users: what they list, what they point to, and how they spell options."""

from __future__ import annotations

import re
from pathlib import Path

from emollama.listing import LINES, abbreviated, listing

NAMES = [f"clip_{number:05}" for number in range(28_618)]


def file_in(message):
    """The lines of the file that a message names."""
    [path] = re.findall(r"all of them: ([^)]*)\)", message)
    return Path(path).read_text(encoding="utf-8").splitlines()


# Lists


def test_a_list_of_ten_is_complete():
    assert listing(NAMES[:10]) == "10: " + ", ".join(NAMES[:10])


def test_a_long_list_shows_ten_entries_and_the_file_with_all():
    text = listing(NAMES)
    assert text.startswith("28,618: " + ", ".join(NAMES[:10]) + ", ... and 28,608 more (all of them: ")
    assert len(text) < 400
    assert file_in(text) == NAMES


def test_the_same_list_is_written_to_the_same_file():
    assert listing(NAMES) == listing(NAMES) != listing(NAMES[1:])


def test_a_list_of_lines():
    text = abbreviated(NAMES[:12], LINES, where="--json has all")
    assert text.splitlines()[-2:] == ["- clip_00009", "- ... and 2 more (--json has all)"]
    assert len(text.splitlines()) == 11


def test_without_a_cache_folder_the_message_names_no_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert abbreviated(NAMES).endswith("clip_00009, ... and 28,608 more")
