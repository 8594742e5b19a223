"""``emollama predict``: its answers equal those of an evaluation, and it reports the inputs of the model."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass, replace

import av
import numpy as np
import pytest
from media_files import cut
from video_world import CLIPS, make_world, only, sentences

from emollama import config
from emollama.commands import predict as predict_command
from emollama.data.dataset import ClipsToPredict
from emollama.data.slots import SlotShape
from emollama.datasets.configs import CustomConfig
from emollama.datasets.custom import Custom
from emollama.errors import UserError
from emollama.inference.predict import dry_run, predict
from emollama.inference.requests import Modality
from emollama.inference.videos import UNNAMED, VideoSources, plan_extraction, require_videos


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder of invented videos, their features, and a model that was trained on them for two steps."""
    root = tmp_path_factory.mktemp("predict")
    make_world(root)
    return root


@pytest.fixture(scope="module")
def happy(world):
    """The answer to one video with the unchanged configuration."""
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"])
    return answer


def ask(root, videos, *options, **arguments):
    """Return the answers to videos with the folder's configuration and these options."""
    return predict(config.load(str(root / "config.yaml"), list(options)), [str(video) for video in videos], **arguments)


def checked(root, videos, *options):
    """Return the output of ``emollama predict --dry-run``."""
    settings = config.load(str(root / "config.yaml"), list(options))
    return dry_run(settings, [str(video) for video in videos], text=None, task=None, question=None, processes=1)


def evaluated(root, *options, job="answers"):
    """Run an evaluation and return its rows of predictions by name."""
    cfg = config.load(str(root / "config.yaml"), [*options, f"run.job_id={job}"])
    cfg.runner_class(cfg, training=False).evaluate()
    lines = (root / f"out/{job}/result/predictions_answers.jsonl").read_text().splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def write_clip(path, *, sound):
    """Write a short video of noise, with or without sound."""
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for _ in range(8):
            picture = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(rng.normal(0, 0.1, (1, 1024)).astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


@pytest.mark.parametrize(
    ("name", "options"), [(CLIPS[0], ()), (CLIPS[1], ("evaluation_datasets.answers.prompt_layout=upstream_eval",))]
)
def test_the_answer_to_a_video_equals_that_of_the_evaluation_of_its_clip(world, name, options):
    rows = evaluated(world, *options)
    (answer,) = ask(world, [world / f"videos/{name}.mp4"], *options, text=sentences(world)[name])
    assert answer.prompt == rows[name]["instruction"]
    assert answer.text == rows[name]["prediction"]
    assert answer.label_probabilities == pytest.approx(rows[name]["label_probabilities"], abs=1e-6)
    assert len({tuple(row["label_probabilities"].values()) for row in rows.values()}) == len(CLIPS)


def test_a_generated_answer_equals_that_of_the_evaluation(world):
    options = ["evaluation_datasets.answers.answer_by=generate", "evaluation_datasets.answers.max_new_tokens=8"]
    rows = evaluated(world, *options, job="generated")
    (answer,) = ask(world, [world / f"videos/{CLIPS[0]}.mp4"], *options, text=sentences(world)[CLIPS[0]])
    assert answer.text == rows[CLIPS[0]]["prediction"]
    assert answer.label_probabilities is None


@pytest.mark.slow
def test_several_videos_are_answered_in_their_order(world, happy):
    videos = [world / "unseen/happy_1.mp4", world / f"videos/{CLIPS[2]}.mp4", world / f"videos/{CLIPS[0]}.mp4"]
    together = ask(world, videos)
    assert together[0].label_probabilities == pytest.approx(happy.label_probabilities, abs=1e-6)
    assert len({tuple(answer.label_probabilities.values()) for answer in together}) == 3


def test_all_modalities_of_a_whole_video_are_real(happy):
    assert {slot: modality.state for slot, modality in happy.modalities.items()} == dict.fromkeys(
        ("image", "cls", "face", "video", "audio"), "real"
    )


def test_the_audio_of_a_silent_video_is_zero_with_a_reason(world, tmp_path):
    write_clip(tmp_path / "silent.mp4", sound=False)
    left = only("eva", "hubert")
    (answer,) = ask(world, [tmp_path / "silent.mp4"], *left)
    assert answer.modalities["audio"].state == "zero"
    assert "no audio" in answer.modalities["audio"].why
    (masked,) = ask(world, [tmp_path / "silent.mp4"], *left, "evaluation_datasets.answers.mask_slots=[audio]")
    assert masked.label_probabilities == pytest.approx(answer.label_probabilities, abs=1e-6)


def test_a_modality_without_an_encoder_is_reported_as_missing(world):
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"], *only("videomae"))
    assert answer.modalities["audio"].state == "missing"
    assert "zeros" in answer.modalities["audio"].why
    assert answer.modalities["video"].state == "real"


def test_a_modality_that_only_the_configuration_declares_is_listed(world):
    gaze = ["model.slots.gaze.dim=7", "evaluation_datasets.answers.features.gaze=gaze_npy"]
    gaze.append("model.ckpt_allow_missing=['feats_llama_proj_gaze.*']")
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"], *only("videomae"), *gaze)
    assert list(answer.modalities) == ["image", "cls", "face", "video", "audio", "gaze"]
    assert answer.modalities["gaze"].state == "missing" and "computes gaze features" in answer.modalities["gaze"].why


def test_a_slot_that_the_block_leaves_empty_is_empty_for_a_video_too(world):
    shapes = {"face": SlotShape(1, 64), "gaze": SlotShape(1, 7)}
    cfg = CustomConfig(annotation_file="labels.csv", features={"image": None, "face": "x", "video": None, "audio": None})
    clips = ClipsToPredict(["clip_000"], "emotion", None, {"face": str(world / "features/face")})
    record = Custom.for_clips(cfg, clips, slot_shapes=shapes, block_path="b").record(0, "emotion", "?")
    assert {slot: len(vectors) for slot, vectors in record.features.items()} == {"face": 1, "gaze": 0}


def online(world, *more):
    """Return options with which the model encodes frames itself."""
    block = "evaluation_datasets.answers"
    paths = [f"{block}.image_path={world / 'videos'}", f"{block}.image_feature_path=null"]
    return [f"model.vit_weights={world / 'encoders/eva_vit.safetensors'}", "model.vit_precision=fp32", *paths, *more]


def test_a_modality_without_an_encoder_is_missing_also_if_frames_are_encoded_by_the_model(world):
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"], *online(world, *only("mae")))
    assert answer.modalities["image"] == Modality("real", "model.vit_weights")
    assert answer.modalities["audio"].state == "missing"
    assert "no block under 'encoders'" in answer.modalities["audio"].why


def test_a_truncated_video_is_reported_with_zero_modalities_and_the_reason(world, tmp_path):
    whole = (world / "unseen/happy_1.mp4").read_bytes()
    (tmp_path / "whole.mp4").write_bytes(whole)
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "cut.mkv"), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    cut(tmp_path / "cut.mkv", 0.5)
    reason = r"image: zero, encoders.eva: only .* seconds of its video exist.*; the same for cls, face, video"
    with pytest.raises(UserError, match=reason):
        ask(world, [tmp_path / "cut.mkv"])


def test_a_modality_without_a_feature_path_in_the_block_is_missing(world):
    (answer,) = ask(
        world, [world / "unseen/happy_1.mp4"], "evaluation_datasets.answers.face_feature_path=null", *only("eva", "mae")
    )
    assert answer.modalities["face"].state == "missing"
    assert "answers has no face features" in answer.modalities["face"].why


def test_a_masked_slot_is_reported_as_zero(world):
    (answer,) = ask(
        world, [world / "unseen/happy_1.mp4"], "evaluation_datasets.answers.mask_slots=[video]", *only("eva", "videomae")
    )
    assert answer.modalities["video"].state == "zero"
    assert "mask_slots" in answer.modalities["video"].why


def test_the_default_sentence_is_empty_if_the_clips_have_sentences(happy):
    assert happy.sentence == ""
    assert "The person in video says: .  [emotion]" in happy.prompt


def test_there_is_no_default_sentence_if_the_clips_have_no_sentences(world, tmp_path):
    (tmp_path / "names.csv").write_text("name,emotion\nclip_000,happy\n")
    option = f"evaluation_datasets.answers.annotation_file={tmp_path / 'names.csv'}"
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"], option, *only("mae"))
    assert answer.sentence is None
    assert "The person in video says" not in answer.prompt


def test_frames_encoded_by_the_model_give_the_same_answer_as_extracted_features(world, happy):
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"], *online(world, "encoders.eva=null"))
    assert answer.modalities["image"].state == "real"
    assert answer.label_probabilities == pytest.approx(happy.label_probabilities, abs=1e-4)


def test_the_data_of_the_selected_block_may_be_missing(world, happy):
    (away,) = ask(world, [world / "unseen/happy_1.mp4"], "evaluation_datasets.answers.data_root=gone", text="")
    assert away.label_probabilities == pytest.approx(happy.label_probabilities, abs=1e-6)


def test_a_task_of_another_block_uses_the_instructions_of_that_block(world):
    options = ["datasets.clips.task_pool=[reason]", "datasets.clips.instructions={reason: [Tell why.]}"]
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"], *options, *only("mae"), task="reason")
    assert answer.task == "reason"
    assert "[reason] Tell why." in answer.prompt


def test_a_video_of_the_extraction_has_its_clip_name_peak_frame_and_face_folder(world, tmp_path):
    (tmp_path / "peaks.csv").write_text("name,peak_index\nsub/a.b,3\n")
    videos = tmp_path / "videos"
    for path in (videos / "sub/a.b.mp4", tmp_path / "a.b.mp4", tmp_path / "again/a.b.mp4", tmp_path / "line\nbreak.mp4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((world / "unseen/happy_1.mp4").read_bytes())
    options = [f"extraction.videos={videos}", f"extraction.peak_index_path={tmp_path / 'peaks.csv'}"]
    options.append(f"extraction.face_path={tmp_path}")
    cfg = config.load(str(world / "config.yaml"), options)
    paths = [videos / "sub/../sub/a.b.mp4", tmp_path / "a.b.mp4", tmp_path / "again/a.b.mp4", tmp_path / "line\nbreak.mp4"]
    sources = [VideoSources(cfg).source(path) for path in paths]
    assert [source.name for source in sources] == ["sub/a.b", "a.b", "a.b", UNNAMED]
    assert [source.peak for source in sources] == [3, None, None, None]
    assert {source.faces for source in sources} == {tmp_path}


def test_another_video_with_the_file_name_of_a_clip_has_neither_its_peak_nor_its_faces(world, tmp_path):
    (tmp_path / "peaks.csv").write_text("name,peak_index\nclip_000,3\n")
    options = [f"extraction.peak_index_path={tmp_path / 'peaks.csv'}", f"extraction.face_path={tmp_path}"]
    sources = VideoSources(config.load(str(world / "config.yaml"), options))
    clip, other = world / "videos/clip_000.mp4", tmp_path / "clip_000.mp4"
    other.write_bytes(clip.read_bytes())
    assert [sources.source(path).peak for path in (clip, other)] == [3, 3]
    other.write_bytes((world / "videos/clip_001.mp4").read_bytes())
    assert (sources.source(other).name, sources.source(other).peak, sources.source(clip).peak) == (UNNAMED, None, 3)


def test_the_block_of_another_extractor_needs_only_the_keys_that_all_extractors_have(world, tmp_path):
    @dataclass
    class Other:
        videos: str
        output: str
        device: str = "auto"
        num_workers: int = 1

    cfg = config.load(str(world / "config.yaml"), only("mae"))
    cfg = replace(cfg, extraction=Other(str(world / "unseen"), "elsewhere"))
    (job,) = plan_extraction(cfg, {"face"}, tmp_path)
    assert VideoSources(cfg).source(world / "unseen/happy_1.mp4").name == "happy_1" and job.arrays.folder.parent == tmp_path


def test_an_unknown_peak_frame_gives_zero_modalities_with_the_remedy(world, tmp_path):
    (tmp_path / "peaks.csv").write_text("name,peak_index\nother,3\n")
    block = "evaluation_datasets.answers"
    options = [f"{block}.frame_selection=peak", f"{block}.peak_index_path={tmp_path / 'peaks.csv'}"]
    options.append("run.allow_other_features=True")
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"], *online(world, *only("mae"), *options))
    assert (answer.modalities["image"].state, answer.modalities["cls"].state) == ("zero", "zero")
    why = answer.modalities["image"].why
    assert "peak" in why and f"'happy_1' to {block}.peak_index_path" in why and f"{block}.frame_selection=middle" in why


def test_an_unknown_peak_of_a_feature_is_reported_with_the_remedy(world, tmp_path):
    (tmp_path / "peaks.csv").write_text("name,peak_index\nother,3\n")
    peaks = f"extraction.peak_index_path={tmp_path / 'peaks.csv'}"
    options = [peaks, "encoders.eva.frame_selection=peak", "run.allow_other_features=True", *only("eva", "mae")]
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"], *options)
    assert answer.modalities["image"].state == "zero"
    for word in ("the name 'happy_1' to extraction.peak_index_path", "encoders.eva.frame_selection=middle with run.allow_other"):
        assert word in answer.modalities["image"].why
    (tmp_path / "peaks.csv").write_text("name,peak_index\nhappy_1,3\n")
    (answer,) = ask(world, [world / "unseen/happy_1.mp4"], *options)
    assert answer.modalities["image"].state == "real"


# Errors before weights are loaded


@pytest.mark.parametrize(
    ("options", "arguments", "expected"),
    [
        ([], {"task": "emotions"}, "unknown task 'emotions'. Did you mean 'emotion'"),
        (["model.ckpt=null"], {}, "model.ckpt is null"),
        (["model.ckpt=gone.pth"], {}, "no file 'gone.pth'"),
        (["datasets=null", "evaluation_datasets=null"], {}, "no block under evaluation_datasets or datasets"),
        (["encoders.hubert.weights=gone"], {}, "encoders.hubert.weights"),
        (["model.slot_dims.audio=32"], {}, "audio"),
        (["encoders=null"], {}, "encoders: no block computes features of videos"),
        (["encoders.hubert.layers=[-2]"], {}, "layers"),
    ],
)
def test_an_unusable_configuration_is_refused(world, options, arguments, expected):
    with pytest.raises(UserError, match=expected.replace("[", r"\[")):
        ask(world, [world / "unseen/happy_1.mp4"], "model.llama_model=" + str(world / "llm"), *options, **arguments)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["model.ckpt=gone.pth"], "no file 'gone.pth'"),
        (["model.lora_r=3"], "lora"),
        (["model.llama_model=gone"], "model.llama_model"),
        (["encoders.hubert.weights=gone"], "encoders.hubert.weights"),
        (["encoders.mae.weights=gone"], "encoders.mae.weights"),
        (["model.slot_dims.audio=32"], "audio"),
    ],
)
def test_a_dry_run_reports_files_and_shapes_that_do_not_fit(world, options, expected):
    with pytest.raises(UserError, match=expected):
        checked(world, [world / "unseen/happy_1.mp4"], *options)


def test_a_missing_package_for_quantized_weights_is_reported_before_an_encoder_is_loaded(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("emollama.inference.predict.Engine", None)
    with pytest.raises(UserError, match="model.load_in_4bit needs the package bitsandbytes"):
        ask(world, [world / "unseen/happy_1.mp4"], "model.load_in_4bit=True")


def test_a_dry_run_names_the_block_the_encoders_and_the_checkpoint(world):
    before = sorted(world.rglob("*"))
    lines = checked(world, [world / "unseen/happy_1.mp4"], *only("mae")).splitlines()
    summary = dict(re.split(" {2,}", line) for line in lines[:-1])
    assert summary["block"] == "evaluation_datasets.answers" and summary["task"] == "emotion"
    assert summary["face"] == "encoders.mae" and "image" not in summary
    assert summary["checkpoint"].endswith(".pth") and sorted(world.rglob("*")) == before


def test_missing_video_files_are_reported_in_one_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        require_videos(["", "gone.mp4"])
    named = [f"no file '{name}' (current directory: {tmp_path}). Correct the path" for name in ("", "gone.mp4")]
    assert str(error.value) == f"--video: {'; '.join(named)}."


def test_a_file_that_is_not_a_video_is_rejected_first(world, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, expected in (("gone.mp4", "no file"), ("text.mp4", "text.mp4"), ("empty.mp4", "empty.mp4")):
        with pytest.raises(UserError, match=expected):
            ask(world, [tmp_path / name], "model.llama_model=gone", "encoders.mae.weights=gone")


def test_the_command_prints_one_json_object_per_video(world, capsys):
    videos = [str(world / "unseen/happy_1.mp4"), str(world / "unseen/sad_1.mp4")]
    command(world, "--json", "--video", *videos)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [first["video"], second["video"]] == videos
    assert set(first) == {"video", "task", "prompt", "sentence", "modalities", "answer", "label_probabilities"}
    assert first["modalities"]["audio"] == {"state": "real", "why": "encoders.hubert"}


@pytest.mark.slow
def test_two_processes_divide_the_videos_and_answer_like_one_process(world, launch, capsys):
    videos = [str(world / "unseen/happy_1.mp4"), str(world / "unseen/sad_1.mp4"), str(world / "videos/clip_000.mp4")]
    # One encoder, because each process would import and build all of them.
    arguments = ["--cfg-path", str(world / "config.yaml"), "--json", "--video", *videos, "--options", *only("mae")]
    result = launch("-m", "emollama", "predict", *arguments, processes=2)
    assert result.returncode == 0, result.stderr
    two = [json.loads(line) for line in result.stdout.splitlines()]
    command(world, *arguments[2:])
    one = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shares = [[answer.pop("label_probabilities") for answer in answers] for answers in (one, two)]
    assert two == one and len(one) == 3
    for left, right in zip(*shares, strict=True):
        assert right == pytest.approx(left, abs=1e-5)


def command(world, *arguments):
    """Run the command in this process."""
    parser = argparse.ArgumentParser()
    predict_command.add_arguments(parser)
    predict_command.run(parser.parse_args(["--cfg-path", str(world / "config.yaml"), *arguments]))


def test_the_command_prints_the_inputs_and_the_answer(world, capsys):
    video = str(world / "unseen/happy_1.mp4")
    command(world, "--video", video, "--text", "Well, yes")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == [video]
    assert ["audio", "real", "encoders.hubert"] in lines
    assert ["sentence", '"Well,', 'yes"'] in lines
    (answer,) = [line[1] for line in lines if line[0] == "emotion"]
    shares = {line[1]: float(line[0].rstrip("%")) for line in lines if line[0].endswith("%")}
    assert max(shares, key=shares.__getitem__) == answer
    assert sum(shares.values()) == pytest.approx(100, abs=1)


def test_the_command_asks_a_question_without_the_tag_of_a_task(world, capsys):
    arguments = ["--video", str(world / "unseen/happy_1.mp4"), "--question", "Is it calm?"]
    encoders = ["--options", *only("mae")]
    command(world, "--json", *arguments, *encoders)
    answer = json.loads(capsys.readouterr().out)
    assert answer["task"] is None and answer["prompt"].endswith("The person in video says: .  Is it calm? ")
    command(world, "--dry-run", *arguments, *encoders)
    assert dict(re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines()[:-1])["question"] == "Is it calm?"
    command(world, "--json", *arguments, "--task", "emotion", *encoders)
    assert "[emotion] Is it calm? " in json.loads(capsys.readouterr().out)["prompt"]


def test_one_text_for_several_videos_is_refused(world):
    videos = [str(world / "unseen/happy_1.mp4"), str(world / "unseen/sad_1.mp4")]
    with pytest.raises(UserError, match="Run the command once per video"):
        command(world, "--text", "Yes", "--video", *videos)
