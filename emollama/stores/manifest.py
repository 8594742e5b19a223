"""``manifest.json``, which records next to features how they were computed: the encoder and all its settings."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from emollama.disk import remedy
from emollama.errors import DownloadError, FileAbsent, UserError
from emollama.json_io import parse_json
from emollama.paths import PATHS, atomic_write, read_text
from emollama.stores.tar_paths import split_slot

FILE = "manifest.json"
FORMAT, VERSION = "emollama features", 1
KEYS = {"num_vectors": "rows", "dim": "width", "settings": "recipe"}  # attributes whose key in the file differs


@dataclass(frozen=True)
class Manifest:
    """How the arrays of a folder were computed.

    Attributes:
        slots: the slots that the arrays fill.
        num_vectors, dim: number and size of the feature vectors in an array, without the class token. A number of None differs
            from array to array.
        settings: every setting that changes the values, as plain values.
        weights: SHA-256 of the encoder's weights.
        dtype: dtype of the stored values.
        versions: package -> version with which the features were computed.
        inputs: inputs besides the videos that change the values: {"faces": "images"} if there were images of faces.
    """

    slots: tuple[str, ...]
    num_vectors: int | None
    dim: int
    settings: dict[str, Any]
    weights: str
    dtype: str
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the manifest into a folder of features."""
        with atomic_write(os.path.join(folder, FILE)) as file:
            content = {KEYS.get(name, name): value for name, value in asdict(self).items()}
            json.dump({"format": FORMAT, "version": VERSION, **content}, file, indent=1)
            file.write("\n")

    @classmethod
    def read(cls, store: str) -> Manifest | None:
        """Read the manifest of a store, from its folder or from the folder of its tars; None if there is none.

        Args:
            store: a path for :func:`emollama.stores.store.open_store`.

        Raises:
            UserError: If the file cannot be read or is not a manifest.
        """
        pattern, _ = split_slot(store)
        path = os.path.join(os.path.dirname(pattern) if pattern.endswith(".tar") else pattern, FILE)
        try:
            if "{" in path or not (PATHS.isfile(path) or os.path.lexists(path)):
                return None
            content = parse_json(read_text(path))
        except (NotImplementedError, FileAbsent):
            # It is not known whether this file, which is optional, exists at a remote location.
            return None
        except DownloadError as error:
            logging.getLogger("emollama").warning("%s Until then, it is not known how these features were extracted.", error)
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}. {remedy(error)}") from None
        except ValueError as error:
            raise _not_a_manifest(path, error) from None
        try:
            if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
                raise ValueError("unknown format")
            attributes = {key: name for name, key in KEYS.items()}
            return cls(**{attributes.get(key, key): value for key, value in content.items()} | {"slots": tuple(content["slots"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _not_a_manifest(path, error) from None

    def fields(self) -> dict[str, Any]:
        """Return everything that changes the values of features, by its name in messages."""
        return {**self.settings, **self.inputs, "weights": self.weights, "rows": self.num_vectors, "width": self.dim}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return ``layers: [-1] and [-4, -3, -2, -1]`` for each field that differs or that only one of them has."""
    shown = {key: (one.get(key), other.get(key)) for key in {**one, **other}}
    return [f"{key}: {ours!r} and {theirs!r}" for key, (ours, theirs) in shown.items() if ours != theirs]


def _not_a_manifest(path: str, error: Exception) -> UserError:
    text = f"{path}: not a manifest of features ({error}). Extract the features again, or delete the file to disable its checks."
    return UserError(text)
