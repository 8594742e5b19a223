"""The invented videos, the tiny encoders, and the README's commands from a folder of videos to answers."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import av
import pytest
import torch
from readme_commands import commands_of_the_readme, run_in_forks, words_of
from safetensors import safe_open
from transformers import HubertModel, VideoMAEModel, ViTMAEModel

from emollama.demo.tiny_encoders import make_tiny_encoders
from emollama.demo.videos import LOOKS, SIZES, draw_texts, make_videos


@pytest.fixture(scope="module")
def videos_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    make_videos(folder, clips=12, unseen=6, seed=1)
    return folder


@pytest.mark.slow
def test_every_video_has_pictures_and_sound(videos_folder):
    videos = sorted([*videos_folder.glob("videos/*.mp4"), *videos_folder.glob("unseen/*.mp4")])
    assert len(videos) == 18
    for path in videos:
        with av.open(str(path)) as container:
            assert 0.9 < container.duration / av.time_base < 2.2
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert (pictures[0].shape[1], pictures[0].shape[0]) in SIZES
            container.seek(0)
            assert sum(frame.samples for frame in container.decode(audio=0)) > 10_000


def test_the_table_names_every_video_and_all_emotions_alike(videos_folder):
    rows = list(csv.DictReader((videos_folder / "labels.csv").open()))
    assert [row["name"] for row in rows] == sorted(path.stem for path in videos_folder.glob("videos/*.mp4"))
    assert all([row["emotion"] for row in rows].count(emotion) == 2 for emotion in LOOKS)
    assert {path.stem for path in videos_folder.glob("unseen/*.mp4")} == {f"{emotion}_1" for emotion in LOOKS}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(videos_folder, tmp_path):
    make_videos(tmp_path / "again", clips=3, unseen=1, seed=1)
    for name in ("videos/clip_000.mp4", "videos/clip_001.mp4", "videos/clip_002.mp4", "unseen/happy_1.mp4"):
        assert (videos_folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    make_videos(tmp_path / "other", clips=1, unseen=0, seed=2)
    assert (videos_folder / "videos/clip_000.mp4").read_bytes() != (tmp_path / "other/videos/clip_000.mp4").read_bytes()


def test_the_readme_says_that_everything_is_invented_and_that_the_encoders_are_untrained(videos_folder):
    text = (videos_folder / "README.txt").read_text()
    assert "invented" in text
    assert "untrained" in text


def test_a_colour_leaves_two_emotions_and_the_pitch_decides():
    assert len({colour for colour, _, _ in LOOKS.values()}) == len(LOOKS) / 2
    assert len({(colour, pitch) for colour, _, pitch in LOOKS.values()}) == len(LOOKS)


def test_texts_tell_what_goes_with_what():
    texts = draw_texts(0, 200)
    assert {text.rpartition(" ")[2] for text in texts} == set(LOOKS)
    assert all(" ".join(LOOKS[text.rpartition(" ")[2]]) in text for text in texts)


def test_the_tiny_encoders_are_of_the_real_classes_and_complete(tmp_path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    make_tiny_encoders(tmp_path / "one", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, kind in (("hubert", HubertModel), ("mae", ViTMAEModel), ("videomae", VideoMAEModel)):
        _, loading_info = kind.from_pretrained(tmp_path / "one" / name, output_loading_info=True)
        assert not loading_info["missing_keys"]
        assert not loading_info["unexpected_keys"]
    with safe_open(tmp_path / "one/eva_vit.safetensors", "pt") as file:
        assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.attn.q_bias"} <= set(file.keys())
    make_tiny_encoders(tmp_path / "two", seed=1)
    for path in (tmp_path / "one").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a guard against hanging
def test_the_readmes_five_commands_lead_from_videos_to_answers_about_unseen_ones(tmp_path, launch):
    commands = commands_of_the_readme("--videos-only")
    assert len(commands) <= 5
    outputs = [run_in_forks(words_of(command), tmp_path, launch).stdout for command in commands]
    assert re.search(r"^  emotion +\w+$", outputs[-1], re.MULTILINE)
    _, *arguments = shlex.split(commands[-1])
    position = arguments.index("--video") + 1
    everyone = [str(path) for path in sorted(tmp_path.glob("demo_videos/unseen/*.mp4"))]
    predicted = launch("-m", "emollama", *arguments[:position], *everyone, *arguments[position + 1 :], "--json", cwd=tmp_path)
    answers = [json.loads(line) for line in predicted.stdout.splitlines()]
    right = [Path(answer["video"]).name.startswith(f"{answer['answer']}_") for answer in answers]
    assert len(right) == 18
    assert sum(right) / len(right) >= 0.8  # chance is one in six
