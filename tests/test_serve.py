"""``emollama serve``: its answers equal those of the engine and of an evaluation, for OpenAI's client and for forms."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from served_model import MODEL, OPTIONS, chat, data_url, metric, running, user
from video_world import CLIPS, LABELS, make_world, sentences

pytestmark = pytest.mark.slow
CLIP = CLIPS[0]


@dataclass
class Served:
    """A server in a thread of this process, with its engine."""

    root: Path
    engine: Any
    http: httpx.Client
    openai: Any

    def video(self, name=CLIP):
        return (self.root / f"videos/{name}.mp4").read_bytes()

    def answer(self, **fields):
        """The engine's own answer."""
        from emollama.inference.requests import Request

        return self.engine.answer([Request(**fields)])[0]

    def complete(self, *messages, extension=None, **settings):
        """The response to a chat completion through OpenAI's client."""
        more = {"extra_body": {"emollama": extension}} if extension else {}
        return self.openai.chat.completions.create(model=MODEL, messages=messages, **more, **settings)


@contextmanager
def serving(root):
    """Serve the world in a folder in a thread."""
    import openai

    from emollama import config
    from emollama.inference.serve.loading import load_engine
    from emollama.inference.serve.served_model import trained_tasks
    from emollama.inference.serve.server import Server
    from emollama.inference.serve.settings import ServeSettings
    from emollama.inference.start_checks import checked_checkpoints

    engines, cfg = [], config.load(str(root / "config.yaml"), OPTIONS)

    def load():
        engines.append(load_engine(cfg, settings))
        return engines[0]

    settings = ServeSettings(port=0, model=MODEL, preload=True, allow_files=str(root / "videos"))
    server = Server(settings, load, trained_tasks(checked_checkpoints(cfg)))
    with running(server) as client, openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=600) as sdk:
        yield Served(root, engines[0], client, sdk)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    make_world(root, long_answers=True)
    with serving(root) as served:
        yield served


def streamed(chunks):
    """The text of streamed chunks."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def modalities(answer):
    return {slot: asdict(modality) for slot, modality in answer.modalities.items()}


def test_plain_and_streamed_answers_equal_those_of_the_engine_and_of_the_evaluation(served):
    from emollama import config

    cfg = config.load(str(served.root / "config.yaml"), [*OPTIONS, "evaluation_datasets.answers.task_pool=[emotion]"])
    cfg.runner_class(cfg, training=False).evaluate()
    (path,) = served.root.glob("out/*/result/predictions_answers.jsonl")
    rows = {row["name"]: row for row in map(json.loads, path.read_text().splitlines())}
    message, extension = user(data_url(served.video())), {"text": sentences(served.root)[CLIP], "task": "emotion"}
    plain = served.complete(message, extension=extension).choices[0].message.content
    expected = served.answer(video=served.video(), text=extension["text"], task="emotion").text
    assert len(expected) > 20
    assert plain == expected == rows[CLIP]["prediction"]
    assert streamed(served.complete(message, extension=extension, stream=True)) == expected


def test_the_extension_field_has_probabilities_modalities_and_the_checkpoint(served):
    extension = {"label_probabilities": True, "task": "emotion", "text": "", "mask_slots": ["video"]}
    response = served.complete(user(data_url(served.video())), extension=extension)
    expected = served.answer(video=served.video(), task="emotion", text="", mask_slots=["video"], label_probabilities=True)
    assert response.emollama["label_probabilities"] == pytest.approx(expected.label_probabilities, abs=1e-6)
    assert response.emollama["modalities"] == modalities(expected)
    assert response.emollama["modalities"]["video"]["state"] == "zero"
    assert response.emollama["checkpoint"]["sha256"] == list(expected.checkpoint.sha256)
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (expected.prompt_tokens, 12)
    assert response.choices[0].finish_reason == "length"
    *_, last = served.complete(user(data_url(served.video())), extension=extension, stream=True)
    assert last.emollama["label_probabilities"] == pytest.approx(expected.label_probabilities, abs=1e-6)


def test_generation_options_reach_the_engine(served):
    from emollama.inference.requests import GenerationOptions

    options = {"temperature": 1.5, "top_p": 0.9, "seed": 7, "max_tokens": 9}
    message = user(data_url(served.video()), "Why?")
    response = served.complete(message, extra_body={"repetition_penalty": 1.2}, **options)
    asked = GenerationOptions(max_new_tokens=9, temperature=1.5, top_p=0.9, repetition_penalty=1.2, seed=7)
    assert response.choices[0].message.content == served.answer(video=served.video(), question="Why?", options=asked).text
    other = served.complete(message, **(options | {"seed": 8}))
    assert other.choices[0].message.content != response.choices[0].message.content


def test_a_stream_ends_with_the_numbers_of_tokens_if_they_are_requested(served):
    chunks = list(served.complete(user(data_url(served.video())), stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens == 12 and chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert len(chunks) > 5


def test_an_error_after_the_start_of_a_stream_is_an_event(served, monkeypatch):
    import openai

    from emollama.inference.requests import EngineClosed

    submit, accepted = served.engine.submit, []

    def noted(*arguments, **more):
        accepted.append(submit(*arguments, **more))
        return accepted[-1]

    monkeypatch.setattr(served.engine, "submit", noted)
    chunks = iter(served.complete(user(data_url(served.video()), "Who?"), stream=True, max_tokens=3000))
    assert next(chunks).choices[0].delta.role == "assistant"
    accepted[0].fail(EngineClosed("the engine was closed before it could answer"))
    with pytest.raises(openai.APIError) as caught:
        list(chunks)
    assert caught.value.code == "shutting_down"


def test_a_closed_engine_is_unavailable(served, monkeypatch):
    from emollama.inference.requests import EngineClosed

    def submit(*arguments, **more):
        raise EngineClosed("the engine is closed")

    monkeypatch.setattr(served.engine, "submit", submit)
    later = served.http.post("/v1/chat/completions", json=chat(data_url(served.video()), "Who?"))
    assert (later.status_code, later.headers["Retry-After"]) == (503, "1")


def test_a_conversation_repeats_the_video_in_its_first_message(served):
    from emollama.inference.requests import Turn

    first = served.complete(user(data_url(served.video()), "What?"))
    reply = first.choices[0].message
    again = served.complete(user(data_url(served.video()), "What?"), reply, {"role": "user", "content": "And why?"})
    turns = [Turn("What?", reply.content)]
    expected = served.answer(video=served.video(), history=turns, question="And why?")
    assert again.choices[0].message.content == expected.text
    assert again.usage.prompt_tokens == expected.prompt_tokens > first.usage.prompt_tokens


def test_an_image_and_audio_reach_the_engine(served):
    import io

    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(file, "png")
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(file.getvalue(), "image/png")}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(served.video()).decode(), "format": "m4a"}},
        {"type": "text", "text": "Who?"},
    ]
    response = served.complete({"role": "user", "content": parts})
    expected = served.answer(image=file.getvalue(), audio=served.video(), question="Who?")
    assert response.emollama["modalities"] == modalities(expected)
    assert response.choices[0].message.content == expected.text
    # The declared type tells which kind of file it is.
    picture = served.http.post("/v1/emotions", files={"file": ("a.png", file.getvalue(), "image/png")}).json()
    assert picture["answer"] == served.answer(image=file.getvalue(), task="emotion").text


@pytest.mark.parametrize("field", ["file", "video"])
@pytest.mark.parametrize("form", [True, False])
def test_emotions_are_the_distribution_of_labels_with_the_reasoning(served, form, field):
    text = sentences(served.root)[CLIP]
    if form:
        response = served.http.post("/v1/emotions", files={field: served.video()}, data={"text": text})
    else:
        response = served.http.post("/v1/emotions", json={field: data_url(served.video()), "text": text})
    body = response.json()
    expected = served.answer(video=served.video(), text=text, task="emotion", label_probabilities=True)
    assert list(body["label_probabilities"]) == LABELS
    assert body["label_probabilities"] == pytest.approx(expected.label_probabilities, abs=1e-6)
    assert body["label"] == max(expected.label_probabilities, key=expected.label_probabilities.get)
    assert body["reasoning"] == served.answer(video=served.video(), text=text, task="reason").text
    assert body["modalities"] == modalities(expected)
    assert body["timings"].keys() == {"queue", "features", "generation"}
    assert body["warnings"] == ["The model was not trained on the task 'reason', but on emotion."]


def test_emotions_without_reasoning_and_with_a_mask(served):
    fields = {"reasoning": "false", "mask_slots": ["video", "audio"]}
    body = served.http.post("/v1/emotions", files={"video": served.video()}, data=fields).json()
    assert (body["reasoning"], body["warnings"]) == (None, [])
    assert [body["modalities"][slot]["state"] for slot in ("video", "audio")] == ["zero", "zero"]


@pytest.mark.parametrize("kind", ["relative", "absolute", "file"])
def test_a_file_below_the_allowed_folder_is_read(served, kind):
    path = served.root / f"videos/{CLIP}.mp4"
    url = {"relative": path.name, "absolute": str(path), "file": path.as_uri()}[kind]
    named, sent = (served.http.post("/v1/chat/completions", json=chat(one, "Who?")) for one in (url, data_url(path.read_bytes())))
    assert named.status_code == 200
    assert named.json()["choices"] == sent.json()["choices"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": "x"}, "stop"),
        ({"unknown": 1}, "unknown"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"emollama": {"task": "nope"}}, "emollama.task"),
        ({"emollama": {"mask_slots": ["nope"]}}, "emollama.mask_slots"),
        ({"emollama": {"other": 1}}, "emollama.other"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
    ],
)
def test_a_parameter_that_would_be_ignored_is_rejected_by_name(served, changes, param):
    response = served.http.post("/v1/chat/completions", json=chat(data_url(served.video()), "Who?") | changes)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert param in error["message"]


def test_parameters_without_effect_are_accepted(served):
    harmless = {"n": 1, "tools": None, "response_format": {"type": "text"}, "logprobs": False, "user": "me", "store": False}
    assert served.http.post("/v1/chat/completions", json=chat(data_url(served.video()), "Who?") | harmless).status_code == 200


def test_an_unknown_model_is_not_found(served):
    import openai

    with pytest.raises(openai.NotFoundError) as caught:
        served.openai.chat.completions.create(model="gpt", messages=[user(data_url(served.video()))])
    assert caught.value.code == "model_not_found"
    (model,) = served.openai.models.list()
    assert (model.id, model.emollama["trained_tasks"], model.emollama["tasks"]) == (MODEL, ["emotion"], ["emotion", "reason"])
    assert served.http.get("/v1/models/other").status_code == 404


def test_a_request_id_is_returned_unless_it_could_forge_a_log_line(served):
    assert served.http.get("/health", headers={"X-Request-Id": "my-1"}).headers["x-request-id"] == "my-1"
    forged = served.http.get("/health", headers={"X-Request-Id": "a b"}).headers["x-request-id"]
    assert forged != "a b" and len(forged) == 32


def test_logs_and_metrics_count_requests_and_contain_none_of_their_texts(served, caplog):
    before = metric(served.http, 'emollama_engine_requests_total{outcome="answered"}')
    words = ["Sesame", "Marigold"]
    body = chat(data_url(served.video()), words[0], emollama={"text": words[1]})
    with caplog.at_level("DEBUG"):
        assert served.http.post(f"/v1/chat/completions?q={words[0]}", json=body).status_code == 200
        assert served.http.post(f"/v1/{words[1]}", json=body).status_code == 404
    assert metric(served.http, 'emollama_engine_requests_total{outcome="answered"}') == before + 1
    # The client is in this process, too.
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert [line for line in lines if line.startswith("POST /v1/chat/completions 200")]
    assert [text for text in (*lines, served.http.get("/metrics").text) if any(word in text for word in words)] == []


def test_there_are_no_pages_that_load_scripts(served):
    assert [served.http.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3
