"""A starter configuration while it is filled in: its text, the data folder, and lists of found and missing items."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emollama.starter.feature_folders import FeatureFolder
from emollama.starter.survey import FolderSurvey
from emollama.starter.yaml_text import YamlText, as_text, unescaped

ROOT = "${paths.root}"


@dataclass
class Draft:
    """The text of a configuration and the contents of the data folder.

    Attributes:
        text: the YAML text, which is edited in place.
        survey: contents of the data folder.
        root: value of ``paths.root``.
        output_folder: the folder that the configuration will be written to.
        is_demo: True if ``emollama demo`` wrote the data folder.
        found_items: one line for each key whose file, folder or value was found.
        missing_items: one line for each key whose file or folder was not found, with the remedy.
        features: slot -> the feature folder of the first dataset block that has one.
        stages: kinds of configurations that must be trained first.
    """

    text: YamlText
    survey: FolderSurvey
    root: Path
    output_folder: Path = Path()
    is_demo: bool = False
    found_items: list[str] = field(default_factory=list)
    missing_items: list[str] = field(default_factory=list)
    features: dict[str, FeatureFolder] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)

    def config_path(self, path: Path) -> str:
        """Return a path as it is written in the configuration: relative to ``${paths.root}`` if the file is below it."""
        if path == self.root:
            return ROOT
        return f"{ROOT}/{path.relative_to(self.root)}" if path.is_relative_to(self.root) else str(path)

    def configured_path(self, key: str) -> Path | None:
        """Return the absolute path that a key has now; None if the key is absent or null."""
        value = self.text.get(key)
        return None if value is None else self.resolve(value)

    def resolve(self, value: str) -> Path:
        """Return the absolute path of a path in the configuration."""
        return Path(os.path.abspath(unescaped(value.replace(ROOT, str(self.root)))))

    def set_found(self, key: str, value: Any, note: str) -> None:
        """Set a key to a value that was found in the data folder, with a comment."""
        self.text.set(key, value, note)
        self.found_items.append(f"{key}: {as_text(value)} ({note})")

    def mark_missing(self, key: str, what: str, remedy: str, value: Any = None) -> None:
        """Mark a key whose file was not found.

        Args:
            key: dotted path of the key.
            what: what is missing.
            remedy: how to provide it.
            value: new value of the key; None leaves the value unchanged.
        """
        note = f"MISSING: {what}; {remedy}"
        if value is None:
            self.text.note(key, note)
        else:
            self.text.set(key, value, note)
        self.missing_items.append(f"{key}: {what}; {remedy}")
