"""What the page does: it answers questions about a clip, and shows what the model got.

Functions that use a model are generators: each value that they yield replaces parts of the page.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from emollama.errors import UserError
from emollama.inference.app import views
from emollama.inference.app.answering import follow_answers
from emollama.inference.app.conversation import Conversation
from emollama.inference.app.failures import log_failure
from emollama.inference.app.inputs import Inputs
from emollama.inference.app.listeners import AnswerLimit, Listeners
from emollama.inference.app.models import Models
from emollama.inference.app.previews import ReadPreviews
from emollama.inference.app.session_files import DELETED
from emollama.inference.requests import Answer, Request

NO_QUESTION = "Enter a question first."
FAILED = "The server failed to answer. Its log has the details."
STOPPED, READY = "Stopped.", "Ready."


@dataclass(frozen=True)
class Shown:
    """Parts of the page after an event, in the order of the components. None leaves a part as it is."""

    analyze: Any = None
    status: str | None = None
    talk: str | None = None
    probabilities: str | None = None
    modality_table: str | None = None
    previews: str | None = None
    download: str | None = None
    modalities: Any = None
    next_question: Any = None
    send: Any = None
    conversation: Conversation | None = None

    def updates(self) -> list[Any]:
        """Return the values for Gradio."""
        values = (getattr(self, item.name) for item in dataclasses.fields(self))
        return [gr.skip() if value is None else value for value in values]


class Events:
    """The functions of the page.

    Args:
        models: the models.
        read_previews: decodes a clip for display.
        listeners: the pages that receive answers.
        seconds: maximum time of an answer.
    """

    def __init__(self, models: Models, read_previews: ReadPreviews, listeners: Listeners, seconds: float) -> None:
        self.models, self._read_previews = models, read_previews
        self._listeners, self._seconds = listeners, seconds

    def loading(self, video: str | None) -> list[Any]:
        """Return the state of the models: Analyze, status, tasks, modalities, and the timer that calls this function."""
        engines = self.models.engines
        if not engines:
            text = f"Loading the model ({self.models.seconds:.0f} s). You can already choose a video."
            return [gr.skip(), views.notice(text, "busy"), gr.skip(), gr.skip(), gr.skip()]
        tasks, slots = _common([engine.tasks for engine in engines]), self._slots()
        return [
            self._analyzable(video),
            views.notice(READY),
            gr.update(choices=tasks, value=tasks[0] if tasks else None),
            gr.update(choices=[(slot.capitalize(), slot) for slot in slots], value=slots, visible=True),
            gr.update(active=False),
        ]

    def new_clip(self, video: str | None) -> list[Any]:
        """Remove the results of the clip that was replaced, and let the visitor analyze the new one."""
        # Analyze can only be selected after this function, so that it cannot remove the results of the new clip.
        return Shown(
            analyze=self._analyzable(video),
            status=views.notice(READY) if self.models.engines else None,
            talk=views.conversation_view((), (), None, ()),
            probabilities=views.probabilities_view((), Conversation(), ["x"]),
            modality_table="",
            previews=views.previews_view(None),
            download="",
            modalities=gr.update(interactive=False),
            next_question=gr.update(value="", interactive=False),
            send=gr.update(interactive=False),
            conversation=Conversation(),
        ).updates()

    def example(self, video: str | None) -> list[Any]:
        """Select an example."""
        return [video, gr.update(interactive=False)]

    def _analyzable(self, video: str | None) -> Any:
        return gr.update(interactive=bool(self.models.engines and video))

    def stopped(self) -> str:
        """Say that the visitor stopped the answer."""
        return views.notice(STOPPED)

    def analyze(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Start a conversation about a clip: previews, label probabilities and the first answer."""
        inputs, limit = Inputs(*values), self._limit(request)
        yield from _with_errors(self._limited(limit, self._analyze(inputs, limit)), inputs.video)

    def ask(self, request: gr.Request, question: str, conversation: Conversation) -> Iterator[list[Any]]:
        """Answer a further question about the same clip."""
        yield from _with_errors(self._limited(self._limit(request), self._ask(question, conversation)), conversation.video)

    def mask(self, request: gr.Request, used: list[str], conversation: Conversation) -> Iterator[list[Any]]:
        """Compute the label probabilities without the modalities that the visitor cleared."""
        yield from _with_errors(self._limited(self._limit(request), self._mask(used, conversation)), conversation.video)

    def _limit(self, request: gr.Request) -> AnswerLimit:
        return self._listeners.limit(str(request.session_hash), self._seconds)

    def _limited(self, limit: AnswerLimit, steps: Generator[Shown, None, None]) -> Iterator[Shown]:
        """Yield the steps of an answer until it has to end.

        Raises:
            UserError: If the answer is not complete, or the session has too many answers at a time.
        """
        with closing(steps), self._listeners.answering(limit.page):
            for shown in steps:
                limit.require()
                yield shown

    def _analyze(self, inputs: Inputs, limit: AnswerLimit) -> Generator[Shown, None, None]:
        engines, conversation, question = self.models.ready(), inputs.conversation(), inputs.question.strip()
        has_labels = bool(engines[0].labels)
        requests = [
            conversation.request(index, question or None, label_probabilities=has_labels) for index in range(len(engines))
        ]
        yield Shown(
            status=views.notice("Reading the video", "busy"),
            talk=views.conversation_view(self.models.names, (), question, [""] * len(engines)),
            probabilities=views.probabilities_view(self.models.names, conversation, engines[0].labels),
            modality_table="",
            download="",
            modalities=gr.update(value=self._slots(), interactive=False),
            conversation=conversation,
        )
        with suppress(CancelledError):
            yield Shown(previews=views.previews_view(self._read_previews(str(conversation.video), limit.is_over)))
        limit.require()
        answers = yield from self._follow(conversation, requests, question)
        yield self._complete(conversation.answered(question, answers), answers)

    def _ask(self, question: str, conversation: Conversation) -> Generator[Shown, None, None]:
        question = question.strip()
        if not question:
            raise UserError(NO_QUESTION)
        requests = [conversation.request(index, question) for index in range(len(self.models.ready()))]
        answers = yield from self._follow(conversation, requests, question)
        yield self._complete(conversation.answered(question, answers), answers)

    def _mask(self, used: list[str], conversation: Conversation) -> Generator[Shown, None, None]:
        engines = self.models.ready()
        masked = tuple(slot for slot in self._slots() if slot not in used)
        conversation = dataclasses.replace(conversation, mask_slots=masked, masked=())
        if not masked or not conversation.probabilities:
            yield self._complete(conversation, conversation.exchanges[-1].answers)
            return
        yield Shown(status=views.notice("Computing the probabilities", "busy"))
        following = follow_answers(engines, [conversation.probability_request()] * len(engines))
        answers = yield from _waiting(following)
        probabilities = tuple(answer.label_probabilities or {} for answer in answers)
        shown = self._complete(dataclasses.replace(conversation, masked=probabilities), answers)
        yield dataclasses.replace(shown, status=views.notice(f"Done: probabilities without {', '.join(masked)}."))

    def _follow(
        self, conversation: Conversation, requests: Sequence[Request], question: str
    ) -> Generator[Shown, None, tuple[Answer, ...]]:
        """Show the texts while they grow, and return the answers."""
        start = time.monotonic()
        following = follow_answers(self.models.engines, requests)
        while True:
            try:
                texts = next(following)
            except StopIteration as ended:
                answers: tuple[Answer, ...] = ended.value
                return answers
            step = "Answering" if any(texts) else "Extracting features"
            yield Shown(
                status=views.notice(f"{step} ({time.monotonic() - start:.0f} s)", "busy"),
                talk=views.conversation_view(self.models.names, conversation.exchanges, question, texts),
            )

    def _complete(self, conversation: Conversation, answers: Sequence[Answer]) -> Shown:
        """Show a conversation without an open question, and let the visitor continue."""
        names = self.models.names
        return Shown(
            status=views.notice(_summary(answers)),
            talk=views.conversation_view(names, conversation.exchanges, None, ()),
            probabilities=views.probabilities_view(names, conversation, self.models.engines[0].labels),
            modality_table=views.modalities_view(names, [answer.modalities for answer in answers], conversation.mask_slots),
            download=views.download_view(conversation.as_json(names), Path(str(conversation.video)).stem),
            modalities=gr.update(interactive=True),
            next_question=gr.update(value="", interactive=True),
            send=gr.update(interactive=True),
            conversation=conversation,
        )

    def _slots(self) -> list[str]:
        """Return the slots of all models."""
        return _common([engine.slots for engine in self.models.engines])


def _waiting(following: Generator[tuple[str, ...], None, tuple[Answer, ...]]) -> Generator[Shown, None, tuple[Answer, ...]]:
    """Let Gradio check for a stop while answers are computed, and return them."""
    while True:
        try:
            next(following)
        except StopIteration as ended:
            answers: tuple[Answer, ...] = ended.value
            return answers
        yield Shown()


def _with_errors(steps: Iterator[Shown], video: str | None) -> Iterator[list[Any]]:
    """Yield the values for Gradio, and an error as a message."""
    try:
        for shown in steps:
            yield shown.updates()
    except UserError as error:
        text = str(error)
        if video is not None:
            # A visitor does not need the folder of uploads.
            text = text.replace(video, Path(video).name) if os.path.exists(video) else DELETED
        yield Shown(status=views.notice(text, "error")).updates()
    except Exception as error:
        log_failure(error)
        yield Shown(status=views.notice(FAILED, "error")).updates()


def _common(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return the elements of the first list that all others have."""
    return [item for item in lists[0] if all(item in other for other in lists[1:])]


def _summary(answers: Sequence[Answer]) -> str:
    """Return the time and the length of answers in one line."""
    seconds = max(sum((answer.timings.queue, answer.timings.features, answer.timings.generation)) for answer in answers)
    cut = " The answer reached its maximum length." if any(answer.finish_reason == "length" for answer in answers) else ""
    tokens = sum(answer.completion_tokens for answer in answers)
    return f"Done in {seconds:.1f} s, {tokens} tokens.{cut}"
