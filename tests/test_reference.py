"""The key reference in docs/ is what the Config classes say."""

from __future__ import annotations

from running import ROOT

from emollama.config.reference import markdown


def test_the_written_reference_is_up_to_date():
    assert (ROOT / "docs/configuration.md").read_text() == markdown(), "run: python -m emollama reference > docs/configuration.md"
