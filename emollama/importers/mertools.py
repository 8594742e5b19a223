"""``mertools``: label files of MERTools, an .npz with ``<split>_corpus`` = {name: {"emo": label, "val": valence}}.

Source: the preprocessing of MERTools (MER2023, MER2024, IEMOCAP, MELD). A valence of "" or -10 means that there is no valence.
For splits with withheld labels, MERTools writes "neutral" for every clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emollama.data.problems import Problem
from emollama.importers.collector import Collector, Entry, parse_valence
from emollama.importers.npz import read_dictionaries


def read(path: str, splits: Sequence[str], collector: Collector) -> None:
    """Read the clips of these splits in order.

    Raises:
        UserError: As in :func:`~emollama.importers.npz.read_dictionaries`.
    """
    for key, table in read_dictionaries(path, [f"{split}_corpus" for split in splits]).items():
        before = len(collector.entries)
        raw_labels = set()
        for name, values in table.items():
            where = f"{path}, {key}, '{name}'"
            if not isinstance(name, str) or not isinstance(values, Mapping) or not isinstance(values.get("emo"), str | int):
                collector.report(Problem("row", f"{where}: expected a name with {{'emo': label, 'val': valence}}", (str(name),)))
            elif name in collector.entries:
                collector.report(Problem("repeated", f"{where}: the clip is also in another of these splits", (name,)))
            elif collector.is_usable(name, where):
                raw_labels.add(str(values["emo"]))
                _add_clip(name, values, where, collector)
        if raw_labels == {"neutral"} and len(collector.entries) - before > 1:
            collector.notes.append(f"every clip of {key} is 'neutral'; MERTools writes this for splits with withheld labels")


def _add_clip(name: str, values: Mapping[str, Any], where: str, collector: Collector) -> None:
    label = collector.label(str(values["emo"]), name, where)
    if label is not None:
        try:
            collector.add(Entry(name, label, valence=parse_valence(values.get("val"))))
        except ValueError as error:
            collector.report(Problem("valence", f"{where}: {error}", (name,)))
