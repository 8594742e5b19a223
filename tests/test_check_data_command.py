"""``emollama check-data``: its output, exit status, and speed for the number of clips in MERR."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FOLDERS, NAMES, training_tree, write
from running import ROOT, environment

from emollama import cli


@pytest.fixture
def tree(tmp_path, corpus):
    """A configuration with one training block on the copied corpus."""
    return training_tree(tmp_path, corpus)


@pytest.fixture
def printed(tmp_path, tree, capsys):
    """A function that runs the command in this process and returns its exit status and what it printed."""

    def run_command(*arguments):
        status = 0
        try:
            cli.main(["check-data", "--cfg-path", write(tmp_path, tree), *arguments])
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out

    return run_command


def test_the_command_prints_tables_and_exits_with_0_for_clean_data(tmp_path, printed):
    status, text = printed()
    assert status == 0
    assert text.splitlines()[-1] == "0 problems, 0 notes"
    for part in ("datasets.golden (feature_face_caption", "6 clips", "happy 1", "image + cls", "answers of emotion", "reading"):
        assert part in text
    assert "Problems" not in text and not (tmp_path / "out").exists()


def test_the_command_exits_with_1_and_names_the_clips_and_the_remedy_of_problems(printed, corpus):
    missing = corpus / FOLDERS["audio"] / f"{NAMES[1]}.npy"
    missing.unlink()
    with (corpus / "MERR_coarse_grained.txt").open("a") as file:
        file.write(f"{NAMES[0]} 3 happy\n")
    status, text = printed()
    assert status == 1
    assert NAMES[1] in text and "missing_features: zero or skip" in text and "line 7" in text
    assert text.splitlines()[-1] == "2 problems, 0 notes"


def test_json_is_one_object_with_every_name(printed, corpus):
    with (corpus / "MERR_coarse_grained.txt").open("a") as file:
        file.writelines(f"absent_{number} 3 happy\n" for number in range(50))
    strange = os.fsencode(corpus / FOLDERS["face"]) + b"/not\xffutf8.npy"  # a file name is not necessarily text
    Path(os.fsdecode(strange)).write_bytes(b"")
    status, text = printed("--json")
    report = json.loads(text)
    assert status == 1 and report["problems"] == len(report["findings"]) == 5
    for finding in report["findings"]:
        assert set(finding["clips"]) == {f"absent_{number}" for number in range(50)}
    (block,) = report["blocks"]
    assert block["labels"]["happy"] == 51 and block["imbalance"] == 51
    assert ["not\udcffutf8"] in report["unlisted_arrays"].values()
    status, table = printed()
    assert status == 1 and "\\udcff" in table


def test_options_override_the_file(printed):
    status, table = printed("--options", "datasets.golden.image_feature_path=null", "model.max_txt_len=8")
    assert status == 0 and "image + cls" not in table and "face" in table


@pytest.mark.slow
def test_checking_thousands_of_clips_costs_a_few_times_reading_their_arrays_and_half_of_that_when_cached():
    script = str(ROOT / "benchmarks/check_data.py")
    completed = subprocess.run(
        [sys.executable, script, "--json", "--clips", "7000"],
        env=environment(), capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stdout + completed.stderr
    report = json.loads(completed.stdout)
    assert report["clips"] == 7000 and report["wrong"] == {"cold": {}, "warm": {}}
    # Ratios, because even CPU time doubles on a busy machine. They were 4.0 and 0.25, each with the start of the program.
    assert report["cold"]["cpu_s"] < 8 * report["plain"]["cpu_s"]
    assert report["warm"]["cpu_s"] < 0.5 * report["cold"]["cpu_s"]
