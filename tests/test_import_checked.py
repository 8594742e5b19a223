"""The output of every importer passes check-data once its clips have features."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import FOLDERS, GOLDEN, loaded
from importing import listed, run, write_file

from emollama.checks.check_data import check

NAMES = ("00012", "clip_b", "clip_c")


def mer_factory(folder):
    for name in NAMES:
        record = {
            "chronological_emotion_peaks": [f"Peak at {1 + number}.5s: angry (slight)" for number in range(2)],
            "overall_peak_frame_info": {"frame_number": 45, "timestamp": 1.5, "top_aus_intensities": {"AU04_r": 1.1}},
            "coarse_descriptions_at_peak": {"audio_analysis": f"The voice of {name} is loud."},
            "final_summary": f"The brow of {name} is low.",
        }
        write_file(folder / f"{name}_merr_data.json", json.dumps(record))
    return [folder]


def mertools(folder):
    folder.mkdir()
    np.savez_compressed(folder / "labels.npz", train_corpus={name: {"emo": "sad", "val": -1.5} for name in NAMES})
    return [folder / "labels.npz", "--split", "train"]


def emer(folder):
    rows = "".join(f"{name},happy,Well,The lips of {name} rise.\n" for name in NAMES)
    return [write_file(folder / "truth.csv", "names,emotions,subtitles,reasons\n" + rows)]


def mer2024(folder):
    return [write_file(folder / "label.csv", "name,discrete,valence\n" + "".join(f"{name},worried,\n" for name in NAMES))]


def mer2025(folder):
    labels = "".join(f"{name},\"['sad', 'tired']\"\n" for name in NAMES)
    reasons = "".join(f"{name},The head of {name} drops.\n" for name in NAMES)
    return [
        write_file(folder / "words.csv", "name,openset\n" + labels),
        write_file(folder / "why.csv", "name,reason\n" + reasons),
    ]


def videos(folder):
    for name in NAMES:
        write_file(folder / "videos" / f"{name}.mp4", b"")
    rows = "".join(f"{name}.mp4,surprise,Oh,The eyes of {name} widen.\n" for name in NAMES)
    return [folder / "videos", write_file(folder / "labels.csv", "name,label,sentence,caption\n" + rows)]


@pytest.mark.parametrize(
    ("kind", "source", "tasks"),
    [
        ("mer-factory", mer_factory, ["emotion", "reason", "reason_v2"]),
        ("mertools", mertools, ["emotion"]),
        ("emer", emer, ["reason_v2"]),
        ("mer2024", mer2024, ["emotion"]),
        ("mer2025", mer2025, ["reason_v2"]),
        ("videos", videos, ["emotion", "reason"]),
    ],
)
def test_the_output_of_every_importer_passes_check_data(tmp_path, kind, source, tasks):
    folder = tmp_path / "imported"
    transcripts = write_file(tmp_path / "words.csv", "name,sentence\n" + "".join(f"{name},Well\n" for name in NAMES))
    run(kind, *source(tmp_path / "source"), "--transcripts", transcripts, "--output", folder)
    generator = np.random.default_rng(5)
    for slot, slot_folder in FOLDERS.items():
        (folder / slot_folder).mkdir()
        for name in NAMES:
            np.save(folder / slot_folder / f"{name}.npy", generator.normal(size=(65, 176) if slot == "image" else 1024))
    block = {"type": "feature_face_caption", "data_root": str(folder), "annotation_file": "clips.txt", "task_pool": tasks}
    model = {"arch": "minigpt_v2", "llama_model": str(GOLDEN / "llama"), "slot_dims": {"image": 176}, "image_size": 112}
    report = check(loaded(tmp_path, {"model": model, "datasets": {kind: block}, "run": {"output_dir": str(tmp_path / "out")}}))
    assert report.of_level("problem") == []
    (figures,) = report.blocks
    assert figures.clips == len(NAMES) == len(listed(folder)) and figures.answers == dict.fromkeys(tasks, len(NAMES))
    assert figures.sentences["clips"] == len(NAMES) and [row.present for row in figures.arrays] == [len(NAMES)] * len(FOLDERS)
