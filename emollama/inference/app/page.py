"""The layout of the page, and which function runs when something is selected or entered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp

from emollama.inference.app import views
from emollama.inference.app.conversation import Conversation
from emollama.inference.app.events import Events
from emollama.inference.intended_use import INTENDED_USE

CSS = Path(__file__).with_name("page.css")
QUEUE_SIZE = 32  # events that wait; the browser gets an error beyond that
OPTIONS = {
    "max_new_tokens": "Maximum length of an answer, in tokens",
    "temperature": "Temperature (0: the most likely tokens)",
    "seed": "Seed of sampling",
}
PRIVATE: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
# Events that use the models share one limit, so that one session cannot occupy all threads of the server.
ENGINE: dict[str, Any] = {**PRIVATE, "concurrency_id": "engine", "concurrency_limit": 8}


@dataclass(frozen=True)
class Fields:
    """The components of the page that functions read or change."""

    video: gr.Video
    example: gr.Dropdown
    text: gr.Textbox
    task: gr.Dropdown
    question: gr.Textbox
    max_new_tokens: gr.Textbox
    temperature: gr.Textbox
    seed: gr.Textbox
    analyze: gr.Button
    stop: gr.Button
    status: gr.HTML
    talk: gr.HTML
    next_question: gr.Textbox
    send: gr.Button
    probabilities: gr.HTML
    modalities: gr.CheckboxGroup
    modality_table: gr.HTML
    previews: gr.HTML
    download: gr.HTML
    conversation: gr.State

    @property
    def results(self) -> list[Any]:
        """The components that :class:`emollama.inference.app.events.Shown` describes, in its order."""
        return [
            self.analyze,
            self.status,
            self.talk,
            self.probabilities,
            self.modality_table,
            self.previews,
            self.download,
            self.modalities,
            self.next_question,
            self.send,
            self.conversation,
        ]


def build_page(events: Events, examples: Sequence[Path]) -> gr.Blocks:
    """Build the page.

    Args:
        events: the functions.
        examples: example videos, which the visitor can select.
    """
    page: gr.Blocks = gr.Blocks(title="emollama", analytics_enabled=False)
    with page:
        _html(views.header(events.models.names))
        with gr.Accordion("Intended use", open=False):
            gr.Markdown(INTENDED_USE)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                inputs = _inputs(examples)
            with gr.Column(scale=6, min_width=320):
                fields = Fields(**inputs, **_results(), conversation=gr.State(Conversation()))
        _connect(page, fields, events, {path.stem: path for path in examples})
    page.queue(max_size=QUEUE_SIZE, default_concurrency_limit=8, api_open=False)
    return page


def mount_page(events: Events, examples: Sequence[Path], max_bytes: int) -> tuple[ASGIApp, dict[int, int]]:
    """Build the page; return its ASGI application, and the index of each function with the number of its values.

    Args:
        events: the functions.
        examples: example videos.
        max_bytes: maximum size of an upload.
    """
    page = build_page(events, examples)
    app: ASGIApp = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=max_bytes,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=_theme(),
        css_paths=CSS,
    )
    # Gradio checks the paths of files only in pages that it has launched itself.
    page.has_launched = True
    return app, {index: len(function.inputs) for index, function in page.fns.items()}


def _theme() -> gr.themes.Base:
    """Return a theme that uses only fonts of the visitor's system."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    base = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"])
    # The subdued texts of Gradio's themes are hard to read.
    return base.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")


def _inputs(examples: Sequence[Path]) -> dict[str, Any]:
    """Create the left column."""
    # Mirroring would need FFmpeg outside the sandbox.
    webcam = gr.WebcamOptions(mirror=False)
    fields: dict[str, Any] = {
        "video": gr.Video(
            label="Video", sources=["upload", "webcam"], webcam_options=webcam, include_audio=True, elem_id="video"
        ),
        "example": gr.Dropdown(
            [path.stem for path in examples],
            value=None,
            label="Or pick an example",
            visible=bool(examples),
            elem_id="example",
        ),
        "text": gr.Textbox(label="Spoken sentence", placeholder="What is said, if you know it", max_lines=3, elem_id="text"),
        "task": gr.Dropdown([], label="Task", elem_id="task"),
        "question": gr.Textbox(label="Or your own question", placeholder="Why does the person smile?", elem_id="question"),
    }
    with gr.Accordion("Options", open=False):
        # Components for numbers would turn an empty field into 0.
        for name, label in OPTIONS.items():
            fields[name] = gr.Textbox(label=label, placeholder="as in the configuration", elem_id=name)
    with gr.Row():
        fields["analyze"] = gr.Button("Analyze", variant="primary", interactive=False, elem_id="analyze", scale=3)
        fields["stop"] = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
    return fields


def _results() -> dict[str, Any]:
    """Create the right column."""
    fields: dict[str, Any] = {
        "status": _html(views.notice("Loading the model", "busy"), "status"),
        "talk": _html(views.conversation_view((), (), None, ()), "talk"),
    }
    with gr.Row():
        fields["next_question"] = gr.Textbox(
            show_label=False,
            placeholder="Ask about the same clip",
            interactive=False,
            scale=5,
            elem_id="next-question",
            container=False,
        )
        fields["send"] = gr.Button("Send", interactive=False, scale=1, min_width=80, elem_id="send")
    fields["probabilities"] = _html(views.probabilities_view((), Conversation(), ["x"]), "probabilities")
    fields["modalities"] = gr.CheckboxGroup(
        [],
        label="Modalities",
        info="Clear one to see the probabilities without it. It is also left out of your next questions.",
        interactive=False,
        visible=False,
        elem_id="modalities",
    )
    fields["previews"] = _html(views.previews_view(None), "previews")
    fields["modality_table"] = _html("", "modality-table")
    fields["download"] = _html("", "download")
    return fields


def _html(content: str, name: str | None = None) -> gr.HTML:
    return gr.HTML(content, padding=False, elem_id=name, elem_classes="em-part")


def _connect(page: gr.Blocks, fields: Fields, events: Events, examples: dict[str, Path]) -> None:
    """Connect the components with the functions."""
    entered = [
        fields.video,
        fields.text,
        fields.task,
        fields.question,
        fields.max_new_tokens,
        fields.temperature,
        fields.seed,
    ]
    running = [
        gr.on(
            [fields.analyze.click, fields.question.submit],
            events.analyze,
            entered,
            fields.results,
            scroll_to_output=True,
            **ENGINE,
        ),
        gr.on(
            [fields.send.click, fields.next_question.submit],
            events.ask,
            [fields.next_question, fields.conversation],
            fields.results,
            **ENGINE,
        ),
        fields.modalities.input(events.mask, [fields.modalities, fields.conversation], fields.results, **ENGINE),
    ]
    fields.stop.click(events.stopped, None, fields.status, cancels=running, **PRIVATE)
    for replaced in (fields.video.upload, fields.video.stop_recording, fields.video.clear):
        replaced(lambda: None, None, fields.example, **PRIVATE)
        replaced(events.new_clip, fields.video, fields.results, cancels=running, **PRIVATE)
    picked = fields.example.input(
        lambda name: events.example(str(examples[name]) if name else None),
        fields.example,
        [fields.video, fields.analyze],
        cancels=running,
        **PRIVATE,
    )
    picked.then(events.new_clip, fields.video, fields.results, **PRIVATE)
    timer = gr.Timer(1.0)
    # The page is built before the model is loaded, so that the tasks and slots are added when it is ready.
    for trigger in (page.load, timer.tick):
        trigger(
            events.loading,
            fields.video,
            [fields.analyze, fields.status, fields.task, fields.modalities, timer],
            **PRIVATE,
        )
