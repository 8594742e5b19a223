"""How long ``emollama check-data`` takes on as many clips as MERR has, cold and warm, and whether it finds what was planted.

    python benchmarks/check_data.py [--clips 28618] [--folder FOLDER] [--json]

Writes an invented corpus (an EVA cache of image_size 112 and three utterance features a clip, captions, transcripts; 1.9 GB
for 28,618 clips) with faults of every kind in it. "Cold" is the first look, nothing remembered, the features' files dropped
from the page cache; "warm" is the second look.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from planted import FEATURES, Planted, not_found  # noqa: E402


def main() -> None:
    """Write the corpus, look twice, tell the times; exits with 1 where a fault was not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=28_618)
    parser.add_argument("--folder", help="where the corpus goes, and stays (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary) / "corpus"
        planted = Planted(folder, arguments.clips, ROOT / "tests/golden/llama")
        drop_from_page_cache(folder)
        times, wrong = {}, {}
        for look in ("cold", "warm"):
            times[look], wrong[look] = timed(planted, Path(temporary) / "cache")
    if arguments.json:
        sys.stdout.write(json.dumps({"clips": arguments.clips, **times, "wrong": wrong}) + "\n")
    else:
        for look, figures in times.items():
            sys.stdout.write(f"{look}: {figures['wall_s']:.1f} s, CPU {figures['cpu_s']:.1f} s\n")
        sys.stdout.write(f"planted and not found, or found and not planted: {wrong}\n")
    if any(wrong.values()):
        raise SystemExit(1)


def timed(planted: Planted, cache: Path) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Seconds of one look, its start included, and what it did not find."""
    command = [sys.executable, "-m", "emollama", "check-data", "--cfg-path", str(planted.config), "--json"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    before, begun = cpu(), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    figures = {"wall_s": time.perf_counter() - begun, "cpu_s": cpu() - before}
    if done.returncode != 1 or not done.stdout:
        raise SystemExit(f"check-data ended with {done.returncode}; expected a report and 1 (problems): {done.stderr}")
    return figures, not_found(planted.expected, json.loads(done.stdout)["findings"])


def cpu() -> float:
    """CPU seconds of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def drop_from_page_cache(folder: Path) -> None:
    """Ask the system to read the features from the disk again."""
    os.sync()
    for feature in FEATURES.values():
        for path in (folder / feature).iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
