"""A server on the loopback interface that speaks vLLM's Completions API with prompt embeddings."""

from __future__ import annotations

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STOPPED = "the client closed the connection"


class Server(ThreadingHTTPServer):
    """Answers requests.

    Attributes:
        model: a causal language model of transformers; None for servers that only misbehave.
        key: the expected API key, or None.
        replies: how the next requests are answered: a status, or the name of a misbehaviour. Afterwards, requests are answered.
        received: (tensor, body, headers in lower case) of each completion request.
        disconnected: set when a client has closed its connection during an answer.
    """

    daemon_threads = True

    def __init__(self, model=None, tokenizer=None, key=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer, self.key = model, tokenizer, key
        self.replies, self.received, self.disconnected = [], [], threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Print nothing."""

    def do_GET(self):
        if self._is_allowed():
            self._json(200, {"object": "list", "data": [{"id": "merged", "object": "model", "created": 0, "owned_by": "test"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            return
        import torch

        stored = io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True))
        embeddings = torch.load(stored, weights_only=True, map_location="cpu")
        self.server.received.append((embeddings, body, {name.lower(): value for name, value in self.headers.items()}))
        # vLLM refuses both together with prompt embeddings.
        if body.get("echo") or body.get("prompt_logprobs") is not None:
            return self._json(400, {"error": {"message": "not compatible with prompt embeds.", "type": "BadRequestError"}})
        reply = self.server.replies.pop(0) if self.server.replies else "answer"
        if isinstance(reply, int):
            message = f"refused {self.headers['Authorization']}"
            return self._json(reply, {"error": {"message": message, "type": "E", "code": reply}})
        if reply == "redirect":
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.1:9/v1/completions")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            getattr(self, f"_{reply}")(embeddings, body)
        except ConnectionError:
            self.server.disconnected.set()

    def _is_allowed(self):
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self._json(401, {"error": {"message": f"Unauthorized: {self.headers['Authorization']}", "type": "E"}})
        return False

    def _json(self, status, content):
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _event(self, content):
        raw = content if isinstance(content, str) else json.dumps(content)
        self.wfile.write(f"data: {raw}\n\n".encode())
        self.wfile.flush()

    def _token(self, ids, text="x", reason=None):
        choice = {"index": 0, "text": text, "token_ids": ids, "finish_reason": reason, "logprobs": None, "stop_reason": None}
        self._event({"id": "cmpl-1", "object": "text_completion", "created": 0, "model": "merged", "choices": [choice]})

    def _answer(self, embeddings, body):
        """Decode greedily; an answer ends as in vLLM with ignore_eos."""
        import torch

        assert body["ignore_eos"] and body["return_token_ids"] and body["temperature"] == 0
        inputs, cache = {"inputs_embeds": embeddings[None]}, None
        with torch.inference_mode():
            for index in range(body["max_tokens"]):
                out = self.server.model(**inputs, past_key_values=cache, use_cache=True)
                token, cache = int(out.logits[0, -1].argmax()), out.past_key_values
                reason = "stop" if token in body["stop_token_ids"] else "length" if index == body["max_tokens"] - 1 else None
                self._token([token], self.server.tokenizer.decode([token]), reason)
                if reason:
                    break
                inputs = {"input_ids": torch.tensor([[token]])}
        self._event("[DONE]")

    def _stall(self, embeddings, body):
        """Send one token, and wait until the client closes the connection."""
        self._token([300])
        assert self.connection.recv(1) == b""
        self.server.disconnected.set()

    def _endless(self, embeddings, body):
        """Send a line that does not end."""
        while True:
            self.wfile.write(b"data: " + b"x" * (1 << 20))

    def _cut(self, embeddings, body):
        self._token([300])

    def _error(self, embeddings, body):
        self._token([300])
        self._event({"error": {"message": "the engine is dead", "type": "InternalServerError", "code": 500}})
        self._event("[DONE]")

    def _garbage(self, embeddings, body):
        self._event("{not JSON")

    def _text(self, embeddings, body):
        self._token(None, "happy")

    def _wrong(self, embeddings, body):
        self._token(["a", -1])


@contextmanager
def serving(server):
    """Run a server in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
