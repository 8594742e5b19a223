"""Label maps of imports: files that rename labels, and the check of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from emollama.data.annotations import read_json
from emollama.data.label_map import DATASET_LABELS, SKIP
from emollama.errors import UserError
from emollama.paths import extension, read_text, require_file

NO_LABEL = "0"  # in the label field of an annotation file without labels


def require_vocabulary(labels: Sequence[str]) -> None:
    """Check the labels of ``--labels``.

    Raises:
        UserError: If an annotation file cannot contain one of the labels, or a label is in the vocabulary twice.
    """
    for label in labels:
        if label.split() != [label] or label in (SKIP, NO_LABEL):
            reserved = f"'{SKIP}' and '{NO_LABEL}' have other meanings"
            raise UserError(f"--labels: {label!r} is not valid. A label is a single word; {reserved}. Rename it.")
    if len({label.casefold() for label in labels}) < len(labels):
        raise UserError(f"--labels: one label appears twice in {' '.join(labels)}. Remove one.")


def read_label_map(path: str) -> dict[str, str]:
    """Read ``{raw label: label or skip}`` from a JSON or YAML file, or return the built-in map with this name.

    YAML values are read as text: ``6``, ``no`` and ``on`` are ordinary labels.

    Raises:
        UserError: If the file is not a label map, or maps one label to two labels.
    """
    if path in DATASET_LABELS:
        return dict(DATASET_LABELS[path])
    require_file(path, "--label-map")
    table: dict[str, str] = {}
    for raw, label, where in _json_pairs(path) if extension(path) == ".json" else _yaml_pairs(path):
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
