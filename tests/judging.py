"""A judge on loopback that speaks OpenAI's chat protocol and answers what a test tells it to."""

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
    """A raw answer of the server: 429, half a JSON, silence."""

    status: int = 200
    body: Any = ""  # a string as it is, anything else as JSON
    headers: dict = field(default_factory=dict)
    delay: float = 0.0  # seconds before it comes


@dataclass
class Call:
    """A request that came."""

    path: str
    headers: dict  # names in lower case
    body: dict

    @property
    def data(self):
        """What is to be judged: the user's message."""
        return json.loads(self.body["messages"][-1]["content"])

    @property
    def kind(self):
        """clues, words or labels."""
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
    """Answers one after the other; the last one for good."""
    lock, left = threading.Lock(), list(answers)

    def answer(call):
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


def sensibly(call):
    """Score 7 for every pair; the words happy or sad where a text holds them."""
    if call.kind == "words":
        return "The text says so.\n" + json.dumps([word for word in ("happy", "sad") if word in call.data["text"]])
    return "Both are summarised here.\nScore: 7"


class Server:
    """The server's address and what it was asked."""

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
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            call = Call(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
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
            with suppress(ConnectionError, TimeoutError):  # a client that has given up
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
    """An address at which nobody listens."""
    with judge_server() as server:
        pass
    return server.url
