"""Map labels of a source to labels of the vocabulary, with the user's label maps and built-in synonyms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from emollama.data.annotations import DFEW_LABELS, read_json
from emollama.errors import UserError
from emollama.paths import read_text, require_file

SKIP = "skip"  # in a map or a file of overrides, in place of a label: leave the clip out
NO_LABEL = "0"  # in the label field of an annotation file without labels
BUILT_IN = {"dfew": DFEW_LABELS}  # maps that --label-map accepts by name
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
    """Maps labels of a source to labels of the vocabulary.

    Args:
        labels: the vocabulary.
        maps: raw label -> label or ``skip``, applied one after another; case and surrounding white space are ignored.

    Raises:
        UserError: If an annotation file cannot contain one of the labels, or a label is in the vocabulary twice.
    """

    def __init__(self, labels: Sequence[str], maps: Sequence[Mapping[str, str]] = ()) -> None:
        for label in labels:
            if label.split() != [label] or label in (SKIP, NO_LABEL):
                reserved = f"'{SKIP}' and '{NO_LABEL}' have other meanings"
                raise UserError(f"--labels: {label!r} is not valid. A label is a single word; {reserved}. Rename it.")
        self.labels = tuple(labels)
        self._by_casefold = {label.casefold(): label for label in labels}
        if len(self._by_casefold) < len(labels):
            raise UserError(f"--labels: one label appears twice in {' '.join(labels)}. Remove one.")
        self._maps = [{raw.strip().casefold(): label for raw, label in table.items()} for table in maps]

    def mapped(self, raw: str) -> str:
        """Apply the maps to a label, one after another."""
        for table in self._maps:
            raw = table.get(raw.strip().casefold(), raw)
        return raw

    def resolve(self, raw: str) -> str | None:
        """Return the label of the vocabulary, or ``skip``; None if neither the maps nor the synonyms lead to the vocabulary."""
        mapped = self.mapped(raw)
        # "skip" has its special meaning only as a value of a map, not as a label of the source.
        return SKIP if mapped == SKIP != raw else self.label_or_synonym(mapped)

    def label_or_synonym(self, raw: str) -> str | None:
        """Return the label that equals a word or is its synonym, without applying maps; None if there is none or several."""
        word = raw.strip().casefold()
        if word in self._by_casefold:
            return self._by_casefold[word]
        synonyms = {other for group in SYNONYMS if word in group for other in group if other in self._by_casefold}
        return self._by_casefold[synonyms.pop()] if len(synonyms) == 1 else None


def read_label_map(path: str) -> dict[str, str]:
    """Read ``{raw label: label or skip}`` from a JSON or YAML file, or return the built-in map with this name.

    YAML values are read as text: ``6``, ``no`` and ``on`` are ordinary labels.

    Raises:
        UserError: If the file is not a label map, or maps one label to two labels.
    """
    if path in BUILT_IN:
        return dict(BUILT_IN[path])
    require_file(path, "--label-map")
    table: dict[str, str] = {}
    for raw, label, where in _json_pairs(path) if path.endswith(".json") else _yaml_pairs(path):
        if table.setdefault(raw.strip().casefold(), label) != label:
            raise UserError(f"{where}: '{raw}' is already mapped to '{table[raw.strip().casefold()]}'. Keep one of the two.")
    return table


def _json_pairs(path: str) -> Iterator[tuple[str, str, str]]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise _invalid_map(path)
    for raw, label in table.items():
        if not isinstance(label, str) or not label.strip():
            raise _invalid_map(f"{path}, '{raw}'")
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
        raise _invalid_map(path)
    for key, value in root.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode) or not value.value.strip():
            raise _invalid_map(where)
        yield key.value, value.value.strip(), where


def _invalid_map(where: str) -> UserError:
    return UserError(f"{where}: expected a label map of the form 'label of the source: label' or 'label of the source: {SKIP}'")
