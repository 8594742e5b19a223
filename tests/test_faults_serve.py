"""A server under bad requests, attacks and load: the right status each time, nothing is disclosed, and it stays alive."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from media_files import cut
from ranks import HANG, ROOT
from served_model import MODEL, OPTIONS, chat, data_url, launched, listening, metric, running, wait_until
from video_world import CLIPS, make_world

from emollama.inference.pending import PendingAnswer
from emollama.inference.requests import Answer, Checkpoint, QueueFull, Timings

pytestmark = pytest.mark.faults
KEY = "a-secret-key"
URL = "/v1/chat/completions"
LONG = {"max_tokens": 3000, "stream": True}
SECRET = "the content of a file outside"
ANSWER = Answer("text", "emotion", "", None, {}, None, "stop", 1, 0, 1, Timings(0.0, 0.0, 0.0), Checkpoint((), ()))


class World:
    """A server in a new process, with the folders that it uses."""

    def __init__(self, root, process, client, left):
        self.root, self.process, self.client, self.left = root, process, client, left
        self.video = (root / f"videos/{CLIPS[0]}.mp4").read_bytes()
        self.address = (client.base_url.host, client.base_url.port)

    def post(self, body, **settings):
        return self.client.post(URL, json=body, **settings)

    def status(self, url, *texts, **more):
        """The status and the error of a chat completion about a video."""
        response = self.post(chat(url, *(texts or ("Who?",)), **more))
        return response.status_code, response.json().get("error", {})

    def sends(self, content):
        """Send raw bytes; return the response up to its end, or up to a limit of size."""
        with socket.create_connection(self.address, timeout=HANG) as connection:
            connection.sendall(content)
            return connection.recv(1 << 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory, fork_server):
    root = tmp_path_factory.mktemp("faults_serve")
    path = make_world(root, long_answers=True)
    (root / "outside").mkdir()
    (root / "outside/secret.mp4").write_text(SECRET)
    (root / "videos/link.mp4").symlink_to(root / "outside/secret.mp4")
    (root / "videos/inside.mp4").symlink_to(root / f"videos/{CLIPS[0]}.mp4")
    (root / "videos/folder").symlink_to(root / "outside")
    os.mkfifo(root / "videos/pipe.mp4")
    temporary = root / "temporary"
    temporary.mkdir()
    with listening(path, TMPDIR=str(temporary)) as (process, _):
        process.kill_alone()
    left = {folder: folder.stat().st_mode & 0o777 for folder in temporary.glob("emollama*")}
    options = ["--allow-files", str(root / "videos"), "--allow-urls", "127.0.0.2/32"]
    with launched(path, *options, EMOLLAMA_API_KEY=KEY, TMPDIR=str(temporary)) as (process, client):
        world = World(root, process, client, left)
        yield world
        # Every test has left the server alive, without requests that hold a place, and without a secret in its log.
        wait_until(lambda: metric(client, "emollama_generating_requests") == 0)
        log = ended_after_its_last_answer(world)
    assert [text for text in (KEY, SECRET, "Sesame", "base64") if text in log] == []
    assert not re.search("Traceback|failed with", log), log
    assert list(temporary.glob("emollama*")) == []


def ended_after_its_last_answer(world):
    """End the server while it answers; return its log."""
    body = chat(data_url(world.video), "Who?", max_tokens=200, stream=True)
    with world.client.stream("POST", URL, json=body) as response:
        lines = response.iter_lines()
        next(lines)
        world.process.send_signal(signal.SIGTERM)
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    completed = world.process.wait()
    assert completed.returncode == 0 and "stopping: 1 request left" in completed.stderr
    return completed.stderr


class Waiting:
    """An engine that answers nothing by itself."""

    tasks = ("emotion",)

    def __init__(self):
        self.pending, self.is_full = [], False

    def submit(self, request, on_text=None):
        if self.is_full:
            raise QueueFull("full")
        self.pending.append(PendingAnswer(request, on_text))
        return self.pending[-1]

    def close(self, drain):
        assert drain


@contextmanager
def bare(**settings):
    """A server in a thread of this process, with small limits; yields a client and its engine, which is :class:`Waiting`."""
    from emollama.inference.serve.server import Server
    from emollama.inference.serve.settings import ServeSettings

    small = {"max_body_mb": 1, "body_timeout": 1000.0, "max_waiting": 1, "max_batch_size": 1}
    engine = Waiting()
    with running(Server(ServeSettings(port=0, preload=True, model=MODEL, **(small | settings)), lambda: engine)) as client:
        yield client, engine


@pytest.fixture
def client():
    with bare() as (client, _):
        yield client


def begun(client, content=b""):
    """A connection on which the beginning of a request is sent."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=HANG)
    connection.sendall(content)
    return connection


def rest(connection):
    """What a connection receives until its end."""
    content = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            content += part
    return content


def post_of(length, more=""):
    """The headers of a request with a body of this length."""
    headers = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n"
    return f"POST {URL} HTTP/1.1\r\n{headers}".encode()


# Connections


def health(client):
    """The response to a request on a new connection."""
    with begun(client, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as connection:
        return rest(connection)


def test_idle_connections_make_room_for_others_and_busy_ones_do_not(client, monkeypatch):
    from emollama.inference.serve import connections

    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    with ExitStack() as stack:
        silent = [stack.enter_context(begun(client, b"GET /health HTTP/1.1\r\n" if number % 2 else b"")) for number in range(30)]
        assert b" 200 " in health(client)
        assert [rest(connection) for connection in silent[:20]] == [b""] * 20
        # They close the others.
        for _ in range(8):
            busy = stack.enter_context(begun(client, post_of(10, "Expect: 100-continue\r\n")))
            assert b" 100 " in busy.recv(1 << 16)
        assert b" 503 " in (response := health(client)) and b'"code": "too_many_connections"' in response
        # One that is refused makes no room, although it has not sent anything yet.
        for _ in range(4):
            stack.enter_context(begun(client))
            assert b" 503 " in health(client)
    wait_until(lambda: b" 200 " in health(client))


def test_headers_must_be_complete_in_time(client, monkeypatch):
    from emollama.inference.serve import connections

    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    with begun(client) as silent, begun(client, b"GET /health HTTP/1.1\r\nHost: loc") as slow:
        assert rest(silent) == b""
        assert b" 408 " in (response := rest(slow)) and b'"code": "headers_too_slow"' in response
    with begun(client, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nG") as second:
        assert b" 200 " in (response := rest(second)) and b" 408 " in response


@pytest.mark.parametrize("content", [b"x\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: " + b"x" * 50_000])
def test_what_is_not_http_gets_an_error_in_the_format_of_all_others(client, content):
    with begun(client, content) as connection:
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert b" 400 " in head and json.loads(body)["error"]["code"] == "invalid_request"


def test_a_body_that_becomes_invalid_gets_an_error(client):
    chunked = post_of(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with begun(client, chunked + b"1\r\n{\r\nx\r\n") as connection:
        assert b" 400 " in rest(connection)


# Bodies that are not complete


def test_slow_bodies_take_no_place_and_only_the_memory_of_what_has_arrived(client):
    with ExitStack() as stack:
        for _ in range(8):
            slow = stack.enter_context(begun(client, post_of(1 << 20, "Expect: 100-continue\r\n")))
            assert b" 100 " in slow.recv(1 << 16)
        assert client.post(URL, json={}).status_code == 400
        # All together may take 4 MiB.
        large = [stack.enter_context(begun(client, post_of(1 << 20) + b" " * 1_000_000)) for _ in range(5)]
        (rejected,), _, _ = select.select(large, [], [], HANG)
        assert b" 429 " in rejected.recv(1 << 16)
    wait_until(lambda: client.post(URL, json={}).status_code == 400)


# Media


@pytest.mark.parametrize(
    "content", [b"x", b"\0" * 4096, b"%PDF-1.7", b"#EXTM3U\n#EXTINF:1,\nsecret.mp4\n", b"ffconcat version 1.0\nfile secret.mp4\n"]
)
def test_a_file_that_is_no_video_is_unprocessable(world, content):
    status, error = world.status(data_url(content))
    assert (status, error["code"], error["param"]) == (422, "unusable_input", "messages")
    assert SECRET not in error["message"] and str(world.root) not in error["message"]


def test_a_reason_that_several_slots_share_is_given_once():
    from emollama.inference.modalities import require_features
    from emollama.inference.requests import Modality, UnusableInput

    slots = {slot: Modality("zero", f"encoders.{slot}: its video cannot be read") for slot in ("image", "face", "video")}
    with pytest.raises(UnusableInput) as caught:
        require_features(slots | {"audio": Modality("missing", "none")}, "this clip", "video")
    lines = str(caught.value).splitlines()[1:]
    shared = "- image: zero, encoders.image: its video cannot be read; the same for face, video"
    assert lines == [shared, "- audio: missing, none"]


def test_a_truncated_video_is_unprocessable_or_reported_as_zero(world, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(world.video)
    cut(tmp_path / "cut.mp4", 0.5)
    assert world.status(data_url((tmp_path / "cut.mp4").read_bytes()))[0] == 422


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:video/mp4;base64,", "empty_file"),
        ("data:video/mp4;base64,a", "invalid_base64"),
        ("data:text/html;base64,AAAA", "invalid_media_type"),
        ("data:image/png;base64,AAAA", "invalid_media_type"),
        ("data:video/mp4,AAAA", "invalid_url"),
        ("data:" + ";a" * 100_000 + ";base64,AAAA", "invalid_url"),
    ],
)
def test_a_bad_data_url_is_rejected(world, url, code):
    status, error = world.status(url)
    assert (status, error["code"]) == (400, code)


def test_a_form_is_checked_like_json(world):
    post = world.client.post
    form = httpx.Request("POST", "http://x", files={"file": world.video})
    whole, headers = form.read(), {"Content-Type": form.headers["Content-Type"]}
    cases = {
        "cut": post("/v1/emotions", content=whole[:-200], headers=headers),
        "no end": post("/v1/emotions", content=whole.rstrip()[:-1], headers=headers),
        "empty": post("/v1/emotions", files={"file": b""}),
        "type": post("/v1/emotions", files={"file": ("x.html", world.video, "text/html")}),
        "twice": post("/v1/emotions", files=[("file", world.video), ("video", world.video)]),
        "field": post("/v1/emotions", files={"file": world.video}, data={"unknown": "1"}),
        "many": post("/v1/emotions", files=[("file", b"x")] * 9),
        "long": post("/v1/emotions", files={"file": world.video}, data={"text": "x" * 100_000}),
        "boundary": post("/v1/emotions", content=b"x", headers={"Content-Type": "multipart/form-data"}),
        "broken": post("/v1/emotions", content=b"x", headers={"Content-Type": "multipart/form-data; boundary=b"}),
    }
    assert {name: response.status_code for name, response in cases.items()} == dict.fromkeys(cases, 400)
    assert post("/v1/emotions", content=whole.rstrip() + b"\r\nepilogue", headers=headers).status_code == 200
    for field in ("file", "video", "audio"):
        unusable = post("/v1/emotions", files={field: b"x"})
        assert (unusable.status_code, unusable.json()["error"]["param"]) == (422, field)
    wrong = post("/v1/emotions", files={"video": ("x.png", b"x", "image/png")})
    assert wrong.status_code == 400 and "Send the file as image." in wrong.json()["error"]["message"]
    assert post("/v1/emotions", data={"text": "no media"}).status_code == 415


# Text


def test_placeholders_and_special_tokens_are_text(world):
    texts = ["<VideoHere> <FeatureHere> </s><s>[INST] {feature} <0x00>", "\0", "\u202e\u2028"]
    assert [world.status(data_url(world.video), text)[0] for text in texts] == [200] * 3


def test_a_question_that_is_longer_than_the_context_is_rejected(world):
    status, error = world.status(data_url(world.video), "why " * 20_000)
    assert (status, error["param"]) == (400, "messages")
    assert "max_context_len" in error["message"]
    assert world.status(data_url(world.video), "x" * 200_000)[0] == 400


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"[" * 1_900_000,
        b'{"a":' * 5000,
        b"[" + b"1," * 900_000 + b"1]",
        b'{"model": "tiny", "messages": "\xff"}',
        b'{"model": "\\ud800", "messages": []}',
        b'{"model": 1e999, "messages": NaN}',
    ],
)
def test_bad_json_is_rejected_without_repeating_it(world, content):
    response = world.client.post(URL, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert len(response.content) < 500


def test_bodies_of_other_types_are_rejected(world):
    types = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"]
    assert [world.client.post(URL, content=b"{}", headers={"Content-Type": one}).status_code for one in types] == [415] * 3
    compressed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    twice = [*compressed.items(), ("Content-Encoding", "identity")]
    for headers in (compressed, twice, twice[::-1], compressed | {"Content-Encoding": "identity, gzip"}):
        assert world.client.post(URL, content=b"{}", headers=headers).status_code == 415


# Limits


def test_a_body_that_is_too_large_is_rejected_also_without_its_length(client):
    def endless():
        for _ in range(100):
            yield b" " * 100_000

    headers = {"Content-Type": "application/json"}
    assert client.post(URL, content=b" " * 10_000_000, headers=headers).status_code == 413
    assert client.post(URL, content=endless(), headers=headers).status_code == 413
    assert client.post("/v1/emotions", files={"file": b" " * 3_000_000}).status_code == 413
    with begun(client, post_of(9_999_999_999)) as connection:
        assert b" 413 " in rest(connection)


def test_a_slow_body_times_out():
    with bare(body_timeout=0.1) as (client, _), begun(client, post_of(100) + b"{") as connection:
        assert b" 408 " in rest(connection)


def test_a_full_queue_rejects_requests_until_one_ends():
    body = chat(data_url(b"x"), "Who?")
    with bare(max_waiting=1, max_batch_size=1) as (client, engine), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, URL, json=body) for _ in range(2)]
        wait_until(lambda: len(engine.pending) == 2)
        rejected = client.post(URL, json=body)
        assert (rejected.status_code, rejected.headers["Retry-After"]) == (429, "1")
        assert rejected.json()["error"]["code"] == "rate_limit_exceeded"
        engine.pending[0].succeed(ANSWER)
        wait_until(lambda: any(one.done() for one in waiting))
        engine.is_full = True
        assert client.post(URL, json=body).status_code == 429
        engine.pending[1].succeed(ANSWER)
        assert [one.result().status_code for one in waiting] == [200] * 2


def test_an_answer_that_takes_too_long_is_cancelled():
    with bare(timeout=0.1) as (client, engine):
        late = client.post(URL, json=chat(data_url(b"x"), "Who?"))
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        wait_until(lambda: engine.pending[0].future.cancelled())


def test_twenty_clients_that_disconnect_free_their_places(world):
    cancelled = metric(world.client, 'emollama_engine_requests_total{outcome="cancelled"}')
    for number in range(20):
        body = chat(data_url(world.video), "Who?", **(LONG | {"stream": number % 4 > 0}))
        if body["stream"]:
            with world.client.stream("POST", URL, json=body) as response:
                assert response.status_code == 200, response.read()
                assert next(response.iter_lines()).startswith("data: ")
        else:
            with pytest.raises(httpx.ReadTimeout):
                world.client.post(URL, json=body, timeout=0.5)
        wait_until(lambda: metric(world.client, "emollama_generating_requests") == 0)
    assert metric(world.client, 'emollama_engine_requests_total{outcome="cancelled"}') == cancelled + 20


# Access


def test_every_route_but_health_needs_the_key(world):
    wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": f"Bearer {KEY}x"}]
    with httpx.Client(base_url=world.client.base_url, trust_env=False) as client:
        for headers in wrong:
            paths = ["/ready", "/metrics", "/v1/models", "/nothing", "/docs", "//health", "/health/"]
            assert [client.get(path, headers=headers).status_code for path in paths] == [401] * len(paths)
            refused = client.post(URL, json=chat(None, "Who?"), headers=headers)
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert client.get("/health").status_code == client.head("/health").status_code == 200
        assert client.head("/v1/models").status_code == 401
    assert [world.client.head(path).status_code for path in ("/ready", "/v1/models", "/metrics")] == [200] * 3


def test_requests_of_other_sites_are_refused(world):
    port = world.address[1]
    hosts = ["evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost@evil.example", "10.0.0.1", "[::2]", ""]
    assert [world.client.get("/v1/models", headers={"Host": host}).status_code for host in hosts] == [403] * len(hosts)
    own = f"http://127.0.0.1:{port}"
    origins = ["http://evil.example", "null", f"{own}.evil.example", "http://127.0.0.1:1"]
    refused = [world.client.get("/v1/models", headers={"Origin": origin}).status_code for origin in origins]
    assert refused == [403] * len(origins)
    allowed = world.client.get("/v1/models", headers={"Origin": own})
    assert allowed.status_code == 200 and "access-control-allow-origin" not in allowed.headers
    assert world.client.options(URL, headers={"Origin": own}).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret.mp4",
        "folder/secret.mp4",
        "link.mp4",
        "inside.mp4",
        "pipe.mp4",
        ".",
        "missing.mp4",
        "{root}/outside/secret.mp4",
        "file://{root}/videos/../outside/secret.mp4",
        "file://{root}/videos/%2e%2e/outside/secret.mp4",
        "{root}/videos/missing/../clip_000.mp4",
        "{root}/outside/../videos/clip_000.mp4",
        "outside/../clip_000.mp4",
        "/proc/self/environ",
        "/dev/zero",
        "a\0b",
        "x" * 10_000,
    ],
)
def test_no_file_outside_the_allowed_folder_is_read_or_looked_for(world, path):
    status, error = world.status(path.format(root=world.root))
    assert (status, error["code"]) == (400, "file_not_found")
    assert "below the folder of --allow-files" in error["message"]


@contextmanager
def listener(address):
    """A server that counts connections and redirects each to the path of its request on 127.0.0.1."""
    accepted = []

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                accepted.append(connection.recv(1 << 16))
                connection.sendall(replies.get(accepted[-1].split()[1], b"HTTP/1.1 404 Not Found\r\n\r\n"))

    with socket.create_server((address, 0)) as listening:
        port = listening.getsockname()[1]
        replies = {
            b"/redirect": f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/x\r\n\r\n".encode(),
            b"/loop": b"HTTP/1.1 302 Found\r\nLocation: /loop\r\n\r\n",
            b"/file": b"HTTP/1.1 302 Found\r\nLocation: file:///proc/self/environ\r\n\r\n",
            b"/large": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (3 << 20),
            b"/gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx",
        }
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port, replies, accepted
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_urls_reach_no_address_that_is_not_public(world):
    with listener("127.0.0.1") as (port, _, accepted):
        hosts = ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]"]
        hosts += ["[64:ff9b::7f00:1]", "[2002:7f00:1::]", "10.0.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "[fe80::1]"]
        for host in hosts:
            status, error = world.status(f"http://{host}:{port}/secret.mp4")
            assert (status, error["code"]) == (400, "invalid_url"), host
        for url in (
            f"http://user@127.0.0.2:{port}/",
            f"http://127.0.0.2@127.0.0.1:{port}/",
            f"http://127.0.0.1\\@127.0.0.2:{port}",
        ):
            assert world.status(url)[0] == 400
        assert accepted == []


def test_names_that_take_long_to_resolve_do_not_occupy_the_threads_that_decode_bodies(monkeypatch):
    import asyncio

    from emollama.inference.serve import downloads
    from emollama.inference.serve.errors import ApiError

    release = threading.Event()
    monkeypatch.setattr(downloads, "RESOLVER_SECONDS", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **settings: release.wait(HANG) and [])

    async def download():
        reader = downloads.UrlReader(HANG)
        lookups = [asyncio.create_task(reader.read("http://slow.example/", lambda size: None, "p")) for _ in range(40)]
        await asyncio.sleep(0)
        async with asyncio.timeout(HANG / 2):
            assert await asyncio.to_thread(int) == 0
        for lookup in lookups:
            with pytest.raises(ApiError, match="not known after"):
                await lookup

    try:
        asyncio.run(download())
    finally:
        release.set()


def test_a_url_of_an_allowed_network_is_downloaded_and_its_redirects_are_checked(world):
    with listener("127.0.0.2") as (port, replies, accepted), socket.create_server(("127.0.0.1", port)) as private:
        url = f"http://127.0.0.2:{port}"
        replies[b"/clip.mp4"] = f"HTTP/1.1 200 OK\r\nContent-Length: {len(world.video)}\r\n\r\n".encode() + world.video
        assert world.status(f"{url}/clip.mp4")[0] == 200
        assert b"Host: 127.0.0.2" in accepted[0]
        with bare(allow_urls=["127.0.0.2/32"]) as (client, _):
            assert client.post(URL, json=chat(f"{url}/large", "Who?")).status_code == 413
        for path in ("redirect", "loop", "file", "gzip", "missing"):
            status, error = world.status(f"{url}/{path}")
            assert (status, error["code"]) == (400, "invalid_url"), path
        private.setblocking(False)
        with pytest.raises(BlockingIOError):
            private.accept()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.ckpt={root}/outside/secret.mp4", "model.ckpt: {root}/outside/secret.mp4 is truncated or not a checkpoint"),
        ("model.ckpt={root}/gone.pth", "model.ckpt: no file '{root}/gone.pth'"),
        (
            "encoders=null",
            "encoders: no block computes features of videos for the slots of the model (audio, face",
        ),
    ],
)
def test_a_configuration_that_cannot_answer_ends_the_command_before_it_listens(world, option, message, launch):
    options = [*OPTIONS, option.format(root=world.root)]
    arguments = ["--cfg-path", str(world.root / "config.yaml"), "--port", "0", "--options", *options]
    completed = launch("-m", "emollama", "serve", *arguments)
    assert completed.returncode == 1
    assert completed.stderr.splitlines()[-1].startswith(f"error: {message.format(root=world.root)}")
    assert "listening" not in completed.stderr


# Load, and the end of a server


def test_a_server_deletes_the_private_folder_of_a_killed_one(world):
    assert list(world.left.values()) == [0o700]
    assert not any(folder.exists() for folder in world.left)
    assert "deleted the temporary files of 1 servers" in world.process.stderr()


def test_a_server_that_is_stopped_while_it_loads_ends_with_status_0(world):
    with listening(world.root / "config.yaml") as (process, _):
        process.send_signal(signal.SIGTERM)
        completed = process.wait()
    assert completed.returncode == 0 and "Traceback" not in completed.stderr


def test_fifty_clients_get_the_answers_of_a_single_one(world, monkeypatch):
    import asyncio

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from serving import Clients, requests_about

    videos = [world.root / f"videos/{name}.mp4" for name in CLIPS]
    before = metric(world.client, 'emollama_engine_requests_total{outcome="answered"}')
    bodies, headers = requests_about(videos, MODEL, 12), {"Authorization": f"Bearer {KEY}"}
    clients = Clients(str(world.client.base_url), world.process.pids[0], bodies, headers)
    single = asyncio.run(clients.run(1, 0.0, len(videos)))
    load = asyncio.run(clients.run(50, 0.0, 150))
    assert (single.wrong, load.wrong, load.repeated) == (0, 0, 0)
    assert 0 < load.waiting <= 64
    answered = metric(world.client, 'emollama_engine_requests_total{outcome="answered"}') - before
    assert answered == len(single.seconds) + len(load.seconds)
