"""Chat completions: the engine's request for a body in OpenAI's format, and the response for the engine's answer."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from emollama.inference.requests import Answer, GenerationOptions, Request, Turn
from emollama.inference.serve.bodies import Admission
from emollama.inference.serve.errors import ApiError
from emollama.inference.serve.media_inputs import MediaInputs, MediaKind, decoded
from emollama.inference.serve.schema import IDENTIFYING, NEUTRAL, ChatMessage, ChatRequest, ContentPart

PARAMS = {  # field of an engine's request -> part of the body
    "video": "messages",
    "image": "messages",
    "audio": "messages",
    "question": "messages",
    "history": "messages",
    "text": "emollama.text",
    "task": "emollama.task",
    "mask_slots": "emollama.mask_slots",
    "label_probabilities": "emollama.label_probabilities",
    "options": "max_completion_tokens",
}


async def engine_request(body: ChatRequest, inputs: MediaInputs, admission: Admission) -> Request:
    """Return the engine's request for the body of a chat completion, with the content of its media.

    Raises:
        ApiError: If the body asks for something that the server does not support, or its media cannot be read.
    """
    _require_supported(body)
    texts = _texts(body.messages)
    media = await _media(body.messages[0], inputs, admission)
    turns = [Turn(question, answer) for question, answer in zip(texts[:-1:2], texts[1::2], strict=True)]
    return Request(
        video=media.get("video"),
        image=media.get("image"),
        audio=media.get("audio"),
        text=body.emollama.text,
        task=body.emollama.task,
        question=texts[-1] or None,
        history=turns,
        mask_slots=body.emollama.mask_slots,
        label_probabilities=body.emollama.label_probabilities,
        options=_options(body),
    )


def _require_supported(body: ChatRequest) -> None:
    """Check the parameters that OpenAI's API has and this server does not support."""
    for name, value in (body.model_extra or {}).items():
        if value is not None and name not in IDENTIFYING and not any(value == neutral for neutral in NEUTRAL.get(name, ())):
            message = "This parameter, or its value, is not supported. Remove it."
            raise ApiError(400, message, param=name[:100], code="unsupported_parameter")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "Set stream, too, or remove it.", param="stream_options", code="invalid_value")


def _options(body: ChatRequest) -> GenerationOptions:
    limits = {limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        message = "It differs from max_completion_tokens. Set one of them."
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    return GenerationOptions(
        max_new_tokens=next(iter(limits), None),
        temperature=body.temperature,
        top_p=body.top_p,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
    )


def _texts(messages: Sequence[ChatMessage]) -> list[str]:
    """Return the texts of messages, which alternate between user and assistant and end with the user."""
    texts = []
    for index, message in enumerate(messages):
        param, expected = f"messages[{index}]", ("user", "assistant")[index % 2]
        if message.role in ("system", "developer", "tool", "function"):
            text = "Only the roles user and assistant are supported, because the model is trained without other messages."
            raise ApiError(400, text, param=f"{param}.role", code="unsupported_role")
        if message.role != expected:
            text = "The roles must alternate between user and assistant, beginning with user."
            raise ApiError(400, text, param=f"{param}.role", code="invalid_value")
        for name, value in (message.model_extra or {}).items():
            if value not in (None, []):
                raise ApiError(400, "This field is not supported.", param=f"{param}.{name[:100]}", code="unsupported_parameter")
        for number, part in enumerate(message.content):
            if part.type != "text" and index > 0:
                text = "Only the first message may contain media. A conversation is about one clip."
                raise ApiError(400, text, param=f"{param}.content[{number}]", code="media_in_later_message")
        texts.append(_text(message, param))
    if len(messages) % 2 == 0:
        raise ApiError(400, "The last message must be one of the user.", param="messages", code="invalid_value")
    return texts


def _text(message: ChatMessage, param: str) -> str:
    """Return the text of a message; an empty text is allowed only beside media, where it stands for the task's instruction."""
    parts = [
        _required(part.text, f"{param}.content[{number}].text")
        for number, part in enumerate(message.content)
        if part.type == "text"
    ]
    text = "\n".join(parts).strip()
    if not text and all(part.type == "text" for part in message.content):
        raise ApiError(400, "The message has no text.", param=f"{param}.content", code="invalid_value")
    return text


async def _media(message: ChatMessage, inputs: MediaInputs, admission: Admission) -> dict[MediaKind, bytes]:
    """Return kind -> content of the media of a message."""
    media: dict[MediaKind, bytes] = {}
    for number, part in enumerate(message.content):
        if part.type == "text":
            continue
        param = f"messages[0].content[{number}]"
        kind = _kind(part)
        if kind in media:
            raise ApiError(400, f"The message has more than one {kind}.", param=param, code="too_many_media")
        if kind == "audio":
            audio = _required(part.input_audio, f"{param}.input_audio")
            media[kind] = await decoded(audio.data, f"{param}.input_audio.data")
        else:
            url = _required(part.video_url if kind == "video" else part.image_url, f"{param}.{part.type}")
            media[kind] = await inputs.read(url.url, kind, admission, f"{param}.{part.type}.url")
    return media


def _kind(part: ContentPart) -> MediaKind:
    kinds: dict[str, MediaKind] = {"video_url": "video", "image_url": "image", "input_audio": "audio"}
    return kinds[part.type]


def _required(value: Any, param: str) -> Any:
    """Return a field that the type of a part requires."""
    if value is None:
        raise ApiError(400, "Field required.", param=param, code="invalid_body")
    return value


class ChatResponse:
    """The response to one chat completion: a single object, or chunks.

    Args:
        body: the body of the request.
        warnings: returns the warnings about an answer.
    """

    def __init__(self, body: ChatRequest, warnings: Callable[[Answer], list[str]]) -> None:
        self._model, self._warnings = body.model, warnings
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def complete(self, answer: Answer) -> dict[str, Any]:
        """Return the response without streaming."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return self._object("chat.completion", [choice]) | {"usage": usage(answer), "emollama": self._extension(answer)}

    def start(self) -> dict[str, Any]:
        """Return the first chunk, which has the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk with a piece of the answer."""
        return self._chunk({"content": text})

    def end(self, answer: Answer) -> list[dict[str, Any]]:
        """Return the last chunks: the reason of the end with the extension field, and the numbers of tokens on request."""
        last = self._chunk({}, answer.finish_reason) | {"emollama": self._extension(answer)}
        if not self._with_usage:
            return [last]
        return [last, self._object("chat.completion.chunk", []) | {"usage": usage(answer)}]

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._object("chat.completion.chunk", [choice])
        return chunk | {"usage": None} if self._with_usage else chunk

    def _extension(self, answer: Answer) -> dict[str, Any]:
        """Return the extension field ``emollama``."""
        return {
            "task": answer.task,
            "label_probabilities": answer.label_probabilities,
            "modalities": {slot: dataclasses.asdict(modality) for slot, modality in answer.modalities.items()},
            "warnings": self._warnings(answer),
            "timings": dataclasses.asdict(answer.timings),
            "checkpoint": dataclasses.asdict(answer.checkpoint),
        }

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}


def usage(answer: Answer) -> dict[str, int]:
    """Return the numbers of tokens of an answer as OpenAI's API does."""
    total = answer.prompt_tokens + answer.completion_tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens, "total_tokens": total}
