"""The page's server refuses other sessions, other sites, wrong passwords and large uploads, and discloses no file."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from pathlib import Path

import pytest
from page_server import VALUES, Client, form, running, wait_until

from emollama.errors import UserError

pytestmark = pytest.mark.faults
PASSWORD = "correct horse"
LIMIT_MB = 1
SECRET = "a sentence of a visitor"


class SilentEngine:
    """An engine that accepts requests and never answers.

    Attributes:
        pending: the accepted requests.
        is_full: whether it accepts no more.
    """

    tasks, slots, labels = ["emotion"], ["audio"], []

    def __init__(self):
        self.pending, self.is_full = [], False

    def submit(self, request, on_text):
        from emollama.inference.pending import PendingAnswer
        from emollama.inference.requests import QueueFull

        if self.is_full:
            raise QueueFull("7 requests are waiting or being answered. Try again later.")
        self.pending.append(PendingAnswer(request, on_text))
        return self.pending[-1]

    def close(self):
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with an example, a file that nobody may read, and an empty folder for temporary files."""
    root = tmp_path_factory.mktemp("app")
    (root / "example.mp4").write_bytes(b"an example")
    (root / "secret.txt").write_bytes(b"a secret")
    (root / "temporary").mkdir()
    return root


@pytest.fixture(scope="module")
def models():
    """A model that is being loaded until the end."""
    from emollama.inference.app.models import Models

    ended = threading.Event()

    def load():
        ended.wait()
        raise UserError("the test has ended")

    yield Models(["tiny"], [load])
    ended.set()


@pytest.fixture(scope="module")
def server(world, models):
    """The server of a page, in a thread."""
    from emollama.inference.app.server import AppServer, AppSettings

    settings = AppSettings(port=0, password=PASSWORD, max_file_mb=LIMIT_MB, examples=[world / "example.mp4"])
    server = AppServer(settings, models, lambda path, is_over: None)
    with running(server, world / "temporary", server.run):
        yield server
    assert list((world / "temporary").iterdir()) == []


@pytest.fixture
def client(server):
    return Client(server.port, PASSWORD)


@pytest.fixture
def other(server):
    return Client(server.port, PASSWORD)


@pytest.fixture
def folder(world, server):
    (folder,) = (world / "temporary").iterdir()
    return folder / "page"


@pytest.fixture
def engine(models, server, monkeypatch):
    """An engine in place of the model that is being loaded. All requests to it end with the test."""
    # The client may be slow to open the connection for results.
    monkeypatch.setattr("emollama.inference.app.listeners.GRACE_SECONDS", float("inf"))
    engine = SilentEngine()
    models.engines = (engine,)
    yield engine
    for pending in engine.pending:
        pending.fail(UserError("the test has ended"))
    models.engines = ()


@pytest.fixture
def example(folder):
    return {"path": str(folder / "examples/example.mp4"), "meta": {"_type": "gradio.FileData"}}


def new_page():
    return uuid.uuid4().hex


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
    client = Client(server.port, PASSWORD)
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
    reply = client.join(new_page(), None, {"path": path, "meta": {"_type": "gradio.FileData"}})
    if isinstance(path, str):
        assert reply.status == 403 and b"Upload it again" in reply.content
    else:
        assert reply.status == 400 and b"not one of this page" in reply.content


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
        visitor = Client(server.port, password)
        for method, path in (("GET", "/"), ("GET", "/gradio_api/heartbeat/x"), ("POST", "/gradio_api/upload"), ("GET", "/no")):
            reply = visitor.send(method, path)
            assert reply.status == 401
            assert reply.headers["WWW-Authenticate"].startswith("Basic ")
            assert PASSWORD.encode() not in reply.content
    for header in ("Basic", "Basic %%%", f"Bearer {PASSWORD}", "Basic " + "A" * 20_000):
        assert Client(server.port).send("GET", "/", Authorization=header).status == 401


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


def test_an_upload_that_the_client_ends_leaves_nothing(client, folder):
    before = files_in(folder)
    body, kind = form(b"x" * 500_000, "clip.mp4")
    length = str(len(body))
    with client.sending("POST", "/gradio_api/upload", body[:400_000], Content_Type=kind, Content_Length=length):
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
        assert other.join("shared").status == 403
        assert other.post("cancel", fn_index=0, session_hash="shared", event_id="x").status == 403


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


def test_files_of_a_session_without_an_open_page_are_deleted(client, other, monkeypatch):
    from emollama.inference.app import session_files

    monkeypatch.setattr(session_files, "UNATTENDED_SECONDS", 0.0)
    with other.open_page(new_page()):
        kept = other.uploaded(b"the page is open")
        path = client.uploaded(b"there is no page")
        wait_until(lambda: not Path(path).exists())
        assert other.read(kept).status == 200


def test_a_client_without_a_session_can_send_nothing(client, folder):
    before = files_in(folder)
    for cookie in ("", "x", client.headers["Cookie"] + "x"):
        assert client.upload(b"a clip", Cookie=cookie).status == 403
        for path in ("queue/join", "cancel"):
            reply = client.send("POST", f"/gradio_api/{path}", b"{}", Cookie=cookie)
            assert (reply.status, "Reload the page" in json.loads(reply.content)["detail"]) == (403, True)
        for path in ("queue/data?session_hash=x", "heartbeat/x", "upload_progress?upload_id=x"):
            assert client.send("GET", f"/gradio_api/{path}", Cookie=cookie).status == 403
    assert files_in(folder) == before


def test_a_session_has_few_uploads_at_a_time(tmp_path):
    from emollama.inference.app.session_files import MAX_FILES, MAX_PER_SESSION, SessionFiles

    files = SessionFiles(tmp_path, 60.0)
    for number in range(MAX_FILES):
        files.begin_upload(f"session {number // MAX_PER_SESSION}")
    with pytest.raises(UserError, match="4 recordings are already being uploaded"):
        files.begin_upload("session 0")
    with pytest.raises(UserError, match="too many recordings"):
        files.begin_upload("another session")


@pytest.mark.parametrize(
    ("name", "content"),
    [("..", b"x"), (None, b"x")],
    ids=["a second file without a name", "a field in place of a file"],
)
def test_a_refused_upload_leaves_nothing(client, folder, name, content):
    before = files_in(folder)
    head = '--x\r\nContent-Disposition: form-data; name="files"'
    second = head + ("" if name is None else f'; filename="{name}"') + "\r\n\r\n"
    first = head + '; filename="ok.mp4"\r\n\r\nfirst\r\n'
    body = first.encode() + second.encode() + content + b"\r\n--x--\r\n"
    reply = client.send("POST", "/gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x")
    assert reply.status == 400
    wait_until(lambda: files_in(folder) == before)


def test_the_oldest_file_without_a_page_makes_room(tmp_path, monkeypatch):
    from emollama.inference.app import session_files

    monkeypatch.setattr(session_files, "MAX_FILES", 2)
    files = session_files.SessionFiles(tmp_path, 60.0)
    paths = [tmp_path / f"{number}/clip.mp4" for number in range(3)]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"x")
    files._owners = {str(paths[0]): {"attended"}, str(paths[1]): {"unattended"}}
    files.open_page("attended")
    files.begin_upload("new")
    assert [path.exists() for path in paths] == [True, False, True]
    with pytest.raises(UserError, match="too many recordings"):
        files.begin_upload("another")


@pytest.mark.parametrize("headers", [{"Range": "bytes=0-1,2-3"}, {"Range": "bytes=--1"}, {"Range": "lines=1-2"}])
def test_only_a_single_range_can_be_read(client, headers):
    path = client.uploaded(b"a clip")
    assert client.send("GET", f"/gradio_api/file={path}", Range="bytes=2-3").content == b"cl"
    assert client.send("GET", f"/gradio_api/file={path}", **headers).status == 416


def test_a_session_has_few_requests_at_a_time(client, other, monkeypatch):
    monkeypatch.setattr("emollama.inference.app.guard.MAX_REQUESTS", 3)
    with contextlib.ExitStack() as stack:
        for number in range(3):
            stack.enter_context(client.open_page(f"page{number}"))
        assert client.send("GET", "/gradio_api/heartbeat/page9").status == 429
        with other.open_page("other"):
            pass
    wait_until(lambda: client.read("x").status == 404)


def test_a_request_that_is_not_complete_in_time_ends(client, folder, monkeypatch):
    from emollama.inference.app import guard

    in_time = guard.in_time
    monkeypatch.setattr(guard, "in_time", lambda seconds: in_time(0.1))
    before = files_in(folder)
    body, multipart = form(b"x" * 1000, "clip.mp4")
    for path, first, kind in (("upload", body[:500], multipart), ("queue/join", b'{"data": [', "application/json")):
        with client.sending("POST", f"/gradio_api/{path}", first, Content_Type=kind, Content_Length="1000") as connection:
            reply = b"".join(iter(lambda: connection.recv(10_000), b""))
        assert reply.startswith(b"HTTP/1.1 408")
        assert b"The request was not complete after 0.1 seconds." in reply
    assert files_in(folder) == before
    monkeypatch.undo()
    assert client.upload(b"a clip").status == 200


def test_events_whose_results_nobody_receives_end(client, other, engine, example, monkeypatch):
    from emollama.inference.app import listeners

    # More than the answers that are computed at a time
    pages = [new_page() for _ in range(10)]
    statuses = [client.join(page, example, SECRET).status for page in pages]
    assert statuses == [200] * listeners.MAX_UNHEARD + [429] * (len(pages) - listeners.MAX_UNHEARD)
    wait_until(lambda: len(engine.pending) == listeners.MAX_ANSWERS)
    monkeypatch.setattr(listeners, "GRACE_SECONDS", 0.0)
    wait_until(lambda: all(pending.is_over for pending in engine.pending))
    monkeypatch.setattr(listeners, "GRACE_SECONDS", float("inf"))
    page = new_page()
    assert other.join(page, example, SECRET).status == 200
    with other.connected(f"/gradio_api/queue/data?session_hash={page}"):
        wait_until(lambda: len(engine.pending) > listeners.MAX_ANSWERS)
    # The answer ends with the connection.
    wait_until(lambda: engine.pending[-1].is_over)


def test_listeners_count_events_without_connections():
    from emollama.inference.app.listeners import GRACE_SECONDS, MAX_ANSWERS, MAX_UNHEARD, Listeners

    now = [0.0]
    listeners = Listeners(lambda: now[0])
    for number in range(MAX_UNHEARD):
        listeners.add_event("session", f"page {number}")
    with pytest.raises(UserError, match="Reload it"):
        listeners.add_event("session", "page 0")
    listeners.add_event("other session", "other page")
    with listeners.listening("session", "page 0"):
        listeners.add_event("session", "another page")
        for _ in range(2 * MAX_UNHEARD):
            listeners.add_event("session", "page 0")
        now[0] += GRACE_SECONDS
        assert [listeners.is_listening(page) for page in ("page 0", "page 1", "unknown")] == [True, False, False]
    assert listeners.is_listening("page 0")
    with contextlib.ExitStack() as answers:
        for _ in range(MAX_ANSWERS):
            answers.enter_context(listeners.answering("page 0"))
        with pytest.raises(UserError, match="other windows"), listeners.answering("page 0"):
            pass
        with listeners.answering("other page"):
            pass
    with listeners.answering("page 0"):
        pass


def test_a_page_gets_time_for_its_connection_with_each_event():
    from emollama.inference.app.listeners import GRACE_SECONDS, Listeners

    now = [0.0]
    listeners = Listeners(lambda: now[0])
    with listeners.listening("session", "page"):
        pass
    now[0] += GRACE_SECONDS - 0.1
    listeners.add_event("session", "page")
    limit = listeners.limit("page", seconds=60.0)
    now[0] += 1.0
    limit.require()
    assert not limit.is_over()
    now[0] += GRACE_SECONDS
    with pytest.raises(UserError, match="does not receive the answer"):
        limit.require()
    with listeners.listening("session", "page"):
        now[0] += 60.0
        with pytest.raises(UserError, match="not complete after 60 seconds"):
            limit.require()
        assert limit.is_over()


@pytest.mark.parametrize(
    ("seconds", "max_new_tokens", "message"),
    [(0.01, "", "not complete after 0.01 seconds"), (60.0, "5000", "maximum length is 5000. Enter at most 1024 tokens")],
)
def test_an_answer_is_limited(seconds, max_new_tokens, message, engine):
    from types import SimpleNamespace

    from emollama.inference.app.events import Events
    from emollama.inference.app.listeners import Listeners
    from emollama.inference.app.models import Models

    models, listeners = Models(["tiny"], []), Listeners()
    models.engines = (engine,)
    listeners.add_event("session", "page")
    events = Events(models, lambda path, is_over: None, listeners, seconds)
    *_, last = events.analyze(SimpleNamespace(session_hash="page"), __file__, "", None, "Why?", max_new_tokens, "", "")
    assert message in last[1]
    assert all(pending.is_over for pending in engine.pending)


def test_a_recording_that_was_deleted_is_reported_without_a_path(client, engine, monkeypatch):
    def submit(request, on_text):
        Path(request.video).unlink()
        raise UserError(f"no file '{request.video}' (current directory: /srv). Correct the path.")

    monkeypatch.setattr(engine, "submit", submit)
    page = new_page()
    client.join(page, {"path": client.uploaded(b"a clip"), "meta": {"_type": "gradio.FileData"}})
    results = client.results(page)
    assert "The recording was deleted" in results
    assert "/srv" not in results


def test_a_full_engine_is_reported_on_the_page(client, engine, example):
    engine.is_full, page = True, new_page()
    client.join(page, example, SECRET, None, "Why?")
    assert "7 requests are waiting or being answered. Try again later." in client.results(page)


def test_a_full_queue_of_events_is_reported_by_the_browser(client, other, engine, example):
    from emollama.inference.app.listeners import MAX_ANSWERS
    from emollama.inference.app.page import QUEUE_SIZE

    with contextlib.ExitStack() as connections:
        for visitor, page in ((client, "first-of-two"), (other, "second-of-two")):
            visitor.join(page, example)
            connections.enter_context(visitor.connected(f"/gradio_api/queue/data?session_hash={page}"))
            for _ in range(MAX_ANSWERS - 1):
                visitor.join(page, example)
        wait_until(lambda: len(engine.pending) == 2 * MAX_ANSWERS)
        statuses = [client.join("first-of-two", example).status for _ in range(QUEUE_SIZE + 1)]
        # With this status, the browser shows that the application is busy.
        assert statuses == [200] * QUEUE_SIZE + [503]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("queue/join", {"fn_index": 1000, "data": [SECRET]}),
        ("queue/join", {"fn_index": -1, "data": [SECRET]}),
        ("queue/join", {"fn_index": SECRET, "data": [SECRET]}),
        ("queue/join", {"fn_index": True, "data": [SECRET]}),
        ("queue/join", {"fn_index": 0, "data": [SECRET]}),
        ("queue/join", {"fn_index": 0, "data": [SECRET] * 20}),
        ("queue/join", {"fn_index": 0, "data": SECRET}),
        ("queue/join", {"fn_index": 0, "data": VALUES, "session_hash": [SECRET]}),
        ("queue/join", {"data": VALUES}),
        ("cancel", {"fn_index": 0, "event_id": [SECRET]}),
        ("cancel", {"fn_index": 1000, "event_id": "x"}),
        ("reset", {"event_id": {"x": SECRET}}),
        ("reset", {}),
    ],
)
def test_an_event_that_the_page_does_not_have_is_refused(path, fields, client, capfd, caplog):
    reply = client.post(path, **{"session_hash": new_page(), **fields})
    assert reply.status == 400
    assert json.loads(reply.content)["detail"].endswith("The request is not one of this page. Reload it.")
    assert SECRET not in reply.content.decode() + caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("values", [("{clip}", "", SECRET), ("{clip}", "", [SECRET]), ("{odd clip}",)])
def test_an_event_that_fails_is_logged_without_texts(values, client, engine, example, capfd, caplog):
    odd = {**example, "size": SECRET, "orig_name": [SECRET]}
    page = new_page()
    assert client.join(page, *[{"{clip}": example, "{odd clip}": odd}.get(str(value), value) for value in values]).status == 200
    assert "process_completed" in client.results(page)
    wait_until(lambda: "the page failed with" in caplog.text)
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_a_failing_request_is_logged_without_texts(client, capfd, caplog, monkeypatch):
    def fail(self, session, path):
        raise ValueError(SECRET)

    monkeypatch.setattr("emollama.inference.app.session_files.SessionFiles.may_read", fail)
    reply = client.read("x")
    assert (reply.status, reply.content) == (500, b"The server failed. Its log has the details.")
    assert "the page failed with ValueError" in caplog.text
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_connections_are_limited_as_those_of_the_api(server):
    from emollama.inference.serve.connections import LimitedConnection

    assert server._server.config.http is LimitedConnection


def test_limits_are_positive():
    from emollama.inference.app.server import AppSettings

    for name, option in (
        ("max_file_mb", "--max-file-mb"),
        ("max_seconds", "--max-seconds"),
        ("timeout", "--timeout"),
        ("body_timeout", "--body-timeout"),
    ):
        with pytest.raises(UserError, match=f"{option} is 0; it must be above 0 and finite"):
            AppSettings(**{name: 0})


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
        AppServer(AppSettings(port=server.port), Models([], []), lambda path, is_over: None)
