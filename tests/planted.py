"""An invented corpus in MERR's format with a few faults of each kind planted in it."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

FEATURES = {"image": "eva", "face": "mae_340_UTT", "video": "maeV_399_UTT", "audio": "HL-UTT"}
LABELS = ("happy", "sad", "neutral", "angry", "worried", "surprise", "fear", "contempt", "doubt")
WIDTH = 1024
IMAGE = (1 + 64, 176)  # EVA features of image_size 112 and this width
TEST_CLIPS = 40
CUES = ("the brows rise", "the lips part", "the chin drops", "the eyes narrow", "the head turns", "the hands open")
TONES = ("bright", "low", "shaky", "sharp", "flat", "warm")
WORDS = ("we", "took", "the", "early", "train", "and", "nobody", "came", "home", "before", "dinner", "again")
_LONG = " ".join(f"then a {tone} voice answers while {cue}" for tone in TONES for cue in CUES)


class Planted:
    """Writes the corpus under a folder.

    Attributes:
        expected: (kind of finding, block's label or "") -> the clips that findings of this kind must name.
        config: path of a configuration with a training block and two evaluation blocks, one of them without a list.
    """

    def __init__(self, folder: Path, clips: int, llama: Path) -> None:
        self.folder = folder
        self.names = [f"clip_{number:08d}" for number in range(clips)]
        self.rng = np.random.default_rng(7)
        self.labels = {name: LABELS[int(self.rng.integers(len(LABELS)))] for name in self.names}
        self.expected: dict[tuple[str, str], set[str]] = {}
        self._values, self._used = self.rng.standard_normal(12 * (clips + TEST_CLIPS) + math.prod(IMAGE), np.float32), 0
        self._free = iter(self.names[3 : clips : max(1, clips // 120)])  # positions of the faults, spread over the list
        for feature in FEATURES.values():
            (folder / feature).mkdir(parents=True)
        self._arrays(self.names)
        self._list()
        self._captions()
        self._transcripts()
        self._broken_arrays()
        self._test_list()
        self.config = self._configuration(llama)

    def _plant(self, kind: str, block: str = "datasets.merr") -> str:
        name = next(self._free)
        self.expected.setdefault((kind, block), set()).add(name)
        return name

    def _arrays(self, names: list[str]) -> None:
        """Every kind of good array: float32 and float16, (1024,) and (1, 1024), and images."""
        shapes = (IMAGE, (WIDTH,), (1, WIDTH))
        headers = {(shape, dtype): _header(shape, dtype) for shape in shapes for dtype in ("<f4", "<f2")}
        sizes = {shape: math.prod(shape) for shape in shapes}
        for slot, feature in FEATURES.items():
            folder = os.fspath(self.folder / feature)
            for number, name in enumerate(names):
                shape = IMAGE if slot == "image" else (1, WIDTH) if number % 7 == 0 else (WIDTH,)
                dtype = "<f2" if number % 11 == 0 else "<f4"
                # Each array is another part of the same values, which takes a fraction of the time of new ones.
                values = self._values[self._used : self._used + sizes[shape]].astype(dtype)
                self._used += 3
                with open(f"{folder}/{name}.npy", "wb", buffering=0) as file:
                    file.write(headers[shape, dtype] + values.tobytes())

    def _list(self) -> None:
        rows = [f"{name} {20 + number % 90} {self.labels[name]}" for number, name in enumerate(self.names)]
        unknown = self._plant("label")
        rows[self.names.index(unknown)] = f"{unknown} 30 cheery"
        rows.append(rows[self.names.index(self._plant("list"))])
        rows += ["twofields 3 happy 1.5 rest", "../climbing 3 happy", "wrongcount happy sad"]
        self.expected["list", "datasets.merr"] |= {"twofields", "../climbing", "wrongcount"}
        (self.folder / "list.txt").write_text("\ufeff" + "\r\n".join(rows) + "\r\n\r\n", encoding="utf-8")

    def _captions(self) -> None:
        captions = {name: self._caption(name, number) for number, name in enumerate(self.names)}
        captions[empty := self._plant("caption")] = ""
        self.expected["empty caption", "datasets.merr"] = {empty}
        del captions[self._plant("caption")]
        captions[self._plant("refusal")] = "I'm sorry, but I cannot describe the emotion of the person in this clip."
        captions[self._plant("refusal")] = "As an AI language model, I am unable to watch the video."
        for own, other in (("happy", "angry"), ("sad", "surprise")):
            name = next(self._free)
            while self.labels[name] != own:
                name = next(self._free)
            captions[name] = f"In clip {name} the mouth is wide open and the whole posture speaks of {other}."
            self.expected.setdefault(("label and caption", "datasets.merr"), set()).add(name)
        captions[self._plant("empty answer")] = "* * *"
        for _ in range(2):
            captions[self._plant("repeated caption")] = "The same description stands here twice."
        captions["clip_of_nowhere"] = "A clip that no list names."
        self.expected["unlisted captions", "datasets.merr"] = {"clip_of_nowhere"}
        captions[self._plant("answers cut")] = _LONG
        content = {name: {"caption": text, "peak_index": "3"} for name, text in captions.items()}
        (self.folder / "MERR_coarse_grained.json").write_text(json.dumps(content), encoding="utf-8-sig")

    def _caption(self, name: str, number: int) -> str:
        cues = self.rng.choice(CUES, 2, replace=False)
        tone = TONES[int(self.rng.integers(len(TONES)))]
        return f"In clip {number} {cues[0]} and {cues[1]}, the voice is {tone}. It sounds {self.labels[name]} rather than calm."

    def _transcripts(self) -> None:
        sentences = {name: " ".join(self.rng.choice(WORDS, 9)) for name in self.names}
        for name in self.names[:2]:
            sentences[name] = ""
        sentences[self._plant("prompts cut")] = " ".join(WORDS * 40)
        del sentences[self._plant("transcript")]
        rows = [*sentences.items(), (self._plant("transcript"), "a second sentence"), ("", "whose is this?")]
        with (self.folder / "transcription_en_all.csv").open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, lineterminator="\r\n").writerows([("name", "sentence"), *rows])

    def _broken_arrays(self) -> None:
        def path(feature: str, name: str) -> Path:
            return self.folder / FEATURES[feature] / f"{name}.npy"

        def good(shape: int | tuple[int, ...] = WIDTH) -> np.ndarray:
            return self.rng.standard_normal(shape, np.float32)

        for feature in ("image", "face", "face", "audio"):
            path(feature, self._plant("missing features")).unlink()
        spoiled = good(IMAGE)
        spoiled[40, 7] = np.nan
        broken = {
            "image": [
                spoiled,
                good((1 + 16, IMAGE[1])),
                good((IMAGE[0], WIDTH)),
                good((2, *IMAGE)),
                good(IMAGE).astype(np.int32),
            ],
            "face": [np.where(np.arange(WIDTH) == 5, np.nan, good()).astype(np.float32), good()[:-1]],
            "video": [np.ones(WIDTH, np.int64), good().reshape(2, -1)],
            "audio": [np.where(np.arange(WIDTH) == 5, np.inf, good()).astype(np.float32), np.array([{}] * 3)],
        }
        for feature, arrays in broken.items():
            for array in arrays:
                np.save(path(feature, self._plant("unusable features")), array, allow_pickle=True)
        for feature in ("image", "video"):
            cut = path(feature, self._plant("unusable features"))
            cut.write_bytes(cut.read_bytes()[:-100])
        path("audio", self._plant("unusable features")).write_bytes(b"")
        np.save(path("face", self._plant("constant features")), np.zeros(WIDTH, np.float32))
        twins = [self._plant("same features") for _ in range(2)]
        for name in twins:
            np.save(path("audio", name), np.linspace(-1, 1, WIDTH, dtype=np.float32))
        np.save(path("video", "clip_of_nobody"), good())

    def _test_list(self) -> None:
        """Write new clips, two clips of the training list, and one of the training list under another name."""
        own = [f"test_{number:04d}" for number in range(TEST_CLIPS)]
        self._arrays(own)
        common = [self._plant("train/test overlap", "") for _ in range(2)]
        renamed = self._plant("train/test overlap", "")
        for feature in FEATURES.values():
            source, target = (self.folder / feature / f"{name}.npy" for name in (renamed, own[5]))
            target.write_bytes(source.read_bytes())
        rows = [f"{name} {LABELS[number % 9]}" for number, name in enumerate(own + common)]
        (self.folder / "test.txt").write_text("\n".join(rows), encoding="utf-8")

    def _configuration(self, llama: Path) -> Path:
        block = {"type": "feature_face_caption", "data_root": str(self.folder)}
        tested = block | {"annotation_file": "test.txt", "transcription_path": None}
        tree: dict[str, Any] = {
            "model": {
                "arch": "minigpt_v2",
                "llama_model": str(llama),
                "max_txt_len": 256,
                "max_context_len": 512,
                "slot_dims": {"image": IMAGE[1]},
                "image_size": 112,
            },
            "datasets": {"merr": block | {"annotation_file": "list.txt", "task_pool": ["emotion", "reason"]}},
            "evaluation_datasets": {"test": tested, "absent": tested | {"annotation_file": "absent.txt"}},
            "run": {"output_dir": str(self.folder / "out")},
        }
        self.expected["unreadable", "evaluation_datasets.absent"] = set()
        path = self.folder / "config.yaml"
        path.write_text(json.dumps(tree, indent=1), encoding="utf-8")
        return path


def not_found(expected: dict[tuple[str, str], set[str]], findings: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Faults that were planted but not reported, or reported but not planted, by kind."""
    reported: dict[tuple[str, str], set[str]] = {}
    for finding in findings:
        reported.setdefault((finding["kind"], finding["block"]), set()).update(finding["clips"])
    wrong = {}
    for key in expected.keys() | reported.keys():
        if difference := expected.get(key, {"no such kind"}) ^ reported.get(key, {"no such kind"}):
            wrong[" ".join(key)] = sorted(difference)
    return wrong


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
