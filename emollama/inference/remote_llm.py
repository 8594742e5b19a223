"""A language model in a vLLM server, which gets prompts as embeddings through the Completions API.

vLLM 0.11 or later must run with ``--enable-prompt-embeds`` and the language model into which the adapters are merged. A prompt is
the base64 text of a tensor (T, H) that ``torch.save`` wrote; T = tokens of the prompt, H = hidden size.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai
import torch
from torch import Tensor

from emollama.data.prompts.prompt import PromptFormat
from emollama.decoding.running_batch import FinishReason
from emollama.decoding.sampling_params import SequenceParams
from emollama.errors import UserError
from emollama.inference.remote_support import KEY
from emollama.inference.requests import RemoteFailure
from emollama.text_encoding import encodable
from emollama.variables import ENGINE_API_KEY

CONNECT_SECONDS = 10.0
MAX_RESPONSE_BYTES = 16 << 20  # of one answer; each token is a line of a few hundred bytes
MAX_SHOWN = 300  # characters of a server's message
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteAnswer:
    """A generated answer.

    Attributes:
        ids: the generated ids, including the end of the answer.
        text: the answer.
        finish_reason: "stop" if the model ended the answer, "length" if it reached the maximum number of tokens.
    """

    ids: list[int]
    text: str
    finish_reason: FinishReason


class RemoteLanguageModel:
    """A client of one server. All methods are thread-safe; requests run concurrently.

    Args:
        url: the address of the server, such as http://127.0.0.1:8000, with or without ``/v1``.
        prompt_format: the prompt format of the model, which recognizes the end of an answer and decodes ids.
        timeout: seconds without a byte from the server after which a request fails.
        retries: how often a request is repeated if no answer has started: after connection errors and statuses such as 429 and
            503. Generation has no side effects, so that it can be repeated.

    Attributes:
        model: name of the language model in the server.

    Raises:
        UserError: If the address is invalid, or the environment variable with the key has an invalid value.
        RemoteFailure: If the server cannot be reached, refuses the key, or serves no model.
    """

    def __init__(self, url: str, prompt_format: PromptFormat, *, timeout: float = 120.0, retries: int = 2) -> None:
        self._url, self._key = server_address(url), _api_key()
        self._prompt_format = prompt_format
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=f"{self._url}/v1",
            max_retries=retries,
            # A redirect would send the prompt to an address that the user did not name.
            http_client=httpx2.AsyncClient(
                transport=_LimitedTransport(),
                timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS), pool=None),
                follow_redirects=False,
            ),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="emollama-remote", daemon=True)
        self._thread.start()
        try:
            self.model = self._submit(self._first_model()).result()
        except BaseException:
            self.close()
            raise

    def generate(
        self, embeddings: Tensor, params: SequenceParams, on_token: Callable[[list[int]], None] | None = None
    ) -> RemoteAnswer:
        """Generate an answer; see :meth:`start`.

        Raises:
            RemoteFailure: If the server cannot be reached, or does not answer.
        """
        return self.start(embeddings, params, on_token).result()

    def start(
        self, embeddings: Tensor, params: SequenceParams, on_token: Callable[[list[int]], None] | None = None
    ) -> Future[RemoteAnswer]:
        """Start to generate an answer. Cancelling the future closes the connection, which ends the work of the server.

        Args:
            embeddings: (T, H) the input embeddings of the prompt, in float32, bfloat16 or float16.
            params: how tokens are selected. Sampled tokens differ from those of a local language model.
            on_token: receives all ids so far after each token, in another thread. It must return quickly.
        """
        return self._submit(self._generate(_encoded(embeddings), params, on_token))

    def close(self) -> None:
        """End all requests, and close all connections."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._reported(call), self._loop)

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    async def _reported(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call; errors become messages that name the server and do not contain the key."""
        try:
            return await call
        except (openai.OpenAIError, httpx2.HTTPError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise RemoteFailure(f"{KEY}: {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
            return f"the server at {self._url} sent nothing for too long. Check its load and its log."
        if isinstance(error, openai.APIConnectionError):
            return f"no connection to {self._url}: {self._shown(error.__cause__ or error)}. Start the server, or correct the URL."
        if isinstance(error, openai.APIStatusError):
            hints = {401: f" Set {ENGINE_API_KEY} to its key.", 403: f" Check its key in {ENGINE_API_KEY}."}
            hint = hints.get(error.status_code, " vLLM needs --enable-prompt-embeds." if error.status_code == 400 else "")
            return f"the server at {self._url} returned the status {error.status_code}: {self._shown(error.message)}.{hint}"
        return f"the server at {self._url} failed: {self._shown(error)}"

    def _shown(self, message: object) -> str:
        """Return a message of the server in one line, without the key."""
        text = " ".join(str(message).split()).rstrip(".")
        text = encodable(text.replace(self._key, "[key]") if self._key else text)
        return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."

    async def _first_model(self) -> str:
        models = (await self._client.models.list()).data
        if not models:
            raise RemoteFailure(f"{KEY}: the server at {self._url} serves no model.")
        return models[0].id

    async def _generate(
        self, prompt_embeds: str, params: SequenceParams, on_token: Callable[[list[int]], None] | None
    ) -> RemoteAnswer:
        sampling, ids = params.sampling, list[int]()
        stream: openai.AsyncStream[Any] = await self._client.completions.create(
            model=self.model,
            prompt="",
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=params.seed % 2**31 if sampling.temperature > 0 else openai.omit,
            stream=True,
            extra_body={"prompt_embeds": prompt_embeds, "repetition_penalty": sampling.repetition_penalty, **self._rules()},
        )
        async with stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    for token in _token_ids(choice):
                        ids.append(token)
                        if on_token is not None:
                            on_token(list(ids))
                        if self._prompt_format.is_finished(ids):
                            return self._answer(ids, "stop")
                        if len(ids) >= sampling.max_new_tokens:
                            return self._answer(ids, "length")
                    if choice.finish_reason is not None and ids:
                        return self._answer(ids, "length" if choice.finish_reason == "length" else "stop")
        raise RemoteFailure(f"{KEY}: the answer of the server at {self._url} has no end.")

    def _rules(self) -> dict[str, Any]:
        """Return the parameters of vLLM that make an answer end where it does here with any defaults of the server."""
        tokenizer = self._prompt_format.tokenizer
        stops = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        # ignore_eos: only the tokenizer's EOS token ends an answer, not further ones in generation_config.json.
        rules = {"return_token_ids": True, "ignore_eos": True, "stop_token_ids": stops, "top_k": 0, "min_p": 0.0}
        return rules | {"skip_special_tokens": False}

    def _answer(self, ids: list[int], reason: FinishReason) -> RemoteAnswer:
        return RemoteAnswer(ids, self._prompt_format.answer_text(ids), reason)


def server_address(url: str) -> str:
    """Return the address of a server without a path.

    Raises:
        UserError: If it is not an http or https URL of a server, or contains a password.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise UserError(f"{KEY}: not a valid URL: {error}. Write it as http://host:port.") from None
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"{KEY}: the URL contains a user name or password. Set the key of the server in {ENGINE_API_KEY} instead."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{KEY}: '{url}' is not an http or https URL. Write it as http://host:port.")
    if parts.query or parts.fragment or parts.path.rstrip("/") not in ("", "/v1"):
        raise UserError(f"{KEY}: '{url}' has a path or a query. Write only http://host:port; the path is /v1/completions.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")


def _api_key() -> str | None:
    key = os.environ.get(ENGINE_API_KEY, "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the environment variable {ENGINE_API_KEY} contains spaces or characters that are not printable ASCII.")
    return key


def _encoded(embeddings: Tensor) -> str:
    """Return the base64 text of a tensor file."""
    buffer = io.BytesIO()
    # torch.save would write the whole storage of a view, which contains the prompts of other requests.
    torch.save(embeddings.detach().cpu().contiguous().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _token_ids(choice: Any) -> list[int]:
    """Return the new ids in a piece of the answer. Any server may have written it, so nothing in it is taken for granted."""
    ids = getattr(choice, "token_ids", None)
    if ids is None and not choice.text:
        return []
    if not isinstance(ids, list) or not all(isinstance(token, int) and token >= 0 for token in ids):
        raise RemoteFailure(f"{KEY}: the server returns no token ids (return_token_ids). It needs vLLM 0.11 or later.")
    return ids


class _LimitedTransport(httpx2.AsyncHTTPTransport):
    """Ends a response that is longer than any answer."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=_Limited(response.stream), extensions=response.extensions
        )


class _Limited(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > MAX_RESPONSE_BYTES:
                raise RemoteFailure(f"{KEY}: the server sent more than {MAX_RESPONSE_BYTES >> 20} MiB for one answer.")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
