"""Tokenizers of captions: COCO's Java program and the one without Java."""

from __future__ import annotations

import logging
import shutil
import sys

import pytest

from emollama.errors import UserError
from emollama.evaluation.captions.java import java, lacks_spice
from emollama.evaluation.captions.tokenizers import NO_JAVA, Tokenizer, ptb, tokenizer, treebank
from emollama.evaluation.scoring import Scoring

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime on this machine")
ODD = [
    'A man says "hello there" to the crowd.',
    "The dog's owner doesn't know; they can't see 'it'.",
    "Two boys (one in red) play [indoors] {loudly}!",
    "3 of 4 runners cost $5.00, 1/2 price, at 10:30 ... or so -- maybe",
    "Café, naïve façade, Straße, 東京 で 犬, “curly” ‘quotes’ – dash — dash",
    "a\nline break\tand a tab\r\nand more\u2028and more",
    "the colour of the U.S. flag, e.g. red; and/or *blue* http://example.org/x",
    "one ||| two",
    "A dog runs. It barks. Mr. Smith laughs",
    "   spaces   ",
    "😀 smiles",
]
EMPTY = ["", "   ", "\n", "...", "?", "\u2028"]


@needs_java
def test_the_ptb_tokenizer_equals_that_of_pycocoevalcap(tmp_path, monkeypatch):
    from pycocoevalcap.tokenizer import ptbtokenizer

    folder = tmp_path / "tokenizer"  # it writes next to its own file
    folder.mkdir()
    (folder / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR).symlink_to(
        ptbtokenizer.__file__.replace("ptbtokenizer.py", ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    )
    monkeypatch.setattr(ptbtokenizer, "__file__", str(folder / "ptbtokenizer.py"))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    # it splits captions at characters that are line breaks in Java; here they stay one caption
    texts = [" ".join(text.split()) for text in ODD]
    theirs = ptbtokenizer.PTBTokenizer().tokenize({index: [{"caption": text}] for index, text in enumerate(texts)})
    assert ptb(ODD) == [theirs[index][0] for index in range(len(ODD))]


@needs_java
def test_the_ptb_tokenizer_never_merges_captions_regardless_of_their_content():
    texts = [*EMPTY, "one", *ODD, *EMPTY, "Two."]
    tokenized = ptb(texts)
    assert len(tokenized) == len(texts)
    assert tokenized[: len(EMPTY) + 1] == [""] * len(EMPTY) + ["one"]
    assert tokenized[-1 - len(EMPTY) :] == [""] * len(EMPTY) + ["two"]
    assert ptb([]) == [] and ptb(["", "😀"]) == ["", ""]


def test_the_treebank_tokenizer_splits_contractions_and_drops_punctuation():
    assert treebank(["A man doesn't speak."]) == ["a man does n't speak"]
    assert treebank(["The dog's bone: it runs. It barks!"]) == ["the dog 's bone it runs it barks"]
    assert treebank(["Mr. Smith sees a U.S. flag. He sits."]) == ["mr. smith sees a u.s. flag he sits"]
    assert treebank(['He says "well", (loudly)']) == ["he says well -lrb- loudly -rrb-"]
    assert treebank(EMPTY) == [""] * len(EMPTY)


@needs_java
def test_on_plain_captions_both_tokenizers_give_the_same_words():
    plain = [
        ODD[0],
        "“Hello”, the man’s sign says – loudly…",
        ODD[2].replace("[indoors] {loudly}", "indoors"),
        "A woman, two dogs and a man's hat.",
        "Rain falls",
        "1,000 birds",
    ]
    assert treebank(plain) == ptb(plain)


def test_each_caption_is_tokenized_only_once():
    texts_tokenized = []
    counted = Tokenizer("counted", lambda texts: texts_tokenized.extend(texts) or [text.upper() for text in texts])
    assert counted.words(["a", "b", "a"]) == ["A", "B", "A"]
    assert counted.words(["b", "c"]) == ["B", "C"]
    assert texts_tokenized == ["a", "b", "c"]


# Without Java


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def scoring(tasks=("caption",), **keys):
    fields = dict.fromkeys(tasks, ("reference",))
    return Scoring(Scoring.Config(**keys), labels=[], aliases={}, tasks=fields, key="evaluation_datasets.flickr30k")


def test_without_java_auto_falls_back_to_treebank_with_a_warning_and_omits_meteor(no_java, caplog):
    with caplog.at_level(logging.WARNING, "emollama"):
        without_java = scoring()
    assert "evaluation_datasets.flickr30k.caption_tokenizer" in caplog.text and "Java is not installed" in caplog.text
    assert without_java.metrics == {"caption": ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]}
    assert (tokenizer("auto").name, tokenizer("treebank").name) == (NO_JAVA, "treebank")


def test_without_captions_there_is_no_message_about_java(no_java, caplog):
    with caplog.at_level(logging.WARNING, "emollama"):
        scoring(tasks=("reason",))
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["meteor", "spice"])
def test_metrics_that_need_java_are_refused_by_name_without_java(no_java, name):
    with pytest.raises(UserError, match=rf"flickr30k\.metrics: '{name}' cannot be computed here: .*install"):
        scoring(metrics=["bleu_4", name], caption_tokenizer="treebank")


def test_ptb_without_java_is_refused_with_the_remedy(no_java):
    with pytest.raises(UserError, match=r"flickr30k\.caption_tokenizer: ptb needs a Java runtime.*caption_tokenizer: treebank"):
        scoring(caption_tokenizer="ptb")


def test_a_java_that_does_not_start_does_not_count(tmp_path, monkeypatch):
    (tmp_path / "java").write_text(f"#!{sys.executable}\nraise SystemExit(1)\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert java() is None


@needs_java
@pytest.mark.skipif(lacks_spice() is None, reason="SPICE's models are there")
def test_spice_without_its_models_is_refused_with_the_folder_for_them():
    with pytest.raises(UserError, match=r"'spice' cannot be computed here: it needs stanford-corenlp-3\.6\.0.*spice/lib"):
        scoring(metrics=["spice"])
    assert "spice" not in scoring().metrics["caption"]


def test_a_caption_metric_is_refused_for_other_tasks_and_without_references():
    with pytest.raises(UserError, match="'cider_d' cannot be computed here: it needs the task 'caption'"):
        scoring(tasks=("reason",), metrics=["cider_d"])
    with pytest.raises(UserError, match="it needs samples with reference captions"):
        Scoring(Scoring.Config(metrics=["bleu_4"]), labels=[], aliases={}, tasks={"caption": ()}, key="x")
