"""Time ``emollama check-data`` on a corpus of MERR's size, and check that it finds all planted faults.

    python benchmarks/check_data.py [--clips 28618] [--folder FOLDER] [--json]

The script writes a synthetic corpus (EVA features of image_size 112 and three utterance features per clip, captions, transcripts;
1.9 GB for 28,618 clips) with faults of every kind. The "cold" check is the first one, without results of earlier checks and with
the feature files removed from the page cache; the "warm" check is the second one. "plain" is the time of a loop that only reads
every array with numpy and looks for values that are not finite. The exit status is 1 if a fault was not found.
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

PLAIN_READING = """
for folder in sys.argv[1:]:
    for path in sorted(pathlib.Path(folder).iterdir()):
        try:
            np.isfinite(np.load(path)).all()
        except (OSError, ValueError, EOFError):
            pass  # a planted fault
"""


def main() -> None:
    """Write the corpus, check it twice, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=28_618, help="number of clips (default: 28618)")
    parser.add_argument("--folder", help="folder for the corpus, which is not deleted (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary) / "corpus"
        planted = Planted(folder, arguments.clips, ROOT / "tests/golden/llama")
        drop_from_page_cache(folder)
        times, wrong = {}, {}
        for check in ("cold", "warm"):
            times[check], wrong[check] = time_check(planted, Path(temporary) / "cache")
        times["plain"] = time_plain_reading(folder)
    if arguments.json:
        sys.stdout.write(json.dumps({"clips": arguments.clips, **times, "wrong": wrong}) + "\n")
    else:
        for check, seconds in times.items():
            sys.stdout.write(f"{check}: {seconds['wall_s']:.1f} s, CPU {seconds['cpu_s']:.1f} s\n")
        sys.stdout.write(f"planted faults that were not found, and other findings: {wrong}\n")
    if any(wrong.values()):
        raise SystemExit(1)


def time_check(planted: Planted, cache: Path) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Run one check. Returns its time in seconds, including its start, and the differences to the planted faults."""
    command = [sys.executable, "-m", "emollama", "check-data", "--cfg-path", str(planted.config), "--json"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    cpu_before, start = cpu_seconds(), time.perf_counter()
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = {"wall_s": time.perf_counter() - start, "cpu_s": cpu_seconds() - cpu_before}
    if process.returncode != 1 or not process.stdout:
        raise SystemExit(f"expected a report and exit status 1 (problems), got {process.returncode}: {process.stderr}")
    return seconds, not_found(planted.expected, json.loads(process.stdout)["findings"])


def time_plain_reading(folder: Path) -> dict[str, float]:
    """Load every array with numpy and look for values that are not finite: the work that no check can avoid. Returns seconds."""
    code = "import sys, warnings, pathlib, numpy as np; warnings.simplefilter('ignore')\n" + PLAIN_READING
    cpu_before, start = cpu_seconds(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *(str(folder / feature) for feature in FEATURES.values())], check=True)
    return {"wall_s": time.perf_counter() - start, "cpu_s": cpu_seconds() - cpu_before}


def cpu_seconds() -> float:
    """Return the CPU time of the child processes that have ended, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def drop_from_page_cache(folder: Path) -> None:
    """Remove the feature files from the page cache, so that they are read from the disk again."""
    os.sync()
    for feature in FEATURES.values():
        for path in (folder / feature).iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
