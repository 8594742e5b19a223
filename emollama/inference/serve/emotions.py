"""``POST /v1/emotions``: the distribution of labels and the reasoning about one clip, from a form or a JSON body."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, cast

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from emollama.inference.requests import EMOTION, Answer, Request, Timings
from emollama.inference.serve.bodies import Admission, invalid_body, media_type, read_json
from emollama.inference.serve.errors import ApiError, ClientGone
from emollama.inference.serve.media_inputs import KINDS, MediaInputs, MediaKind, declared_kind, require_type
from emollama.inference.serve.schema import EmotionsBody

FORM = "multipart/form-data"
ANY_KIND = "file"  # the field of a file whose declared media type tells its kind
FIELDS = (ANY_KIND, *KINDS)
MAX_FIELD = 1 << 16  # bytes of a field that is not a file
MAX_FIELDS = 32
REASONING = ("reason", "reason_v2")  # the first of these tasks that the configuration has explains the emotion


class SentMedia:
    """The media of a request.

    Attributes:
        content: kind -> content.
        fields: field of an engine's request -> field of the body.
    """

    def __init__(self) -> None:
        self.content: dict[MediaKind, bytes] = {}
        self.fields: dict[str, str] = {}

    def claim(self, kind: MediaKind, field: str) -> None:
        """Require that no other field has media of this kind.

        Raises:
            ApiError: If one has.
        """
        if kind in self.fields:
            raise ApiError(400, f"There is more than one {kind}. Send one.", param=field, code="too_many_media")
        self.fields[kind] = field


async def read_body(admission: Admission, inputs: MediaInputs) -> tuple[EmotionsBody, SentMedia]:
    """Read a form or a JSON body.

    Args:
        admission: the request.
        inputs: reads the media that the body names.

    Returns:
        The fields of the body, and its media.

    Raises:
        ApiError: If the body is invalid, or its media cannot be read.
        ClientGone: If the client disconnected.
    """
    request, media = admission.request, SentMedia()
    if media_type(request) == FORM:
        form = await _form(request)
        try:
            body = _fields(form)
            await _read_uploads(form, media)
        finally:
            await form.close()
    else:
        body = await read_json(request, EmotionsBody)
    for field in FIELDS:
        if (url := getattr(body, field)) is not None:
            kind = declared_kind(url[:100]) if field == ANY_KIND else cast(MediaKind, field)
            media.claim(kind, field)
            media.content[kind] = await inputs.read(url, kind, admission, field)
    # An engine's error about all media names its field video.
    media.fields.setdefault("video", next(iter(media.fields.values()), "video"))
    return body, media


class _Parser(MultiPartParser):
    """A parser that knows whether the form has ended."""

    is_complete = False

    def on_end(self) -> None:
        """Receive the end of the last part."""
        self.is_complete = True


async def _form(request: HttpRequest) -> FormData:
    """Read a form.

    Raises:
        ApiError: If it is invalid, or ends before its last boundary.
        ClientGone: If the client disconnected.
    """
    try:
        async with aclosing(request.stream()) as stream:
            parser = _Parser(request.headers, stream, max_files=len(KINDS), max_fields=MAX_FIELDS, max_part_size=MAX_FIELD)
            form = await parser.parse()
    except ClientDisconnect:
        raise ClientGone from None
    except MultiPartException as error:
        raise ApiError(400, error.message, code="invalid_body") from None
    except UnicodeError:
        raise ApiError(400, "The form is not UTF-8 text.", code="invalid_body") from None
    if not parser.is_complete:
        await form.close()
        raise ApiError(400, "The form ends before its last boundary. Send it again.", code="invalid_body")
    return form


def _fields(form: FormData) -> EmotionsBody:
    """Return the fields of a form other than files."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            continue
        if name == "mask_slots":
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise ApiError(400, "The field occurs twice.", param=name[:100], code="invalid_body")
        else:
            fields[name] = value
    try:
        # The values of a form are strings.
        return EmotionsBody.model_validate(fields, strict=False)
    except ValidationError as error:
        raise invalid_body(error) from None


async def _read_uploads(form: FormData, media: SentMedia) -> None:
    """Read the files of a form."""
    for name, upload in form.multi_items():
        if not isinstance(upload, UploadFile):
            continue
        if name not in FIELDS:
            message = f"Send files in the fields {', '.join(FIELDS)}."
            raise ApiError(400, message, param=name[:100], code="invalid_body")
        declared = upload.content_type or ""
        kind = declared_kind(declared) if name == ANY_KIND else cast(MediaKind, name)
        media.claim(kind, name)
        if upload.size == 0:
            raise ApiError(400, "The file is empty.", param=name, code="empty_file")
        require_type(declared, kind, name)
        media.content[kind] = await upload.read()


def engine_requests(body: EmotionsBody, media: dict[MediaKind, bytes], tasks: Sequence[str]) -> list[Request]:
    """Return the engine's requests: for the labels, and, if the configuration has a task for it, for the reasoning.

    Args:
        body: the fields of the body.
        media: kind -> content.
        tasks: names of the tasks of the configuration.

    Raises:
        ApiError: If the configuration has no task with labels.
    """
    if EMOTION not in tasks:
        message = f"The configuration of the server has no task '{EMOTION}'. Use /v1/chat/completions."
        raise ApiError(400, message, code="no_labels")
    labels = Request(
        video=media.get("video"),
        image=media.get("image"),
        audio=media.get("audio"),
        text=body.text,
        task=EMOTION,
        mask_slots=body.mask_slots,
        label_probabilities=True,
    )
    reasoning = next((task for task in REASONING if task in tasks), None) if body.reasoning else None
    if reasoning is None:
        return [labels]
    return [labels, dataclasses.replace(labels, task=reasoning, label_probabilities=False)]


def response(answers: Sequence[Answer], model: str, warnings: list[str]) -> dict[str, Any]:
    """Return the response for the answers to :func:`engine_requests`."""
    labels, *reasoning = answers
    probabilities = labels.label_probabilities or {}
    return {
        "id": f"emotion-{uuid.uuid4().hex}",
        "object": "emotion",
        "model": model,
        "label": max(probabilities, key=lambda label: probabilities[label], default=None),
        "label_probabilities": probabilities,
        "answer": labels.text,
        "reasoning": reasoning[0].text if reasoning else None,
        "sentence": labels.sentence,
        "modalities": {slot: dataclasses.asdict(modality) for slot, modality in labels.modalities.items()},
        "warnings": warnings,
        "timings": {
            phase.name: sum(getattr(answer.timings, phase.name) for answer in answers) for phase in dataclasses.fields(Timings)
        },
        "checkpoint": dataclasses.asdict(labels.checkpoint),
    }
