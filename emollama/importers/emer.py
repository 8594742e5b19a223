"""``emer``: EMER's descriptions of what shows the emotion, the truth or a model's predictions.

Source: the published files; EMER-V1 ``names,emotions,subtitles,reasons``, EMER-V2 ``name,chinese,english``, predictions
``names,chi_reasons`` (English, in spite of the name).
"""

from __future__ import annotations

from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry
from emollama.importers.sources import Sheet, rows_by_name

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
    """Take the clips in order, without labels: what EMER scores is the description.

    Raises:
        UserError: another header.
    """
    sheet = Sheet.read(path, collector)
    columns = next((columns for columns in HEADERS if set(columns) <= set(sheet.header)), None)
    if columns is None:
        expected = " or ".join(",".join(columns) for columns in HEADERS)
        raise UserError(f"{path}, line 1: the header is {','.join(sheet.header)}; EMER's tables have {expected}")
    for name, row in rows_by_name(sheet, columns[1:], collector).items():
        fine = {FINE_KEYS[column]: cell for column, cell in row.cells.items() if cell}
        described = "smp_reason_caption" in fine
        collector.take(Entry(name, sentence=row.cells.get("subtitles"), fine=fine if described else None))
