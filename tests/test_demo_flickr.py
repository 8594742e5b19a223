"""The captioning demo: true captions, unseen test scenes, trained encoders, and four commands that lead to a table of scores."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from readme_commands import commands_of_the_readme, run_in_forks, words_of
from running import ROOT

from emollama.demo.drawing_captions import CAPTIONS, FLICKR, HINTS, SECOND, captions, draw_texts
from emollama.demo.drawing_files import HEADER, TABLE, write_flickr, write_second
from emollama.demo.drawings import COLOURS, GROUNDS, SHAPES, SIZES, WORDS, draw_picture, draw_scene
from emollama.demo.tiny_vision import QFORMER, TinyVision, draw_batch, named_share, train_vision
from emollama.encoders.eva_vit import EvaFiles, EvaVit
from emollama.encoders.qformer import QFormer

COUNTS = {"train": 20, "val": 4, "test": 10}
CPU = torch.device("cpu")
THING = re.compile(rf"\b(?:(\w+) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
SIZE_OF = {"big": "big", "large": "big", "small": "small", "little": "small"}
FIRST_OF_LEFT, FIRST_OF_ABOVE = {"left", "right", "beside", "next"}, {"above", "over", "top", "below", "under"}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    write_flickr(folder, COUNTS, seed=3)
    write_second(folder / "second", 5, seed=3)
    return folder


def read_table(folder):
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_flickr30ks_form_and_every_image_is_there(drawings):
    rows = read_table(drawings)
    assert tuple(rows[0]) == HEADER == ("raw", "sentids", "split", "filename", "img_id")
    assert {split: sum(row["split"] == split for row in rows) for split in COUNTS} == COUNTS
    assert all(len(set(json.loads(row["raw"]))) == len(json.loads(row["sentids"])) == CAPTIONS for row in rows)
    assert {row["filename"] for row in rows} == {path.name for path in drawings.glob("images/*.jpg")}
    assert all(re.fullmatch(r"\d{10}\.jpg", row["filename"]) for row in rows)
    assert {Image.open(path).format for path in drawings.glob("images/*")} == {"JPEG"}


def test_the_second_set_has_the_form_of_cocos_captions(drawings):
    content = json.loads((drawings / "second/captions.json").read_text())
    ids = [image["id"] for image in content["images"]]
    assert all((drawings / "second/images" / image["file_name"]).is_file() for image in content["images"])
    assert [row["image_id"] for row in content["annotations"]] == [number for number in ids for _ in range(CAPTIONS)]
    assert len({row["id"] for row in content["annotations"]}) == CAPTIONS * len(ids)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(drawings, tmp_path):
    write_flickr(tmp_path / "again", COUNTS, seed=3)
    write_flickr(tmp_path / "other", COUNTS, seed=4)
    for path in (TABLE, "images/7000000000.jpg"):
        assert (drawings / path).read_bytes() == (tmp_path / "again" / path).read_bytes()
        assert (drawings / path).read_bytes() != (tmp_path / "other" / path).read_bytes()


def test_a_shuffled_image_is_another_ones(drawings):
    names = [row["filename"] for row in read_table(drawings) if row["split"] == "test"]
    own, shuffled = ([(drawings / folder / name).read_bytes() for name in names] for folder in ("images", "shuffled"))
    assert sorted(own) == sorted(shuffled)
    assert not any(one == other for one, other in zip(own, shuffled, strict=True))


@pytest.mark.parametrize("templates", [FLICKR, SECOND])
def test_captions_say_nothing_that_the_scene_is_not(templates):
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = draw_scene(rng, "train")
        texts = captions(rng, scene, templates)
        assert len(set(texts)) == CAPTIONS
        for text in texts:
            first, second = THING.findall(text)
            for (size, *named), thing in zip((first, second), (scene.first, scene.second), strict=True):
                assert named == [thing.colour, thing.shape]
                assert SIZE_OF.get(size, thing.size) == thing.size
            words = set(re.findall(r"\w+", text))
            assert words & set(GROUNDS) <= {scene.ground}
            assert not words & (FIRST_OF_ABOVE if scene.position == "left" else FIRST_OF_LEFT)


def test_pictures_show_the_colours_where_the_scene_has_them():
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = draw_scene(rng, "test")
        pixels = np.asarray(draw_picture(rng, scene)).astype(int)
        height, width, _ = pixels.shape
        left = (pixels[:, : width // 2], pixels[:, width // 2 :])
        halves = left if scene.position == "left" else (pixels[: height // 2], pixels[height // 2 :])
        assert nearest(pixels[0, 0], GROUNDS) == scene.ground
        for half, thing in zip(halves, (scene.first, scene.second), strict=True):
            other = half.reshape(-1, 3)[(abs(half - pixels[0, 0]) > 45).any(-1).ravel()]
            assert {nearest(pixel, COLOURS) for pixel in other[::20]} == {thing.colour}


def nearest(pixel, named):
    return min(named, key=lambda name: abs(np.array(named[name]) - pixel).sum())


def test_no_pair_of_coloured_shapes_is_in_two_splits():
    rng = np.random.default_rng(2)
    pairs = {split: {pair(draw_scene(rng, split)) for _ in range(1500)} for split in COUNTS}
    assert not pairs["train"] & pairs["test"]
    assert not pairs["train"] & pairs["val"]
    assert not pairs["val"] & pairs["test"]
    # Each coloured shape alone occurs in every split.
    assert all({pair[0] for pair in pairs[split]} == {pair[0] for pair in pairs["train"]} for split in pairs)


def pair(scene):
    return tuple((thing.colour, thing.shape) for thing in (scene.first, scene.second))


def test_the_llamas_texts_show_only_scenes_of_training():
    rng = np.random.default_rng(2)
    unseen = {" ".join(f"{colour} {shape}" for colour, shape in pair(draw_scene(rng, "test"))) for _ in range(1500)}
    vocabulary = {*WORDS, *(word for manner in HINTS.values() for word in manner.values())}
    for text in draw_texts(np.random.default_rng(0), 500):
        attributes = re.search(r"<Img> (.*) </Img>", text)[1].split()
        assert set(attributes) <= vocabulary
        assert " ".join([*attributes[1:3], *attributes[5:7]]).lower() not in unseen


def test_every_attribute_is_a_word():
    scene = draw_scene(np.random.default_rng(0), "train")
    assert len(scene.attributes) == QFORMER.queries
    assert set(scene.attributes) <= set(WORDS)
    assert scene.attributes[0] in SIZES
    assert len(WORDS) == len(set(WORDS))


@pytest.mark.slow
def test_the_tiny_encoders_learn_and_their_files_give_the_same_features(tmp_path):
    torch.manual_seed(0)
    rng, vision = np.random.default_rng(0), TinyVision()
    readout = train_vision(vision, rng, scenes=16, steps=25, batch_size=8)
    scenes = [draw_scene(rng, "test") for _ in range(60)]
    assert named_share(vision, readout, scenes, rng) > 0.2  # 0.3 to 0.36 for any seed; 0.04 without training
    vision.save(tmp_path / "eva.pth", tmp_path / "q_former.pth")
    files = EvaFiles(str(tmp_path / "eva.pth"), 56, "fp32", ln_vision=str(tmp_path / "q_former.pth"))
    vit = EvaVit.load(files, device=CPU, key="vit_weights")
    q_former = QFormer.load(str(tmp_path / "q_former.pth"), device=CPU, key="q_former_model")
    images, _ = draw_batch(rng, scenes[:4])
    with torch.no_grad():
        assert (q_former(vit(images)) - vision(images)).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a guard against hanging
def test_four_commands_lead_to_captions_that_improve_and_it_is_the_picture_that_does_it(tmp_path, launch):
    commands = commands_of_the_readme("--captions-only")
    header = (ROOT / "train_configs/demo_flickr.yaml").read_text()
    assert commands == re.findall(r"^# ((?:emollama|torchrun) .*)$", header, re.MULTILINE)
    results = [run_in_forks(words_of(command), tmp_path, launch) for command in commands]
    output = "".join(each.stdout + each.stderr for each in results)
    assert float(re.search(r"they recognize ([\d.]+)% of the attributes of unseen drawings", output)[1]) >= 95
    sweep_folder = tmp_path / "demo_flickr/trained/sweep_demo_flickr"
    first, last = figures(sweep_folder / "pretrained"), figures(sweep_folder / "epoch_4")
    for metric, margin in {"bleu_4": 0.2, "rouge_l": 0.1, "cider_d": 0.8}.items():
        assert last["flickr30k"][metric] >= first["flickr30k"][metric] + margin
        assert last["flickr30k"][metric] >= last["shuffled"][metric] + margin
    assert last["second"]["bleu_4"] > first["second"]["bleu_4"]
    with (sweep_folder / "sweep.csv").open(newline="") as file:
        assert [row["checkpoint"] for row in csv.DictReader(file)] == ["pretrained", *(f"epoch_{n}" for n in range(5))]
    assert "epoch_4" in (sweep_folder / "sweep.md").read_text()
    Image.open(sweep_folder / "sweep.png").verify()  # forked processes do not render it


def figures(folder):
    """Return the metrics of each block."""
    blocks = ("flickr30k", "shuffled", "second")
    contents = {block: json.loads((folder / f"result/metrics_{block}.json").read_text()) for block in blocks}
    return {block: content["tasks"]["caption"]["metrics"] for block, content in contents.items()}
