"""Labels as a source says them -> labels of the vocabulary, by the user's maps and the obvious synonyms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from emollama.data.annotations import DFEW_LABELS, read_json
from emollama.errors import UserError
from emollama.paths import read_text, require_file

SKIP = "skip"  # what a map or an override says in place of a label: leave the clip out
NO_LABEL = "0"  # what a list without labels holds in the label's column
BUILT_IN = {"dfew": DFEW_LABELS}  # maps that are called by name
SYNONYMS = (
    ("happy", "happiness", "joy", "joyful"),
    ("sad", "sadness"),
    ("angry", "anger"),
    ("surprise", "surprised"),
    ("worried", "worry"),
    ("fear", "fearful"),
    ("disgust", "disgusted"),
    ("contempt", "contemptuous"),
    ("doubt", "doubtful"),
)


class LabelMap:
    """What each label of a source is called here.

    Args:
        labels: the vocabulary.
        maps: raw label -> label or ``skip``, applied one after another; case and space at the ends do not count.

    Raises:
        UserError: a label that an annotation list cannot hold.
    """

    def __init__(self, labels: Sequence[str], maps: Sequence[Mapping[str, str]] = ()) -> None:
        for label in labels:
            if label.split() != [label] or label in (SKIP, NO_LABEL):
                raise UserError(f"--labels: {label!r} is not one word, or is '{SKIP}' or '{NO_LABEL}', which mean something else")
        self.labels = tuple(labels)
        self._known = {label.casefold(): label for label in labels}
        if len(self._known) < len(labels):
            raise UserError(f"--labels: a label is given twice in {' '.join(labels)}")
        self._maps = [{raw.strip().casefold(): label for raw, label in table.items()} for table in maps]

    def mapped(self, raw: str) -> str:
        """What the maps make of a label, one after another."""
        for table in self._maps:
            raw = table.get(raw.strip().casefold(), raw)
        return raw

    def resolve(self, raw: str) -> str | None:
        """The label, ``skip``, or None where neither the maps nor the synonyms lead to the vocabulary."""
        mapped = self.mapped(raw)
        return SKIP if mapped == SKIP != raw else self.word(mapped)

    def word(self, raw: str) -> str | None:
        """The label that a word is or is a synonym of; None where there is none, or more than one. Maps are not asked."""
        word = raw.strip().casefold()
        if word in self._known:
            return self._known[word]
        near = {self._known[other] for group in SYNONYMS if word in group for other in group if other in self._known}
        return near.pop() if len(near) == 1 else None


def read_label_map(path: str) -> dict[str, str]:
    """Read ``{raw label: label or skip}`` from a JSON or YAML file, or take the built-in map of that name.

    YAML values are text as they stand: ``6``, ``no`` and ``on`` are labels like others.

    Raises:
        UserError: not readable as such (with the line), or one label mapped to two.
    """
    if path in BUILT_IN:
        return dict(BUILT_IN[path])
    require_file(path, "--label-map")
    table: dict[str, str] = {}
    for raw, label, where in _json_pairs(path) if path.endswith(".json") else _yaml_pairs(path):
        if table.setdefault(raw.strip().casefold(), label) != label:
            raise UserError(f"{where}: '{raw}' is mapped to '{table[raw.strip().casefold()]}' already. Keep one.")
    return table


def _json_pairs(path: str) -> Iterator[tuple[str, str, str]]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise _no_map(path)
    for raw, label in table.items():
        if not isinstance(label, str) or not label.strip():
            raise _no_map(f"{path}, '{raw}'")
        yield raw, label.strip(), path


def _yaml_pairs(path: str) -> Iterator[tuple[str, str, str]]:
    import yaml

    try:
        root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}, line {line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        raise _no_map(path)
    for key, value in root.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode) or not value.value.strip():
            raise _no_map(where)
        yield key.value, value.value.strip(), where


def _no_map(where: str) -> UserError:
    return UserError(f"{where}: a label map is written as 'label of the source: label', or 'label of the source: {SKIP}'")
