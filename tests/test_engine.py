"""The inference engine: its answers equal those of an evaluation, whatever else it answers, and it serves several threads."""

from __future__ import annotations

import json
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from video_world import CLIPS, LABELS, make_world, sentences

pytestmark = pytest.mark.slow

REASON = ["evaluation_datasets.answers.task_pool=[emotion,reason]", "evaluation_datasets.answers.max_new_tokens=24"]


def loaded(path, *options):
    from emollama import config

    return config.load(str(path), [*REASON, "evaluation_datasets.answers.answer_by=generate", *options])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("engine"), long_answers=True)


@pytest.fixture(scope="module")
def evaluated(world):
    """(clip, task) -> row of the predictions of ``emollama eval``."""
    cfg = loaded(world, "run.job_id=evaluated")
    cfg.runner_class(cfg, training=False).evaluate()
    lines = (world.parent / "out/evaluated/result/predictions_answers.jsonl").read_text().splitlines()
    return {(row["name"], row["task"]): row for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def engine(world):
    from emollama.inference.engine import Engine, EngineOptions

    with Engine(loaded(world), EngineOptions(max_batch_size=3, max_waiting=9)) as engine:
        yield engine


@pytest.fixture
def request_about(world):
    """A function that returns a request about a clip."""
    from emollama.inference.requests import Request

    said = sentences(world.parent)
    return lambda name, **arguments: Request(**{"video": world.parent / f"videos/{name}.mp4", "text": said[name]} | arguments)


def test_answers_equal_those_of_an_evaluation_byte_for_byte(engine, evaluated, request_about):
    requests = [(name, task) for name in CLIPS for task in ("reason", "emotion")]
    answers = engine.answer([request_about(name, task=task) for name, task in requests])
    assert {key: answer.text for key, answer in zip(requests, answers, strict=True)} == {
        key: row["prediction"] for key, row in evaluated.items()
    }
    assert any(len(answer.text) > 30 for answer in answers)


def test_requests_of_many_threads_get_their_own_answers(engine, evaluated, request_about):
    keys = [(name, task) for name in CLIPS for task in ("reason", "emotion")] * 2
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda key: engine.answer([request_about(key[0], task=key[1])])[0], keys))
    assert [answer.text for answer in answers] == [evaluated[key]["prediction"] for key in keys]


def test_the_content_of_a_file_is_answered_like_its_path(engine, evaluated, world, request_about):
    content = (world.parent / "videos/clip_000.mp4").read_bytes()
    (answer,) = engine.answer([request_about("clip_000", video=content, task="reason")])
    assert answer.text == evaluated["clip_000", "reason"]["prediction"]


def test_the_pieces_of_a_stream_are_the_answer(engine, evaluated, request_about):
    stream = engine.stream(request_about("clip_000", task="reason"))
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == evaluated["clip_000", "reason"]["prediction"] and len(pieces) > 2


def test_features_of_a_request_replace_those_of_the_video(engine, world, evaluated, request_about):
    features = {slot: np.load(world.parent / f"features/{slot}/clip_001.npy") for slot in ("image", "face", "video", "audio")}
    (answer,) = engine.answer([request_about("clip_001", video=None, features=features, task="reason")])
    assert answer.text == evaluated["clip_001", "reason"]["prediction"]
    assert {modality.state for modality in answer.modalities.values()} == {"real"}


def test_a_question_without_a_task_has_no_tag(engine, request_about):
    (answer,) = engine.answer([request_about("clip_000", text="no", question="Is she calm?")])
    assert answer.task is None and answer.prompt.endswith("</feature> The person in video says: no.  Is she calm? ")


def test_a_follow_up_question_is_answered_in_the_context_of_the_conversation(engine, request_about):
    from emollama.inference.requests import Turn

    alone, after = engine.answer(
        [
            request_about("clip_000", question="Why?"),
            request_about("clip_000", question="Why?", history=[Turn("Is the person calm?", "no")]),
        ]
    )
    assert after.prompt_tokens > alone.prompt_tokens and "Is the person calm?" in after.prompt


def test_label_probabilities_accompany_a_generated_answer(engine, evaluated, request_about):
    (answer,) = engine.answer([request_about("clip_000", task="reason", label_probabilities=True)])
    assert answer.text == evaluated["clip_000", "reason"]["prediction"]
    assert list(answer.label_probabilities) == LABELS and sum(answer.label_probabilities.values()) == pytest.approx(1)


def test_a_masked_slot_is_zero_and_changes_the_probabilities(engine, request_about):
    plain, masked = engine.answer(
        [request_about("clip_000", label_probabilities=True, mask_slots=slots) for slots in ((), ("face", "audio"))]
    )
    assert (masked.modalities["face"].state, masked.modalities["video"].state) == ("zero", "real")
    assert masked.label_probabilities != plain.label_probabilities


def test_the_number_of_accepted_requests_is_bounded_and_a_cancelled_one_frees_its_place(engine, request_about):
    from emollama.inference.requests import QueueFull

    blocked, release = threading.Event(), threading.Event()

    def wait(piece):
        blocked.set()
        assert release.wait(60)

    first = engine.submit(request_about("clip_000", task="reason"), wait)
    assert blocked.wait(60)
    others = [engine.submit(request_about("clip_000", task="reason")) for _ in range(11)]
    with pytest.raises(QueueFull, match="12 requests"):
        engine.submit(request_about("clip_000"))
    others[-1].cancel()
    extra = engine.submit(request_about("clip_000", task="reason"))
    release.set()
    texts = {pending.result(60).text for pending in [first, *others[:-1], extra]}
    assert len(texts) == 1 and engine.statistics.accepted == 0
    with pytest.raises(CancelledError):
        others[-1].result(1)


@pytest.mark.parametrize(
    ("arguments", "param", "text"),
    [
        ({"task": "emotoin"}, "task", "Did you mean 'emotion'?"),
        ({"question": "why " * 3000}, "question", "tokens longer than model.max_context_len"),
        (
            {"mask_slots": ["facee"]},
            "mask_slots",
            "unknown slot 'facee'. Did you mean 'face'? The slots of this model are",
        ),
        ({"history": "turns"}, "question", "history needs the next question"),
    ],
)
def test_a_request_that_cannot_be_answered_fails_alone(engine, request_about, arguments, param, text):
    from emollama.inference.requests import RequestError, Turn

    if "history" in arguments:
        arguments = {"history": [Turn("a", "b")]}
    good, bad = engine.submit(request_about("clip_000")), engine.submit(request_about("clip_001", **arguments))
    with pytest.raises(RequestError) as error:
        bad.result(60)
    assert error.value.param == param and text in str(error.value)
    assert good.result(60).text


def test_a_clip_without_usable_features_is_rejected_with_the_reason_of_each_slot(engine):
    from emollama.inference.requests import Request, UnusableInput

    with pytest.raises(UnusableInput, match="the model gets no features of this clip:\n- image: zero, encoders.eva"):
        engine.answer([Request(video=b"not a video")])


def test_a_closed_engine_answers_what_it_accepted_and_nothing_else(world, request_about):
    from emollama.inference.engine import Engine
    from emollama.inference.requests import EngineClosed

    engine = Engine(loaded(world, "encoders.eva=null", "encoders.videomae=null", "encoders.hubert=null"))
    pending = [engine.submit(request_about(name)) for name in CLIPS]
    engine.close()
    assert all(one.future.done() and one.result().text for one in pending)
    with pytest.raises(EngineClosed):
        engine.submit(request_about("clip_000"))


def test_an_image_is_a_clip_of_one_frame_and_an_audio_file_replaces_the_sound(engine, world, tmp_path):
    import av
    from PIL import Image

    from emollama.inference.requests import Request

    Image.new("RGB", (64, 48), "gray").save(tmp_path / "face.png")
    video = world.parent / "videos/clip_000.mp4"
    with av.open(str(video)) as source, av.open(str(tmp_path / "sound.wav"), "w") as target:
        stream = target.add_stream("pcm_s16le", rate=16000, layout="mono")
        resampler = av.AudioResampler("s16", "mono", 16000)
        for frame in source.decode(audio=0):
            for part in resampler.resample(frame):
                target.mux(stream.encode(part))
        target.mux(stream.encode(None))
    image, both = engine.answer(
        [Request(image=tmp_path / "face.png"), Request(image=tmp_path / "face.png", audio=tmp_path / "sound.wav")]
    )
    states = [{slot: modality.state for slot, modality in answer.modalities.items()} for answer in (image, both)]
    assert [state["image"] for state in states] == ["real", "real"] and [state["audio"] for state in states] == ["zero", "real"]


@pytest.mark.parametrize(
    ("features", "text"),
    [
        ({"../up": [1.0]}, "unknown slot '../up'. The slots of this model are image, cls, face, video, audio."),
        ({"cls": [1.0]}, "features.cls: this slot has no array of its own. The first row of features.image fills it."),
        ({"face": ["a"]}, "features.face cannot be converted to an array of numbers: "),
        ({"face": [1.0, 2.0]}, "features.face: shape (2,), expected (64,) or (1, 64). Pass the array as "),
        ({"image": np.zeros((3, 176))}, "features.image: shape (3, 176), expected (17, 176), which is image_size 56. Pass"),
        ({"face": np.full(64, np.nan)}, "features.face: contains NaN or inf, or a value beyond float32. Pass"),
    ],
)
def test_features_of_a_request_that_cannot_be_used_are_named_with_what_is_expected(engine, features, text):
    from emollama.inference.requests import Request, RequestError

    with pytest.raises(RequestError) as error:
        engine.answer([Request(features=features)])
    assert str(error.value).startswith(text) and error.value.param == "features"


def test_a_step_that_fails_ends_its_answers_with_the_error_and_the_engine_lives(engine, request_about, monkeypatch):
    (model,) = engine._generation._generator.members
    decode, calls = model.decode, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("a kernel failed")
        return decode(*arguments)

    monkeypatch.setattr(model, "decode", failing)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        engine.answer([request_about("clip_000", task="reason"), request_about("clip_001", task="reason")])
    assert engine.answer([request_about("clip_000", task="reason")])[0].text
