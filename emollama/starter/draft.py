"""A starter configuration while it is filled in: its text, the data folder, and what was found and what is missing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emollama.starter.survey import FeatureFolder, FolderSurvey
from emollama.starter.yaml_text import YamlText, shown, unescaped

ROOT = "${paths.root}"


@dataclass
class Draft:
    """The text of a configuration, and what is known about the data folder.

    Attributes:
        text: being edited.
        survey: of the data folder.
        root: what ``paths.root`` is set to.
        beside: the folder that the file will be written to.
        is_demo: whether the data folder is one of ``emollama demo``.
        found: a line for each thing that was found.
        missing: a line for each thing that the configuration needs and that was not found, with the remedy.
        features: slot -> the folder whose arrays fill it, from the first block that has one.
        stages: kinds of configurations that must be trained first.
    """

    text: YamlText
    survey: FolderSurvey
    root: Path
    beside: Path = Path()
    is_demo: bool = False
    found: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    features: dict[str, FeatureFolder] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)

    def written(self, path: Path) -> str:
        """A path as the configuration has it: below ``${paths.root}`` where it lies there."""
        if path == self.root:
            return ROOT
        return f"{ROOT}/{path.relative_to(self.root)}" if path.is_relative_to(self.root) else str(path)

    def expected(self, key: str) -> Path | None:
        """Where the configuration's path points now; None where the key is absent or null."""
        value = self.text.get(key)
        return None if value is None else self.located(value)

    def located(self, value: str) -> Path:
        """The file or folder that a path of a configuration means."""
        return Path(os.path.abspath(unescaped(value.replace(ROOT, str(self.root)))))

    def have(self, key: str, value: Any, note: str) -> None:
        """Set a key to something that was found."""
        self.text.set(key, value, note)
        self.found.append(f"{key}: {shown(value)} ({note})")

    def lack(self, key: str, what: str, remedy: str, value: Any = None) -> None:
        """Mark a key whose file was not found. Without a value the key stays as it is."""
        note = f"MISSING: {what}; {remedy}"
        if value is None:
            self.text.note(key, note)
        else:
            self.text.set(key, value, note)
        self.missing.append(f"{key}: {what}; {remedy}")
