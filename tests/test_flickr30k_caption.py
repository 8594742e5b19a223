"""The dataset ``flickr30k_caption``: both formats of caption files, images, prompts and answers, errors, check-data."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from captioned import captions_of, coco, draw_image, entries, images
from flickr_world import make_flickr_world
from helpers import GOLDEN, golden_tree, loaded
from PIL import Image

from emollama.checks.check_data import check
from emollama.checks.report import text_of
from emollama.cli import parse_run
from emollama.commands import eval as evaluate
from emollama.data.instructions import TaskPool
from emollama.data.slots import PIXELS, SlotShape
from emollama.data.text_processors import blip_caption
from emollama.datasets.configs import CAPTION_INSTRUCTIONS
from emollama.datasets.flickr30k_caption import Flickr30kCaption
from emollama.errors import UserError
from emollama.media.image_files import read_image
from emollama.media.image_transforms import blip2_image
from emollama.media.source import UnusableMedia
from emollama.stores.feature_cache import FeatureCache

NAMES = ("11", "12", "13", "14")
SIDE = 28
SHAPES = {"image": SlotShape(32, 768), PIXELS: SlotShape(1, 3 * SIDE**2)}


@pytest.fixture
def root(tmp_path):
    """Four images with captions."""
    images(tmp_path / "images", NAMES)
    put(tmp_path, {"annotations": entries(NAMES)})
    return tmp_path


def put(root, tree):
    (root / "captions.json").write_text(json.dumps(tree))


def config(root, **keys):
    return Flickr30kCaption.Config(**{"annotation_file": "captions.json", "data_root": str(root), "image_path": "images"} | keys)


def build_dataset(root, *, training=True, shapes=SHAPES, **keys):
    return Flickr30kCaption(config(root, **keys), slot_shapes=shapes, block_path="flickr", training=training)


def problems(root, **keys):
    return "\n".join(problem.text for problem in build_dataset(root, **keys).problems())


def refusal(root, **keys):
    with pytest.raises(UserError) as error:
        build_dataset(root, **keys)
    return str(error.value)


# File formats


@pytest.mark.parametrize("form", ["object", "list", "numbers", "coco"])
def test_every_annotation_format_gives_the_same_names_and_captions_in_order(root, form):
    tree = entries(NAMES)
    if form == "numbers":
        tree = [entry | {"image_id": int(entry["image_id"])} for entry in tree]
    put(root, {"object": {"annotations": tree}, "list": tree, "numbers": tree, "coco": coco(NAMES)}[form])
    dataset = build_dataset(root)
    assert dataset.names() == list(NAMES) and len(dataset) == 4 and not dataset.problems()
    assert [dataset.record(place_, "caption", "").reference for place_ in range(4)] == [captions_of(name) for name in NAMES]


def test_an_entry_with_a_single_caption_has_one_reference(root):
    put(root, entries(NAMES, several=False))
    record = build_dataset(root, captions="random").record(1, "caption", "", np.random.default_rng(0))
    assert record.reference == [record.turns[0][1]] == [" ".join(captions_of("12"))]


def test_images_may_be_in_subfolders_and_have_other_extensions_in_both_formats(root):
    draw_image(root / "images/more/21.JPG")
    draw_image(root / "images/22.jpeg")
    draw_image(root / "images/23.png")
    names = ["more/21", "22", "23"]
    put(root, entries(names))
    assert not build_dataset(root).problems()
    tree = coco(names, "png")
    tree["images"][0]["file_name"], tree["images"][1]["file_name"] = "more/21.JPG", "22.jpeg"
    put(root, tree)
    assert not build_dataset(root).problems() and build_dataset(root).names() == names


# Prompts and answers


def test_an_answer_is_all_captions_joined_the_first_or_a_random_one(root):
    def learnt(choice, rng=None):
        return build_dataset(root, captions=choice).record(0, "caption", "", rng).turns[0][1]

    assert learnt("joined") == learnt("joined", np.random.default_rng(1)) == " ".join(captions_of("11"))
    assert learnt("first", np.random.default_rng(1)) == learnt("random") == captions_of("11")[0]
    draws = [learnt("random", np.random.default_rng(seed)) for seed in range(60)]
    assert {*draws} == {*captions_of("11")}
    assert draws == [learnt("random", np.random.default_rng(seed)) for seed in range(60)]


def test_captions_are_processed_only_if_a_text_processor_is_configured(root):
    processed = build_dataset(root, captions="first", text_processor="blip_caption", max_words=2).record(0, "caption", "")
    assert processed.turns[0][1] == blip_caption(captions_of("11")[0], 2) != captions_of("11")[0]
    assert processed.reference == captions_of("11")


def test_the_user_text_is_empty_without_instructions_and_one_instruction_with_them(root):
    dataset = build_dataset(root)
    assert (
        dataset.pool.tasks == ("caption",)
        and dataset.pool.first_instruction("caption") == ""
        and dataset.has_reference("caption")
    )
    dataset = build_dataset(root, instructions={"caption": ["<ImageHere> Describe it.", "What is this?"]})
    task, instruction = dataset.pool.draw(np.random.default_rng(0))
    assert dataset.user_text(0, task, instruction) == dataset.record(0, task, instruction).turns[0][0] == instruction
    assert dataset.pool.first_instruction("caption") == dataset.cfg.turns()[0] == "<ImageHere> Describe it."


def test_a_pool_of_other_tasks_accepts_only_these():
    with pytest.raises(ValueError, match=r"unknown task 'emotion'\. Known: caption"):
        TaskPool("emotion", {}, (), CAPTION_INSTRUCTIONS)
    assert TaskPool("caption", {}, (), CAPTION_INSTRUCTIONS).instructions == {"caption": [""]}


def test_the_dataset_digest_changes_with_the_captions(root):
    before = build_dataset(root).digest()
    assert build_dataset(root).digest() == before
    tree = entries(NAMES)
    tree[2]["captions"][4] = "Another one."
    put(root, tree)
    assert build_dataset(root).digest() != before


def test_training_and_evaluation_split_the_images_at_the_same_held_out_share(root):
    names = [str(number) for number in range(100)]
    put(root, entries(names))
    trained, answered = (build_dataset(root, held_out=0.3, training=training).names() for training in (True, False))
    assert sorted(trained + answered) == sorted(names) and 15 < len(answered) < 45


# Images


def test_a_record_contains_pixels_resized_like_blip2_and_no_image_features(root):
    features = build_dataset(root).record(2, "caption", "").features
    assert {slot: tuple(vectors.shape) for slot, vectors in features.items()} == {PIXELS: (1, 3 * SIDE**2), "image": (0, 768)}
    with Image.open(root / "images/13.jpg") as image:
        expected = blip2_image(np.array(image.convert("RGB")), SIDE)
    assert torch.equal(features[PIXELS].reshape(3, SIDE, SIDE), expected)


def test_a_record_has_a_cache_key_or_the_cached_features(root):
    shapes = SHAPES | {"image": SlotShape(32, 768, cache_folder=str(root / "cache"))}
    dataset = build_dataset(root, shapes=shapes)
    record = dataset.record(0, "caption", "")
    cache = FeatureCache(str(root / "cache"), (32, 768))
    assert record.cache_key == cache.cache_key(str(root / "images/11.jpg")) and len(record.features[PIXELS]) == 1
    features = np.random.default_rng(0).standard_normal((32, 768)).astype(np.float32)
    cache.write(record.cache_key, features)
    again = dataset.record(0, "caption", "")
    assert again.cache_key is None and np.array_equal(again.features["image"], features)
    assert tuple(again.features[PIXELS].shape) == (0, 3 * SIDE**2)
    draw_image(root / "images/11.jpg", "blue", size=(60, 60))
    assert len(dataset.record(0, "caption", "").features[PIXELS]) == 1, "the image has changed"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "I;16"])
def test_images_of_every_mode_are_read_with_their_visible_colours(tmp_path, mode):
    plain = Image.open(draw_image(tmp_path / "plain.png"))
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.fromarray(np.array(plain.convert("L")).astype(np.uint16) * 256 + 17).save(path)
    else:
        (plain.quantize() if mode == "P" else plain.convert(mode)).save(path)
    converted_mode = {"L": "L", "LA": "L", "I;16": "L", "1": "1"}.get(mode, "RGB")
    pixels, expected = read_image(path), np.array(plain.convert(converted_mode).convert("RGB"))
    assert pixels.shape == (30, 40, 3) and pixels.dtype == np.uint8 and np.ptp(pixels) > 20
    assert np.abs(pixels.astype(int) - expected).max() <= (40 if mode == "CMYK" else 1)


def test_an_exif_orientation_does_not_rotate_the_image(tmp_path):
    path = draw_image(tmp_path / "plain.png")
    tags = Image.Exif()
    tags[0x0112] = 6  # orientation: a quarter turn
    with Image.open(path) as image:
        image.save(tmp_path / "turned.png", exif=tags)
    with Image.open(tmp_path / "turned.png") as image:
        assert image.getexif()[0x0112] == 6
    assert np.array_equal(read_image(tmp_path / "turned.png"), read_image(path))


def test_images_of_formats_that_are_not_accepted_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(UnusableMedia, match="it is not an image"):
        read_image(tmp_path / "x.tiff")


def spoil(root):
    """Damage each of the four images differently: text, empty, truncated, missing."""
    folder = root / "images"
    (folder / "11.jpg").write_text("no image")
    (folder / "12.jpg").write_bytes(b"")
    whole = draw_image(folder / "13.jpg", size=(300, 200)).read_bytes()
    (folder / "13.jpg").write_bytes(whole[: len(whole) - 300])
    (folder / "14.jpg").unlink()


def test_all_missing_and_unreadable_images_are_reported_before_the_start(root):
    images(root / "images", ["15"])
    put(root, entries([*NAMES, "15"]))
    spoil(root)
    for _ in range(2):  # bad files are not cached as good
        message = problems(root)
        assert "no file for 1 image: 14" in message and "missing_images: skip" in message
        assert (
            "11.jpg (slot frame): cannot be read: it is not an image." in message
            and "12.jpg (slot frame): cannot be read: the file is empty." in message
        )
        assert "13.jpg (slot frame): cannot be read: it is cut off or damaged (" in message and "15.jpg" not in message


def test_missing_or_unreadable_images_are_skipped_if_configured(root):
    images(root / "images", ["15"])
    put(root, entries([*NAMES, "15"]))
    spoil(root)
    dataset = build_dataset(root, missing_images="skip")
    assert dataset.names() == ["15"] and not dataset.problems()
    (note,) = dataset.notes
    assert "1 images have no file, 3 cannot be read" in note and "11, 12, 13, 14" in note
    put(root, entries(NAMES))
    assert "leaves no images" in refusal(root, missing_images="skip")


def test_a_folder_without_any_of_the_images_is_reported_with_one_name(root):
    (root / "other").mkdir()
    message = problems(root, image_path="other")
    assert "no file for all 4 images, such as '11'" in message and "12" not in message.replace(str(root), "")
    assert "flickr.image_path: no folder" in refusal(root, image_path="absent")


def test_an_image_that_vanishes_during_a_run_is_named_in_the_error(root):
    shapes = SHAPES | {"image": SlotShape(32, 768, cache_folder=str(root / "cache"))}
    for dataset in (build_dataset(root), build_dataset(root, shapes=shapes)):
        os.rename(root / "images/12.jpg", root / "gone")
        with pytest.raises(UserError, match=r"12\.jpg"):
            dataset.record(1, "caption", "")
        os.rename(root / "gone", root / "images/12.jpg")


def test_images_are_refused_for_a_model_without_an_image_encoder(root):
    assert "model.vit_weights" in refusal(root, shapes={"image": SlotShape(64, 176)})


# Captions


def test_invalid_entries_are_reported_all_at_once(root):
    tree = entries(NAMES)
    tree += [entries(["11"])[0], {"caption": "A."}, {"image_id": "../x", "caption": "A."}, {"image_id": "9", "captions": "A."}]
    tree += [{"image_id": True, "caption": "A."}, "text", {"image_id": "8", "caption": "", "captions": []}]
    put(root, {"annotations": tree})
    message = problems(root)
    for number, expected in enumerate(
        ("annotations[0] already has the image '11'", "with image_id", "outside its folder", "must be a list of texts")
    ):
        assert any(f"annotations[{4 + number}]" in line and expected in line for line in message.splitlines())
    assert (
        "annotations[8]: expected the name or number of an image, got True" in message
        and "annotations[9]: expected an object" in message
    )
    assert "no captions for 1 image: 8" in message
    put(root, {"annotations": [*tree[:4], tree[-1]]})
    assert not build_dataset(root, exclude=["8"]).problems()


def test_invalid_entries_of_cocos_format_are_reported_all_at_once(root):
    tree = coco(NAMES)
    tree["images"] += [{"id": 0, "file_name": "15.jpg"}, {"id": 50, "file_name": "../a.jpg"}, {"id": 51, "file_name": "11.png"}]
    tree["images"] += [{"id": 52, "file_name": "plain"}, {"id": 53}, {"id": 54, "file_name": "99.jpg"}]
    tree["annotations"] += [{"image_id": 70, "caption": "A."}, {"image_id": 71, "caption": "A."}, {"image_id": 1, "caption": 5}]
    put(root, tree)
    message = problems(root)
    assert (
        "images[4]: the id 0 already belongs to '11.jpg'" in message
        and "images[5]: the clip name '../a' points outside" in message
    )
    assert (
        "images[6]: images[0] already has the image '11'" in message
        and "images[7]: file_name must be the name of a file with an extension, got 'plain'" in message
    )
    assert "images[8]: expected an object with id and file_name" in message and "2 image_ids: 70, 71" in message
    assert "annotations[22]: a caption must be text, got '5'" in message and "no captions for 1 image: 99" in message


def test_of_many_problems_the_first_ten_and_a_count_are_reported(root):
    put(root, entries(NAMES) + [{"image_id": f"../{number}", "caption": "A."} for number in range(300)])
    reported = build_dataset(root).problems()
    assert len(reported) == 11 and "annotations[4]" in reported[0].text and "290 more invalid entries" in reported[-1].text
    assert len(reported[-1].clips) == 290 and max(len(problem.text) for problem in reported) < 400


def test_a_coco_object_file_without_captions_is_refused_in_one_line(root):
    put(root, coco(NAMES) | {"annotations": [{"id": number, "image_id": 0, "bbox": [1, 2, 3, 4]} for number in range(300)]})
    message = refusal(root)
    assert """none of the 300 "annotations" has a "caption", as in COCO\'s files of objects""" in message and "\n" not in message


def test_cocos_format_without_its_images_is_reported_in_one_line(root):
    put(root, coco([*NAMES, "15"])["annotations"])
    images(root / "images", "01234")
    (reported,) = build_dataset(root).problems()
    assert (
        'several entries for 5 image_ids: 0, 1, 2, 3, 4. The file seems to have COCO\'s format, but no "images"' in reported.text
    )


@pytest.mark.parametrize("entry", [{"id": 2}, {"id": 2, "file_name": "plain"}, {"file_name": "13.jpg"}, "13.jpg"])
def test_an_invalid_image_is_reported_once_and_not_for_its_captions_too(root, entry):
    tree = coco(NAMES)
    tree["images"][2] = entry
    put(root, tree)
    (reported,) = build_dataset(root).problems()
    assert "images[2]" in reported.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"x": 1}', "expected"),
        ("[]", "no image or no usable entry"),
        ('[{"image_id": "../1", "caption": "a"}]', "The first problem"),
        ("[{", "not valid JSON"),
        ('{"images": [{"filename": "1.jpg", "sentences": []}]}', "emollama prepare flickr30k"),
    ],
)
def test_files_of_an_unknown_format_are_refused(root, text, expected):
    (root / "captions.json").write_text(text)
    message = refusal(root)
    assert "captions.json" in message and expected in message


def test_names_to_exclude_must_be_listed(root):
    assert build_dataset(root, exclude=["12"]).names() == ["11", "13", "14"]
    assert "flickr.exclude contains 1 image: 77" in refusal(root, exclude=["12", "77"]) and "77" in refusal(root, exclude=["77"])
    assert "exclude removes all images (4 in total)" in refusal(root, exclude=list(NAMES))


WORDED_WRONGLY = [
    {"instructions": {"caption": ["<ImageHere> or <ImageHere>?"]}},
    {"instructions": {"caption": ["What?", "<imagehere> What?"]}},
    {"instructions": {"captions": ["What?"]}},
    {"instructions": {"caption": []}},
]


@pytest.mark.parametrize("keys", [{"batch_size": 0}, {"sample_ratio": 0}, {"held_out": 1.0}, {"max_words": 0}, *WORDED_WRONGLY])
def test_invalid_values_are_refused_with_their_key(root, keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        config(root, **keys)


def test_instructions_of_another_type_are_refused_with_the_expected_type(tmp_path, root):
    tree = golden_tree(tmp_path)
    block = {"type": "flickr30k_caption", "annotation_file": "captions.json", "image_path": "images"}
    tree["datasets"] = {"flickr": block | {"instructions": ["What?"]}}
    with pytest.raises(UserError, match=r"flickr\.instructions': expected a mapping to lists of texts, got \['What\?'\]"):
        loaded(tmp_path, tree)


# Images without captions


@pytest.mark.parametrize("form", ["list", "empty", "coco"])
def test_images_without_captions_are_accepted_in_evaluation_and_refused_in_training(root, form):
    tree = {
        "list": [{"image_id": name} for name in NAMES],
        "empty": {"annotations": [{"image_id": name, "caption": "", "captions": []} for name in NAMES]},
        "coco": coco(NAMES) | {"annotations": []},
    }[form]
    put(root, tree)
    dataset = build_dataset(root, training=False)
    assert not dataset.problems() and not dataset.has_reference("caption")
    assert dataset.notes == ["flickr: images without captions get predictions, but no scores (4 images: 11, 12, 13, 14)"]
    for choice in ("joined", "first", "random"):
        record = build_dataset(root, training=False, captions=choice).record(0, "caption", "")
        assert record.reference is None and record.turns == [("", None)]
    assert "no captions for 4 images: 11, 12, 13, 14" in problems(root) and not build_dataset(root).notes


def test_images_without_captions_can_be_captioned_from_a_list_of_names(tmp_path):
    world = make_flickr_world(tmp_path / "world")
    annotated = json.loads(world.test.read_text())["annotations"]
    names = [entry["image_id"] for entry in annotated]
    (tmp_path / "mine.json").write_text(json.dumps([{"image_id": name} for name in names]))
    (tmp_path / "half.json").write_text(json.dumps([*annotated[:3], *({"image_id": name} for name in names[3:])]))
    block = {"type": "flickr30k_caption", "image_path": str(world.images), "max_new_tokens": 4, "caption_tokenizer": "treebank"}
    blocks = {name: block | {"annotation_file": str(tmp_path / f"{name}.json")} for name in ("mine", "half")}
    blocks["half"]["metrics"] = ["bleu_1"]
    tree = {"model": world.model(), "evaluation_datasets": blocks, "run": {"device": "cpu", "amp": False}}
    tree["run"]["output_dir"] = str(tmp_path / "out")
    (tmp_path / "eval.yaml").write_text(json.dumps(tree))
    evaluate.run(parse_run("", ["--cfg-path", str(tmp_path / "eval.yaml")]))

    def answers(label):
        (path,) = (tmp_path / "out").rglob(f"predictions_{label}.jsonl")
        (metrics,) = (tmp_path / "out").rglob(f"metrics_{label}.json")
        return [json.loads(line) for line in path.read_text().splitlines()], json.loads(metrics.read_text())

    predictions, metrics = answers("mine")
    assert [row["name"] for row in predictions] == sorted(names)
    assert {(row["reference"], row["target"], row["loss"]) for row in predictions} == {(None, None, None)}
    assert "bleu_1" not in json.dumps(metrics)
    predictions, metrics = answers("half")
    assert [row["name"] for row in predictions if row["reference"]] == sorted(names[:3]) and "bleu_1" in json.dumps(metrics)


# check-data


@pytest.fixture
def examined(tmp_path, root):
    """A function that checks a configuration of the images and returns the report; the model has the golden encoder."""

    def report(evaluation=None, **keys):
        """Return the report. ``evaluation`` contains keys of an evaluation block; None trains on the images."""
        tree = golden_tree(tmp_path)
        tree["model"] |= {"vit_weights": str(GOLDEN / "vision/eva_tiny.safetensors"), "vit_precision": "fp32"}
        block = dataclasses.asdict(config(root, **keys)) | {"type": "flickr30k_caption"}
        groups = ("datasets", "evaluation_datasets") if evaluation is None else ("evaluation_datasets", "datasets")
        tree[groups[0]] = {"flickr": block | (evaluation or {})}
        del tree[groups[1]]
        return check(loaded(tmp_path, tree))

    return report


def test_check_data_measures_captions_and_images(examined):
    report = examined(instructions={"caption": ["Describe it in a word.", "What?"]})
    (block,) = report.blocks
    assert not report.of_level("problem"), text_of(report)
    assert block.clips == block.listed == 4 and block.answers == {"caption": 4} and block.list_file.endswith("captions.json")
    assert [row.what for row in block.lengths] == ["answers of caption", "prompts"]
    assert block.lengths[0].texts == 4 and block.lengths[1].texts == 2 and block.reading.clips_measured == 4
    (row,) = block.arrays
    assert (row.present, row.missing, row.unusable) == (4, 0, 0) and row.slots == (PIXELS,)
    assert "answers of caption" in text_of(report)


def test_check_data_reports_problems_of_images_and_odd_captions(examined, root):
    images(root / "images", ["15", "16"])
    tree = entries([*NAMES, "15", "16"])
    tree[4]["captions"] = tree[4]["captions"][:4]
    tree[5] |= {key: tree[0][key] for key in ("caption", "captions")}
    put(root, tree)
    spoil(root)
    report = examined()
    kinds = {finding.kind: finding.clips for finding in report.of_level("problem")}
    assert kinds["missing features"] == ("14",)
    assert {name for finding in report.of_level("problem") for name in finding.clips} == set(NAMES)
    notes = {finding.kind: finding for finding in report.of_level("note")}
    assert notes["captions"].details == ("15 (4)",) and notes["repeated caption"].clips == ("11", "16")
    report = examined(missing_images="skip")
    assert not report.of_level("problem") and "3 cannot be read" in text_of(report)


def test_check_data_reports_captions_that_would_be_cut(examined, root):
    tree = entries(NAMES)
    tree[3]["caption"] = "square " * 2000
    put(root, tree)
    (cut,) = [finding for finding in examined().of_level("problem") if finding.kind == "answers cut"]
    assert cut.clips == ("14",)
    for metrics, kinds in ([], ["answers cut"]), (["loss", "bleu_1"], ["answers cut"]), (["bleu_1"], []):
        report = examined(evaluation={"metrics": metrics})
        assert [finding.kind for finding in report.of_level("problem")] == kinds and report.blocks[0].lengths[0].cut == 1


def test_check_data_notes_images_without_captions_in_an_evaluation(examined, root):
    put(root, [*entries(NAMES[:3]), {"image_id": "14"}])
    assert [finding.kind for finding in examined().of_level("problem")] == ["caption"]
    report = examined(evaluation={})
    assert not report.of_level("problem") and "get predictions, but no scores (1 image: 14)" in text_of(report)
