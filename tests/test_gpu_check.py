"""benchmarks/gpu_check.py on tiny shapes: it measures every variant, and packed and padded batches have the same loss."""

from __future__ import annotations

import json
import re
import sys

import pytest
from ranks import ROOT


@pytest.fixture
def gpu_check(monkeypatch):
    """The script as a module. It extends sys.path, which is restored; conftest.py has set the variables that it sets."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_check

    yield gpu_check
    for name in ("gpu_check", "gpu_check_files", "gpu_check_steps"):
        del sys.modules[name]


@pytest.mark.slow
def test_the_gpu_benchmark_measures_every_variant_and_packing_preserves_the_loss(gpu_check, tmp_path, capsys):
    gpu_check.main(["--tiny", "--seconds", "0", "--skip-tests", "--out", str(tmp_path)])
    lines = (tmp_path / "gpu_check.txt").read_text().splitlines()
    assert capsys.readouterr().out.endswith("\n".join(lines) + "\n")

    names = [variant.name for variant in gpu_check.variants_of(gpu_check.TINY)]
    assert len(set(names)) == 6
    columns = lines[1].split("variant")[1].replace("MFU 4N", "MFU").replace("x H1", "x").split()
    table = lines[2 : 2 + len(names)]
    assert [line[:32].rstrip() for line in table] == names
    assert all(len(line[32:].split()) == len(columns) for line in table), table
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["rows"]
    assert list(rows) == names and all(row["ms"] > 0 and row["tok_s"] > 0 for row in rows.values())

    (losses,) = (line for line in lines if line.startswith("loss"))
    packed, padded = map(float, re.findall(r"(?:packed|sdpa) ([\d.]+)", losses))
    assert packed == pytest.approx(padded, rel=1e-5)
