"""The embedded demo: a corpus in the real formats, a Hugging Face folder of a tiny Llama, and the scores after training."""

from __future__ import annotations

import errno
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from readme_commands import run_in_forks
from transformers import AutoModelForCausalLM, AutoTokenizer

from emollama.data.annotations import read_annotations, read_captions, read_transcripts
from emollama.demo import run as demo
from emollama.demo.corpus import EMOTIONS, make_corpus
from emollama.demo.folder import WHAT, disk_errors, prepare_demo_folder
from emollama.demo.tiny_llama import make_tiny_llama
from emollama.demo.vocabulary import FILLER_SENTENCES
from emollama.errors import UserError

SIZES = {"train_clips": 40, "fine_clips": 10, "test_clips": 12, "texts": 200}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), seed=3, **SIZES)


def test_the_demo_lists_captions_and_transcripts_are_readable_by_the_datasets(corpus):
    coarse = read_annotations(str(corpus.train / "MERR_coarse_grained.txt"))
    fine = read_annotations(str(corpus.train / "MERR_fine_grained.txt"))
    assert (len(coarse), len(fine)) == (40, 10)
    assert {clip.label for clip in coarse} <= set(EMOTIONS)
    assert len(read_captions(str(corpus.train / "MERR_coarse_grained.json"), "caption", "k")) == 40
    captions = read_captions(str(corpus.train / "MERR_fine_grained.json"), "smp_reason_caption", "k")
    assert all(12 <= len(text.split()) <= 79 for text in captions.values())
    assert set(read_transcripts(str(corpus.train / "transcription_en_all.csv"))) == {clip.name for clip in coarse}


def test_features_have_the_real_widths(corpus):
    for folder, width in (("mae_340_UTT", 1024), ("maeV_399_UTT", 1024), ("HL-UTT", 1024), ("eva", 1408)):
        arrays = [np.load(path, allow_pickle=False) for path in sorted((corpus.train / folder).glob("*.npy"))]
        assert len(arrays) == 40
        assert {array.shape[-1] for array in arrays} == {width}


def test_no_test_sentence_with_a_topic_occurs_in_training(corpus):
    train = set(read_transcripts(str(corpus.train / "transcription_en_all.csv")).values())
    test = set(read_transcripts(str(corpus.test / "transcription_en_all.csv")).values())
    with_topic = test - set(FILLER_SENTENCES)
    assert with_topic
    assert not with_topic & train
    assert not any(sentence in text for sentence in with_topic for text in corpus.texts)


def test_shuffled_clips_have_other_audio_features_than_the_original_clips(corpus):
    names = [clip.name for clip in read_annotations(str(corpus.test / "test_NCEV.txt"))]
    for name in names:
        own = np.load(corpus.test / "HL-UTT" / f"{name}.npy")
        other = np.load(corpus.test_shuffled / "HL-UTT" / f"{name}.npy")
        assert own.shape != other.shape or not np.array_equal(own, other)


def test_the_same_seed_writes_the_same_bytes(corpus, tmp_path):
    again = make_corpus(tmp_path, seed=3, **SIZES)
    assert again.texts == corpus.texts
    for path in sorted(corpus.train.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again.train / path.relative_to(corpus.train)).read_bytes()


def test_the_readme_of_the_corpus_states_that_it_is_synthetic(corpus):
    assert "synthetic" in (corpus.train.parent / "README.txt").read_text()


def test_the_tiny_llama_is_a_hugging_face_folder(corpus, tmp_path):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    make_tiny_llama(tmp_path, corpus.texts, seed=0, steps=2)
    assert torch.equal(before, torch.random.get_rng_state())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    text = "[INST] <video></video> naïve 東京 [/INST]"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert len(tokenizer) <= model.config.vocab_size


@pytest.mark.parametrize("mark", [None, "", "{}", '{"what": "my thesis"}', json.dumps({"what": WHAT, "demo": "x"})])
def test_a_folder_that_does_not_belong_to_a_demo_is_refused_and_not_changed(tmp_path, emollama, mark):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/thesis.txt").write_text("years of work")
    if mark is not None:
        (tmp_path / "demo.json").write_text(mark)
    result = emollama("demo", "--folder", tmp_path)
    assert result.returncode == 1
    assert (
        result.stderr
        == f"error: --folder: '{tmp_path}' contains files that are not part of a demo. Specify a new or empty folder.\n"
    )
    assert (tmp_path / "corpus/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("named", [True, False], ids=["named", "mark of an earlier version"])
def test_a_demo_replaces_its_own_parts_only(tmp_path, emollama, named):
    assert prepare_demo_folder(str(tmp_path), "videos") == tmp_path
    if not named:
        (tmp_path / "demo.json").write_text(json.dumps({"what": WHAT}))
    for name in ("videos", "llm", "stage_1"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "encoders").symlink_to(tmp_path / "elsewhere")
    result = emollama("demo", "--folder", tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"error: --folder: '{tmp_path}' contains another demo (videos). Specify a new or empty folder.\n"
    assert (tmp_path / "llm").is_dir()
    prepare_demo_folder(str(tmp_path), "videos")
    assert {path.name for path in tmp_path.iterdir()} == {"demo.json", "stage_1", "elsewhere"}


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("", "the name is empty. Specify a folder."),
        ("file", "cannot write under '{here}/file': Not a directory. Specify another folder."),
        ("/dev/null/x", "cannot write under '/dev/null': Not a directory. Specify another folder."),
        ("loop", "cannot write under '{here}/loop': Too many levels of symbolic links. Specify another folder."),
        ("a" * 300, "cannot write under '{here}': File name too long. Specify another folder."),
        ("a\udcff", "the name 'a\\udcff' is not UTF-8. Rename it, or use another path."),
    ],
    ids=["empty", "file", "below a file", "loop", "long", "bytes"],
)
def test_an_unusable_demo_folder_is_refused_before_the_demo_restarts(tmp_path, monkeypatch, emollama, folder, text):
    from emollama.demo import environment

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "restart_with_fast_settings", lambda: pytest.fail("checked too late"))
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for option in ("--corpus-only", "--videos-only", "--captions-only"):
        result = emollama("demo", option, "--folder", folder)
        assert result.returncode == 1
        assert result.stderr == f"error: --folder: {text.format(here=tmp_path)}\n"


# The advice if a library has discarded the reason.
UNKNOWN = "Check the free disk space and the permissions"


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", "Free disk space"),
        (OSError("1000 requested and 16 written"), "1000 requested and 16 written", UNKNOWN),  # numpy
        (Exception("No space left on device (os error 28)"), "No space left on device", "Free disk space"),  # tokenizers
        (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos\nframe"), ".*unexpected pos", UNKNOWN),  # torch
    ],
    ids=["system", "numpy", "rust", "torch"],
)
def test_a_full_disk_is_reported_by_a_demo_with_its_folder(tmp_path, monkeypatch, error, reason, remedy):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(demo, "make_corpus", fail)
    monkeypatch.setattr(demo, "make_videos", fail)
    monkeypatch.setattr(demo, "write_drawings", fail)
    for name, call in {"a": partial(demo.run_demo, processes=1), "b": demo.make_videos_demo, "c": demo.make_flickr_demo}.items():
        text = rf"^--folder: cannot write '{tmp_path / name}': {reason}\. {remedy}, or specify another folder\.$"
        with pytest.raises(UserError, match=text):
            call(str(tmp_path / name), seed=0)


def test_the_number_of_clips_belongs_to_the_demo_of_videos(tmp_path, emollama):
    refused = emollama("demo", "--clips", 3, "--folder", tmp_path / "demo")
    assert refused.stderr == "error: --clips: only the demo of videos has this option. Add --videos-only.\n"
    assert not (tmp_path / "demo").exists()


def test_an_unexpected_error_in_a_demo_is_not_converted(tmp_path):
    with pytest.raises(KeyError), disk_errors(tmp_path):
        raise KeyError("x")


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a guard against hanging
def test_a_demo_with_shorter_training_learns_emotions_and_descriptions(tmp_path, monkeypatch, capsys, launch):
    """Run the commands of the demo in forked processes, which have torch loaded.

    The steps are a third to three quarters of those of the demo, with half of the samples. With the seeds 1, 2 and 42, accuracy
    is 0.97 or more, and the clue overlap of the second stage is 1.6 to 1.8 points higher than that of the first.
    """
    steps = {"train_configs/demo_stage_1.yaml": 60, "train_configs/demo_stage_2.yaml": 150}  # per epoch, instead of 200

    def step(demo_folder, arguments):
        if number := steps.get(arguments[arguments.index("--cfg-path") + 1]):
            arguments = [*arguments, f"run.iters_per_epoch={number}", "datasets.feature_face_caption.batch_size=6"]
        run_in_forks(arguments, tmp_path, launch, **{demo_folder.variable: str(demo_folder.root)})

    def small_batches(*args, **settings):
        make_tiny_llama(*args, **settings | {"steps": 350, "batch_size": 16})

    monkeypatch.setattr(demo, "make_tiny_llama", small_batches)
    monkeypatch.setattr(demo, "run_step", step)
    demo.run_demo(str(tmp_path / "demo"), seed=42, processes=2)
    printed = capsys.readouterr().out
    figures = json.loads(Path(printed.splitlines()[-1]).read_text())
    assert figures["clips"] >= 200
    assert figures["emotion_accuracy"] >= 0.90  # chance is 0.11; processors train different tiny Llamas
    assert figures["emotion_accuracy_shuffled"] <= 0.20
    assert figures["emotion_accuracy_sentence_only"] < 0.6
    assert figures["reason_label_accuracy"] >= 0.90
    assert figures["clue_overlap"] >= figures["clue_overlap_stage_1"] + 1  # of 10 points
    for row in ("accuracy on unseen clips", "accuracy by chance", "reasoning mentions the correct emotion and no other"):
        assert re.search(rf"^{row} +[\d.]+%$", printed, re.MULTILINE)
