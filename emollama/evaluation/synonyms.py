"""Groups of synonyms among emotion words: one grouping for all samples, or a separate one for each sample.

The published scorer of MER2024-OV has a separate grouping for each sample, which a language model wrote. It is an archive of
``.npy`` files, ``openset-synonym.zip``, with one text per sample: ``[['happy', 'glad'], ['sad']]``. The first word of a group
names it. A word in two groups of a sample belongs to the later one. The words of groups are compared as they are written, also
their case, and texts are split at brackets and quotes only, as in that scorer. Samples without a file are not scored.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from emollama.data.annotations import read_json
from emollama.errors import UserError
from emollama.evaluation.word_lists import normalized_words, split_at_quotes
from emollama.paths import PATHS, extension, require_file
from emollama.stores.npy import npy_header

Groups = Mapping[str, str]  # word -> name of its group, one of the words of the group
FORMATS = '[["happy", "glad"], ["sad"]], {"happy": ["glad"]}, {"glad": "happy"} or, for each sample, {"clip_1": [["happy"]]}'
MAX_BYTES = 1 << 20  # of the text of one sample; a damaged or malicious archive could contain a huge one
UNREADABLE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Synonyms:
    """Groups of synonyms.

    Attributes:
        groups: the groups of all samples; not used if there are groups for each sample.
        by_sample: sample name -> its groups; None if all samples have the same ones.
    """

    groups: Groups = field(default_factory=dict)
    by_sample: Mapping[str, Groups] | None = None

    def of(self, name: str) -> Groups | None:
        """Return the groups of a sample; None if there are groups for other samples only."""
        return self.groups if self.by_sample is None else self.by_sample.get(name)


def read_synonyms(path: str, key: str = "synonyms_path", samples: Collection[str] = ()) -> Synonyms:
    """Read groups of synonyms, and check that groups for each sample belong to the samples.

    Args:
        path: JSON: a list of groups, each a list of words whose first word names the group; or an object
            ``{group: [word, ...]}`` or ``{word: group}``, in which the group's name is also one of its words; or an object
            ``{sample: groups}``, each a list of groups or a text with such a list. Or the archive of texts of MER2024-OV, packed
            (``.zip``) or unpacked (a folder).
        key: the configuration key, for messages.
        samples: names of the samples with reference words; empty if they are not known.

    Raises:
        UserError: If the file has an unexpected format, a word is in two groups that apply to all samples, or all groups are for
            other samples.
    """
    synonyms = _read(path, key)
    names = [*synonyms.by_sample] if synonyms.by_sample is not None and samples else []
    if names and not any(name in samples for name in names):
        raise UserError(f"{path}: has groups for no sample with reference words, only for others such as '{names[0]}'.")
    return synonyms


def _read(path: str, key: str) -> Synonyms:
    if os.path.isdir(path):
        return Synonyms(by_sample=_by_sample(path, _folder_files(Path(path))))
    require_file(path, key)
    if extension(path) == ".zip":
        try:
            with PATHS.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
                return Synonyms(by_sample=_by_sample(path, _archive_files(archive)))
        except UNREADABLE as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: cannot be read as a zip archive ({error}). Download it again.") from None
    table = read_json(path)
    if isinstance(table, dict) and any(_is_grouping(value) for value in table.values()):
        return Synonyms(by_sample={name: _sample_groups(path, name, value) for name, value in table.items()})
    return Synonyms(_common_groups(path, table))


def _folder_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("*.npy")):
        if not path.name.startswith("."):
            with path.open("rb") as file:
                yield path.name, file.read(MAX_BYTES + 1)


def _archive_files(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    for member in archive.infolist():
        name = PurePosixPath(member.filename)
        if name.suffix == ".npy" and not name.name.startswith(".") and "__MACOSX" not in name.parts:
            with archive.open(member) as file:
                yield name.name, file.read(MAX_BYTES + 1)


def _by_sample(path: str, files: Iterable[tuple[str, bytes]]) -> dict[str, Groups]:
    """Return the groups in ``<sample>.npy`` files, given as name and content.

    Raises:
        UserError: If there are none, a sample has two files, or a file does not contain one text.
    """
    by_sample: dict[str, Groups] = {}
    for file, raw in files:
        name = file.removesuffix(".npy")
        try:
            if len(raw) > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
            content = io.BytesIO(raw)
            shape, _, dtype = npy_header(content, len(raw))
        except ValueError as error:
            raise UserError(f"{path}, {file}: cannot be read ({error}). Python objects are not read.") from None
        if dtype.kind != "U" or shape:
            kind = f"shape {shape} and dtype {dtype}"
            raise UserError(f"{path}, {file}: expected one text such as [['happy', 'glad'], ['sad']], got an array of {kind}.")
        if name in by_sample:
            raise UserError(f"{path}: the sample '{name}' has two files. Remove one of them.")
        by_sample[name] = _later_groups(_parse_groups(_text(content.read(), dtype)))
    if not by_sample:
        raise UserError(f"{path}: contains no file <sample>.npy. Specify openset-synonym.zip of MER2024, or its folder.")
    return by_sample


def _text(values: bytes, dtype: np.dtype) -> str:
    """Return the text in the bytes of a single value; numpy stores 4 bytes for each character."""
    codec = "utf-32-be" if dtype.byteorder == ">" else "utf-32-le"
    return values.decode(codec, "replace").rstrip("\0")


def _is_grouping(value: Any) -> bool:
    """Whether a value of a JSON object contains the groups of a sample: nested lists, or a text that begins with a bracket."""
    return value.strip().startswith("[") if isinstance(value, str) else isinstance(value, list) and any(map(_is_word_list, value))


def _is_word_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _sample_groups(path: str, name: str, value: Any) -> Groups:
    if isinstance(value, str):
        return _later_groups(_parse_groups(value))
    if not isinstance(value, list) or not all(map(_is_word_list, value)):
        raise UserError(f'{path}, \'{name}\': expected the groups of this sample, [["happy", "glad"], ["sad"]]')
    return _later_groups(value)


def _parse_groups(text: str) -> list[list[str]]:
    """Split a text of nested lists into groups, as the published scorer does: at brackets, then at quotes."""
    return [split_at_quotes(part) for part in re.split(r"[\[\]]", text)]


def _later_groups(groups: Iterable[Sequence[str]]) -> Groups:
    return {word: words[0] for words in groups for word in words}


def _common_groups(path: str, table: Any) -> Groups:
    groups = table
    if isinstance(table, dict) and all(map(_is_word_list, table.values())):
        groups = [[group, *words] for group, words in table.items()]
    elif isinstance(table, dict) and all(isinstance(group, str | int) for group in table.values()):
        words_by_group: dict[str, list[str]] = {}
        for word, group in table.items():
            words_by_group.setdefault(str(group), []).append(word)
        groups = [[group, *words] for group, words in words_by_group.items()]
    if not isinstance(groups, list) or not all(map(_is_word_list, groups)):
        raise UserError(f"{path}: expected groups of words, {FORMATS}")
    synonyms: dict[str, str] = {}
    for words in map(normalized_words, groups):
        for word in words:
            if synonyms.setdefault(word, words[0]) != words[0]:
                both = f"'{synonyms[word]}' and '{words[0]}'"
                raise UserError(f"{path}: '{word}' is in two groups, {both}. Remove it from one.")
    return synonyms
