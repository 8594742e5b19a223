"""The parts of the page as HTML, and what two models need to be compared."""

from __future__ import annotations

import re
import sys

import pytest
from page_server import VARIABLES

from emollama.commands import requirements
from emollama.errors import UserError


def conversation(**fields):
    from emollama.inference.app.conversation import Conversation

    return Conversation(probabilities=({"happy": 0.75, "sad": 0.25},), **fields)


def test_texts_of_visitors_and_models_are_never_markup():
    from emollama.inference.app import views

    text = '<img src=x onerror="alert(1)">&\r\n'
    shown = views.conversation_view(("A", "B"), (), text, (text, text)) + views.notice(text, "error")
    assert "<img" not in shown
    assert shown.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;&#13;\n") == 4


def test_bars_are_in_the_order_without_masks_and_show_changes():
    from emollama.inference.app import views

    shown = views.probabilities_view(("A",), conversation(mask_slots=("audio",), masked=({"happy": 0.25, "sad": 0.75},)), ["x"])
    assert re.findall(r'data-label="(\w+)"', shown) == ["happy", "sad"]
    assert re.findall(r">([-+][\d.]+)<", shown) == ["-50.0", "+50.0"]
    assert "Change without audio" in shown


def test_a_configuration_without_labels_has_no_bars():
    from emollama.inference.app import views

    assert views.NO_LABELS in views.probabilities_view(("A",), conversation(), [])


def test_models_with_different_labels_cannot_be_compared():
    from emollama.inference.app.models import require_same_labels

    require_same_labels({"A": ["happy", "sad"], "B": ["sad", "happy"]})
    with pytest.raises(UserError, match=r"A: happy, sad\. B: happy\. Select configurations with the same labels"):
        require_same_labels({"A": ["happy", "sad"], "B": ["happy"]})


@pytest.mark.parametrize(
    ("declared", "message"),
    [("no-such-package>=1", "needs no-such-package>=1 (not installed)"), ("gradio<1", "needs gradio<1 (installed: ")],
)
def test_the_command_names_its_extra(declared, message, emollama, monkeypatch):
    monkeypatch.setattr(requirements, "requirements", lambda: [f"{declared}; extra == 'app'"])
    for source in (["--cfg-path", "x.yaml"], ["--demo"]):
        result = emollama("app", *source)
        assert result.returncode == 1
        assert message in result.stderr
        assert "pip install 'emollama[app]'" in result.stderr


def test_gradio_that_cannot_be_imported_is_reported_before_the_demo_is_made(emollama, monkeypatch, tmp_path):
    # The import of a module fails if its entry is None.
    monkeypatch.setitem(sys.modules, "emollama.inference.app.page", None)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    result = emollama("app", "--demo", "--folder", str(tmp_path / "demo"))
    assert result.returncode == 1
    assert "error: gradio cannot be imported: " in result.stderr
    assert not (tmp_path / "demo").exists()


def test_the_folder_of_the_demo_needs_the_demo(emollama):
    result = emollama("app", "--cfg-path", "x.yaml", "--folder", "y")
    assert result.returncode == 1
    assert "Add --demo" in result.stderr
