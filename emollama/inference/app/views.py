"""The parts of the page as HTML. All texts of users and models are escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emollama.inference.app.conversation import Conversation, Exchange, Probabilities
from emollama.inference.requests import Modality

if TYPE_CHECKING:
    from emollama.inference.app.previews import Previews

STATES = {"real": "used", "zero": "zeros", "missing": "missing"}  # state of a modality -> its text on the page
SHORT_NOTICE = (
    "Research software. It estimates how annotators would label a recording, not what a person feels. Read about consent and"
    " legal limits under “Intended use” before you use recordings of people."
)
NO_ANSWER = "Upload or record a video, or pick an example. Then select Analyze."
NO_PROBABILITIES = "The probability of each label appears here."
NO_LABELS = "This configuration has no labels, so there are no probabilities."
MASKED = "cleared under Modalities"
NO_INPUTS = "The frame, the face and the sound that the model gets appear here."


def escape(text: str) -> str:
    """Escape a text so that the browser gets each of its characters, also carriage returns, which it would replace otherwise."""
    return html.escape(text).replace("\r", "&#13;")


def header(models: Sequence[str]) -> str:
    """Return the name of the program and of the models, and what to know before the page is used."""
    names = " compared with ".join(models)
    return (
        f'<header><div class="em-head"><h1>emollama</h1><span>{escape(names)}</span></div>'
        f'<div class="em-muted">{SHORT_NOTICE}</div></header>'
    )


def notice(text: str, kind: str = "info") -> str:
    """Return a message.

    Args:
        text: the message; line breaks are kept.
        kind: ``info``, ``busy`` or ``error``.
    """
    role = "alert" if kind == "error" else "status"
    return f'<div class="em-notice em-{kind}" role="{role}">{escape(text)}</div>'


def conversation_view(models: Sequence[str], exchanges: Sequence[Exchange], question: str | None, texts: Sequence[str]) -> str:
    """Return all questions and answers.

    Args:
        models: names of the models, which are shown if there are several.
        exchanges: the complete exchanges.
        question: the question that is being answered; None if there is none.
        texts: the answers to it so far.
    """
    parts = [_exchange(models, item.question, [answer.text for answer in item.answers], item.mask_slots) for item in exchanges]
    if question is not None:
        parts.append(_exchange(models, question, texts, (), is_open=True))
    talk = f'<div class="em-talk" role="log" aria-live="polite">{"".join(parts)}</div>' if parts else _empty(NO_ANSWER)
    return _section("Answer", talk)


def _exchange(models: Sequence[str], question: str, texts: Sequence[str], masked: Sequence[str], *, is_open: bool = False) -> str:
    note = f' <span class="em-muted">without {escape(", ".join(masked))}</span>' if masked else ""
    asked = f'<div class="em-question">{escape(question)}{note}</div>' if question or note else ""
    cursor = '<span class="em-cursor" aria-hidden="true"></span>' if is_open else ""
    columns = "".join(
        f'<div class="em-column">{_heading(models, index)}<div class="em-answer">{escape(text)}{cursor}</div></div>'
        for index, text in enumerate(texts)
    )
    return f'{asked}<div class="em-columns">{columns}</div>'


def _heading(models: Sequence[str], index: int) -> str:
    """Return the name of a model if there are several."""
    return f'<div class="em-model">{escape(models[index])}</div>' if len(models) > 1 else ""


def probabilities_view(models: Sequence[str], conversation: Conversation, labels: Sequence[str]) -> str:
    """Return bars of the label probabilities, with their changes if modalities are masked."""
    if not labels or not conversation.probabilities:
        return _section("Label probabilities", _empty(NO_PROBABILITIES if labels else NO_LABELS))
    first = conversation.probabilities[0]
    # The order stays the same when modalities are masked, so that a change is visible in its place.
    order = sorted(first, key=lambda label: -first[label])
    columns = []
    for index, before in enumerate(conversation.probabilities):
        after = conversation.masked[index] if conversation.masked else None
        rows = "".join(_bar(label, before, after) for label in order)
        columns.append(f'<div class="em-column">{_heading(models, index)}<div class="em-bars">{rows}</div></div>')
    masked = ", ".join(conversation.mask_slots)
    note = f"Change without {masked}, in percentage points. The lines mark the probabilities with all modalities."
    caption = f'<div class="em-muted">{escape(note)}</div>' if conversation.masked else ""
    return _section("Label probabilities", f'<div class="em-columns">{"".join(columns)}</div>{caption}')


def _bar(label: str, before: Probabilities, after: Probabilities | None) -> str:
    value = (before if after is None else after)[label]
    mark = change = ""
    if after is not None:
        # Adding 0 turns -0.0 into 0.0.
        points = round(100 * (after[label] - before[label]), 1) + 0.0
        direction = "em-up" if points > 0 else "em-down" if points < 0 else "em-same"
        mark = f'<span class="em-mark" style="left:{100 * before[label]:.2f}%"></span>'
        change = f'<span class="em-change {direction}">{points:+.1f}</span>'
    return (
        f'<div class="em-bar" data-label="{escape(label)}"><span class="em-label">{escape(label)}</span>'
        f'<span class="em-track"><span class="em-fill" style="width:{100 * value:.2f}%"></span>{mark}</span>'
        f'<span class="em-value">{100 * value:.1f}%</span>{change}</div>'
    )


def modalities_view(models: Sequence[str], modalities: Sequence[dict[str, Modality]], masked: Sequence[str]) -> str:
    """Return the state of each modality and its reason; one table if it is the same for all models.

    Args:
        models: names of the models.
        modalities: the modalities of each model's answer.
        masked: modalities that the visitor has cleared.
    """
    if not modalities:
        return ""
    tables = list(modalities) if any(other != modalities[0] for other in modalities) else [modalities[0]]
    columns = []
    for index, table in enumerate(tables):
        rows = "".join(
            f'<tr data-slot="{escape(slot)}"><th scope="row">{escape(slot)}</th>'
            f'<td><span class="em-state em-{modality.state}">{STATES[modality.state]}</span></td>'
            f"<td>{escape(MASKED if slot in masked else modality.why)}</td></tr>"
            for slot, modality in table.items()
        )
        heading = _heading(models, index) if len(tables) > 1 else ""
        columns.append(f'<div class="em-column">{heading}<table class="em-table"><tbody>{rows}</tbody></table></div>')
    return f'<div class="em-columns">{"".join(columns)}</div>'


def previews_view(previews: Previews | None) -> str:
    """Return the frame, the face and the waveform of a clip, or why there is none."""
    if previews is None:
        return _section("Inputs of the model", _empty(NO_INPUTS))
    frame = _picture(previews.frame, "Frame from the middle of the video", previews.frame_problem)
    face = _picture(previews.face, "Face, cut out of a frame", previews.face_problem)
    sound = _waveform(previews.loudness) if previews.loudness else _problem(previews.sound_problem)
    names = ("Frame", "Face", "Sound")
    figures = "".join(
        f'<figure class="em-figure em-{name.lower()}">{content}<figcaption>{name}</figcaption></figure>'
        for name, content in zip(names, (frame, face, sound), strict=True)
    )
    return _section("Inputs of the model", f'<div class="em-figures">{figures}</div>')


def download_view(document: str, name: str) -> str:
    """Return a link that saves a JSON document; the browser needs no request for it."""
    content = base64.b64encode(document.encode()).decode()
    return (
        f'<a class="em-download" download="{escape(name)}.emollama.json" href="data:application/json;base64,{content}">'
        "Download as JSON</a>"
    )


def _picture(image: bytes | None, description: str, problem: str) -> str:
    if image is None:
        return _problem(problem)
    return f'<img alt="{description}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'


def _waveform(loudness: Sequence[float]) -> str:
    """Return a drawing of the amplitudes in [0, 1] of equal parts of a sound."""
    lines = "".join(f"M{index} {50 - 48 * value:.1f}V{50 + 48 * value + 1:.1f}" for index, value in enumerate(loudness))
    return (
        f'<svg role="img" aria-label="Waveform" viewBox="0 0 {len(loudness)} 100" preserveAspectRatio="none">'
        f'<path d="{lines}" /></svg>'
    )


def _problem(text: str) -> str:
    return f'<div class="em-problem">{escape(text[:1].upper() + text[1:])}</div>'


def _section(title: str, content: str) -> str:
    return f'<section><h2 class="em-title">{title}</h2>{content}</section>'


def _empty(text: str) -> str:
    return f'<div class="em-empty">{escape(text)}</div>'
