"""The bodies of requests, as far as they follow OpenAI's API, and of its extension ``emollama``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_MESSAGES = 100
MAX_PARTS = 16  # content parts of a message
# Characters of a text, far more than the context of a language model, so that no longer text is tokenized.
Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(max_length=200)]
# Values of parameters of OpenAI's API that this server does not support, with which they have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "stop": ([],),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
# Parameters that identify the caller. They do not change an answer, and they are not stored.
IDENTIFYING = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class MediaUrl(_Strict):
    """The address of a video or an image: a data: URL, or a file or URL that the server allows."""

    url: str
    detail: Literal["auto"] | None = None


class InputAudio(_Strict):
    """An audio file in base64."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "aac", "m4a", "webm"]


class ContentPart(_Strict):
    """A part of a message: a text, a video, an image or audio."""

    type: Literal["text", "video_url", "image_url", "input_audio"]
    text: Text | None = None
    video_url: MediaUrl | None = None
    image_url: MediaUrl | None = None
    input_audio: InputAudio | None = None


def _as_parts(content: Any) -> Any:
    """Return the text of a message as a list of one part; return other content unchanged."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(BaseModel):
    """A message of a conversation. Other fields, such as ``refusal`` in answers of the server, must be empty."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[list[ContentPart], BeforeValidator(_as_parts), Field(max_length=MAX_PARTS)]


class StreamOptions(_Strict):
    """Options of streaming."""

    include_usage: bool = False


class Extension(_Strict):
    """The extension field ``emollama`` of a request.

    Attributes:
        label_probabilities: also return the probability of each label.
        task: name of a task of the configuration.
        mask_slots: slots whose features are replaced by zeros.
        text: the sentence that is spoken in the clip.
    """

    label_probabilities: bool = False
    task: Name | None = None
    mask_slots: list[Name] = Field(default=[], max_length=MAX_PARTS)
    text: Text | None = None


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``. Other parameters are accepted if they have no effect (:data:`NEUTRAL`)."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Name
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    emollama: Extension = Extension()


class EmotionsBody(_Strict):
    """The JSON body of ``POST /v1/emotions``; the fields of a form have the same names.

    Attributes:
        model: the model; it may be left out, because a server has one.
        file: data: URL, or a file or URL that the server allows; so are ``video``, ``image`` and ``audio``.
        text: the sentence that is spoken in the clip.
        reasoning: also let the model explain the emotion, if the configuration has a task for this.
        mask_slots: slots whose features are replaced by zeros.
    """

    model: Name | None = None
    file: str | None = None
    video: str | None = None
    image: str | None = None
    audio: str | None = None
    text: Text | None = None
    reasoning: bool = True
    mask_slots: list[Name] = Field(default=[], max_length=MAX_PARTS)
