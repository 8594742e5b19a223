"""``--engine-url``: prompts as embeddings for a language model in another process, and servers that fail."""

from __future__ import annotations

import threading

import pytest
from helpers import GOLDEN, golden_tree, loaded
from vllm_server import Server, serving

from emollama.errors import UserError

pytestmark = pytest.mark.slow

SLIM = str(GOLDEN / "checkpoint_slim.pth")
KEY = "sk-key-of-the-test"


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """The folder of the language model with the adapters merged in."""
    from emollama.convert.formats import to_merged
    from emollama.convert.weights import read

    folder = tmp_path_factory.mktemp("merged") / "merged"
    to_merged(read(SLIM, "convert"), str(folder), None, str(GOLDEN / "llama"))
    return folder


@pytest.fixture(scope="module")
def running(merged):
    """A server with the merged language model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(merged, dtype="float32").eval()
    with serving(Server(model, AutoTokenizer.from_pretrained(merged))) as server:
        yield server


@pytest.fixture
def failing():
    """A server whose replies the test sets."""
    with serving(Server()) as server:
        yield server


@pytest.fixture(scope="module")
def embedder(golden_config):
    """The golden model with only the embedding table of its language model."""
    import torch

    from emollama import checkpoint

    model = golden_config.model_class(
        golden_config.model, device=torch.device("cpu"), frozen_dtype=torch.float32, weights="embeddings"
    )
    checkpoint.load_trainable(model, checkpoint.read(SLIM, "model.ckpt")["model"], path=SLIM, allow_missing=[])
    return model.eval()


@pytest.fixture(scope="module")
def batch(golden_dataset, golden_prompt):
    from emollama.data.batch import collate

    instruction = golden_dataset.pool.first_instruction("reason")
    records = [golden_dataset.record(index, "reason", instruction) for index in range(3)]
    return collate([golden_prompt.tokenize(record, for_generation=True) for record in records])


def params(max_new_tokens=8, **sampling):
    from emollama.decoding.sampling_params import SamplingParams, SequenceParams

    return SequenceParams(SamplingParams(max_new_tokens, **sampling), 7)


@pytest.fixture
def connect(golden_prompt):
    """A function that connects to a server; all connections are closed after the test."""
    from emollama.inference.remote_llm import RemoteLanguageModel

    clients = []

    def call(url, **options):
        clients.append(RemoteLanguageModel(url, golden_prompt, **options))
        return clients[-1]

    yield call
    for client in clients:
        client.close()


def prompt():
    import torch

    return torch.zeros(3, 64)


def test_only_the_embedding_table_of_the_language_model_is_loaded(embedder, golden_model):
    loaded_names = {name for name, value in embedder.named_parameters() if not value.is_meta}
    assert {name for name in loaded_names if name.startswith("llama_model")} == {
        "llama_model.base_model.model.model.embed_tokens.weight"
    }
    fusion = [name for name, _ in golden_model.named_parameters() if name.startswith("fusion")]
    assert len(fusion) == 10 and loaded_names >= set(fusion)


def test_the_server_gets_the_embeddings_of_the_model_and_answers_as_it_does(
    running, connect, embedder, golden_model, golden_prompt, batch
):
    import torch

    from emollama.decoding.generate import generate
    from emollama.models.prompt_embeddings import prompt_embeddings

    expected = generate([golden_model], batch, params().sampling, golden_prompt.is_finished, [0] * 3)
    client, pieces = connect(f"{running.url}/v1/"), []
    running.received.clear()
    answers = [client.generate(one, params(), pieces.append) for one in prompt_embeddings(embedder, batch)]
    assert [answer.ids for answer in answers] == expected
    assert [answer.text for answer in answers] == [golden_prompt.answer_text(ids) for ids in expected]
    assert [answer.finish_reason for answer in answers] == ["stop" if 2 in ids else "length" for ids in expected]
    assert pieces[0] == expected[0][:1] and pieces[-1] == expected[-1]
    for (sent, body, _), own in zip(running.received, prompt_embeddings(golden_model, batch), strict=True):
        assert (sent - own).abs().max() <= 1e-6
        assert len(body["prompt_embeds"]) < sent.nbytes * 4 / 3 + 4096 and sent.dtype == torch.float32
        assert (body["stop_token_ids"], body["repetition_penalty"], "seed" in body) == ([2], 1.0, False)


def test_requests_run_concurrently_and_do_not_mix(running, connect, embedder, golden_model, golden_prompt, batch):
    from emollama.decoding.generate import generate
    from emollama.models.prompt_embeddings import prompt_embeddings

    expected = generate([golden_model], batch, params().sampling, golden_prompt.is_finished, [0] * 3)
    client = connect(running.url)
    futures = [client.start(one, params()) for one in prompt_embeddings(embedder, batch) * 4]
    assert [future.result(timeout=120).ids for future in futures] == expected * 4


def test_sampling_parameters_are_those_of_the_request(failing, connect):
    client = connect(failing.url)
    failing.replies = ["cut"]
    with pytest.raises(UserError, match="the answer of the server .* has no end"):
        client.generate(prompt(), params(5, temperature=0.5, top_p=0.9, repetition_penalty=1.2))
    ((_, body, _),) = failing.received
    sent = {key: body[key] for key in ("max_tokens", "temperature", "top_p", "repetition_penalty", "seed", "top_k", "min_p")}
    assert sent == {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "seed": 7,
        "top_k": 0,
        "min_p": 0.0,
    }


def test_a_cancelled_request_closes_its_connection(failing, connect):
    client, started = connect(failing.url), threading.Event()
    failing.replies = ["stall"]
    future = client.start(prompt(), params(), lambda ids: started.set())
    assert started.wait(60)
    assert future.cancel() and failing.disconnected.wait(60)


def test_an_answer_of_the_maximum_length_ends_here_whatever_the_server_does(failing, connect):
    client = connect(failing.url)
    failing.replies = ["stall"]
    answer = client.generate(prompt(), params(1))
    assert (answer.ids, answer.finish_reason) == ([300], "length") and failing.disconnected.wait(60)


def test_the_key_of_the_environment_is_sent_and_never_shown(running, failing, connect, monkeypatch, caplog, golden_prompt):
    failing.key = KEY
    with pytest.raises(UserError, match="status 401.* Set EMOLLAMA_ENGINE_API_KEY to its key"):
        connect(failing.url)
    monkeypatch.setenv("EMOLLAMA_ENGINE_API_KEY", KEY)
    client = connect(failing.url)
    failing.replies = [400]
    with pytest.raises(UserError) as error:
        client.generate(prompt(), params())
    assert failing.received[-1][2]["authorization"] == f"Bearer {KEY}"
    assert "status 400" in str(error.value) and "[key]" in str(error.value) and "--enable-prompt-embeds" in str(error.value)
    assert KEY not in str(error.value) + caplog.text + repr(client)
    monkeypatch.setenv("EMOLLAMA_ENGINE_API_KEY", "two words")
    with pytest.raises(UserError, match="EMOLLAMA_ENGINE_API_KEY contains spaces"):
        connect(running.url)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("error", "failed: the engine is dead"),
        ("garbage", "failed: "),
        ("text", "returns no token ids .* vLLM 0.11 or later"),
        ("wrong", "returns no token ids"),
        ("endless", "sent more than 16 MiB for one answer"),
        ("redirect", "status 307"),
        ("cut", "has no end"),
        (500, "status 500"),
    ],
)
def test_a_server_that_fails_gives_an_error_that_names_it(failing, connect, reply, expected):
    client = connect(failing.url, retries=0)
    failing.replies = [reply]
    with pytest.raises(UserError, match=f"--engine-url: .*{expected}"):
        client.generate(prompt(), params())


def test_a_request_is_repeated_only_before_its_answer_starts(failing, connect):
    client = connect(failing.url, retries=2)
    failing.replies = [503, "stall"]
    assert client.generate(prompt(), params(1)).ids == [300] and len(failing.received) == 2
    failing.replies = ["cut", "stall"]
    with pytest.raises(UserError, match="has no end"):
        client.generate(prompt(), params())
    assert len(failing.received) == 3


def test_a_server_that_stops_sending_is_given_up(failing, connect):
    client = connect(failing.url, timeout=0.5, retries=0)
    failing.replies = ["stall"]
    with pytest.raises(UserError, match="sent nothing for too long"):
        client.generate(prompt(), params())
    assert failing.disconnected.wait(60)


def test_a_server_that_does_not_run_is_an_error(connect, failing):
    with serving(Server()) as stopped:
        url = stopped.url
    with pytest.raises(UserError, match="no connection to http://127.0.0.1:.* Start the server, or correct the URL"):
        connect(url, retries=0)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://host", "is not an http or https URL"),
        ("file:///etc/passwd", "is not an http or https URL"),
        ("localhost:8000", "is not an http or https URL"),
        ("http://", "is not an http or https URL"),
        ("http://user:password@host", "contains a user name or password"),
        ("http://host/v1?key=x", "has a path or a query"),
        ("http://host/other", "has a path or a query"),
        ("http://host:port", "not a valid URL"),
    ],
)
def test_addresses_that_are_not_those_of_a_server_are_refused(url, expected):
    from emollama.inference.remote_llm import server_address

    with pytest.raises(UserError, match=expected) as error:
        server_address(url)
    assert "password@" not in str(error.value)


def test_valid_addresses_have_no_path():
    from emollama.inference.remote_llm import server_address

    urls = ["https://host/v1/", "http://[::1]:8000", " http://host:80/ "]
    assert [server_address(url) for url in urls] == ["https://host", "http://[::1]:8000", "http://host:80"]


def test_a_folder_without_the_embedding_table_is_refused(tmp_path):
    import shutil

    import torch

    shutil.copytree(GOLDEN / "llama", tmp_path / "base")
    tree = golden_tree(tmp_path)
    tree["model"]["llama_model"] = str(tmp_path / "base")
    config = loaded(tmp_path, tree)
    (tmp_path / "base/model.safetensors").unlink()
    with pytest.raises(UserError, match="contains no .safetensors file with the embedding table model.embed_tokens.weight"):
        config.model_class(config.model, device=torch.device("cpu"), frozen_dtype=torch.float32, weights="embeddings")


# The engine with a language model in a server


@pytest.fixture(scope="module")
def requests(golden_dataset):
    from emollama.inference.requests import Request

    requests = []
    for index, task in enumerate(("emotion", "reason", "reason_v2")):
        vectors = golden_dataset.record(index, task, "").features
        features = {slot: vectors[slot].numpy() for slot in ("face", "video", "audio")}
        requests.append(Request(features=features, text="I knew it!", task=task))
    return requests


def open_engine(folder, url, **block):
    from emollama.inference.engine import Engine, EngineOptions

    tree = golden_tree(folder)
    tree["evaluation_datasets"]["answers"] |= block
    return Engine(loaded(folder, tree), EngineOptions(max_batch_size=2, engine_url=url))


def test_the_engine_answers_the_same_with_the_language_model_in_a_server(running, requests, tmp_path):
    with open_engine(tmp_path, None) as local:
        expected = local.answer(requests)
    with open_engine(tmp_path, running.url) as engine:
        answers = engine.answer(requests)
        stream = engine.stream(requests[1])
        pieces = list(stream)
    for answer, own in zip(answers, expected, strict=True):
        assert (answer.text, answer.finish_reason, answer.completion_tokens, answer.prompt_tokens) == (
            own.text,
            own.finish_reason,
            own.completion_tokens,
            own.prompt_tokens,
        )
    assert "".join(pieces) == expected[1].text and len({answer.text for answer in expected}) > 1


def test_a_failure_of_the_server_fails_only_its_request(failing, requests, tmp_path):
    with open_engine(tmp_path, failing.url, max_new_tokens=1) as engine:
        failing.replies = ["garbage"]
        with pytest.raises(UserError, match="--engine-url: "):
            engine.submit(requests[0]).result(60)
        failing.replies = ["stall"]
        assert engine.submit(requests[1]).result(60).completion_tokens == 1
        assert (engine.statistics.failed, engine.statistics.answered, engine.statistics.accepted) == (1, 1, 0)


def test_a_cancelled_request_of_the_engine_closes_its_connection(failing, requests, tmp_path):
    with open_engine(tmp_path, failing.url) as engine:
        failing.replies = ["stall"]
        started = threading.Event()
        pending = engine.submit(requests[0], lambda text: started.set())
        assert started.wait(60)
        pending.cancel()
        assert failing.disconnected.wait(60)


def test_label_probabilities_are_unavailable_with_the_reason(failing, requests, tmp_path):
    import dataclasses

    from emollama.inference.requests import RequestError

    with (
        open_engine(tmp_path, failing.url) as engine,
        pytest.raises(RequestError, match="not available with --engine-url: vLLM returns no log-probabilities") as error,
    ):
        engine.answer([dataclasses.replace(requests[0], label_probabilities=True)])
    assert error.value.param == "label_probabilities" and failing.received == []


@pytest.mark.parametrize(
    ("model", "block", "expected"),
    [
        ({}, {"answer_by": "likelihood"}, "evaluation_datasets.answers.answer_by: label probabilities are not available with"),
        (
            {},
            {"num_beams": 2},
            "evaluation_datasets.answers.num_beams: beam search is not available with --engine-url",
        ),
        ({"ckpt": [SLIM, SLIM]}, {}, "model.ckpt: --engine-url does not support an ensemble"),
    ],
)
def test_settings_that_a_server_cannot_follow_are_refused_before_anything_is_loaded(tmp_path, model, block, expected):
    from emollama.inference.engine import Engine, EngineOptions

    tree = golden_tree(tmp_path)
    tree["model"] |= {"llama_model": "gone"} | model
    tree["evaluation_datasets"]["answers"] |= block
    with pytest.raises(UserError) as error:
        Engine(loaded(tmp_path, tree), EngineOptions(engine_url="http://127.0.0.1:9"))
    assert str(error.value).startswith(expected)
