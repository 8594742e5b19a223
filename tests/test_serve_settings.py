"""What a server accepts before there is a model: settings, addresses and bodies; and the packages that it needs."""

from __future__ import annotations

import re
import socket
import threading

import pytest
from ranks import HANG, ROOT
from served_model import running, wait_until

from emollama.errors import UserError
from emollama.inference.serve.errors import ApiError


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("192.0.2.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::7f00:1", False),
        ("2002:7f00:1::", False),
        ("fc00::1", False),
        ("fe80::1%1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
    ],
)
def test_only_public_addresses_and_allowed_networks_are_reached(address, allowed):
    import ipaddress

    from emollama.inference.serve.addresses import may_connect

    assert may_connect(address, [ipaddress.ip_network("10.1.0.0/16")]) is allowed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "EMOLLAMA_API_KEY"),
        ({"host": "::"}, "--insecure"),
        ({"host": "no such host"}, "not an address of this machine"),
        ({"port": 65536}, "--port is 65536"),
        ({"timeout": 0.0}, "--timeout is 0"),
        ({"key": ""}, "printable ASCII"),
        ({"key": "a\n"}, "printable ASCII"),
        ({"allow_urls": ["10.0.0.1/8"]}, "10.1.0.0/16"),
    ],
)
def test_bad_settings_are_rejected(settings, message):
    from emollama.inference.serve.settings import ServeSettings

    with pytest.raises(UserError) as error:
        ServeSettings(**settings)
    assert message in str(error.value)


def test_other_machines_need_a_key_unless_the_server_is_insecure():
    from emollama.inference.serve.settings import ServeSettings

    assert ServeSettings(host="0.0.0.0", key="k").host == ServeSettings(host="0.0.0.0", insecure=True).host


def test_a_port_in_use_is_reported_before_the_model_is_loaded():
    from emollama.inference.serve.server import Server
    from emollama.inference.serve.settings import ServeSettings

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"another program listens on port {port}"):
            Server(ServeSettings(port=port), lambda: pytest.fail("the model was loaded"))


def test_a_server_listens_while_it_loads_the_model_and_ends_with_the_error_if_that_fails():
    import httpx

    from emollama.inference.serve.server import Server
    from emollama.inference.serve.settings import ServeSettings

    loading, errors = threading.Event(), []

    def load():
        assert loading.wait(HANG)
        raise UserError("the checkpoint is damaged")

    def run():
        with pytest.raises(UserError) as error:
            server.run()
        errors.append(str(error.value))

    server = Server(ServeSettings(port=0), load)
    thread = threading.Thread(target=run)
    thread.start()
    with httpx.Client(base_url=server.url.removesuffix("/v1"), trust_env=False) as client:
        wait_until(lambda: answers(client))
        assert client.get("/health").status_code == 200
        ready, chat = client.get("/ready"), client.post("/v1/chat/completions", json={})
        assert [(each.status_code, each.json()["error"]["code"]) for each in (ready, chat)] == [(503, "model_loading")] * 2
        assert "emollama_ready 0.0" in client.get("/metrics").text
        loading.set()
    thread.join(HANG)
    assert errors == ["the checkpoint is damaged"]


def test_an_error_of_the_loading_after_a_stop_is_not_that_of_the_server():
    from emollama.inference.serve.server import Server
    from emollama.inference.serve.settings import ServeSettings

    stopped = threading.Event()

    def load():
        assert stopped.wait(HANG)
        raise RuntimeError("the folder of temporary files is gone")

    server, errors = Server(ServeSettings(port=0), load), []
    original = server._loading_failed
    server._loading_failed = lambda error: errors.append(error) or original(error)
    with running(server):
        server.stop()
        stopped.set()
        wait_until(lambda: errors)
    assert server._error is None


def test_an_answer_has_warnings_about_tasks_of_no_training_and_still_images():
    from types import SimpleNamespace

    from emollama.inference.requests import Modality, Request
    from emollama.inference.serve.served_model import ServedModel

    answer = SimpleNamespace(task="reason", modalities={"video": Modality("real", "encoders.videomae")})
    engine = SimpleNamespace(tasks=["emotion", "reason"])
    first, second = ServedModel("m", ["emotion"]).warnings(engine, Request(image=b"x"), answer)
    assert "'reason', but on emotion" in first and "still image" in second
    assert ServedModel("m", ["reason"]).warnings(engine, Request(video=b"x"), answer) == []
    assert ServedModel("m", None).warnings(engine, Request(video=b"x"), answer) == []


@pytest.mark.parametrize(
    ("blocks", "tasks"),
    [
        ({"a": {"task_pool": "emotion"}, "b": {"task_pool": ["reason", "emotion"]}}, ["emotion", "reason"]),
        ({"a": {"task_pool": {"emotion": 0, "reason": 1.0}}}, ["reason"]),
        ({"a": {"task_pool": "${paths.pool}"}}, None),
        ({"a": {"task_pool": "emotion"}, "b": {}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_tasks_of_a_training_are_those_of_the_configuration_in_its_checkpoint(blocks, tasks):
    from emollama.inference.serve.served_model import trained_tasks

    content = {"config": {"datasets": blocks}}
    assert trained_tasks([content]) == trained_tasks([content, content]) == tasks
    assert trained_tasks([content, {}]) is trained_tasks([]) is None


def test_a_model_without_label_probabilities_says_so_before_a_body_is_read():
    from emollama.inference.serve.served_model import ServedModel

    ServedModel("m", None).require_probabilities()
    with pytest.raises(ApiError, match="Label probabilities are not available with --engine-url.*/v1/chat/completions"):
        ServedModel("m", None, has_probabilities=False).require_probabilities()


def answers(client):
    import httpx

    try:
        return client.get("/health")
    except httpx.ConnectError:
        return None


def test_a_folder_of_files_must_exist(tmp_path):
    from emollama.inference.serve.server import Server
    from emollama.inference.serve.settings import ServeSettings

    with pytest.raises(UserError, match="--allow-files: no folder"):
        Server(ServeSettings(port=0, allow_files=str(tmp_path / "missing")), lambda: pytest.fail("the model was loaded"))


def test_the_command_says_what_to_install(monkeypatch):
    from emollama.commands import requirements

    declared = ["rich>=99", "uvicorn>=99,<100; extra == 'serve'", "no-such-package>=1; extra == 'serve'", "x; extra == 'app'"]
    monkeypatch.setattr(requirements, "requirements", lambda: declared)
    message = r"emollama serve needs uvicorn<100,>=99 \(installed: \S+\), no-such-package>=1 \(not installed\)"
    with pytest.raises(UserError, match=message + r": pip install 'emollama\[serve\]'"):
        requirements.require_extra("serve", "serve")


def test_the_packages_of_the_servers_are_extras():
    from emollama.commands.requirements import require_extra, requirements

    plain = {re.split("[<>=!; ]", requirement)[0] for requirement in requirements() if "extra ==" not in requirement}
    assert plain & {"gradio", "fastapi", "uvicorn", "python-multipart", "prometheus_client"} == set()
    require_extra("serve", "serve")
    require_extra("app", "app")


def test_the_key_is_removed_from_the_environment(monkeypatch):
    import os

    from emollama.inference.serve.settings import read_key

    monkeypatch.setenv("EMOLLAMA_API_KEY", "k")
    assert (read_key(), "EMOLLAMA_API_KEY" in os.environ) == ("k", False)


def test_the_documentation_shows_the_intended_use():
    from emollama.inference.intended_use import INTENDED_USE

    assert INTENDED_USE in (ROOT / "docs/serving.md").read_text()
