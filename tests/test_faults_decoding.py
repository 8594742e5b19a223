"""The process that decodes media: its results, its limits, and what happens after a crash."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import encoding
import numpy as np
import pytest
import torch
from media_files import cut, tone, write_sound, write_video
from PIL import Image
from ranks import HANG, ROOT
from safetensors.torch import save

from emollama.encoders import decoding_process
from emollama.encoders.decoding_process import DecodingProcess, _Crash, _parse_header, _parse_tensor
from emollama.encoders.decoding_worker import DecodingLimits
from emollama.encoders.eva import Eva
from emollama.encoders.hubert import Hubert
from emollama.encoders.mae import Mae
from emollama.encoders.videomae import VideoMae
from emollama.inference.clip_encoders import ClipEncoders
from emollama.inference.clip_files import ClipFiles
from emollama.inference.feature_stage import FeatureStage
from emollama.inference.pending import PendingAnswer
from emollama.inference.requests import Request
from emollama.media.frame_pixels import FramePixels
from emollama.media.source import MediaLimits, Source, UnusableMedia
from tests.workers.faulty_decoding import Obedient

pytestmark = pytest.mark.faults
LIMITS = DecodingLimits(memory_bytes=2**31, cpu_seconds=1, seconds=60.0, result_bytes=2**22)


@pytest.fixture(scope="module")
def obedient():
    os.environ["HIDDEN_API_KEY"] = "sk-secret"
    with_frame = {"bytes": (Obedient, Obedient.Config()), "frame": FramePixels(28, "first")}
    process = DecodingProcess(with_frame, LIMITS)
    yield process
    process.close()
    del os.environ["HIDDEN_API_KEY"]


@pytest.fixture
def ask(obedient, tmp_path):
    """Return what the process loads from a file with this content: text, or the reason why there is none."""

    def ask(content):
        (tmp_path / "clip").write_text(content)
        result = obedient.load(Source("clip", tmp_path / "clip"), ["bytes"])["bytes"]
        return result if isinstance(result, UnusableMedia) else bytes(result.tolist()).decode()

    return ask


def test_results_equal_those_of_this_process_bit_by_bit(tmp_path):
    encoding.save_hubert(tmp_path / "hubert")
    encoding.save_mae(tmp_path / "mae")
    encoding.save_videomae(tmp_path / "videomae")
    configs = {
        "eva": (Eva, Eva.Config(random_weights=True, image_size=56, width=88, depth=1, frame_selection="middle")),
        "mae": (Mae, Mae.Config(weights=str(tmp_path / "mae"), face="centre")),
        "videomae": (VideoMae, VideoMae.Config(weights=str(tmp_path / "videomae"))),
        "hubert": (Hubert, Hubert.Config(weights=str(tmp_path / "hubert"))),
        "frame": FramePixels(56, "random"),
    }
    video = write_video(tmp_path / "a.mp4", 40, codec="libx264")
    audio = write_sound(tmp_path / "a.wav", tone(1.5, 44100, 0.3, 0.1), 44100)
    sources = [Source("a", video), Source("b", video, audio=audio), Source("c", audio)]
    for number, size in enumerate([(9, 1), (1, 9), (3, 3)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
        sources.append(Source(str(number), tmp_path / f"{number}.png"))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    process = DecodingProcess(configs, replace(LIMITS, cpu_seconds=20))
    try:
        loaders = {
            label: c if isinstance(c, FramePixels) else c[0](c[1], device=encoding.CPU, key=label) for label, c in configs.items()
        }
        for source in sources:
            results = process.load(source, list(configs))
            for label, loader in loaders.items():
                try:
                    expected = loader.load(source)
                except UnusableMedia as error:
                    assert str(results[label]) == str(error)
                    assert str(error) in ("it has no video track", "it has no audio track")
                    continue
                assert torch.equal(results[label], expected) and results[label].dtype == expected.dtype
                assert results[label].stride() == expected.stride()
        assert not torch.equal(*(process.load(source, ["hubert"])["hubert"][:16000] for source in sources[:2]))
    finally:
        torch.set_num_threads(before)
        process.close()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("memory", "decoding it takes more than 2,147,483,648 bytes of memory"),
        ("write", "decoding it failed with OSError"),
        ("large", "its decoded content takes 8,388,608 bytes, more than 4,194,304"),
        ("unusable", "a b?[31m"),
    ],
)
def test_after_a_fault_the_reason_is_given_and_the_next_clip_is_loaded(ask, command, expected):
    fault = ask(command)
    assert isinstance(fault, UnusableMedia) and str(fault) == expected
    assert ask("hello") == "hello"


def test_an_unexpected_exception_is_logged_with_its_place_and_without_its_message(ask, caplog):
    ask("write")
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("an encoder failed to load a clip: OSError in pathlib.py:")
    assert "faulty_decoding.py" in message and "File too large" not in message


@pytest.mark.parametrize(
    ("command", "seconds", "expected"),
    [
        ("compute", 60.0, "decoding it takes more than 1 seconds of CPU time"),
        ("wait", 0.5, "decoding it takes longer than 0.5 seconds"),
    ],
)
def test_the_process_is_ended_at_its_limits_of_time(ask, obedient, command, seconds, expected):
    obedient.wait_until_ready()
    obedient._worker.limits = replace(LIMITS, seconds=seconds)
    assert str(ask(command)) == expected


def test_after_a_crash_the_clip_is_not_loaded_for_further_encoders_but_the_next_clip_is(ask, obedient, tmp_path):
    (tmp_path / "clip").write_text("crash")
    results = obedient.load(Source("clip", tmp_path / "clip"), ["bytes", "frame"])
    assert {str(results[label]) for label in ("bytes", "frame")} == {"decoding it ended the decoder with SIGSEGV"}
    assert ask("hello") == "hello"


def test_a_real_decoder_gets_the_limits_of_the_media(obedient, tmp_path):
    path = write_video(tmp_path / "a.mp4", 10)
    (tmp_path / "b.mp4").write_bytes(path.read_bytes())
    results = [
        obedient.load(source, ["frame"])["frame"]
        for source in (
            Source("a", path),
            Source("a", path, limits=MediaLimits(max_pixels=100)),
            Source("b", cut(tmp_path / "b.mp4", 0.5)),
        )
    ]
    assert results[0].shape == (1, 3 * 28 * 28)
    assert "more than 100" in str(results[1]) and "cannot be read" in str(results[2])


def test_the_environment_contains_no_secrets(ask):
    variables = ask("environment").split("\n")
    assert "HIDDEN_API_KEY" in os.environ and "PATH" in variables
    assert not any("KEY" in name or "TOKEN" in name.replace("TOKENIZERS", "") for name in variables)


def test_threads_may_share_the_process(ask, obedient, tmp_path):
    results = {}

    def load(number):
        path = tmp_path / f"clip{number}"
        path.write_text("unusable" if number == 3 else f"content {number}")
        results[number] = obedient.load(Source("clip", path), ["bytes"])["bytes"]

    threads = [threading.Thread(target=load, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(results.pop(3), UnusableMedia)
    assert {number: bytes(tensor.tolist()).decode() for number, tensor in results.items()} == {
        number: f"content {number}" for number in (0, 1, 2, 4, 5)
    }


def test_a_clip_that_nobody_wants_any_more_ends_the_process_and_the_next_one_is_loaded(ask, obedient, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding_process, "PATIENCE_SECONDS", 0.0)
    (tmp_path / "slow").write_text("wait")
    cancelled, waits = threading.Event(), threading.Event()

    def load(is_over):
        with pytest.raises(CancelledError):
            obedient.load(Source("slow", tmp_path / "slow"), ["bytes"], is_over)

    def is_over():
        waits.set()
        return cancelled.is_set()

    assert ask("hello") == "hello"
    thread = threading.Thread(target=load, args=(is_over,))
    thread.start()
    assert waits.wait(HANG)
    # A clip that waits for its turn is given up, too.
    load(lambda: True)
    cancelled.set()
    thread.join()
    assert not obedient._lock.locked()
    assert ask("hello") == "hello"


def test_a_cancelled_request_is_one_that_nobody_wants(tmp_path):
    """The engine passes this on to whatever reads its clip."""
    pending, states = PendingAnswer(Request(video=b"x"), None), []

    def load(source, labels, is_over):
        states.append(is_over())
        pending.cancel()
        states.append(is_over())
        raise CancelledError

    encoders = SimpleNamespace(loaded=partial(ClipEncoders.loaded, SimpleNamespace(jobs={}, _frames={})))
    stage = FeatureStage(encoders, None, ClipFiles(None, tmp_path, MediaLimits()), load, None)
    stage.read(pending)
    stage.close()
    assert states == [False, True] and list(tmp_path.iterdir()) == []


def test_an_encoder_that_cannot_be_built_is_reported():
    process = DecodingProcess({"bytes": (Obedient, Obedient.Config(buildable=False))}, LIMITS)
    with pytest.raises(RuntimeError, match="the decoding process cannot start: ValueError: no weights"):
        process.load(Source("clip", Path("clip")), ["bytes"])
    process.close()
    with pytest.raises(RuntimeError, match="closed"):
        process.load(Source("clip", Path("clip")), ["bytes"])


PARENT = """
import sys
from pathlib import Path
from emollama.encoders.decoding_process import DecodingProcess
from emollama.encoders.decoding_worker import DecodingLimits
from emollama.media.source import Source
from tests.workers.faulty_decoding import Obedient
folder = Path(sys.argv[1])
process = DecodingProcess({"bytes": (Obedient, Obedient.Config())}, DecodingLimits())
print(bytes(process.load(Source("clip", folder / "process"), ["bytes"])["bytes"].tolist()).decode(), flush=True)
process.load(Source("clip", folder / "wait"), ["bytes"])
"""


def test_the_process_ends_with_its_parent_also_during_a_request(tmp_path):
    (tmp_path / "process").write_text("process")
    (tmp_path / "wait").write_text("wait")
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", PARENT, str(tmp_path)]
    parent = subprocess.Popen(arguments, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert select.select([child], [], [], 60)[0]
    os.close(child)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[" * 60000,
        b"[]",
        b"{}",
        b'{"error": 1, "order": [], "fault": ""}',
        b'{"error": null, "order": 1, "fault": ""}',
        b"\xff",
    ],
    ids=repr,
)
def test_an_invalid_header_is_rejected(data):
    with pytest.raises(_Crash, match="invalid answer"):
        _parse_header(data)


def test_an_invalid_tensor_is_rejected():
    whole = save({"tensor": torch.arange(6.0).reshape(2, 3)})
    assert torch.equal(_parse_tensor(whole, [1, 0]), torch.arange(6.0).reshape(2, 3).T)
    huge = json.dumps({"tensor": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}).encode()
    broken = [whole[:-1], b"", noise(), len(huge).to_bytes(8, "little") + huge + bytes(8), save({"other": torch.zeros(1)})]
    for data in broken:
        with pytest.raises(_Crash, match="invalid answer"):
            _parse_tensor(data, [0])
    for order in ([0], [0, 0], [0, 2], [True, False], ["a", "b"], [0, 1, 2]):
        with pytest.raises(_Crash, match="invalid answer"):
            _parse_tensor(whole, order)


def noise():
    return np.random.default_rng(0).bytes(1000)
