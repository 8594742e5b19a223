"""The page in a real browser: what it shows equals what the engine answers, and its requests stay on this machine."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from contextlib import closing
from functools import partial
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
from page_server import HANG, Client, is_listening, running, wait_until
from ranks import environment, start

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
).split()
OPTIONS = [
    "evaluation_datasets.answers.task_pool=[reason,emotion]",
    "evaluation_datasets.answers.answer_by=generate",
    "evaluation_datasets.answers.max_new_tokens=40",
    # The model is hardly trained. At this temperature, its answers are long and contain all kinds of characters.
    "evaluation_datasets.answers.temperature=3.0",
]
QUESTION = "Is <b>this</b> ${1 + 1} {{this}} & 'that' a \"disc\"?"
SENTENCE = "It is on the table"
# Records the texts of the first answer while it grows, and counts the bytes that the camera has recorded.
WATCH = """
window.texts = [];
new MutationObserver(() => {
  const answer = document.querySelector('.em-answer');
  if (answer) window.texts.push(answer.textContent);
}).observe(document, {subtree: true, childList: true, characterData: true});
window.recorded = 0;
const start = MediaRecorder.prototype.start;
MediaRecorder.prototype.start = function(...options) {
  this.addEventListener('dataavailable', event => window.recorded += event.data.size);
  return start.apply(this, options);
};
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with invented videos, and two checkpoints of one model."""
    import torch
    from video_world import make_world

    root = tmp_path_factory.mktemp("app")
    make_world(root)
    content = torch.load(root / "out/trained/checkpoint_0.pth", weights_only=True)
    content["model"] = {name: 1.5 * tensor for name, tensor in content["model"].items()}
    (root / "out/other").mkdir()
    torch.save(content, root / "out/other/checkpoint_0.pth")
    (root / "temporary").mkdir()
    return root


@pytest.fixture(scope="module")
def models(world):
    """The two models, which the server loads. They decode in this process, which is faster."""
    from emollama import config
    from emollama.inference.app.models import Models
    from emollama.inference.engine import Engine

    configs = [
        config.load(str(world / "config.yaml"), [*OPTIONS, f"model.ckpt={world / f'out/{folder}/checkpoint_0.pth'}"])
        for folder in ("trained", "other")
    ]
    return Models(["A: tiny", "B: tiny"], [partial(Engine, one) for one in configs])


@pytest.fixture(scope="module")
def server(world, models):
    """The page's server, with both models loaded."""
    from emollama import config
    from emollama.inference.app.previews import PreviewReader
    from emollama.inference.app.server import AppServer, AppSettings
    from emollama.media.source import MediaLimits

    examples = sorted((world / "unseen").iterdir())
    reader = PreviewReader(config.load(str(world / "config.yaml"), OPTIONS), MediaLimits(max_seconds=60), 60.0)
    server = AppServer(AppSettings(port=0, examples=examples), models, reader)
    with closing(reader), running(server, world / "temporary", server.run):
        wait_until(lambda: bool(models.engines))
        yield server
    assert list((world / "temporary").iterdir()) == []


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(HANG * 1000)
    yield context
    context.close()


def opened(server, context):
    """Open the page in a new tab, and wait until it is ready."""
    page = context.new_page()
    page.errors, page.urls = [], []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.urls.append(request.url))
    page.add_init_script(WATCH)
    page.goto(server.url)
    page.wait_for_selector("#status >> text=Ready.")
    return page


@pytest.fixture(scope="module")
def tab(server, context):
    return opened(server, context)


@pytest.fixture
def page(tab, server):
    """The page, with empty fields. It must cause no errors in the browser, and no requests to other machines."""
    if tab.locator("#video video").count():
        tab.click("#video button[aria-label=Clear]")
    for name in ("text", "question"):
        tab.fill(f"#{name} textarea", "")
    tab.wait_for_selector("#analyze:disabled")
    yield tab
    assert tab.errors == []
    assert {urlsplit(url).netloc for url in tab.urls if urlsplit(url).scheme not in ("blob", "data")} == {
        f"127.0.0.1:{server.port}"
    }


def upload(page, path):
    """Upload a video."""
    page.set_input_files("#video input[type=file]", str(path))
    page.wait_for_selector("#video video")
    page.wait_for_selector("#analyze:enabled")


def click_and_wait(page, button):
    """Select a button, and wait for the complete answers."""
    page.click(button)
    page.wait_for_selector("#status >> text=Done in")


def answers_on(page):
    """Return the answers on the page, as they are and not as they look."""
    return [element.text_content() for element in page.query_selector_all(".em-answer")]


def bars_on(page):
    """Return label -> percentage and change for each model."""
    columns = []
    for column in page.query_selector_all("#probabilities .em-bars"):
        bars = {bar.get_attribute("data-label"): bar for bar in column.query_selector_all(".em-bar")}
        columns.append({label: re.findall(r"[-+]?\d+\.\d", bar.text_content()) for label, bar in bars.items()})
    return columns


def percentages(probabilities):
    return {label: f"{100 * value:.1f}" for label, value in probabilities.items()}


def asked(models, **fields):
    """Return both models' answers to a request."""
    from emollama.inference.requests import Request

    return [engine.answer([Request(**fields)])[0] for engine in models.engines]


# The first test, because it forks, and the fixtures of the others start threads.
def test_sigterm_ends_the_command_after_its_answers_and_deletes_all_files(world, tmp_path):
    from video_world import only

    line = ["-m", "emollama", "app", "--cfg-path", str(world / "config.yaml"), "--port", "0"]
    process = start(*line, "--options", *OPTIONS, *only("mae"), env=environment() | {"TMPDIR": str(tmp_path)})
    try:
        wait_until(lambda: "the page is ready" in process.stderr() or process.poll() is not None)
        client = Client(int(re.search(r"open the page at http://127.0.0.1:(\d+)/", process.stderr())[1]))
        with client.open_page("visitor"):
            path = client.uploaded((world / "unseen/happy_1.mp4").read_bytes())
            client.join("visitor", {"path": path, "meta": {"_type": "gradio.FileData"}})
            with client.sending("GET", "/gradio_api/queue/data?session_hash=visitor") as results:
                received = results.recv(10_000)
                process.send_signal(signal.SIGTERM)
                received += b"".join(iter(lambda: results.recv(10_000), b""))
        assert b"Done in" in received
        assert process.wait().returncode == 0
        assert list(tmp_path.glob("emollama*")) == []
    finally:
        process.kill()


def test_the_page_shows_what_the_models_answer(page, models, world, record_property):
    record_property("first_paint_ms", page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    video = world / "unseen/happy_1.mp4"
    upload(page, video)
    page.fill("#text textarea", SENTENCE)
    page.evaluate("window.texts = []")
    click_and_wait(page, "#analyze")
    expected = asked(models, video=video, text=SENTENCE, task="reason", label_probabilities=True)
    texts = [answer.text for answer in expected]
    assert answers_on(page) == texts
    assert texts[0] != texts[1]
    streamed = [text for text in page.evaluate("window.texts") if text != texts[0]]
    assert any(streamed)
    # Only bytes that are no UTF-8 text can change when the answer is complete.
    assert all(after.startswith(before) for before, after in pairwise(streamed))
    assert [{label: value for label, (value,) in column.items()} for column in bars_on(page)] == [
        percentages(answer.label_probabilities) for answer in expected
    ]
    states = [row.get_attribute("data-slot") for row in page.query_selector_all("#modality-table tr:has(.em-real)")]
    assert states == [slot for slot, modality in expected[0].modalities.items() if modality.state == "real"]
    assert page.locator("#previews img").count() == 2
    assert page.locator("#previews svg path").count() == 1
    for image in page.query_selector_all("#previews img"):
        assert image.evaluate("image => image.naturalWidth") > 0


def test_a_conversation_continues_with_the_answers_of_each_model(page, models, world):
    from emollama.inference.requests import Request, Turn

    video = world / "unseen/happy_1.mp4"
    upload(page, video)
    click_and_wait(page, "#analyze")
    page.fill("#next-question textarea", QUESTION)
    page.click("#send")
    page.wait_for_function("document.querySelectorAll('.em-answer').length == 4 && !document.querySelector('.em-cursor')")
    assert page.locator(".em-question").text_content() == QUESTION
    first = asked(models, video=video, task="reason")
    for index, engine in enumerate(models.engines):
        history = [Turn("", first[index].text)]
        (answer,) = engine.answer([Request(video=video, task="reason", question=QUESTION, history=history)])
        assert answers_on(page)[2 + index] == answer.text


def test_a_question_of_the_visitor_replaces_the_task(page, models, world):
    upload(page, world / "unseen/sad_1.mp4")
    page.fill("#question textarea", QUESTION)
    click_and_wait(page, "#analyze")
    expected = asked(models, video=world / "unseen/sad_1.mp4", question=QUESTION)
    assert answers_on(page) == [answer.text for answer in expected]


def test_masked_modalities_change_the_probabilities(page, models, world):
    video = world / "unseen/sad_1.mp4"
    upload(page, video)
    click_and_wait(page, "#analyze")
    before = [answer.label_probabilities for answer in asked(models, video=video, task="reason", label_probabilities=True)]
    slots = models.engines[0].slots
    page.locator("#modalities input[type=checkbox]").nth(slots.index("audio")).uncheck()
    page.wait_for_selector(".em-change")
    masked = asked(models, video=video, task="emotion", mask_slots=["audio"], label_probabilities=True)
    for column, old, new in zip(bars_on(page), before, (answer.label_probabilities for answer in masked), strict=True):
        assert {label: value for label, (value, _) in column.items()} == percentages(new)
        assert {label: change for label, (_, change) in column.items()} == {
            label: f"{round(100 * (new[label] - old[label]), 1) + 0.0:+.1f}" for label in new
        }
    masked_row = page.locator("#modality-table tr[data-slot=audio]").inner_text().split(maxsplit=2)
    assert masked_row == ["audio", "zeros", "cleared under Modalities"]
    page.locator("#modalities input[type=checkbox]").nth(slots.index("audio")).check()
    page.wait_for_selector(".em-change", state="detached")
    assert [{label: value for label, (value,) in column.items()} for column in bars_on(page)] == [
        percentages(old) for old in before
    ]


def test_the_download_contains_the_conversation(page, models, world, tmp_path):
    page.click("#example input")
    page.click("ul[role=listbox] li >> text=happy_1")
    page.wait_for_selector("#analyze:enabled")
    click_and_wait(page, "#analyze")
    with page.expect_download() as download:
        page.click("#download a")
    download.value.save_as(tmp_path / "answers.json")
    document = json.loads((tmp_path / "answers.json").read_text())
    expected = asked(models, video=world / "unseen/happy_1.mp4", task="reason", label_probabilities=True)
    assert document["video"] == "happy_1.mp4"
    assert [model["checkpoint"]["sha256"] for model in document["models"]] == [
        list(answer.checkpoint.sha256) for answer in expected
    ]
    assert [answer["text"] for answer in document["exchanges"][0]["answers"]] == [answer.text for answer in expected]
    assert document["label_probabilities"] == [pytest.approx(answer.label_probabilities, abs=1e-6) for answer in expected]


def test_a_file_that_is_no_video_is_an_error_and_the_page_goes_on(page, world, tmp_path):
    assert page.is_disabled("#analyze")
    page.press("#question textarea", "Enter")
    page.wait_for_selector("#status [role=alert] >> text=There is no video yet.")
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    upload(page, tmp_path / "broken.mp4")
    page.click("#analyze")
    page.wait_for_selector("#status [role=alert] >> text=the model gets no features")
    assert str(world) not in page.locator("#status").inner_text()
    page.locator("#video button[aria-label=Clear]").click()
    page.wait_for_selector("#analyze:disabled")
    upload(page, world / "unseen/happy_1.mp4")
    click_and_wait(page, "#analyze")


def test_a_recording_is_analyzed_and_a_closed_page_frees_its_places(server, context, models):
    page = opened(server, context)
    page.click("#video [aria-label='Capture from camera']")
    page.click("#video >> text=Click to Access Webcam")
    page.click("#video button >> text=Record")
    page.wait_for_function("window.recorded > 20000")
    page.click("#video button >> text=Stop")
    page.wait_for_selector("#analyze:enabled")
    click_and_wait(page, "#analyze")
    assert page.locator("#modality-table tr[data-slot=image] .em-real").count() == 1
    assert page.locator("#previews svg path").count() == 1
    page.click("text=Options")
    page.fill("#max_new_tokens textarea", "900")
    page.click("#analyze")
    (engine, *_) = models.engines
    wait_until(lambda: engine.statistics.generating > 0)
    before = engine.statistics.cancelled
    page.close()
    wait_until(lambda: engine.statistics.cancelled > before)
    assert page.errors == []


def test_a_narrow_page_needs_no_horizontal_scrolling(page, world):
    page.set_viewport_size({"width": 420, "height": 900})
    upload(page, world / "unseen/happy_1.mp4")
    click_and_wait(page, "#analyze")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.click("text=Intended use >> nth=-1")
    page.wait_for_selector("text=It does not measure what a person feels")


def chat_completions(engine, body):
    """Return the answer of a server with this engine to a chat completion, whole and streamed."""
    import openai

    from emollama.inference.serve.server import Server
    from emollama.inference.serve.settings import ServeSettings

    server = Server(ServeSettings(port=0, model="tiny", preload=True), lambda: engine)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=HANG) as client:
            wait_until(lambda: is_listening(urlsplit(server.url).port))
            whole = client.chat.completions.create(model="tiny", **body).choices[0].message.content
            chunks = client.chat.completions.create(model="tiny", stream=True, **body)
            return whole, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    finally:
        server.stop()
        thread.join(HANG)


def test_a_clip_gets_the_same_answer_from_every_interface(page, world, emollama):
    """The evaluation, ``emollama predict``, the Python API, the server and the page sample the same text, byte for byte."""
    from served_model import data_url, user
    from video_world import CLIPS, sentences

    from emollama import load

    path, name = world / "config.yaml", CLIPS[0]
    video, said = world / f"videos/{name}.mp4", sentences(world)[name]
    arguments = ["--cfg-path", path, "--options", *OPTIONS, "run.job_id=everywhere"]
    assert emollama("eval", *arguments).returncode == 0
    lines = (world / "out/everywhere/result/predictions_answers.jsonl").read_text().splitlines()
    (expected,) = [row["prediction"] for row in map(json.loads, lines) if (row["name"], row["task"]) == (name, "reason")]
    predicted = emollama("predict", "--json", "--video", video, "--text", said, *arguments)
    with load(path, OPTIONS) as session:
        answer = session.answer(video, text=said).text
        body = {"messages": [user(data_url(video.read_bytes()))], "extra_body": {"emollama": {"text": said}}}
        whole, streamed = chat_completions(session.engine(), body)
    upload(page, video)
    page.fill("#text textarea", said)
    click_and_wait(page, "#analyze")
    texts = {
        "predict": json.loads(predicted.stdout)["answer"],
        "Python": answer,
        "server": whole,
        "stream": streamed,
        "page": answers_on(page)[0],
    }
    assert texts == dict.fromkeys(texts, expected)
    assert len(expected) > 30
