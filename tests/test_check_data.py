"""The data check: what it reports, what it accepts, and what it caches."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import running
import torch
import transformers
from helpers import FOLDERS, GOLDEN, NAMES, loaded, training_tree, write
from media_files import picture, write_video
from planted import Planted, not_found

from emollama import checkpoint, config, optim
from emollama.checks.captions import LabelWords, is_refusal
from emollama.checks.check_data import check
from emollama.checks.report import text_of
from emollama.checks.tokens import TokenLengths
from emollama.data import features
from emollama.data.dataset import DatasetContent
from emollama.data.features import Features
from emollama.data.instructions import TaskPool
from emollama.data.problems import Problem
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.registry import DATASETS
from emollama.stores.store import NpyFolder

LIST, CAPTIONS, TRANSCRIPTS = "MERR_coarse_grained.txt", "MERR_coarse_grained.json", "transcription_en_all.csv"
BLOCK = "datasets.golden"


@pytest.fixture
def tree(tmp_path, corpus):
    """A configuration with one training block on the copied corpus; tests damage one or both."""
    return training_tree(tmp_path, corpus, task_pool=["emotion", "reason"])


@pytest.fixture
def checked(tmp_path, tree):
    """A function that checks the configuration."""
    return lambda *options: check(loaded(tmp_path, tree, *options))


def reported_names(report, kind, level=None):
    """The clips that the findings of a kind list."""
    return [
        name for finding in report.findings if finding.kind == kind and level in (None, finding.level) for name in finding.clips
    ]


def texts(report, level="problem"):
    return " | ".join(finding.text for finding in report.of_level(level))


def change_captions(corpus, change):
    path = corpus / CAPTIONS
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


# Everything together


def test_the_golden_corpus_has_no_findings_and_the_expected_statistics(checked):
    report = checked()
    assert report.findings == [] and report.summary == "0 problems, 0 notes" and report.unlisted_arrays == {}
    (block,) = report.blocks
    assert (block.label, block.type, block.clips, block.listed) == (BLOCK, "feature_face_caption", 6, 6)
    assert block.labels == dict.fromkeys(("happy", "angry", "worried", "surprise", "neutral", "sad"), 1) and block.imbalance == 1
    assert block.answers == {"emotion": 6, "reason": 6} and block.other_answers == {"reason_v2": 6}
    assert block.sentences == {"clips": 6, "empty": 0, "different": 6, "of clips not listed": 2}
    assert [(row.slots, row.present, row.missing, row.unusable, row.values_read) for row in block.arrays] == [
        (("image", "cls"), 6, 0, 0, 6),
        (("face",), 6, 0, 0, 6),
        (("video",), 6, 0, 0, 6),
        (("audio",), 6, 0, 0, 6),
    ]
    assert block.arrays[0].bytes == 6 * 65 * 176 * 4 and block.arrays[0].kinds == {"float32 (65, 176)": 6}
    assert block.reading.clips_measured == 6 and block.reading.seconds_all_clips > 0


@pytest.mark.parametrize("clips", [150, pytest.param(1200, marks=pytest.mark.slow)])
def test_every_planted_fault_is_reported_and_nothing_else(tmp_path, clips):
    planted = Planted(tmp_path / "corpus", clips, GOLDEN / "llama")
    report = check(config.load(str(planted.config)))
    assert not_found(planted.expected, report.plain()["findings"]) == {}
    assert len(planted.expected) > 15
    assert report.unlisted_arrays == {str(tmp_path / "corpus/maeV_399_UTT"): ["clip_of_nobody"]}
    first = report.blocks[0]
    assert first.sentences["empty"] == 2 and len(first.arrays[1].kinds) == 4


def test_a_repeated_check_gives_the_same_report_and_notices_a_changed_file(tmp_path):
    planted = Planted(tmp_path / "corpus", 150, GOLDEN / "llama")
    first, second = (check(config.load(str(planted.config))).plain() for _ in range(2))
    for block in (*first["blocks"], *second["blocks"]):
        del block["reading"]
    for look in (first, second):
        del look["training"]["free_bytes"]
    assert first == second
    np.save(planted.folder / "HL-UTT" / f"{planted.names[0]}.npy", np.full(1024, np.nan, np.float32))
    report = check(config.load(str(planted.config)))
    assert planted.names[0] in reported_names(report, "unusable features")


def test_cached_lengths_are_measured_again_when_a_text_changes(checked, corpus):
    before = checked().blocks[0].lengths[1]
    change_captions(corpus, lambda content: content[NAMES[0]].update(caption="a longer text than all others " * 8))
    after = checked().blocks[0].lengths[1]
    assert before.what == after.what == "answers of reason" and after.maximum > 100 > before.maximum


def test_cached_lengths_are_measured_again_when_a_module_of_the_user_changes(tmp_path, tree, monkeypatch):
    module = tmp_path / "measured_again.py"
    module.write_text("WIDTH = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tree["imports"] = ["measured_again"]

    def measures():
        lengths = TokenLengths(loaded(tmp_path, tree))
        lengths.answers("block", "emotion", {"clip": "happy"})
        lengths.save()
        return "_prompt" in vars(lengths)

    assert [measures(), measures()] == [True, False]
    module.write_text("WIDTH = 10\n")
    assert measures()


def test_a_repeated_check_does_not_load_the_language_model_configuration_or_tokenizer(checked, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing remembered"))
    loads = []
    for loader in (transformers.AutoConfig, transformers.AutoTokenizer):
        original = loader.from_pretrained
        monkeypatch.setattr(
            loader, "from_pretrained", lambda *args, original=original, **keys: loads.append(args) or original(*args, **keys)
        )
    for expected in (True, False):
        loads.clear()
        report = checked()
        assert [lengths.exact for lengths in report.blocks[0].lengths] == [True, True, True]
        assert bool(loads) == expected


LOOK = """
import os, sys
from emollama import config
from emollama.checks.check_data import check

for folder in sys.argv[2:]:
    os.environ["XDG_CACHE_HOME"] = folder
    report = check(config.load(sys.argv[1]))
    loaded = "transformers.models.llama.configuration_llama" in sys.modules
    sys.stdout.write(f"{loaded} {[lengths.exact for lengths in report.blocks[0].lengths]}\\n")
"""


@pytest.mark.slow
def test_a_repeated_check_does_not_import_the_language_model_module(checked, tree, monkeypatch, tmp_path):
    """In a new interpreter: a check that uses the cache of the first one, then a check without a cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    checked()
    completed = running.run("-c", LOOK, write(tmp_path, tree), str(tmp_path / "first"), str(tmp_path / "nothing"))
    assert completed.stdout == "False [True, True, True]\nTrue [True, True, True]\n", completed.stderr


def test_checking_does_not_modify_the_data(checked, corpus):
    def digests():
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in corpus.rglob("*") if path.is_file()}

    before = digests()
    checked()
    assert digests() == before


def test_the_check_works_without_a_writable_cache_folder(checked, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert checked().findings == [] == checked().findings


def test_a_configuration_without_blocks_is_refused(checked, tree):
    tree["datasets"] = {}
    with pytest.raises(UserError, match="nothing to check"):
        checked()


def test_an_unreadable_block_does_not_prevent_the_check_of_the_others(checked, tree, corpus):
    tree["datasets"]["second"] = tree["datasets"]["golden"] | {"annotation_file": "absent.txt"}
    tree["datasets"]["third"] = tree["datasets"]["golden"] | {"face_feature_path": "nowhere"}
    (corpus / FOLDERS["audio"] / f"{NAMES[2]}.npy").unlink()
    report = checked()
    assert [block.label for block in report.blocks] == [BLOCK]
    assert {finding.block for finding in report.findings if finding.kind == "unreadable"} == {"datasets.second", "datasets.third"}
    assert "absent.txt" in texts(report) and "features.face: no folder" in texts(report)
    assert reported_names(report, "missing features") == [NAMES[2]]


def test_problems_outside_the_annotation_files_are_reported(checked, tree):
    tree["datasets"]["other"] = tree["datasets"]["golden"] | {"batch_size": 3}
    tree["datasets"]["golden"]["curriculum"] = {"by": "valence", "epochs": 2}
    report = checked()
    assert {finding.kind for finding in report.of_level("problem")} == {"list", "batch_size"}
    assert "must have the same batch_size" in texts(report) and "curriculum.by" in texts(report)


class Bare:
    """A dataset class of its own, with a single text."""

    @dataclass
    class Config:
        """The keys that every dataset has."""

        batch_size: int = 1
        held_out: float = 0.0
        labels: list[str] = field(default_factory=list)
        # Plans and prediction call these methods.
        pool = turns = None

    features, slot_sources = (), dict.fromkeys(("image", "face", "video", "audio"), "computed")

    def __init__(self, cfg, **built_with):
        self.cfg, self.notes, self.pool = cfg, ["bare note"], TaskPool("emotion", {}, ["happy"])

    def __len__(self):
        return 2

    def names(self):
        return [NAMES[0], "b"]

    def inspect(self):
        return DatasetContent(listed=self.names(), answers={"emotion": {NAMES[0]: "happy", "b": None}})

    def problems(self):
        return [Problem("list", "its own complaint", ("b",))]

    def user_text(self, index, task, instruction):
        return f"{self.names()[index]}: {instruction}"

    # Training and evaluation call these methods.
    digest = sampling = has_reference = process_answer = record = None


def test_the_problems_notes_and_names_of_a_custom_dataset_class_are_used(checked, tree, monkeypatch):
    monkeypatch.setattr(DATASETS, "_entries", {name: DATASETS.get(name) for name in DATASETS.names()} | {"bare": Bare})
    tree["evaluation_datasets"] = {"bare": {}}
    report = checked()
    assert "its own complaint" in texts(report) and "bare note" in texts(report, "note")
    assert reported_names(report, "train/test overlap") == [NAMES[0]]
    own = report.blocks[-1]
    assert own.list_file is None and own.answers == {"emotion": 1} and [row.texts for row in own.lengths] == [1, 2]
    assert reported_names(report, "no answer") == ["b"]


# Captions

REFUSALS = """I'm sorry, but I cannot provide a description of this clip.
I am sorry, but I can't assist with that request.
I’m sorry, I am unable to determine the emotion of the person.
I'm really sorry, but I'm not able to identify people in images.
Sorry, but I can't help with this.
I apologize, but I cannot analyze the video without more information.
I apologise; I can not see the picture.
My apologies, but I am unable to process the audio clip.
Unfortunately, I cannot view the video you mention.
Unfortunately, as an AI, I do not have access to the footage.
As an AI language model, I don't have the ability to watch videos.
As a large language model I cannot see images.
As an AI, I cannot feel emotions, but the clues suggest sadness.
As an artificial intelligence model, I can only read text.
I'm sorry, but as an AI assistant I cannot describe real people.
I'm just an AI and cannot see the frames.
I cannot determine the emotional state from the given clues.
I can't identify the person in the image.
I do not have access to the video.
The clues are short. I cannot infer the emotion from this information.
Please provide more information about the video.
No image was provided.
I'm sorry, there is not enough information to describe the emotion.
"I'm sorry, but I cannot assist with that."
I'M SORRY,   BUT I CANNOT FULFILL THIS REQUEST.
抱歉，我无法描述这个视频。
作为一个AI语言模型，我无法观看视频。""".splitlines()

DESCRIPTIONS = """She says: I am sorry. Her voice trembles and she looks down.
The man says "I'm sorry, but I cannot help you" and turns away.
The man says “I’m sorry, but I cannot help you” and turns away.
'I'm sorry, I can't help you,' the doctor says with lowered brows.
She apologizes: I'm sorry, but I can't provide this. I cannot describe the image. Her eyes are wet.
The woman whispers that she is sorry but cannot stay.
He says, I'm sorry, I can't do this any more, and the brows drop.
The person cannot hide her anger; the lips are pressed together.
The subtitle reads: As an AI language model I cannot love. He laughs.
The young man works as an AI engineer and smiles.
She plays a robot and speaks as an AI assistant would.
The actor is unable to describe what happened, his voice breaks.
Sorry and ashamed, the boy looks at the floor.
Unfortunately the dog has died, and the girl cries.
Unfortunately for him, he cannot find the key and is worried.
The clerk says: please provide more information. The man frowns.
I can hear a trembling voice and see drawn brows, which suggests fear.
In the picture no one is smiling; no information was lost on her.
The man pleads that he does not have access to the money.
It is difficult to determine the emotion without context, but she seems calm.
她说：对不起，我不能留下。""".splitlines()


@pytest.mark.parametrize("caption", REFUSALS)
def test_a_refusal_of_a_language_model_is_detected(caption):
    assert is_refusal(caption)


@pytest.mark.parametrize("caption", [*DESCRIPTIONS, ""])
def test_a_description_of_an_apology_is_not_a_refusal(caption):
    assert not is_refusal(caption)


NINE = ("happy", "sad", "neutral", "angry", "worried", "surprise", "fear", "contempt", "doubt")


@pytest.mark.parametrize(
    ("caption", "own", "other"),
    [
        ("His jaw is tight, which speaks of anger.", "happy", "angry"),
        ("She is visibly surprised.", "sad", "surprise"),
        ("The tone is worried, and he worries on.", "happy", "worried"),
        ("Everything points to SADNESS.", "neutral", "sad"),
        ("He is not happy but sad.", "angry", "sad"),
        ("The tone is calm rather than angry, and she is sad.", "worried", "sad"),
    ],
)
def test_a_caption_that_names_exactly_one_other_label_is_detected(caption, own, other):
    assert LabelWords(NINE).other(caption, own) == other


@pytest.mark.parametrize(
    ("caption", "own"),
    [
        ("The voice is low and the brows are drawn.", "happy"),
        ("First angry, then happy.", "happy"),
        ("Anger and fear mix in the face.", "sad"),
        ("She is anxious, with a trace of fear.", "worried"),
        ("No anger is heard in the tone.", "neutral"),
        ("He is no longer angry.", "neutral"),
        ("It is without any doubt a warm smile.", "happy"),
        ('She says "I am so happy" and weeps.', "sad"),
        ("She says: I am so happy.", "sad"),
        ("The sadler works on.", "happy"),
        ("This is sad.", "label of another list"),
    ],
)
def test_a_caption_that_does_not_clearly_contradict_the_label_is_accepted(caption, own):
    assert LabelWords(NINE).other(caption, own) is None


def test_related_forms_of_custom_labels_are_recognized():
    label_words = LabelWords(("Cosy", "grim"))
    assert label_words.other("A cosiness lies in the voice.", "grim") == "Cosy"
    assert label_words.other("She stares grimly.", "Cosy") == "grim"


def test_contradicting_labels_are_detected_exactly_in_generated_captions():
    rng = np.random.default_rng(3)
    frames = (  # {own}: the clip's label; {a}, {b}: others
        ("The face looks {own}, not {a}.", False),
        ("One could think of {a}, or of {b}.", False),
        ('He asks "are you {a}?" and laughs.', False),
        ("The tone is flat and the eyes are wide.", False),
        ("It starts with {a} and ends with {own}.", False),
        ("The eyes are wide: this is {a}.", True),
        ("The person seems {a}, and neither {b} nor anything else.", True),
    )
    label_words, reported, contradictions = LabelWords(NINE), 0, 0
    for _ in range(2000):
        own, a, b = rng.choice(NINE, 3, replace=False)
        frame, disagrees = frames[int(rng.integers(len(frames)))]
        hint = label_words.other(frame.format(own=own, a=a, b=b), own)
        assert hint == (a if disagrees else None), frame
        reported, contradictions = reported + (hint is not None), contradictions + disagrees
    assert reported == contradictions > 400


def test_refusals_are_reported_with_the_exclude_key_and_excluding_them_resolves_it(checked, tree, corpus):
    change_captions(corpus, lambda content: content[NAMES[1]].update(caption="As an AI language model, I cannot see."))
    report = checked()
    assert reported_names(report, "refusal", "problem") == [NAMES[1]] and f"{BLOCK}.exclude" in texts(report)
    tree["datasets"]["golden"]["exclude"] = [NAMES[1]]
    assert checked().findings == [] and checked().blocks[0].clips == 5


# Features


def test_arrays_of_every_kind_are_counted_by_dtype_and_shape(checked, corpus):
    np.save(corpus / FOLDERS["face"] / f"{NAMES[0]}.npy", np.linspace(0, 1, 1024, dtype=np.float16))
    np.save(corpus / FOLDERS["face"] / f"{NAMES[1]}.npy", np.linspace(0, 1, 1024, dtype=np.float64)[None])
    face = checked().blocks[0].arrays[1]
    assert face.kinds["float16 (1024,)"] == 1 and face.kinds["float64 (1, 1024)"] == 1
    assert face.bytes == 1024 * (2 + 8 + 4 * 4)


def test_values_of_large_arrays_are_read_only_on_request_and_counted_in_the_report(checked, corpus, monkeypatch):
    monkeypatch.setattr(features, "VALUES_CHECKED_UP_TO", 5000)
    array = np.load(corpus / "eva" / f"{NAMES[0]}.npy")
    array[3, 3] = np.nan
    np.save(corpus / "eva" / f"{NAMES[0]}.npy", array)
    report = checked()
    assert report.findings == [] and [row.values_read for row in report.blocks[0].arrays] == [0, 6, 6, 6]
    report = checked(f"{BLOCK}.check_values=all")
    assert reported_names(report, "unusable features") == [NAMES[0]] and "NaN" in texts(report)
    assert [row.values_read for row in report.blocks[0].arrays] == [5, 6, 6, 6]


def test_an_unusable_array_is_read_by_the_measurement_and_by_one_check(checked, corpus, monkeypatch):
    np.save(corpus / FOLDERS["face"] / f"{NAMES[0]}.npy", np.full(1024, np.nan, np.float32))
    reads, load = [], NpyFolder.load
    monkeypatch.setattr(NpyFolder, "load", lambda store, name: reads.append((store.folder.name, name)) or load(store, name))
    assert reported_names(checked(), "unusable features") == [NAMES[0]]
    assert reads.count((FOLDERS["face"], NAMES[0])) == 2


@pytest.mark.parametrize("policy", ["zero", "skip"])
def test_missing_features_that_the_block_allows_are_a_note(checked, corpus, policy):
    (corpus / FOLDERS["video"] / f"{NAMES[0]}.npy").unlink()
    report = checked(f"{BLOCK}.missing_features={policy}")
    assert report.summary == "0 problems, 1 note" and "1 of 6 clips have no array" in texts(report, "note")


class SlowFolder(NpyFolder):
    """A folder that delays the reading of every array. ``most`` is the highest number of concurrent reads."""

    lock, waiting, most = threading.Lock(), 0, 0

    def load(self, name):
        with self.lock:
            SlowFolder.waiting += 1
            SlowFolder.most = max(self.most, self.waiting)
        time.sleep(0.004)
        with self.lock:
            SlowFolder.waiting -= 1
        return np.random.default_rng(int(name)).normal(size=8)

    def stamp(self, name):
        return (100, 1)


def test_a_slow_disk_is_read_by_several_threads_and_the_order_is_preserved(tmp_path):
    names = [str(number) for number in range(600)]
    source = Features(SlowFolder(tmp_path, frozenset(names)), str(tmp_path), ("face",), SlotShape(1, 8), "key")
    assert list(source.check(names).valid) == names
    assert SlowFolder.most > 1


# Texts and lengths


@pytest.mark.parametrize(("limit", "kind"), [("max_txt_len=30", "answers cut"), ("max_context_len=72", "prompts cut")])
def test_the_check_reports_exactly_the_tokens_that_a_run_would_cut(checked, tree, tmp_path, limit, kind):
    report = checked(f"model.{limit}")
    cfg = loaded(tmp_path, tree, f"model.{limit}")
    prompt = cfg.model_class.prompt_format(cfg.model)
    shapes = cfg.model_class.slot_shapes(cfg.model)
    dataset = cfg.dataset_class(BLOCK)(cfg.datasets["golden"], slot_shapes=shapes, block_path=BLOCK)
    cut = {
        name: max(
            prompt.tokenize(dataset.record(index, task, instruction)).tokens_cut
            for task in dataset.pool.tasks
            for instruction in dataset.pool.instructions[task]
        )
        for index, name in enumerate(dataset.names())
    }
    (finding,) = report.of_level("problem")
    allowed = int(limit.partition("=")[2])
    expected = tuple(f"{name} ({allowed + tokens} tokens)" for name, tokens in cut.items() if tokens)
    assert finding.kind == kind and finding.details == expected and 0 < len(expected) < 6
    assert sum(lengths.cut for lengths in report.blocks[0].lengths) == len(expected)


def test_a_prompt_format_or_layout_that_would_stop_a_run_is_a_problem(checked, tree):
    tree["model"]["prompt_format"] = {"type": "template", "template": "{video} {text}"}
    block = {key: value for key, value in tree["datasets"]["golden"].items() if key != "shuffle"}
    tree["evaluation_datasets"] = {"answers": block | {"prompt_layout": "upstream_eval"}}
    findings = [finding for finding in checked().of_level("problem") if finding.kind == "prompt format"]
    layout, template = sorted(findings, key=lambda finding: finding.text.startswith("model."))
    assert layout.block == "evaluation_datasets.answers"
    assert layout.text.endswith("unknown layout 'upstream_eval'. The layouts of model.prompt_format are train.")
    assert template.text.startswith("model.prompt_format: template has no {feature}")


def test_without_the_language_model_lengths_are_estimated_and_cuts_reported_as_notes(checked, tree, tmp_path):
    tree["model"]["llama_model"] = str(tmp_path / "not downloaded yet")
    report = checked("model.max_txt_len=10")
    assert [finding.kind for finding in report.of_level("problem")] == ["model"] and not any(
        lengths.exact for lengths in report.blocks[0].lengths
    )
    assert "lengths are estimated" in texts(report, "note") and "not downloaded yet" in texts(report, "note")
    assert len(reported_names(report, "answers cut", "note")) == 6
    assert "tokens, estimated" in text_of(report)


def test_a_model_folder_without_config_json_is_accepted(checked, tree, tmp_path):
    folder = shutil.copytree(GOLDEN / "llama", tmp_path / "llama")
    (folder / "config.json").unlink()
    tree["model"]["llama_model"] = str(folder)
    assert checked().of_level("problem") == []


def test_evaluation_clips_without_answers_are_reported_as_a_note(checked, tree, corpus):
    tree["evaluation_datasets"] = {"answers": tree["datasets"]["golden"]}
    tree["datasets"] = {}
    change_captions(corpus, lambda content: content.pop(NAMES[3]))
    report = checked()
    assert report.summary == "0 problems, 1 note" and reported_names(report, "no answer") == [NAMES[3]]
    assert report.blocks[0].answers == {"emotion": 6, "reason": 5}


def test_empty_captions_are_counted_separately_from_missing_ones(checked, corpus):
    def spoil(content):
        del content[NAMES[0]]
        content[NAMES[1]]["caption"] = " \n"
        content[NAMES[2]]["caption"] = None
        content[NAMES[3]] = {}

    change_captions(corpus, spoil)
    report = checked()
    assert (
        reported_names(report, "caption", "problem") == NAMES[:4]
        and reported_names(report, "empty caption", "note") == NAMES[1:3]
    )
    assert report.summary == "1 problem, 1 note"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("emer", "names,emotions,subtitles,reasons\n{0},sad,x,\n{1},sad,x,why\n"),
        ("emer", "name,chinese,english\n{0},x,\n{1},x,why\n"),
        ("custom", "name,emotion,reason\n{0},sad,\n{1},sad,why\n"),
    ],
)
def test_empty_cells_of_a_table_are_empty_captions(checked, tree, corpus, kind, text):
    (corpus / "table.csv").write_text(text.format(*NAMES))
    block = {"type": kind, "data_root": str(corpus), "annotation_file": "table.csv", "task_pool": ["reason"]}
    tree["datasets"]["golden"] = block
    assert reported_names(checked(), "caption", "problem") == reported_names(checked(), "empty caption", "note") == [NAMES[0]]


def test_a_messy_table_is_read_and_its_faulty_rows_are_reported(tmp_path, tree, corpus):
    """The table has a byte order mark, CRLF, numeric names, a repeated name, empty cells, spaces and a row that is too long."""
    names = ["00012", "12", "7", "00012", "8"]
    folder = tmp_path / "own"
    for number, slot_folder in enumerate(FOLDERS.values()):
        (folder / slot_folder).mkdir(parents=True)
        for name in names:
            if slot_folder != "eva":
                np.save(folder / slot_folder / f"{name}.npy", np.linspace(number, int(name), 1024, dtype=np.float32))
    rows = ["name,emotion,sentence,reason", "00012, happy ,Hello,she smiles", "12,sad,,", ",,,", "7,angry,,he frowns"]
    rows += ["00012,happy,Hello,she smiles", "8,sad,a,b,c", ",sad,words,why", '9,sad,"one, two",', ""]
    (folder / "own.csv").write_bytes(("\ufeff" + "\r\n".join(rows) + "\r\n").encode())
    block = {"type": "custom", "data_root": str(folder), "annotation_file": "own.csv", "task_pool": ["emotion", "reason"]}
    tree["datasets"] = {"own": block | {"image_feature_path": None}}
    report = check(loaded(tmp_path, tree))
    assert (
        sorted(reported_names(report, "list")) == ["", "00012", "8"] and "line 6" in texts(report) and "line 7" in texts(report)
    )
    assert reported_names(report, "caption") == ["12", "9"] and set(reported_names(report, "missing features")) == {"9"}
    (figures,) = report.blocks
    assert figures.clips == 4 and figures.labels == {"sad": 2, "happy": 1, "angry": 1}
    assert figures.sentences == {"clips": 4, "empty": 2, "different": 3, "of clips not listed": 0}


def test_a_transcript_with_byte_order_mark_and_crlf_is_read_with_its_first_column(checked, corpus):
    rows = [("name", "sentence"), *((name, "") for name in NAMES)]
    with (corpus / TRANSCRIPTS).open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows(rows)
    report = checked()
    assert report.findings == [] and report.blocks[0].sentences["empty"] == 6


# Blocks that share clips


@pytest.fixture
def two_blocks(tree, corpus):
    """A training block and a test block of three clips, whose arrays are in separate folders."""
    folder = corpus / "test"
    for slot_folder in FOLDERS.values():
        (folder / slot_folder).mkdir(parents=True)
    tree["evaluation_datasets"] = {
        "test": tree["datasets"]["golden"]
        | {"annotation_file": "test/list.txt", "task_pool": "emotion", "transcription_path": None}
    }

    def write_test_block(names):
        """Write the test block. ``names`` maps test clips to training clips whose arrays they get, or None for new arrays."""
        (folder / "list.txt").write_text("".join(f"{name} happy\n" for name in names))
        for slot_folder in FOLDERS.values():
            for name, source in names.items():
                array = np.load(corpus / slot_folder / f"{source or NAMES[0]}.npy")
                np.save(folder / slot_folder / f"{name}.npy", array if source else array * 0.5 + len(name) + ord(name[-1]))

    return write_test_block


def test_a_clip_in_both_training_and_test_data_is_a_problem(checked, two_blocks):
    two_blocks({NAMES[1]: NAMES[1], "fresh_1": None})
    report = checked()
    assert reported_names(report, "train/test overlap", "problem") == [NAMES[1]]
    assert "datasets.golden and evaluation_datasets.test" in texts(report) and "exclude" in texts(report)


def test_the_same_arrays_under_another_name_are_a_problem(checked, two_blocks):
    two_blocks({"renamed": NAMES[1], "fresh_1": None})
    report = checked()
    assert reported_names(report, "train/test overlap", "problem") == [NAMES[1]]
    assert f"{NAMES[1]} = renamed" in text_of(report)


def test_the_same_name_with_entirely_different_arrays_is_a_note(checked, two_blocks):
    two_blocks({NAMES[1]: None, "fresh_1": None})
    report = checked()
    assert report.of_level("problem") == [] and reported_names(report, "same names", "note") == [NAMES[1]]


@pytest.mark.slow
def test_videos_that_begin_with_the_same_frame_are_not_reported_as_duplicates(checked, two_blocks, tree, corpus):
    two_blocks({"fresh_1": None, "fresh_2": None})
    (corpus / "videos").mkdir()
    for name in (*NAMES, "fresh_1", "fresh_2"):
        write_video(corpus / f"videos/{name}.mp4", pictures=[picture(0)], sound=())
    for blocks in (tree["datasets"], tree["evaluation_datasets"]):
        for block in blocks.values():
            block |= {"image_feature_path": None, "image_path": str(corpus / "videos")}
    tree["model"]["vit_weights"] = str(GOLDEN / "vision/eva_tiny.safetensors")
    report = checked()
    assert report.of_level("problem") == [] and reported_names(report, "same features") == []


def test_clips_with_arrays_of_zeros_are_not_reported_as_duplicates(checked, two_blocks, corpus):
    two_blocks({"fresh_1": None, "fresh_2": None})
    for folder, name in ((corpus, NAMES[0]), (corpus, NAMES[1]), (corpus / "test", "fresh_1")):
        np.save(folder / FOLDERS["face"] / f"{name}.npy", np.zeros(1024, np.float32))
    report = checked()
    assert report.of_level("problem") == []
    assert sorted(reported_names(report, "constant features", "note")) == sorted([NAMES[0], NAMES[1], "fresh_1"])


def test_arrays_of_clips_in_another_block_do_not_count_as_unlisted(checked, tree, corpus):
    rows = (corpus / LIST).read_text().splitlines(keepends=True)
    (corpus / LIST).write_text("".join(rows[:4]))
    assert {len(names) for names in checked().unlisted_arrays.values()} == {2}
    (corpus / "rest.txt").write_text("".join(rows[4:]))
    tree["evaluation_datasets"] = {"rest": tree["datasets"]["golden"] | {"annotation_file": "rest.txt"}}
    report = checked()
    assert report.unlisted_arrays == {} and reported_names(report, "train/test overlap") == []


# Requirements of training


def test_dataset_epochs_follow_from_steps_batch_size_and_sample_ratio(checked, tree, corpus):
    (corpus / "two.txt").write_text("".join((corpus / LIST).read_text().splitlines(keepends=True)[:2]))
    tree["datasets"]["golden"] |= {"batch_size": 2, "sample_ratio": 3}
    tree["datasets"]["two"] = tree["datasets"]["golden"] | {"annotation_file": "two.txt", "sample_ratio": 1}
    report = checked("run.max_epoch=2", "run.iters_per_epoch=10", "run.accum_grad_iters=4")
    assert (report.training.steps, report.training.samples_a_step) == (20, 8)
    assert report.training.passes == {BLOCK: 160 * 0.75 / 6, "datasets.two": 160 * 0.25 / 2}
    assert "20 steps of 8 samples; passes over datasets.golden 20.00, datasets.two 20.00" in text_of(report)


def test_the_size_of_a_checkpoint_is_that_of_the_file(checked, tree, tmp_path):
    cfg = loaded(tmp_path, tree)
    model = cfg.model_class(cfg.model, device=torch.device("cpu"), frozen_dtype=torch.float32)
    named = optim.trainable(model)
    optimizer = optim.adamw(named.items(), lr=1e-5, weight_decay=0.05, beta2=0.999)
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    values = {name: parameter.detach() for name, parameter in named.items()}
    checkpoint.save(tmp_path / "checkpoint.pth", {"model": values, "optimizer": optimizer.state_dict()})
    for training in (checked().training, checked().training):  # measured, then read from the cache
        assert training.checkpoint_bytes == pytest.approx((tmp_path / "checkpoint.pth").stat().st_size, rel=0.05)
    assert checked("model.lora_r=8").training.trained_parameters > training.trained_parameters


def test_checkpoints_that_do_not_fit_the_disk_are_a_problem_unless_fewer_are_retained(checked):
    report = checked("run.max_epoch=1000000000")
    assert [finding.kind for finding in report.of_level("problem")] == ["disk"]
    assert "run.output_dir" in texts(report) and "run.keep_last" in texts(report)
    report = checked("run.max_epoch=1000000000", "run.keep_last=2", "run.save_every_iters=1")
    assert report.findings == [] and report.training.checkpoints == 4
    assert checked("run.max_epoch=1", "run.keep_last=2").training.checkpoints == 1
    best = ("run.save_best=True", "run.evaluate=True")
    assert checked("run.max_epoch=1", "run.keep_last=2", *best).training.checkpoints == 2


def test_without_the_models_configuration_the_size_of_a_checkpoint_is_reported_as_unknown(checked, tree, tmp_path):
    tree["model"]["llama_model"] = str(tmp_path / "not downloaded yet")
    report = checked()
    assert report.training.checkpoint_bytes is None and report.training.free_bytes > 0
    assert "checkpoints  unknown size, because" in text_of(report)


def test_a_configuration_without_training_data_has_no_training_statistics(checked, tree):
    tree["evaluation_datasets"] = {"answers": tree["datasets"].pop("golden")}
    report = checked()
    assert report.training is None and report.plain()["training"] is None
    assert not any(line.startswith("training") for line in text_of(report).splitlines())


# The report


def test_the_table_shows_a_few_of_many_clips_and_the_json_report_all_of_them(tmp_path, tree, corpus):
    rows = "".join(f"absent_{number:03d} 5 happy\n" for number in range(200))
    (corpus / LIST).write_text((corpus / LIST).read_text() + rows)
    for number in range(30):
        np.save(corpus / FOLDERS["face"] / f"absent_{number:03d}.npy", np.ones(3, np.float32))
    report = check(config.load(write(tmp_path, tree)))
    table, plain = text_of(report), report.plain()
    assert max(map(len, table.splitlines())) < 800 and "absent_150" not in table
    assert "and 190 more" in table and "and 25 more of this kind" in table
    (face, *_) = (finding for finding in plain["findings"] if "features.face" in finding["text"])
    assert len(face["clips"]) == 170
    assert table.splitlines()[-1] == report.summary == f"{plain['problems']} problems, {plain['notes']} notes"


def test_the_columns_of_the_feature_table_are_aligned(checked):
    lines = text_of(checked()).splitlines()
    (head,) = (line for line in lines if line.startswith("  features"))
    rows = lines[lines.index(head) + 1 : lines.index(head) + 5]
    for column in ("clips", "missing", "unusable", "values read", "MiB"):
        end = head.index(column) + len(column)
        assert all(row[end - 1] != " " and row[end : end + 2] == "  " for row in rows), column
