"""Files of predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emollama.paths import written_whole

REASONING_TASKS = ("reason", "reason_v2")


def write_predictions(folder: Path, block: str, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Write ``predictions_<block>.jsonl``, and for tasks that reason the CSV that EMER's scorers read.

    The CSV (``names,chi_reasons``; English text in spite of the name) is called after the block, and after the task too where
    the block has both.

    Args:
        folder: created if need be.
        block: the evaluation block's label.
        rows: an object a prediction, with at least name, task and prediction.

    Returns:
        The files written.
    """
    files = [folder / f"predictions_{block}.jsonl"]
    with written_whole(files[0]) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    tasks = sorted({row["task"] for row in rows} & set(REASONING_TASKS))
    for task in tasks:
        files.append(folder / (f"predictions_{block}.csv" if len(tasks) == 1 else f"predictions_{block}_{task}.csv"))
        with written_whole(files[-1]) as file:
            writer = csv.writer(file)
            writer.writerow(["names", "chi_reasons"])
            writer.writerows([row["name"], row["prediction"]] for row in rows if row["task"] == task)
    return files
