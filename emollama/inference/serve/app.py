"""The routes of the server."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from fastapi import FastAPI, Request, Response
from fastapi.middleware import Middleware
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from emollama.inference.requests import RequestError
from emollama.inference.serve import chat, emotions
from emollama.inference.serve.answering import AnswerPieces, Caller, answer
from emollama.inference.serve.bodies import Bodies, read_json
from emollama.inference.serve.errors import ApiError, api_error, log_failure
from emollama.inference.serve.loading import EngineLoader
from emollama.inference.serve.media_inputs import MediaInputs
from emollama.inference.serve.metrics import CONTENT_TYPE, Metrics
from emollama.inference.serve.outermost import STATE
from emollama.inference.serve.schema import ChatRequest
from emollama.inference.serve.served_model import ServedModel

READ = ["GET", "HEAD"]
# FastAPI's own telemetry would export the messages of exceptions, which can contain texts of requests.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


@dataclass(frozen=True)
class Services:
    """The objects that the routes use.

    Attributes:
        loader: the engine.
        bodies: limits of the bodies.
        media: reads the media of requests.
        metrics: the metrics of the server.
        model: what clients learn about the model.
        seconds: maximum time of an answer.
    """

    loader: EngineLoader
    bodies: Bodies
    media: MediaInputs
    metrics: Metrics
    model: ServedModel
    seconds: float


def build_app(services: Services, middleware: list[Middleware]) -> FastAPI:
    """Build the application.

    Args:
        services: the objects that the routes use.
        middleware: the layers around the routes, the outermost first.
    """
    app = FastAPI(
        openapi_url=None, redirect_slashes=False, middleware=middleware, telemetry=NO_TELEMETRY
    )  # without pages that load scripts of other servers
    routes = Routes(services)
    app.add_api_route("/health", routes.health, methods=READ)
    app.add_api_route("/ready", routes.ready, methods=READ)
    app.add_api_route("/metrics", routes.metrics, methods=READ)
    app.add_api_route("/v1/models", routes.models, methods=READ)
    app.add_api_route("/v1/models/{name:path}", routes.model, methods=READ)
    app.add_api_route("/v1/chat/completions", routes.chat_completions, methods=["POST"])
    app.add_api_route("/v1/emotions", routes.emotions, methods=["POST"])
    app.add_exception_handler(HTTPException, _raise_api_error)
    return app


class Routes:
    """The functions that answer requests.

    Args:
        services: the objects that they use.
    """

    def __init__(self, services: Services) -> None:
        self._services, self._created = services, int(time.time())

    async def health(self) -> Response:
        """Report that the process is alive."""
        return JSONResponse({"status": "ok"})

    async def ready(self) -> Response:
        """Report whether the model is loaded."""
        self._services.loader.ready()
        return JSONResponse({"status": "ready"})

    async def metrics(self) -> Response:
        """Return the metrics for Prometheus."""
        return Response(self._services.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def models(self) -> Response:
        """List the model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        """Describe the model."""
        self._services.model.require(name)
        return JSONResponse(self._model())

    async def chat_completions(self, request: Request) -> Response:
        """Answer the last message of a conversation about one clip, at once or in pieces."""
        services, engine = self._services, self._services.loader.ready()
        with ExitStack() as stack:
            admission = stack.enter_context(services.bodies.admitted(request))
            body = await read_json(admission.request, ChatRequest)
            services.model.require(body.model)
            asked = await chat.engine_request(body, services.media, admission)
            reply = chat.ChatResponse(body, partial(services.model.warnings, engine, asked))
            streamed, caller = body.stream, Caller(request, services.seconds)
            # The text of the media is not needed while the client waits.
            del body
            try:
                if not streamed:
                    complete = await answer(engine, asked, caller)
                    services.metrics.answer(complete)
                    return JSONResponse(reply.complete(complete))
                pieces = AnswerPieces(engine, asked, caller)
                stack.callback(pieces.close)
                await pieces.start()
            except RequestError as error:
                raise _with_param(error, chat.PARAMS) from None
            events = self._events(pieces, reply, request.scope["state"][STATE])
            return _EventStream(events, stack.pop_all().close)

    async def emotions(self, request: Request) -> Response:
        """Return the distribution of labels and the reasoning about one clip."""
        services, engine = self._services, self._services.loader.ready()
        services.model.require_probabilities()
        with services.bodies.admitted(request) as admission:
            body, media = await emotions.read_body(admission, services.media)
            if body.model is not None:
                services.model.require(body.model)
            caller, answers, warnings = Caller(request, services.seconds), [], []
            # The second request uses the features that the engine has extracted for the first one.
            for asked in emotions.engine_requests(body, media.content, engine.tasks):
                try:
                    answers.append(await answer(engine, asked, caller))
                except RequestError as error:
                    raise _with_param(error, media.fields) from None
                services.metrics.answer(answers[-1])
                warnings += services.model.warnings(engine, asked, answers[-1])
        return JSONResponse(emotions.response(answers, services.model.name, list(dict.fromkeys(warnings))))

    async def _events(self, pieces: AnswerPieces, reply: chat.ChatResponse, request_id: str) -> AsyncIterator[str]:
        """Yield the server-sent events of an answer. An error after the first one is an event, too."""
        try:
            yield _event(reply.start())
            async for piece in pieces:
                yield _event(reply.piece(piece))
            complete = pieces.answer()
            self._services.metrics.answer(complete)
            for chunk in reply.end(complete):
                yield _event(chunk)
        except Exception as error:
            log_failure(error, request_id)
            yield _event(api_error(error).body())
        yield "data: [DONE]\n\n"

    def _model(self) -> dict[str, Any]:
        model = self._services.model
        entry = {"id": model.name, "object": "model", "created": self._created, "owned_by": "emollama"}
        return entry | {"emollama": model.description(self._services.loader.engine)}


class _EventStream(StreamingResponse):
    """A stream of server-sent events that frees its resources in any case, also if the client is gone before the first event."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(events, headers={"x-accel-buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _with_param(error: RequestError, params: Mapping[str, str]) -> ApiError:
    """Return the response to a request that the engine rejected, with the part of the body in place of the engine's field."""
    response = api_error(error)
    response.param = params.get(error.param, error.param)
    return response


async def _raise_api_error(request: Request, error: Exception) -> NoReturn:
    """Raise an error of the router in the format of all other errors."""
    assert isinstance(error, HTTPException)
    raise ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})) from None
