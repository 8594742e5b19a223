"""``manifest.json`` beside features: which encoder made them, and how. The same encoder pooled otherwise gives other features."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from emollama.errors import UserError
from emollama.paths import PATHS, atomic_write, read_text
from emollama.stores import tars

FILE = "manifest.json"
FORMAT, VERSION = "emollama features", 1


@dataclass(frozen=True)
class Manifest:
    """How the arrays of a folder were made.

    Attributes:
        slots: what they fill.
        rows, width: of an array, the class row not counted.
        recipe: every setting that changes the numbers, as plain values.
        weights: SHA-256 of the encoder's weights.
        dtype: of the stored values.
        versions: package -> version that made them.
        inputs: what was given beside the videos and changed the arrays: {"faces": "images"} where there were images of faces.
    """

    slots: tuple[str, ...]
    rows: int
    width: int
    recipe: dict[str, Any]
    weights: str
    dtype: str
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write it into a folder of features."""
        with atomic_write(os.path.join(folder, FILE)) as file:
            json.dump({"format": FORMAT, "version": VERSION, **asdict(self)}, file, indent=1)
            file.write("\n")

    @classmethod
    def read(cls, store: str) -> Manifest | None:
        """The manifest in the folder of a store, beside tars where these are named; None where there is none.

        Args:
            store: a path as :func:`emollama.stores.store.open_store` takes it.

        Raises:
            UserError: a file of that name which is none.
        """
        pattern, _ = tars.split_slot(store)
        path = os.path.join(os.path.dirname(pattern) if pattern.endswith(".tar") else pattern, FILE)
        try:
            if "{" in path or not PATHS.isfile(path):
                return None
        except NotImplementedError:  # a remote place that cannot be asked
            return None
        try:
            content = json.loads(read_text(path))
            if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
                raise ValueError("another format")
            return cls(**content | {"slots": tuple(content["slots"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            text = f"{path}: not a manifest of features ({error}). Extract them again, or delete the file to go on without"
            raise UserError(f"{text} its checks.") from None

    def fields(self) -> dict[str, Any]:
        """Everything that makes features differ, by the name that messages give it."""
        return {**self.recipe, **self.inputs, "weights": self.weights, "rows": self.rows, "width": self.width}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """``layers: [-1] and [-4, -3, -2, -1]`` for each fact that differs; what only one of them tells counts as different."""
    shown = {key: (one.get(key), other.get(key)) for key in {**one, **other}}
    return [f"{key}: {ours!r} and {theirs!r}" for key, (ours, theirs) in shown.items() if ours != theirs]
