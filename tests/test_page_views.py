"""The parts of the page as HTML, and what two models need to be compared."""

from __future__ import annotations

import re

import pytest

from emollama.commands import app as app_command
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


def test_the_command_names_its_extra(emollama, monkeypatch):
    monkeypatch.setattr(app_command.importlib.util, "find_spec", lambda name: None)
    result = emollama("app", "--cfg-path", "x.yaml")
    assert result.returncode == 1
    assert "pip install emollama[app]" in result.stderr


def test_the_folder_of_the_demo_needs_the_demo(emollama):
    result = emollama("app", "--cfg-path", "x.yaml", "--folder", "y")
    assert result.returncode == 1
    assert "Add --demo" in result.stderr
