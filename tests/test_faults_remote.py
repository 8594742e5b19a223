"""Files at remote locations: changes, failing servers and networks, and what cannot be remote."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import pickle
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import fsspec
import numpy as np
import pytest
import torch
from file_server import drop, serving, silence, status
from filelock import FileLock
from helpers import FOLDERS, GOLDEN, NAMES, loaded, write
from ranks import environment
from remote_files import CAPTIONS, LIST, TRANSCRIPTS, pack, packed_corpus, remote_tree
from small_disks import small_disk

from emollama import checkpoint, file_digests
from emollama.data.features import Features
from emollama.data.shard_properties import download_shards
from emollama.data.slots import SlotShape
from emollama.errors import DownloadError, FileAbsent, ServerFailure, UserError
from emollama.heartbeat import beats
from emollama.paths import PATHS, cache_folder, read_text, require_file
from emollama.remote import manager
from emollama.remote.downloads import Downloads
from emollama.remote.handler import RemoteFiles
from emollama.remote.http import Http
from emollama.remote.object_stores import ObjectStores, _named_errors
from emollama.stores.manifest import Manifest
from emollama.stores.packing import index_tars
from emollama.stores.store import open_store
from emollama.stores.tars import TarStore

pytestmark = pytest.mark.faults

KEY = "datasets.golden.annotation_file"


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    """An empty cache folder, no proxy, and no state of earlier tests in this process."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start()
    yield
    manager._path_manager.cache_clear()


def start():
    """Forget what this process knows about remote files, as a new process does; failed requests are repeated without a pause."""
    manager._path_manager.cache_clear()
    http = Downloads(Http(pause=0), lambda: cache_folder() / "downloads")
    PATHS.register_handler(RemoteFiles(("http", "https"), http), allow_override=True)


@pytest.fixture
def files(tmp_path):
    """The folder that the server serves, with one file."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "list.txt").write_text("clip_1 happy\n")
    return folder


@pytest.fixture
def server(files):
    with serving(files) as running:
        yield running


def read(server, name="list.txt"):
    """The text of a file as a dataset reads it."""
    return read_text(require_file(f"{server.url}/{name}", KEY))


def refusal(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


def copies():
    """The files in the cache folder that could be used."""
    return [path for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*") if path.is_file() and not path.name.startswith(".")]


# Changes


def test_a_file_is_downloaded_once_if_it_does_not_change(server):
    for _ in range(3):
        start()
        assert read(server) == "clip_1 happy\n"
    assert server.bodies("/list.txt") == 1
    assert server.requests[1:] == ["GET /list.txt 304"] * 2


@pytest.mark.parametrize("sent", ["ETag", "Last-Modified"])
def test_a_changed_file_is_downloaded_again_at_the_next_start(server, files, sent):
    server.sends = {sent, "Content-Length"}
    assert read(server) == "clip_1 happy\n"
    before = (files / "list.txt").stat().st_mtime
    (files / "list.txt").write_text("clip_1 angry\n")
    os.utime(files / "list.txt", (before + 60, before + 60))
    assert read(server) == "clip_1 happy\n", "one process uses one version"
    start()
    assert read(server) == "clip_1 angry\n"


def test_a_changed_size_is_noticed_if_the_date_is_the_same(server, files):
    server.sends = {"Last-Modified", "Content-Length"}
    assert read(server) == "clip_1 happy\n"
    before = (files / "list.txt").stat().st_mtime
    (files / "list.txt").write_text("clip_1 surprise\n")
    os.utime(files / "list.txt", (before, before))
    start()
    assert read(server) == "clip_1 surprise\n"


def test_an_unchanged_file_is_not_sent_again_by_a_server_without_etags(server, files):
    # Larger than what the operating system accepts before the client has read anything.
    (files / "list.txt").write_bytes(b"clip_1 happy\n" * 2**20)
    server.sends = {"Last-Modified", "Content-Length"}
    for _ in range(2):
        start()
        require_file(f"{server.url}/list.txt", KEY)
    assert server.bodies("/list.txt") == 1


def test_a_file_is_downloaded_at_each_start_if_the_server_states_neither_etag_nor_date(server, files):
    server.sends = {"Content-Length"}
    assert read(server) == "clip_1 happy\n"
    (files / "list.txt").write_text("clip_1 angry\n")
    start()
    assert read(server) == "clip_1 angry\n"


def test_a_changed_file_does_not_change_what_a_process_reads_that_started_earlier(server, files):
    path = Path(PATHS.get_local_path(f"{server.url}/list.txt"))
    (files / "list.txt").write_text("clip_1 angry\n")
    start()
    assert read(server) == "clip_1 angry\n"
    assert path.read_text() == "clip_1 happy\n"


def test_a_replaced_version_is_deleted_after_a_month(server, files):
    path = Path(PATHS.get_local_path(f"{server.url}/list.txt"))
    for label in ("angry", "sad", "happy"):
        (files / "list.txt").write_text(f"clip_1 {label}\n")
        start()
        read(server)
        if label == "angry":
            os.utime(path.parent, (0, 0))
    assert not path.exists()
    assert [copy.read_text() for copy in sorted(copies()) if copy.name == "list.txt"] == [
        f"clip_1 {label}\n" for label in ("angry", "sad", "happy")
    ]


def test_the_processes_of_a_run_use_one_version_if_the_server_states_neither_etag_nor_date(server, files):
    server.sends = {"Content-Length"}
    start()
    other = PATHS._path_handlers["http://"]
    start()
    # Both processes have started before one of them downloads the file.
    assert read(server) == "clip_1 happy\n"
    (files / "list.txt").write_text("clip_1 angry\n")
    PATHS.register_handler(other, allow_override=True)
    assert read(server) == "clip_1 happy\n"
    assert server.bodies("/list.txt") == 1


def test_a_file_with_the_same_bytes_keeps_its_copy_if_the_server_states_neither_etag_nor_date(server):
    server.sends = {"Content-Length"}
    first = PATHS.get_local_path(f"{server.url}/list.txt")
    start()
    assert PATHS.get_local_path(f"{server.url}/list.txt") == first
    assert server.bodies("/list.txt") == 2


def test_threads_of_a_process_download_a_file_once(server, files):
    server.sends = {"Content-Length"}
    (files / "list.txt").write_bytes(os.urandom(2**20))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(PATHS.get_local_path, [f"{server.url}/list.txt"] * 4))
    assert len(paths) == 1 and server.bodies("/list.txt") == 1


def test_the_existence_of_a_file_is_asked_once(server):
    for _ in range(3):
        assert PATHS.isfile(f"{server.url}/list.txt")
    assert server.requests == ["HEAD /list.txt 200"]


def test_a_remote_file_cannot_be_written(server):
    url = f"{server.url}/list.txt"
    read(server)
    for mode in ("w", "ab", "r+"):
        assert refusal(PATHS.open, url, mode) == f"'{url}': a file at a URL can only be read. Write to a local path."
    assert read(server) == "clip_1 happy\n"


def test_the_signature_in_a_url_is_neither_shown_nor_stored(server, caplog):
    caplog.set_level("INFO")
    url = f"{server.url}/list.txt?X-Signature=secret"
    assert read_text(require_file(url, KEY)) == "clip_1 happy\n"
    message = refusal(require_file, f"{server.url}/gone.txt?X-Signature=secret", KEY)
    assert f"'{server.url}/gone.txt': the server has no such file" in message
    server.stop()
    start()
    require_file(url, KEY)
    assert f"'{server.url}/list.txt': the connection failed" in caplog.text
    states = [path.read_text() for path in cache_folder().rglob("state.json")]
    assert states and not [text for text in (message, caplog.text, *states) if "secret" in text]


def test_files_with_the_same_path_on_two_servers_are_not_confused(server, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others/list.txt").write_text("clip_2 sad\n")
    with serving(tmp_path / "others") as other:
        paths = [PATHS.get_local_path(f"{one.url}/list.txt") for one in (server, other)]
        assert [Path(path).read_text() for path in paths] == ["clip_1 happy\n", "clip_2 sad\n"]


def test_a_copy_that_was_damaged_is_downloaded_again(server):
    read(server)
    (copy,) = (path for path in copies() if path.name == "list.txt")
    copy.write_text("clip_1")
    start()
    assert read(server) == "clip_1 happy\n"


# Failures


def test_a_missing_file_is_an_error_with_key_url_and_status_even_if_there_is_a_copy(server, files):
    read(server)
    (files / "list.txt").unlink()
    start()
    expected = f"{KEY}: '{server.url}/list.txt': the server has no such file (404 File not found)."
    assert refusal(read, server).startswith(expected)


def test_a_refused_access_is_an_error_that_names_the_place_of_passwords(server):
    server.spoil["/list.txt"] = [status(403)]
    message = refusal(read, server)
    assert "403 Forbidden" in message and "~/.netrc" in message
    assert len(server.requests) == 1


def test_a_server_that_recovers_is_asked_again(server):
    server.spoil["/list.txt"] = [status(500), status(503), drop(5), status(429)]
    assert read(server) == "clip_1 happy\n"


def test_a_failing_server_is_an_error_with_its_status_and_the_number_of_attempts(server):
    server.spoil["/list.txt"] = [status(503)] * 9
    message = refusal(read, server)
    assert f"{KEY}: '{server.url}/list.txt': the server failed (503 Service Unavailable); 5 attempts failed." in message
    assert len(server.requests) == 5


@pytest.mark.parametrize("code", [202, 206, 300])
def test_a_status_other_than_200_is_no_complete_file(code, server):
    server.spoil["/list.txt"] = [status(code)] * 9
    assert f"the server answered {code}" in refusal(read, server)
    assert copies() == []


def test_a_download_that_always_breaks_off_names_the_bytes_and_leaves_nothing(server):
    server.spoil["/list.txt"] = [drop(7)] * 9
    assert "the connection was dropped after 7 of 13 bytes; 5 attempts failed. Check the network" in refusal(read, server)
    assert copies() == []


@pytest.mark.parametrize("sent", [None, 4])
def test_a_silent_server_times_out_after_the_configured_seconds(server, monkeypatch, sent):
    monkeypatch.setenv("EMOLLAMA_HTTP_TIMEOUT", "0.1")
    server.spoil["/list.txt"] = [silence(sent)] * 9
    message = refusal(read, server)
    assert "timed out (no data for 0.1 s)" in message and "EMOLLAMA_HTTP_TIMEOUT" in message
    assert ("of 13 bytes" in message) == (sent is not None)


@pytest.mark.parametrize("value", ["soon", "0", "nan"])
def test_an_invalid_timeout_is_refused(server, monkeypatch, value):
    monkeypatch.setenv("EMOLLAMA_HTTP_TIMEOUT", value)
    assert f"EMOLLAMA_HTTP_TIMEOUT is '{value}'. Set it to a positive number" in refusal(read, server)


def test_a_refused_connection_is_an_error_with_the_reason_of_the_system(server):
    server.stop()
    assert "the connection failed (Connection refused); 5 attempts failed" in refusal(read, server)


def test_a_body_whose_end_cannot_be_recognized_is_refused(server):
    server.sends = {"ETag"}
    assert "does not state the size of the file (Content-Length)" in refusal(read, server)
    assert copies() == []


def test_a_chunked_body_is_complete_only_with_its_last_chunk(server):
    def chunked(*parts):
        def answer(handler):
            handler.protocol_version = "HTTP/1.1"
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.send_header("Connection", "close")
            handler.end_headers()
            for part in parts:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

        return answer

    server.spoil["/list.txt"] = [chunked(b"clip_2 ")] * 4 + [chunked(b"clip_2 ", b"sad\n", b"")]
    assert read(server) == "clip_2 sad\n"


def test_an_unusable_cache_folder_is_an_error_with_its_path_and_the_variable_that_sets_it(server, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    message = refusal(read, server)
    assert f"cannot write its copy into '{tmp_path}/file/emollama/downloads/" in message
    assert "Not a directory" in message and "XDG_CACHE_HOME" in message and "space" not in message


def test_an_invalid_url_is_an_error_with_its_key():
    for function, url in ((require_file, "http://[::1/list.txt"), (open_store, "http://[::1/a.tar"), (require_file, "http:///a")):
        message = refusal(function, url, KEY)
        assert message.startswith(f"{KEY}: '{url}': ") and message.endswith("Correct the URL.")


def test_a_password_in_a_url_is_refused_and_not_shown(server):
    message = refusal(require_file, server.url.replace("://", "://me:secret@") + "/list.txt", KEY)
    assert "~/.netrc" in message and "secret" not in message
    assert server.requests == []


# Without a network


def test_the_copy_is_used_with_one_warning_if_the_server_does_not_answer(server, files, caplog):
    (files / "words.csv").write_text("name,sentence\n")
    read(server), read(server, "words.csv")
    server.stop()
    start()
    assert [read(server), read(server, "words.csv")] == ["clip_1 happy\n", "name,sentence\n"]
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert f"'{server.url}/list.txt': the connection failed (Connection refused)" in record.getMessage()
    assert "Using the copies of this server's files that were downloaded earlier" in record.getMessage()


def test_a_server_that_could_not_be_reached_is_not_asked_for_files_without_a_copy(server):
    read(server)
    server.stop()
    start()
    assert read(server) == "clip_1 happy\n"
    message = refusal(read, server, "words.csv")
    assert f"'{server.url}/words.csv': its server could not be reached before, and there is no copy of this file." in message


def test_the_copy_is_used_if_the_download_of_a_new_version_breaks_off(server, files, caplog):
    read(server)
    (files / "list.txt").write_text("clip_1 surprise\n")
    server.spoil["/list.txt"] = [drop(7)] * 5
    start()
    assert read(server) == "clip_1 happy\n"
    assert "7 of 16 bytes" in caplog.text
    start()
    assert read(server) == "clip_1 surprise\n"


# Several processes


FORK = multiprocessing.get_context("fork")


def fetch(url):
    """Read a file in a process that knows nothing about it."""
    start()
    return Path(PATHS.get_local_path(require_file(url, KEY))).read_bytes()


def test_one_of_several_processes_downloads_and_the_others_wait(server, files):
    (files / "list.txt").write_bytes(os.urandom(2**22))
    with ProcessPoolExecutor(4, FORK) as pool:
        contents = list(pool.map(fetch, [f"{server.url}/list.txt"] * 4))
    assert contents == [(files / "list.txt").read_bytes()] * 4
    assert server.bodies("/list.txt") == 1


def test_a_process_that_was_killed_in_a_download_leaves_no_copy_and_no_lock(server, files):
    (files / "list.txt").write_bytes(b"x" * 2**20)
    server.spoil["/list.txt"] = [silence(2**19)]
    process = FORK.Process(target=fetch, args=(f"{server.url}/list.txt",))
    process.start()
    folder = cache_folder() / "downloads"
    while process.is_alive() and not any(path.stat().st_size for path in folder.glob("*/.partial")):
        process.join(0.01)
    assert process.is_alive()
    process.kill()
    process.join()
    assert copies() == []
    assert read(server) == "x" * 2**20


def test_waiting_for_another_process_that_downloads_is_reported_and_counts_as_progress(server, caplog):
    caplog.set_level("INFO")
    url = f"{server.url}/list.txt"
    waiting = Downloads(Http(pause=0), lambda: cache_folder() / "downloads", poll=0.01)
    folder = waiting._copy_folder(url)
    folder.mkdir(parents=True)
    before = beats()
    with ThreadPoolExecutor(1) as pool, FileLock(folder / ".lock"):
        result = pool.submit(waiting.local_path, url)
        while beats() < before + 3 and not result.done():
            time.sleep(0.01)
        assert not result.done()
    assert Path(result.result()).read_text() == "clip_1 happy\n"
    assert caplog.text.count(f"waiting for another process that downloads {url}") == 1


# Datasets and commands


@pytest.fixture(scope="module")
def remote_corpus(tmp_path_factory):
    """A copy of the golden corpus with all features in two tar shards each, as a server has it."""
    return packed_corpus(tmp_path_factory.mktemp("remote") / "data")


def flip_value(shard, slot):
    """Change a bit of a value of the first clip in a tar."""
    raw = bytearray(shard.read_bytes())
    raw[raw.index(np.load(GOLDEN / "data" / slot / f"{NAMES[0]}.npy").tobytes())] ^= 1
    shard.write_bytes(raw)


@pytest.mark.parametrize("options", [[], ["--deep"]], ids=["default", "deep"])
def test_check_data_finds_the_same_in_remote_and_local_files(remote_corpus, tmp_path, emollama, options):
    reports = {}
    with serving(remote_corpus) as server:
        for name, root in (("remote", server.url), ("local", str(remote_corpus))):
            (tmp_path / name).mkdir()
            path = write(tmp_path / name, remote_tree(tmp_path, root))
            done = emollama("check-data", "--json", *options, "--cfg-path", path)
            assert done.returncode == 0, done.stdout + done.stderr
            report = json.loads(done.stdout.replace(root, "ROOT"))
            for block in report["blocks"]:
                del block["reading"]
            del report["training"]  # free disk space
            reports[name] = report
    assert reports["remote"] == reports["local"]


def spoiled_report(server, tmp_path, emollama, *options):
    done = emollama("check-data", "--cfg-path", write(tmp_path, remote_tree(tmp_path, server.url)), *options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("annotation_file", LIST),
        ("coarse_grained_json_path", CAPTIONS),
        ("transcription_path", TRANSCRIPTS),
        ("features.face", "shards/mae_340_UTT/shard-00001.tar"),
    ],
)
def test_check_data_names_key_url_and_reason_of_each_missing_file(remote_corpus, tmp_path, emollama, key, path):
    shutil.copytree(remote_corpus, tmp_path / "data")
    (tmp_path / "data" / path).unlink()
    with serving(tmp_path / "data") as server:
        report = spoiled_report(server, tmp_path, emollama)
        assert f"{key}: '{server.url}/{path}'" in report and "no such file" in report


def test_a_missing_index_of_a_remote_tar_names_the_command_that_writes_it(remote_corpus, tmp_path, emollama):
    shutil.copytree(remote_corpus, tmp_path / "data")
    (tmp_path / "data/shards/eva/shard-00000.tar.idx.npz").unlink()
    with serving(tmp_path / "data") as server:
        report = spoiled_report(server, tmp_path, emollama)
        assert "emollama pack --index" in report and "404" in report


def test_a_shard_that_always_breaks_off_is_requested_for_one_clip_only(remote_corpus, tmp_path, emollama):
    path = "/shards/mae_340_UTT/shard-00001.tar"
    with serving(remote_corpus) as server:
        server.spoil[path] = [lambda handler: type(handler).__mro__[1].do_HEAD(handler), *[drop(1000)] * 99]
        report = spoiled_report(server, tmp_path, emollama)
        assert f"features.face: '{server.url}{path}': the connection was dropped after 1,000 of" in report
        assert server.requests.count(f"GET {path} 200") == 5


def test_the_deep_check_finds_a_changed_byte_in_a_remote_tar(remote_corpus, tmp_path, emollama):
    shutil.copytree(remote_corpus, tmp_path / "data")
    shard = tmp_path / "data/shards/mae_340_UTT/shard-00000.tar"
    flip_value(shard, "mae_340_UTT")
    with serving(tmp_path / "data") as server:
        report = spoiled_report(server, tmp_path, emollama, "--deep")
        assert f"emollama pack --index '{server.url}/shards/mae_340_UTT/shard-00000.tar'" in report
        assert "features.face" in report and "features.audio" not in report


def test_a_shard_that_cannot_be_downloaded_does_not_count_as_changed(remote_corpus, tmp_path, emollama):
    path = "/shards/mae_340_UTT/shard-00001.tar"
    with serving(remote_corpus) as server:
        server.spoil[path] = [lambda handler: type(handler).__mro__[1].do_HEAD(handler), *[drop(1000)] * 99]
        report = spoiled_report(server, tmp_path, emollama, "--deep")
        assert f"features.face: '{server.url}{path}': the connection was dropped" in report
        assert "the bytes of these arrays differ" not in report


def test_a_folder_of_arrays_at_a_url_is_refused_with_the_command_that_packs_it(server):
    message = refusal(open_store, f"{server.url}/eva", "datasets.golden.features.image")
    assert message.startswith(f"datasets.golden.features.image: '{server.url}/eva' is not a single file")
    assert "emollama pack --source FOLDER --output SHARDS --to tar" in message


def test_a_folder_of_images_or_a_language_model_at_a_url_is_refused(tmp_path, server):
    from emollama.checkpoint_files import require_language_model
    from emollama.media.image_files import image_files

    for function in (require_language_model, lambda url: image_files(url, [], "datasets.golden.image_path")):
        message = refusal(function, f"{server.url}/folder")
        assert f"'{server.url}/folder'" in message and "Download the folder" in message


def test_a_pattern_with_a_star_is_refused_with_the_pattern_for_urls(server):
    assert "shard-{00000..00003}.tar" in refusal(open_store, f"{server.url}/shard-*.tar", "datasets.golden.features.face")


def test_a_changed_tar_with_an_old_index_is_an_error_that_names_the_command(remote_corpus, tmp_path):
    shutil.copytree(remote_corpus / "shards/eva", tmp_path / "eva")
    flip_value(tmp_path / "eva/shard-00000.tar", "eva")
    with serving(tmp_path / "eva") as server:
        url = f"{server.url}/shard-00000.tar"
        store = TarStore.open(url)
        for name in store.names():
            assert refusal(store.load, name).startswith(f"{url}: its index belongs to another shard or to an older version.")


def test_the_values_of_a_copy_are_compared_with_its_index_once(remote_corpus):
    with serving(remote_corpus / "shards/eva") as server:
        url = f"{server.url}/shard-00000.tar"
        store = TarStore.open(url)
        expected = store.load(NAMES[0])
        # Later starts trust the copy. A test can see this because it damages the copy.
        (copy,) = (path for path in copies() if path.name == "shard-00000.tar")
        status = copy.stat()
        flip_value(copy, "eva")
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        start()
        assert not np.array_equal(TarStore.open(url).load(NAMES[0]), expected)


def test_unchanged_remote_tars_are_not_read_again_at_the_next_start(remote_corpus, monkeypatch):
    shape = SlotShape(64, 176)
    with serving(remote_corpus / "shards/eva") as server:
        found = []
        for _ in range(2):
            start()
            features = Features.open(f"{server.url}/shard-{{00000..00001}}.tar", ("image", "cls"), shape, KEY)
            reads = Mock(side_effect=features.store.load)
            monkeypatch.setattr(features.store, "load", reads)
            found.append(features.check(NAMES))
            assert reads.call_count == (len(NAMES) if len(found) == 1 else 0)
    assert found[0] == found[1] and not found[0].problems


def test_tars_are_downloaded_before_data_workers_need_them_which_counts_as_progress(remote_corpus):
    with serving(remote_corpus / "shards/eva") as server:
        features = Features.open(f"{server.url}/shard-{{00000..00001}}.tar", ("image", "cls"), SlotShape(64, 176), KEY)
        before = beats()
        download_shards([features])
        assert [server.bodies(f"/shard-0000{number}.tar") for number in (0, 1)] == [1, 1] and beats() > before
        features.store.load(NAMES[0])
        assert server.bodies("/shard-00000.tar") == 1


def test_a_store_that_was_sent_to_another_process_does_not_ask_for_its_shards_again(remote_corpus):
    with serving(remote_corpus / "shards/eva") as server:
        store = TarStore.open(f"{server.url}/shard-{{00000..00001}}.tar")
        heads = [request for request in server.requests if request.startswith("HEAD")]
        assert len(heads) == 2
        start()
        copy = pickle.loads(pickle.dumps(store))
        assert [request for request in server.requests if request.startswith("HEAD")] == heads
        assert np.array_equal(copy.load(NAMES[0]), store.load(NAMES[0]))


@pytest.mark.parametrize("code", [403, 503])
def test_a_manifest_that_the_server_refuses_is_reported(remote_corpus, code, caplog):
    with serving(remote_corpus / "shards/eva") as server:
        server.spoil["/manifest.json"] = [status(code)] * 9
        assert Manifest.read(f"{server.url}/shard-00000.tar") is None
    assert f"'{server.url}/manifest.json': the server" in caplog.text and str(code) in caplog.text
    assert "it is not known how these features were extracted" in caplog.text


def test_a_missing_manifest_is_not_reported(remote_corpus, caplog):
    with serving(remote_corpus / "shards/eva") as server:
        assert Manifest.read(f"{server.url}/shard-00000.tar") is None
    assert caplog.text == ""


def test_the_manifest_of_remote_tars_is_read(remote_corpus, tmp_path):
    shutil.copytree(remote_corpus / "shards/eva", tmp_path / "eva")
    manifest = Manifest(("image", "cls"), 64, 176, {"frames": "first"}, "0" * 64, "float32")
    manifest.write(tmp_path / "eva")
    with serving(tmp_path / "eva") as server:
        assert Manifest.read(f"{server.url}/shard-00000.tar") == manifest


def test_indexes_of_remote_tars_are_written_into_a_local_folder(remote_corpus, tmp_path):
    with serving(remote_corpus / "shards/eva") as server:
        index_tars(f"{server.url}/shard-{{00000..00001}}.tar", tmp_path / "indexes")
        store = TarStore.open(str(tmp_path / "indexes"))
        assert sorted(store.names()) == NAMES
        assert np.array_equal(store.load(NAMES[0]), np.load(GOLDEN / "data/eva" / f"{NAMES[0]}.npy"))


# Training and resuming


@pytest.fixture(scope="module")
def trained(remote_corpus, tmp_path_factory, launch):
    """The folder of a run of two processes with data workers on remote data, its configuration, and the server's requests."""
    root = tmp_path_factory.mktemp("trained")
    with serving(remote_corpus) as server:
        tree = remote_tree(root, server.url)
        done = train(launch, root, tree)
        assert done.returncode == 0, done.stderr
        requests = server.requests
    return root, tree, requests


def train(launch, root, tree):
    variables = environment() | {"XDG_CACHE_HOME": str(root / "cache")}
    return launch("train.py", "--cfg-path", write(root, tree), processes=2, env=variables)


def test_two_processes_train_on_list_captions_transcripts_and_tars_that_are_downloaded_once(trained):
    root, _, answered = trained
    paths = [
        LIST,
        CAPTIONS,
        TRANSCRIPTS,
        *(f"shards/{name}/shard-0000{number}.tar" for name in FOLDERS.values() for number in (0, 1)),
    ]
    assert {path: answered.count(f"GET /{path} 200 complete") for path in paths} == dict.fromkeys(paths, 1)
    assert (root / "out/run/checkpoint_0.pth").is_file()


def changed_captions(data):
    captions = json.loads((data / CAPTIONS).read_text())
    captions[NAMES[0]]["caption"] = "The woman frowns, so she seems angry."
    (data / CAPTIONS).write_text(json.dumps(captions))


def changed_shards(data):
    """Move clips between the shards of each slot."""
    for name in FOLDERS.values():
        shutil.rmtree(data / "shards" / name)
        pack(GOLDEN / "data" / name, data / "shards" / name, NAMES[::-1])


def changed_values(data):
    """Change a value of each slot, and write the indexes again. The headers of the tars stay the same."""
    for name in FOLDERS.values():
        flip_value(data / "shards" / name / "shard-00000.tar", name)
        index_tars(str(data / "shards" / name / "shard-00000.tar"), None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed_captions, "annotation file and texts of golden"),
        (changed_shards, "shards or curriculum difficulty of golden"),
        (changed_values, "features of golden, face"),
    ],
)
def test_a_resumed_run_refuses_changed_remote_files(trained, remote_corpus, tmp_path, launch, change, expected):
    root, tree, _ = trained
    shutil.copytree(remote_corpus, tmp_path / "data")
    shutil.copytree(root, tmp_path / "root")
    change(tmp_path / "data")
    with serving(tmp_path / "data") as server:
        moved = json.loads(json.dumps(tree).replace(tree["datasets"]["golden"]["data_root"], server.url))
        moved["run"] |= {"output_dir": str(tmp_path / "root/out"), "max_epoch": 2}
        done = train(launch, tmp_path / "root", moved)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert expected in done.stderr and "belongs to a run that was configured differently" in done.stderr


def test_a_run_resumes_from_its_copies_if_the_server_does_not_answer(trained, tmp_path, monkeypatch, caplog):
    root, tree, _ = trained
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    # The two samples of a step are those of the two processes of the earlier run.
    config = loaded(tmp_path, tree, "run.max_epoch=2", "run.accum_grad_iters=2")
    assert config.runner_class(config).first_step == 2
    assert "Using the copies of this server's files" in caplog.text


def test_a_checkpoint_of_an_earlier_version_has_no_digests_of_values_and_is_resumed(trained, tmp_path, monkeypatch):
    root, tree, _ = trained
    shutil.copytree(root, tmp_path / "root")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "root/cache"))
    for path in (tmp_path / "root/out/run").glob("checkpoint_*.pth"):
        content = torch.load(path, weights_only=True)
        fields = content[checkpoint.RESUME_FIELDS_KEY]
        values = [name for name in fields if name.startswith("features of golden, ")]
        assert len(values) == len(FOLDERS)
        for name in values:
            del fields[name]
        torch.save(content, path)
        file_digests.digest_path(path).unlink()
    tree = json.loads(json.dumps(tree))
    tree["run"]["output_dir"] = str(tmp_path / "root/out")
    config = loaded(tmp_path, tree, "run.max_epoch=2", "run.accum_grad_iters=2")
    assert config.runner_class(config).first_step == 2


# Other locations


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_location_whose_package_is_missing_names_the_package(scheme, package, monkeypatch):
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setitem(registry.known_implementations[scheme], "class", f"missing_{package}.Files")
    monkeypatch.delitem(registry._registry, scheme, raising=False)
    message = refusal(require_file, f"{scheme}://bucket/list.txt", KEY)
    assert message.startswith(f"{KEY}: '{scheme}://bucket/list.txt': {scheme}:// needs the package {package}")
    assert f"pip install {package}" in message


def test_a_location_without_a_handler_is_refused_with_those_that_have_one():
    for function in (require_file, open_store):
        message = refusal(function, "cloud://bucket/list.tar", KEY)
        assert message.startswith(f"{KEY}: 'cloud://bucket/list.tar': files at cloud:// cannot be read, only those at")
        assert "https://" in message and "s3://" in message and "register" in message


@pytest.fixture
def bucket(tmp_path):
    """Files in fsspec's file system in memory, read like an object store."""
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/list.txt", b"clip_1 happy\n")
    register_bucket()
    yield store
    store.rm("/bucket", recursive=True)


def register_bucket(folder=None):
    downloads = Downloads(ObjectStores(), lambda: folder or cache_folder())
    PATHS.register_handler(RemoteFiles(["memory"], downloads), allow_override=True)


def test_an_object_is_downloaded_again_when_it_has_changed(bucket):
    url = "memory://bucket/list.txt"
    assert read_text(require_file(url, KEY)) == "clip_1 happy\n"
    bucket.pipe("/bucket/list.txt", b"clip_1 angry\n")
    assert read_text(require_file(url, KEY)) == "clip_1 happy\n", "one process uses one version"
    register_bucket()
    assert read_text(require_file(url, KEY)) == "clip_1 angry\n"


def test_a_missing_object_is_an_error_with_key_and_url(bucket):
    assert refusal(require_file, "memory://bucket/gone.txt", KEY).startswith(f"{KEY}: 'memory://bucket/gone.txt': there is no")
    assert not PATHS.isfile("memory://bucket/gone.txt") and PATHS.isfile("memory://bucket/list.txt")


def test_a_full_disk_is_not_mistaken_for_a_failing_store_whose_copy_can_be_used(bucket):
    url = "memory://bucket/list.txt"
    with small_disk("1m") as disk:
        register_bucket(disk)
        assert read_text(require_file(url, KEY)) == "clip_1 happy\n"
        bucket.pipe("/bucket/list.txt", b"x" * 2**22)
        register_bucket(disk)
        message = refusal(require_file, url, KEY)
    assert "No space left on device. Free disk space, or set the environment variable XDG_CACHE_HOME" in message


def test_a_long_download_from_a_store_counts_as_progress(bucket):
    bucket.pipe("/bucket/list.txt", b"x" * 2**22)
    before = beats()
    require_file("memory://bucket/list.txt", KEY)
    assert beats() >= before + 4


@pytest.mark.parametrize(("error", "answered"), [(ConnectionResetError("gone"), False), (ValueError("too much"), True)])
def test_only_a_store_that_cannot_be_reached_is_not_asked_again(error, answered):
    with pytest.raises(ServerFailure) as failure, _named_errors("s3://bucket/list.txt"):
        raise error
    assert failure.value.answered is answered


def test_errors_of_downloads_reach_another_process_unchanged():
    for error in (DownloadError("a"), FileAbsent("b"), ServerFailure("c", answered=False)):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
