"""A server under bad requests, attacks and load: the right status each time, nothing is disclosed, and it stays alive."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from media_files import cut
from ranks import HANG, ROOT
from served_model import MODEL, OPTIONS, chat, data_url, launched, metric, wait_until
from video_world import CLIPS, make_world

pytestmark = pytest.mark.faults
KEY = "a-secret-key"
URL = "/v1/chat/completions"
# Small limits, so that tests reach them: 2 MiB, three requests at the same time.
LIMITS = "--max-body-mb 2 --max-waiting 1 --max-batch-size 2 --body-timeout 3 --timeout 20".split()
LONG = {"max_tokens": 3000, "stream": True}
SECRET = "the content of a file outside"


class World:
    """A server in a new process, with the folders that it uses."""

    def __init__(self, root, process, client):
        self.root, self.process, self.client = root, process, client
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
    (root / "videos/folder").symlink_to(root / "outside")
    os.mkfifo(root / "videos/pipe.mp4")
    options = [*LIMITS, "--allow-files", str(root / "videos"), "--allow-urls", "127.0.0.2/32"]
    with launched(path, *options, EMOLLAMA_API_KEY=KEY, TMPDIR=str(root / "outside")) as (process, client):
        yield World(root, process, client)
        # Every test has left the server alive, without requests that hold a place, and without a secret in its log.
        wait_until(lambda: metric(client, "emollama_generating_requests") == 0)
        assert client.post(URL, json=chat(data_url((root / f"videos/{CLIPS[0]}.mp4").read_bytes()), "Who?")).status_code == 200
        assert [text for text in (KEY, SECRET, "Sesame", "base64") if text in process.stderr()] == []
        assert not re.search("Traceback|failed with", process.stderr()), process.stderr()


# Media


@pytest.mark.parametrize(
    "content", [b"x", b"\0" * 4096, b"%PDF-1.7", b"#EXTM3U\n#EXTINF:1,\nsecret.mp4\n", b"ffconcat version 1.0\nfile secret.mp4\n"]
)
def test_a_file_that_is_no_video_is_unprocessable(world, content):
    status, error = world.status(data_url(content))
    assert (status, error["code"], error["param"]) == (422, "unusable_input", "messages")
    assert SECRET not in error["message"] and str(world.root) not in error["message"]


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
    cases = {
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
    assert post("/v1/emotions", files={"file": b"x"}).status_code == 422
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
    assert world.client.post(URL, content=b"{}", headers=compressed).status_code == 415


# Limits


def test_a_body_that_is_too_large_is_rejected_also_without_its_length(world):
    def endless():
        for _ in range(100):
            yield b" " * 100_000

    headers = {"Content-Type": "application/json"}
    assert world.client.post(URL, content=b" " * 10_000_000, headers=headers).status_code == 413
    assert world.client.post(URL, content=endless(), headers=headers).status_code == 413
    assert world.client.post("/v1/emotions", files={"file": b" " * 3_000_000}).status_code == 413
    declared = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 9999999999\r\n\r\n"
    assert b" 413 " in world.sends(declared.encode())


def test_a_slow_body_times_out(world):
    lines = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    assert b" 408 " in world.sends(f"{lines}Content-Length: 100\r\n\r\n{{".encode())


def test_a_full_queue_rejects_requests_until_one_ends(world):
    body, client = chat(data_url(world.video), "Who?"), world.client
    with ThreadPoolExecutor(1) as pool:
        with ExitStack() as stack:
            for _ in range(2):
                running = stack.enter_context(client.stream("POST", URL, json=body | LONG))
                assert running.status_code == 200, running.read()
            waiting = pool.submit(world.post, body)
            wait_until(lambda: metric(client, "emollama_waiting_requests") == 1)
            rejected = world.post(body)
            assert (rejected.status_code, rejected.headers["Retry-After"]) == (429, "1")
            assert rejected.json()["error"]["code"] == "rate_limit_exceeded"
        assert waiting.result().status_code == 200


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
        assert client.get("/health").status_code == 200


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
        "pipe.mp4",
        ".",
        "missing.mp4",
        "{root}/outside/secret.mp4",
        "file://{root}/videos/../outside/secret.mp4",
        "file://{root}/videos/%2e%2e/outside/secret.mp4",
        "/proc/self/environ",
        "/dev/zero",
        "a\0b",
        "x" * 10_000,
    ],
)
def test_no_file_outside_the_allowed_folder_is_read(world, path):
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
        yield port, replies, accepted
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


def test_a_url_of_an_allowed_network_is_downloaded_and_its_redirects_are_checked(world):
    with listener("127.0.0.2") as (port, replies, accepted), socket.create_server(("127.0.0.1", port)) as private:
        url = f"http://127.0.0.2:{port}"
        replies[b"/clip.mp4"] = f"HTTP/1.1 200 OK\r\nContent-Length: {len(world.video)}\r\n\r\n".encode() + world.video
        assert world.status(f"{url}/clip.mp4")[0] == 200
        assert b"Host: 127.0.0.2" in accepted[0]
        assert world.status(f"{url}/large")[0] == 413
        for path in ("redirect", "loop", "file", "gzip", "missing"):
            status, error = world.status(f"{url}/{path}")
            assert (status, error["code"]) == (400, "invalid_url"), path
        private.setblocking(False)
        with pytest.raises(BlockingIOError):
            private.accept()


@pytest.mark.parametrize("checkpoint", ["outside/secret.mp4", "gone.pth"])
def test_a_checkpoint_that_cannot_be_read_ends_the_command_with_the_error(world, checkpoint, launch):
    options = [*OPTIONS, "encoders=null", f"model.ckpt={world.root / checkpoint}"]
    arguments = ["--cfg-path", str(world.root / "config.yaml"), "--port", "0", "--preload", "--options", *options]
    completed = launch("-m", "emollama", "serve", *arguments)
    assert completed.returncode == 1
    assert completed.stderr.splitlines()[-1].startswith("error: model.ckpt")
    assert "listening" not in completed.stderr
    assert "the configuration has no encoders" in completed.stderr


# The end of a server


def test_an_answer_that_takes_too_long_ends_and_frees_its_place_and_a_killed_server_leaves_a_private_folder(world, left):
    assert left.stat().st_mode & 0o777 == 0o700


@pytest.fixture(scope="module")
def left(world, tmp_path_factory):
    """The folder of a server that was killed, after a request that took too long."""
    folder = tmp_path_factory.mktemp("temporary")
    with launched(world.root / "config.yaml", "--timeout", "0.5", TMPDIR=str(folder)) as (process, client):
        response = client.post(URL, json=chat(data_url(world.video), "Who?", max_tokens=3000))
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        wait_until(lambda: metric(client, "emollama_generating_requests") == 0)
        process.kill_alone()
    (path,) = folder.glob("emollama-serve-*")
    return path


def test_a_server_deletes_what_a_killed_one_left_answers_fifty_clients_and_ends_after_its_last_answer(world, left, monkeypatch):
    import asyncio

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from serving import Clients, requests_about

    videos = [world.root / f"videos/{name}.mp4" for name in CLIPS]
    with launched(world.root / "config.yaml", "--preload", TMPDIR=str(left.parent)) as (process, client):
        assert "deleted the temporary files of 1 servers" in process.stderr()
        assert not left.exists()
        clients = Clients(str(client.base_url), process.pids[0], requests_about(videos, MODEL, 12))
        single = asyncio.run(clients.run(1, 0.0, len(videos)))
        load = asyncio.run(clients.run(50, 5.0, 0))
        assert (single.wrong, load.wrong, load.repeated) == (0, 0, 0)
        assert len(load.seconds) >= 50 and 0 < load.waiting <= 64
        answered = metric(client, 'emollama_engine_requests_total{outcome="answered"}')
        assert answered == len(single.seconds) + len(load.seconds)
        body = chat(data_url(world.video), "Who?", max_tokens=200, stream=True)
        with client.stream("POST", URL, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        ended = process.wait()
        assert ended.returncode == 0 and "stopping: 1 request left" in ended.stderr
    assert list(left.parent.glob("emollama*")) == []
