"""benchmarks/gpu_check.py on tiny shapes: it measures every variant; packed and padded batches have the same gradients."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from ranks import ROOT


@pytest.fixture
def gpu_check(monkeypatch):
    """The script as a module. It extends sys.path, which is restored; conftest.py has set the variables that it sets."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_check

    yield gpu_check
    for name in ("gpu_check", "gpu_check_files", "gpu_check_steps", "step_variants"):
        del sys.modules[name]


@pytest.mark.slow
def test_the_gpu_benchmark_measures_every_variant_and_packing_preserves_loss_and_gradients(gpu_check, tmp_path, capsys):
    gpu_check.main(["--tiny", "--seconds", "0", "--skip-tests", "--out", str(tmp_path)])
    lines = (tmp_path / "gpu_check.txt").read_text().splitlines()
    assert capsys.readouterr().out.endswith("\n".join(lines) + "\n")

    names = [variant.name for variant in gpu_check.variants_of(gpu_check.TINY)]
    assert len(set(names)) == len(names) == 10
    columns = lines[1].split("variant")[1].replace("MFU 4N", "MFU").replace("x H1", "x").split()
    table = dict(zip(names, lines[2 : 2 + len(names)], strict=True))
    assert [line[:32].rstrip() for line in table.values()] == names
    assert "needs a GPU" in table.pop("emollama batch 9, fp8")
    assert all(len(line[32:].split()) == len(columns) for line in table.values()), table
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["rows"]
    assert list(rows) == names and all(rows[name]["ms"] > 0 and rows[name]["tok_s"] > 0 for name in table)

    (losses,) = (line for line in lines if line.startswith("loss"))
    packed, padded = map(float, re.findall(r"(?:packed|sdpa) ([\d.]+)", losses))
    assert packed == pytest.approx(padded, rel=1e-5) and "MORE THAN ROUNDING" not in losses
    assert sum(line.startswith("attention, ") for line in lines) == 2


@pytest.mark.slow
def test_other_gradients_are_more_than_rounding_also_in_bfloat16(gpu_check):
    variants = sys.modules["step_variants"]
    gradients = torch.linspace(-1, 1, 200)
    first = (2.0, gradients)
    for dtype, noise in ((torch.float32, 1e-6), (torch.bfloat16, 0.02)):
        assert variants.difference(first, (2.0, gradients * (1 + noise))).is_rounding(dtype)
        assert not variants.difference(first, (2.0, gradients.roll(5))).is_rounding(dtype)
        assert not variants.difference(first, (2.1, gradients)).is_rounding(dtype)
