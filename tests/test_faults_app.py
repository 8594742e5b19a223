"""The page's server refuses other sessions, other sites, wrong passwords and large uploads, and discloses no file."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
import uuid
from pathlib import Path

import pytest
from page_server import HANG, running, wait_until

from emollama.errors import UserError

pytestmark = pytest.mark.faults
PASSWORD = "correct horse"
LIMIT_MB = 1


class Client:
    """A browser session: it sends its cookie with every request."""

    def __init__(self, server, password=PASSWORD):
        self.address, self.headers = ("127.0.0.1", server.port), {}
        if password is not None:
            self.headers["Authorization"] = "Basic " + base64.b64encode(f"me:{password}".encode()).decode()
        reply = self.send("GET", "/")
        if reply.status == 200:
            self.headers["Cookie"] = reply.headers["Set-Cookie"].partition(";")[0]

    def send(self, method, path, body=None, **headers):
        """Send a request without changing its path, and return the response with its content."""
        connection = http.client.HTTPConnection(*self.address, timeout=HANG)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, self.headers | named)
        response = connection.getresponse()
        response.content = response.read()
        connection.close()
        return response

    def upload(self, content, name="clip.mp4", **headers):
        body, kind = form(content, name)
        return self.send("POST", "/gradio_api/upload", body, Content_Type=kind, **headers)

    def uploaded(self, content, name="clip.mp4"):
        """Upload a file and return its path."""
        (path,) = json.loads(self.upload(content, name).content)
        return path

    def read(self, path):
        return self.send("GET", f"/gradio_api/file={path}")

    def join(self, page, *data):
        """Call the function that analyzes a clip, as the page does."""
        body = json.dumps({"data": list(data), "fn_index": 0, "session_hash": page})
        return self.send("POST", "/gradio_api/queue/join", body, Content_Type="application/json")

    @contextlib.contextmanager
    def open_page(self, page):
        """Keep a page open in this context."""
        with socket.create_connection(self.address, timeout=HANG) as connection:
            head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            connection.sendall(f"GET /gradio_api/heartbeat/{page} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n".encode())
            assert b"200 OK" in connection.recv(1000)
            yield


def form(content, name):
    """Return a multipart form with one file, and its content type."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with an example, a file that nobody may read, and an empty folder for temporary files."""
    root = tmp_path_factory.mktemp("app")
    (root / "example.mp4").write_bytes(b"an example")
    (root / "secret.txt").write_bytes(b"a secret")
    (root / "temporary").mkdir()
    return root


@pytest.fixture(scope="module")
def server(world):
    """The server of a page, in a thread. Its model is being loaded until the end."""
    from emollama.inference.app.models import Models
    from emollama.inference.app.server import AppServer, AppSettings

    ended = threading.Event()

    def load():
        ended.wait()
        raise UserError("the test has ended")

    settings = AppSettings(port=0, password=PASSWORD, max_file_mb=LIMIT_MB, examples=[world / "example.mp4"])
    server = AppServer(settings, Models(["tiny"], [load]), lambda path: None)
    with running(server, world / "temporary", server.run):
        yield server
    ended.set()
    assert list((world / "temporary").iterdir()) == []


@pytest.fixture
def client(server):
    return Client(server)


@pytest.fixture
def other(server):
    return Client(server)


@pytest.fixture
def folder(world, server):
    (folder,) = (world / "temporary").iterdir()
    return folder / "page"


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.parent.name != "examples")


def test_only_the_session_that_uploaded_a_file_can_read_it(client, other, folder):
    path = client.uploaded(b"a private clip")
    assert client.read(path).content == b"a private clip"
    assert other.read(path).status == 404
    assert other.join("page-of-other", {"path": path, "meta": {"_type": "gradio.FileData"}}).status == 403
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    # Who uploads the same content gets a file of its own right, and learns nothing about others.
    assert other.uploaded(b"a private clip") == path
    assert other.read(path).content == b"a private clip"


def test_an_invented_session_is_replaced(server):
    client = Client(server)
    name, _, value = client.headers["Cookie"].partition("=")
    for forged in (value[:-1] + "x", "0." + value.partition(".")[2], "x", ""):
        reply = client.send("GET", "/", Cookie=f"{name}={forged}")
        assert reply.headers["Set-Cookie"].startswith(f"{name}=")
        assert "HttpOnly; SameSite=Strict" in reply.headers["Set-Cookie"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={secret}",
        "/gradio_api/file=//{secret}",
        "/gradio_api/file={folder}/../../../secret.txt",
        "/gradio_api/file={folder}/examples/../../../../secret.txt",
        "/gradio_api/file={folder}/examples/%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret.txt",
        "/gradio_api/file=..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=/proc/self/environ",
        "/gradio_api/file={folder}/link.mp4",
        "/gradio_api/file=file://{secret}",
        "/gradio_api/file=http://127.0.0.1:{port}/",
        "/gradio_api/file/{secret}",
        "/gradio_api/proxy=http://127.0.0.1:{port}/",
        "/static/../../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2fblocks.py",
        "/gradio_api/custom_component/0/client/component/../../../../etc/passwd",
        "/gradio_api/stream/x/0/0/playlist.m3u8",
        "/?deep_link=../../secret.txt",
    ],
)
def test_no_route_discloses_a_file_of_the_server(path, client, world, folder, server):
    link = folder / "link.mp4"
    link.symlink_to(world / "secret.txt")
    reply = client.send("GET", path.format(secret=world / "secret.txt", folder=folder, port=server.port))
    link.unlink()
    assert reply.status in ((200,) if path.startswith("/?") else (400, 403, 404))
    for content in (b"a secret", b"root:", PASSWORD.encode(), b"import "):
        assert content not in reply.content


def test_an_example_can_be_read_by_all_sessions(client, folder):
    assert client.read(folder / "examples/example.mp4").content == b"an example"


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/x.mp4", "/etc/passwd", "{secret}", "", None, 1, {"path": "/etc/passwd"}])
def test_a_question_is_only_about_files_of_its_session(path, client, world):
    path = path.format(secret=world / "secret.txt") if isinstance(path, str) else path
    reply = client.join(f"page-{uuid.uuid4().hex}", None, {"path": path, "meta": {"_type": "gradio.FileData"}})
    assert reply.status == 403
    assert b"Upload it again" in reply.content


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/config"),
        ("GET", "/docs"),
        ("GET", "/login_check"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/deep_link?session_hash=x"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/api/analyze"),
        ("POST", "/gradio_api/call/analyze"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/login"),
        ("DELETE", "/"),
        ("PUT", "/gradio_api/upload"),
        ("OPTIONS", "/"),
    ],
)
def test_other_routes_of_gradio_do_not_exist(method, path, client):
    assert client.send(method, path, b"{}" if method == "POST" else None, Content_Type="application/json").status == 404


def test_every_route_needs_the_password(server):
    for password in (None, "", "wrong", PASSWORD + "x", PASSWORD.upper()):
        visitor = Client(server, password)
        for method, path in (("GET", "/"), ("GET", "/gradio_api/heartbeat/x"), ("POST", "/gradio_api/upload"), ("GET", "/no")):
            reply = visitor.send(method, path)
            assert reply.status == 401
            assert reply.headers["WWW-Authenticate"].startswith("Basic ")
            assert PASSWORD.encode() not in reply.content
    for header in ("Basic", "Basic %%%", f"Bearer {PASSWORD}", "Basic " + "A" * 20_000):
        assert Client(server, None).send("GET", "/", Authorization=header).status == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:{port}", "Origin": "http://127.0.0.1:{port}"}, 403),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
    ],
)
def test_requests_for_other_hosts_and_from_other_sites_are_refused(headers, status, client, server):
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    assert client.send("GET", "/", **headers).status == status


def test_the_browser_may_load_nothing_from_other_servers(client):
    policy = client.send("GET", "/").headers["Content-Security-Policy"]
    sources = {word for rule in policy.split(";") for word in rule.split()[1:]}
    assert sources == {"'self'", "'unsafe-inline'", "'unsafe-eval'", "'none'", "blob:", "data:"}
    assert {"default-src 'self'", "frame-ancestors 'none'"} <= {rule.strip() for rule in policy.split(";")}


def test_a_large_upload_is_refused_and_leaves_nothing(client, folder):
    before = files_in(folder)
    reply = client.upload(b"x" * (2 * LIMIT_MB << 20))
    assert reply.status == 413
    assert b"larger than 1 MiB" in reply.content
    # A form may be larger than its file.
    assert client.upload(b"x" * ((LIMIT_MB << 20) + 1)).status == 413
    body, kind = form(b"x" * (2 * LIMIT_MB << 20), "clip.mp4")
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    assert client.send("POST", "/gradio_api/upload", chunks, Content_Type=kind).status == 411
    assert files_in(folder) == before


def test_an_upload_that_the_client_ends_leaves_nothing(client, folder, server):
    before = files_in(folder)
    body, kind = form(b"x" * 500_000, "clip.mp4")
    with socket.create_connection(client.address, timeout=HANG) as connection:
        names = {**client.headers, "Host": "127.0.0.1", "Content-Type": kind, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in names.items())
        connection.sendall(f"POST /gradio_api/upload HTTP/1.1\r\n{head}\r\n".encode() + body[:400_000])
        wait_until(lambda: len(files_in(folder)) > len(before))
    wait_until(lambda: files_in(folder) == before)


@pytest.mark.parametrize(
    "name", ["../../secret.txt", "/etc/passwd", "..", ".", "a/../../b.mp4", "\x00.mp4", "x" * 5000 + ".mp4", "<b>.mp4"]
)
def test_the_name_of_an_upload_cannot_leave_the_folder(name, client, folder, world):
    reply = client.upload(b"content of " + name.encode(), name)
    if reply.status == 200:
        (path,) = json.loads(reply.content)
        assert Path(path).resolve().is_relative_to(folder)
        assert Path(path).parent.parent == folder
    assert (world / "secret.txt").read_bytes() == b"a secret"
    assert client.send("GET", "/").status == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b"\xff", b'{"data": NaN' * 10, json.dumps("x" * 10_000_000).encode()]
)
def test_a_body_that_is_not_a_question_is_refused(body, client):
    assert client.send("POST", "/gradio_api/queue/join", body, Content_Type="application/json").status in (400, 413)
    assert client.send("GET", "/").status == 200


def test_a_page_belongs_to_the_session_that_opened_it(client, other):
    with client.open_page("shared"):
        for path in ("/gradio_api/queue/data?session_hash=shared", "/gradio_api/heartbeat/shared"):
            assert other.send("GET", path).status == 403
        for path in ("queue/join", "cancel", "reset"):
            body = json.dumps({"data": [], "fn_index": 0, "session_hash": "shared", "event_id": "x"})
            assert other.send("POST", f"/gradio_api/{path}", body, Content_Type="application/json").status == 403


def test_the_files_of_a_session_are_deleted_with_its_last_page(client, other, folder):
    path, common = client.uploaded(b"mine"), client.uploaded(b"shared by two")
    other.uploaded(b"shared by two")
    with client.open_page("first"):
        with client.open_page("second"):
            pass
        wait_until(lambda: client.read(path).status == 200)
    wait_until(lambda: not Path(path).exists())
    assert client.read(path).status == 404
    assert client.read(common).status == 404
    assert other.read(common).content == b"shared by two"


def test_a_session_keeps_only_its_last_files(client):
    from emollama.inference.app.session_files import MAX_PER_SESSION

    paths = [client.uploaded(f"clip {number}".encode()) for number in range(MAX_PER_SESSION + 2)]
    assert [client.read(path).status for path in paths] == [404] * 2 + [200] * MAX_PER_SESSION


def test_the_page_is_not_open_to_everybody_by_accident():
    from emollama.inference.app.server import AppSettings

    with pytest.raises(UserError, match="EMOLLAMA_APP_PASSWORD"):
        AppSettings(host="0.0.0.0")
    with pytest.raises(UserError, match="is empty"):
        AppSettings(password="")
    AppSettings(host="0.0.0.0", insecure=True)
    AppSettings(host="0.0.0.0", password="x")


def test_a_port_in_use_is_reported(server):
    from emollama.inference.app.models import Models
    from emollama.inference.app.server import AppServer, AppSettings

    with pytest.raises(UserError, match=f"another program listens on port {server.port}"):
        AppServer(AppSettings(port=server.port), Models([], []), lambda path: None)
