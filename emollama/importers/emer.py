"""``emer``: tables of EMER with descriptions of the emotional clues, from annotators or predicted by a model.

Source: the published files. EMER-V1 has the columns ``names,emotions,subtitles,reasons``, EMER-V2 has
``name,chinese,english``, and predictions have ``names,chi_reasons`` (in English, in spite of the name).
"""

from __future__ import annotations

from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry
from emollama.importers.sources import Sheet, rows_by_clip

HEADERS = ("names", "emotions", "subtitles", "reasons"), ("name", "chinese", "english"), ("names", "chi_reasons")
FINE_KEYS = {  # column -> key of the clip's object in the fine captions
    "reasons": "smp_reason_caption",
    "english": "smp_reason_caption",
    "chi_reasons": "smp_reason_caption",
    "emotions": "pseu_emotion",
    "subtitles": "text",
    "chinese": "chinese",
}


def read(path: str, collector: Collector) -> None:
    """Read the clips in order, without labels, because EMER scores descriptions.

    Raises:
        UserError: If the header is not one of EMER's.
    """
    sheet = Sheet.read(path, collector)
    unneeded = 0 if collector.name_format is None else 1  # the column of names
    columns = next((columns for columns in HEADERS if set(columns[unneeded:]) <= set(sheet.header)), None)
    if columns is None:
        expected = " or ".join(",".join(columns) for columns in HEADERS)
        raise UserError(f"{path}, line 1: the header is {','.join(sheet.header)}; expected {expected}")
    for name, row in rows_by_clip(sheet, columns[1:], collector).items():
        fine = {FINE_KEYS[column]: cell for column, cell in row.cells.items() if cell}
        has_description = "smp_reason_caption" in fine
        collector.add(Entry(name, sentence=row.cells.get("subtitles"), fine=fine if has_description else None))
