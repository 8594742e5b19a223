"""Remote tar shards whose arrays are read while a run needs them (``stream: True``)."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import fsspec
import minigpt_files
import numpy as np
import pytest
import torch
from file_server import drop, serving, silence, status
from fsspec.asyn import AsyncFileSystem
from helpers import GOLDEN, NAMES, loaded
from PIL import Image
from remote_files import packed_corpus, remote_tree
from running import read_jsonl
from small_disks import small_disk
from torch.utils.data import DataLoader

from emollama.data.features import Features
from emollama.data.shard_properties import cache_note
from emollama.data.slots import PIXELS, SlotShape
from emollama.datasets.configs import ImageTextTarsConfig
from emollama.datasets.image_text_tars import ImageTextTars
from emollama.errors import UserError
from emollama.paths import PATHS, cache_folder
from emollama.remote import block_cache, direct, manager, streaming
from emollama.remote.block_cache import BlockCache
from emollama.remote.downloads import Downloads
from emollama.remote.handler import RemoteFiles
from emollama.remote.http import Http
from emollama.remote.object_stores import ObjectStores
from emollama.stores.store import open_store
from emollama.stores.tar_index import SUFFIX

BLOCK = 2**14
SIDE = 56
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The golden corpus with all features in two tar shards each."""
    return packed_corpus(tmp_path_factory.mktemp("streamed") / "data")


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    """An empty cache folder, a cache of 64 small blocks, no proxy, and no pause between requests."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(streaming, "BLOCK", BLOCK)
    set_cache(monkeypatch, tmp_path / "cache", 64)
    yield
    manager._path_manager.cache_clear()
    streaming._process.cache_clear()


def set_cache(monkeypatch, folder, blocks):
    """Set folder and size of the cache, and forget what this process knows about remote files, as a new process does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("EMOLLAMA_STREAM_CACHE_GIB", str(blocks * BLOCK / 2**30))
    streaming._process.cache_clear()
    manager._path_manager.cache_clear()
    http = Downloads(Http(pause=0), lambda: cache_folder() / "downloads")
    PATHS.register_handler(RemoteFiles(("http", "https"), http), allow_override=True)


@pytest.fixture
def files(corpus, tmp_path):
    """A copy of the shards of one slot, which a test may change."""
    return Path(shutil.copytree(corpus / "shards/eva", tmp_path / "eva"))


@pytest.fixture
def server(files):
    with serving(files) as running:
        yield running


def opened(server, query=""):
    return open_store(f"{server.url}/shard-{{00000..00001}}.tar{query}", "features.image", stream=True)


def array(name, slot="eva"):
    return np.load(GOLDEN / "data" / slot / f"{name}.npy")


def cached_bytes():
    return sum(path.stat().st_size for path in (cache_folder() / "streamed").glob("*.blocks"))


def refusal(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


# Reading


def test_each_byte_is_requested_once_and_arrays_have_the_bytes_of_local_files(server, files, monkeypatch, tmp_path):
    for _ in range(2):
        store = opened(server)
        assert all(np.array_equal(store.load(name), array(name)) for name in NAMES)
        set_cache(monkeypatch, tmp_path / "cache", 64)
    sizes = sum(path.stat().st_size for path in files.glob("*.tar"))
    assert sum(size for *_, size in server.parts) <= sizes
    assert not any("tar 200 complete" in request for request in server.requests)


def test_only_indexes_and_one_array_are_read_when_a_store_opens(server):
    store = opened(server)
    features = Features(store, "shards", ("image", "cls"), SlotShape(64, 176), "features.image")
    assert len(features.check(NAMES).valid) == len(NAMES)
    assert [(path, begin) for path, begin, _ in server.parts] == [("/shard-00000.tar", 0)]


def test_of_the_processes_that_start_together_the_first_asks_for_the_version_of_a_file(server):
    url = f"{server.url}/shard-00000.tar"
    first, second = (Downloads(Http(pause=0), lambda: cache_folder() / "downloads") for _ in range(2))
    version = first.version(url)
    assert second.exists(url) and second.version(url) == version and len(server.requests) == 1
    later = Downloads(Http(pause=0), lambda: cache_folder() / "downloads")
    assert later.version(url) == version and len(server.requests) == 2


def test_the_cache_is_never_larger_than_its_limit(server, monkeypatch, tmp_path):
    monkeypatch.setattr(streaming, "MIN_BLOCKS", 1)
    set_cache(monkeypatch, tmp_path / "cache", 16)
    store = opened(server)
    for name in [*NAMES, *NAMES]:
        assert np.array_equal(store.load(name), array(name))
        assert 0 < cached_bytes() <= 16 * BLOCK


def test_the_least_recently_used_block_is_replaced(tmp_path):
    cache = BlockCache(tmp_path, 3, 4)
    for key in (1, 2, 3, 1, 4):
        claim = cache.claim(key)
        if not claim.is_complete:
            cache.write(claim.slot, key, bytes([key] * 4))
    assert [cache.claim(key).is_complete for key in (1, 3, 4)] == [True] * 3
    assert not cache.claim(2).is_complete


def test_a_block_is_not_reserved_forever_if_the_number_of_a_killed_process_is_in_use_again(tmp_path):
    cache = BlockCache(tmp_path, 3, 4)
    slot = cache.claim(7).slot
    cache._writers[slot] = os.getppid()
    assert cache.claim(7) is None
    cache._used[slot] -= block_cache._ABANDONED_NS
    assert not cache.claim(7).is_complete


def test_a_cache_that_is_smaller_than_a_window_of_shards_is_noted(server):
    source = Features(opened(server), "shards", ("image", "cls"), SlotShape(64, 176), "features.image")
    assert cache_note([source], 4) == ""
    source.store._descriptions = [about._replace(bytes=2**30) for about in source.store._descriptions]
    assert "have 2 GiB, more than the cache of 0.000977 GiB" in cache_note([source], 4)
    assert "have 1 GiB" in cache_note([source], 1)


def test_without_a_cache_each_array_is_one_request_of_its_size(server, monkeypatch, tmp_path):
    set_cache(monkeypatch, tmp_path / "cache", 0)
    store = opened(server)
    server.parts.clear()
    assert np.array_equal(store.load(NAMES[1]), array(NAMES[1]))
    ((_, _, size),) = server.parts
    assert size <= array(NAMES[1]).nbytes + 2048 and not (cache_folder() / "streamed").exists()


def test_an_invalid_size_of_the_cache_is_an_error_that_names_the_variable(server, monkeypatch):
    monkeypatch.setenv("EMOLLAMA_STREAM_CACHE_GIB", "20 GB")
    assert "EMOLLAMA_STREAM_CACHE_GIB is '20 GB'. Set it to at least" in refusal(opened, server)


@pytest.mark.slow
def test_the_next_loads_are_requested_before_they_are_needed(corpus, tmp_path):
    with serving(corpus) as server:
        tree = remote_tree(tmp_path, server.url)
        tree["datasets"]["golden"] |= {"stream": True, "shuffle": True, "shuffle_window": 1}
        tree["run"] |= {"num_workers": 0, "iters_per_epoch": 8}
        config = loaded(tmp_path, tree)
        runner = config.runner_class(config)
        assert not [path for path, _, _ in server.parts if path.startswith("/shards/eva") and "00001" in path]
        runner.samples.read_ahead(runner.layout.load_stride, 8)
        runner.samples.__getitems__([0])
        wait_for_requests(server)
        answered = len(server.parts)
        assert answered > 4
        loads = [runner.samples.__getitems__([index]) for index in (1, 2)]
        assert loads and streaming._process(os.getpid()).cache is not None
        needed = [part for part in server.parts[:answered] if part in server.parts[answered:]]
        assert needed == []


def wait_for_requests(server):
    """Wait until the threads that read ahead have nothing to do."""
    process = streaming._process(os.getpid())
    while not process._queue.empty() or process.cache._writers.any():
        time.sleep(0.01)


# Images with captions


@pytest.fixture
def image_tars(tmp_path):
    """Two tars of four images with captions each."""
    for number in range(2):
        samples = [minigpt_files.sample(f"{key}", jpeg(4 * number + key), f"Image {key} of {number}") for key in range(4)]
        minigpt_files.write_tar(tmp_path / f"tars/0000{number}.tar", [member for sample in samples for member in sample])
    return tmp_path / "tars"


def jpeg(number):
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def captioned(root, **keys):
    shapes = {"image": SlotShape(8, 64), PIXELS: SlotShape(1, 3 * SIDE**2)}
    cfg = ImageTextTarsConfig(storage=f"{root}/{{00000..00001}}.tar", **keys)
    return ImageTextTars(cfg, slot_shapes=shapes, block_path="datasets.laion")


def records(dataset):
    all_records = [dataset.record(index, "caption", "") for index in range(len(dataset))]
    return [(record.name, record.turns, record.features[PIXELS].numpy().tobytes()) for record in all_records]


def test_streamed_images_with_captions_equal_local_ones_and_leave_no_copy_of_a_tar(image_tars, monkeypatch, tmp_path):
    expected = records(captioned(image_tars))
    with serving(image_tars) as server:
        for _ in range(2):
            set_cache(monkeypatch, tmp_path / "cache", 64)
            dataset = captioned(server.url, stream=True)
            dataset.read_ahead(0)
            assert records(dataset) == expected and dataset.digest() == captioned(image_tars).digest()
        # Once, to index them.
        assert [server.bodies(f"/0000{number}.tar") for number in range(2)] == [1, 1]
        assert len(server.parts) == len({(path, begin) for path, begin, _ in server.parts}) > 0
    assert not list(cache_folder().rglob("*.tar"))


@pytest.mark.faults
def test_a_changed_image_of_a_streamed_tar_is_an_error_that_names_key_and_url(image_tars):
    with serving(image_tars) as server:
        dataset = captioned(server.url, stream=True)
        dataset.record(0, "caption", "")
        tar = image_tars / "00000.tar"
        raw = tar.read_bytes()
        tar.write_bytes(raw.replace(jpeg(3), jpeg(3)[::-1]))
        set_streamed_cache_empty()
        message = refusal(lambda: dataset.record(3, "caption", ""))
    assert message.startswith(f"datasets.laion.storage: '{server.url}/00000.tar': the file has changed on the server.")


@pytest.mark.faults
def test_a_server_that_does_not_show_changes_is_refused_for_streamed_images(image_tars):
    with serving(image_tars) as server:
        server.sends = {"Content-Length"}
        message = refusal(lambda: captioned(server.url, stream=True))
    assert "the server does not state size and ETag (or date) of the file" in message


def set_streamed_cache_empty():
    for path in (cache_folder() / "streamed").iterdir():
        path.unlink()
    streaming._process.cache_clear()


# Training


def train(folder, tree, *options):
    config = loaded(folder, tree, *options)
    return config.runner_class(config).train()


@pytest.mark.slow
def test_a_streamed_and_a_resumed_run_have_the_losses_of_a_run_with_local_files(corpus, tmp_path):
    steps = {"iters_per_epoch": 3, "max_epoch": 2, "log_freq": 1}
    losses = {}
    with serving(corpus) as server:
        for name, root, workers in (("local", str(corpus), 0), ("streamed", server.url, 2)):
            (tmp_path / name).mkdir()
            tree = remote_tree(tmp_path / name, root)
            tree["datasets"]["golden"] |= {"stream": True, "shuffle": True, "shuffle_window": 1, "batch_size": 2}
            tree["run"] |= steps | {"num_workers": workers}
            folder = Path(train(tmp_path / name, tree))
            losses[name] = [row["loss"] for row in read_jsonl(folder / "log.jsonl")]
        assert not any("tar 200 complete" in request for request in server.requests) and server.parts
        # The run with local files is cut after its first epoch, and continued with streamed ones.
        folder = tmp_path / "local/out/run"
        for path in folder.glob("checkpoint_*"):
            if "checkpoint_0" not in path.name:
                path.unlink()
        train(tmp_path / "streamed", tree, f"run.output_dir={tmp_path / 'local/out'}")
        resumed = [row["loss"] for row in read_jsonl(folder / "log.jsonl")]
    assert len(set(losses["local"])) == 6 and losses["streamed"] == losses["local"]
    assert resumed[-6:] == losses["local"]


class Forked(AsyncFileSystem):
    """A file system of fsspec whose calls run in an event loop in a thread, which a forked process does not have."""

    protocol = "forked"

    async def _cat_file(self, path, start=None, end=None, **options):
        return Path("/", path).read_bytes()[start:end]

    async def _info(self, path, **options):
        return {"name": path, "size": Path("/", path).stat().st_size, "type": "file"}

    def _open(self, path, mode="rb", **options):
        return open(f"/{path.lstrip('/')}", mode)


class Arrays(torch.utils.data.Dataset):
    """The arrays of a store, as a data worker reads them."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(NAMES)

    def __getitem__(self, index):
        self.store.read_ahead(NAMES[(index + 1) % len(NAMES)])
        return torch.from_numpy(self.store.load(NAMES[index]))


@pytest.mark.slow
def test_forked_data_workers_read_from_a_file_system_with_an_event_loop(files):
    fsspec.register_implementation("forked", Forked, clobber=True)
    PATHS.register_handler(RemoteFiles(["forked"], Downloads(ObjectStores(), cache_folder)), allow_override=True)
    store = open_store(f"forked:/{files}/shard-{{00000..00001}}.tar", "features.image", stream=True)
    # The event loop of this process runs before the workers are forked.
    assert np.array_equal(store.load(NAMES[0]), array(NAMES[0]))
    for read, name in zip(DataLoader(Arrays(store), batch_size=None, num_workers=2, timeout=60), NAMES, strict=True):
        assert np.array_equal(read.numpy(), array(name))


# Faults


@pytest.mark.faults
def test_a_process_that_is_killed_while_it_reads_a_block_leaves_no_wrong_block(server):
    opened(server)
    server.spoil["/shard-00001.tar"] = [silence(10)]
    process = FORK.Process(target=lambda: open_store(f"{server.url}/shard-00001.tar", "key", stream=True))
    process.start()
    while not server.requests or server.spoil["/shard-00001.tar"]:
        time.sleep(0.01)
    process.kill()
    process.join()
    store = opened(server)
    assert all(np.array_equal(store.load(name), array(name)) for name in NAMES)


@pytest.mark.faults
def test_processes_that_need_the_same_blocks_request_them_once(server):
    opened(server)
    processes = [FORK.Process(target=lambda: [opened(server).load(name) for name in NAMES]) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    requested = [(path, begin + BLOCK * number) for path, begin, size in server.parts for number in range(-(-size // BLOCK))]
    assert len(requested) == len(set(requested))


@pytest.mark.faults
def test_a_wrong_block_in_the_cache_is_read_again(server):
    store = opened(server)
    store.load(NAMES[0])
    (path,) = (cache_folder() / "streamed").glob("*.blocks")
    path.write_bytes(bytes(path.stat().st_size))
    assert np.array_equal(store.load(NAMES[0]), array(NAMES[0]))


@pytest.mark.faults
def test_a_shard_that_changes_during_a_run_is_an_error_that_names_it(server, files):
    store = opened(server)
    content = bytearray((files / "shard-00000.tar").read_bytes())
    content[-1] ^= 1
    (files / "shard-00000.tar").write_bytes(content)
    names = [name for name in NAMES if store.shard_ids([name])[0] == 0]
    message = refusal(lambda: [store.load(name) for name in names])
    assert message.startswith(f"'{server.url}/shard-00000.tar': the file has changed on the server. It was replaced")


@pytest.mark.faults
def test_changed_values_with_an_old_index_are_an_error_that_names_shard_and_command(server, files):
    raw = bytearray((files / "shard-00001.tar").read_bytes())
    name = next(name for name in NAMES if array(name).tobytes() in raw)
    raw[raw.index(array(name).tobytes())] ^= 1
    (files / "shard-00001.tar").write_bytes(raw)
    message = refusal(opened(server).load, name)
    assert message.startswith(f"{server.url}/shard-00001.tar: its index belongs to another shard")


@pytest.mark.faults
def test_an_index_without_checksums_is_refused_with_the_command_that_writes_it(server, files):
    for path in files.glob(f"*{SUFFIX}"):
        arrays = dict(np.load(path))
        del arrays["values"]
        np.savez(path.open("wb"), **arrays)
    message = refusal(opened, server)
    assert "this index has no checksums, which streaming needs" in message and "emollama pack --index" in message


@pytest.mark.faults
def test_a_server_that_recovers_is_asked_again(server, monkeypatch):
    monkeypatch.setenv("EMOLLAMA_HTTP_TIMEOUT", "0.5")
    head = [lambda handler: type(handler).__mro__[1].do_HEAD(handler)]
    server.spoil["/shard-00001.tar"] = [*head, status(503), drop(5), silence(), silence(5)]
    store = opened(server)
    assert all(np.array_equal(store.load(name), array(name)) for name in NAMES)


@pytest.mark.faults
def test_a_failing_server_is_an_error_with_key_url_and_attempts_but_without_the_signature(server):
    shape = SlotShape(64, 176)
    features = Features.open(f"{server.url}/shard-{{00000..00001}}.tar", ("image", "cls"), shape, "features.image", stream=True)
    server.spoil["/shard-00001.tar"] = [status(500)] * 99
    name = next(name for name in NAMES if features.store.shard_ids([name])[0] == 1)
    for _ in range(2):
        message = refusal(features.read, name)
    assert message.startswith(f"features.image: '{server.url}/shard-00001.tar': the server failed (500")
    assert "5 attempts failed." in message
    assert server.requests.count("GET /shard-00001.tar 500") == 5, "the second read does not try again"
    with pytest.raises(UserError) as error:
        direct.read_part(f"{server.url}/gone.tar?X-Signature=secret", 0, 5)
    assert "secret" not in str(error.value) and "/gone.tar'" in str(error.value)


@pytest.mark.faults
def test_a_server_without_ranges_is_refused_at_the_start(server):
    server.has_ranges = False
    message = refusal(opened, server)
    assert "the server sends only whole files" in message and message.endswith("Set stream: False, or use another server.")


@pytest.mark.faults
def test_a_full_disk_is_reported_once_and_arrays_are_read_without_the_cache(server, caplog):
    with small_disk("100k") as disk:
        # Only the blocks are on the small disk.
        cache_folder().mkdir(parents=True)
        (cache_folder() / "streamed").symlink_to(disk)
        store = opened(server)
        assert all(np.array_equal(store.load(name), array(name)) for name in NAMES)
        assert cached_bytes() > 0
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "streamed files cannot be cached on this machine (No space left on device)" in record.getMessage()
    assert "EMOLLAMA_STREAM_CACHE_GIB" in record.getMessage()


@pytest.mark.faults
def test_the_slot_of_a_process_that_is_killed_while_it_writes_a_block_is_taken_over(tmp_path):
    def write_half():
        cache = BlockCache(tmp_path, 2, 4)
        claim = cache.claim(7)
        os.pwrite(cache._blocks, b"77", 4 * claim.slot)
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=write_half)
    process.start()
    process.join()
    cache = BlockCache(tmp_path, 2, 4)
    claim = cache.claim(7)
    assert not claim.is_complete and cache.read(claim.slot, 7, 4) is None
    cache.write(claim.slot, 7, b"7777")
    assert cache.claim(7).is_complete and cache.read(claim.slot, 7, 4) == b"7777"


@pytest.mark.faults
def test_check_data_finds_the_same_in_streamed_and_local_shards(corpus, tmp_path, emollama):
    reports = []
    with serving(corpus) as server:
        for root in (server.url, str(corpus)):
            tree = remote_tree(tmp_path, root)
            tree["datasets"]["golden"] |= {"stream": True, "check_values": "all"}
            (tmp_path / "config.yaml").write_text(json.dumps(tree))
            done = emollama("check-data", "--json", "--deep", "--cfg-path", tmp_path / "config.yaml")
            assert done.returncode == 0, done.stdout + done.stderr
            report = json.loads(done.stdout.replace(root, "ROOT"))
            for block in report["blocks"]:
                del block["reading"]
            reports.append(report["blocks"])
    assert reports[0] == reports[1]
