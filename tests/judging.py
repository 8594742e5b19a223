"""A local HTTP server that speaks OpenAI's chat protocol and returns the replies that a test defines."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Response:
    """A raw response of the server, for example status 429, truncated JSON or a delay."""

    status: int = 200
    body: Any = ""  # strings unchanged, other values as JSON
    headers: dict = field(default_factory=dict)
    delay: float = 0.0  # seconds before it is sent


@dataclass
class Call:
    """A received request."""

    path: str
    headers: dict  # header names in lower case
    body: dict

    @property
    def data(self):
        """The content to judge, from the user's message."""
        return json.loads(self.body["messages"][-1]["content"])

    @property
    def kind(self):
        """The kind of request: clues, words or labels."""
        if "text" in self.data:
            return "words"
        return "clues" if isinstance(self.data["reference"], str) else "labels"


def completion(text, *, finish="stop", tokens=(100, 20), **changes):
    """A chat completion with this reply."""
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)} if tokens else None
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Response(
        body={"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage} | changes
    )


def refusal(status, message="no", **error):
    """An error response, after which a client may try again in a millisecond."""
    return Response(status, {"error": {"message": message, **error}}, {"retry-after-ms": "1"})


def in_turn(*answers):
    """Return the answers one after another; the last one is repeated."""
    lock, left = threading.Lock(), list(answers)

    def answer(call):
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


def sensibly(call):
    """Score 7 for every pair; extract the words happy and sad from texts that contain them."""
    if call.kind == "words":
        return "The text says so.\n" + json.dumps([word for word in ("happy", "sad") if word in call.data["text"]])
    return "Both are summarised here.\nScore: 7"


class Server:
    """The server's address and the requests that it received."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.calls: list[Call] = []


@contextmanager
def judge_server(answer: Callable[[Call], str | Response] = sensibly):
    """A running server.

    Args:
        answer: call -> the reply's text, or a :class:`Response`; called in several threads.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            size = int(self.headers["Content-Length"])
            body = self.rfile.read(size)
            if len(body) < size:
                return  # the client has closed the connection
            call = Call(self.path, {name.lower(): value for name, value in self.headers.items()}, json.loads(body))
            server.calls.append(call)
            response = answer(call)
            response = completion(response) if isinstance(response, str) else response
            time.sleep(response.delay)
            raw = response.body if isinstance(response.body, str) else json.dumps(response.body)
            content = raw.encode()
            self.send_response(response.status)
            for name, value in ({"Content-Type": "application/json"} | response.headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

        def handle(self):
            with suppress(ConnectionError, TimeoutError):  # the client has closed the connection
                super().handle()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.block_on_close = False
    server = Server(httpd.server_address[1])
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()


def unused_url():
    """An address without a server."""
    with judge_server() as server:
        pass
    return server.url
