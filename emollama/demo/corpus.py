"""An invented corpus in the on-disk formats of MERR and MER, small enough for a few minutes on a CPU.

Every clip has hidden causes. Its emotion fixes one group in each of four channels: facial cues, body motion, tone of
voice, and the topic of the spoken sentence. A group holds three of the nine emotions, so no channel decides alone;
any two channels together leave exactly one emotion, and in one of 25 clips one channel says nothing. The
features carry the face, the motion and the tone (at a random intensity, with the mark of a speaker, and noise), the
transcript carries the topic, and the captions describe all of it. Nothing here comes from real people or recordings.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emollama.data.instructions import BUILT_IN
from emollama.data.text_processors import blip_caption
from emollama.demo.vocabulary import (
    COARSE,
    EMOTIONS,
    FACE_TONE,
    FACES,
    FILLER_SENTENCES,
    FINE,
    HIDDEN,
    MOTIONS,
    README,
    SENTENCES,
    TONES,
    TOPICS,
    VALENCE,
)

FOLDERS = {"face": "mae_340_UTT", "video": "maeV_399_UTT", "audio": "HL-UTT", "eva": "eva"}
WITHOUT_FEATURES = shutil.ignore_patterns("*.npy")
SLOT_WIDTH, EVA_WIDTH, EVA_PATCHES = 1024, 1408, 4  # an EVA array is (1 + EVA_PATCHES, EVA_WIDTH), row 0 the class row
SPEAKERS = 24
SILENCES = 100  # one clip in this many has a silent face; the same for motion, tone and topic; never two in a clip
Array = NDArray[np.floating]
Instructions = Mapping[str, Sequence[str]]  # task -> its wordings
Shown = tuple[int, tuple[int, ...]]  # a group, and which of its cues are there


@dataclass(frozen=True)
class DemoClip:
    """The hidden causes of one clip: indices into the groups of its emotion. An empty channel says nothing."""

    name: str
    emotion: str
    face: tuple[int, ...]
    motion: tuple[int, ...]
    tone: tuple[int, ...]
    topic: int | None
    sentence: str


@dataclass(frozen=True)
class DemoCorpus:
    """What `make_corpus` wrote: four data folders, and the texts for the language model."""

    train: Path
    test: Path
    test_shuffled: Path
    test_sentence_only: Path
    texts: list[str]


def make_corpus(
    folder: Path, *, train_clips: int, fine_clips: int, test_clips: int, seed: int, texts: int = 6000,
    instructions: Instructions = BUILT_IN,
) -> DemoCorpus:  # fmt: skip
    """Write the whole corpus under `folder`; the same arguments give the same files.

    `train_clips` clips are in the coarse list and the first `fine_clips` of them in the fine list too; `test_clips`
    unseen clips fill the three test folders. `texts` is how many lines of text are drawn for the language model, and
    `wordings` the questions in them. No sentence with a topic is both in the test folders and anywhere else.
    """
    if not 0 < fine_clips <= train_clips or test_clips < 2:
        raise ValueError(f"clips: need 0 < fine {fine_clips} <= train {train_clips}, and test {test_clips} >= 2")
    corpus = DemoCorpus(folder / "train", folder / "test", folder / "test_shuffled", folder / "test_sentence_only", [])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.txt").write_text(README.format(seed=seed), encoding="utf-8")
    senses = _Senses(np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    clips = [_draw_clip(rng, f"demo_{i:08d}", unseen=False) for i in range(train_clips)]
    _write_annotations(corpus.train, clips, rng, fine=fine_clips)
    _write_features(corpus.train, clips, senses, rng)
    rng = np.random.default_rng([seed, 2])
    clips = [_draw_clip(rng, f"demotest_{i:08d}", unseen=True) for i in range(test_clips)]
    captions = _write_annotations(corpus.test, clips, rng, fine=None)
    _write_features(corpus.test, clips, senses, rng)
    _write_shuffled(corpus, clips, rng)
    shutil.copytree(corpus.test, corpus.test_sentence_only, ignore=WITHOUT_FEATURES, dirs_exist_ok=True)
    corpus.texts.extend(_draw_texts(np.random.default_rng([seed, 3]), texts, instructions, captions))
    return corpus


def _groups(emotion: str) -> tuple[int, int, int, int]:
    """The emotion's (face, motion, tone, topic) groups, lines of a 3 x 3 plane: any two of them meet in one."""
    face, tone = FACE_TONE[emotion]
    return face, (face - tone) % 3, tone, (face + tone) % 3


def _draw_clip(rng: np.random.Generator, name: str, *, unseen: bool) -> DemoClip:
    emotion = EMOTIONS[rng.integers(len(EMOTIONS))]
    silent = rng.integers(SILENCES)  # the number of the channel that says nothing, if there is one of that number
    face_group, *_, topic = _groups(emotion)
    cues = rng.permutation(len(FACES[face_group]))[: rng.integers(1, 3)]
    return DemoClip(
        name=name,
        emotion=emotion,
        face=() if silent == 0 else tuple(int(i) for i in sorted(cues)),
        motion=() if silent == 1 else (int(rng.integers(3)),),
        tone=() if silent == 2 else (int(rng.integers(3)),),
        topic=None if silent == 3 else topic,
        sentence=_pick(rng, FILLER_SENTENCES) if silent == 3 else _draw_sentence(rng, topic, unseen),
    )


def _draw_sentence(rng: np.random.Generator, topic: int, unseen: bool) -> str:
    """A frame with a filler; every fourth combination is kept for unseen clips."""
    frames, fillers = SENTENCES[topic]
    pairs = [(f, x) for i, f in enumerate(frames) for j, x in enumerate(fillers) if ((i + j) % 4 == 3) == unseen]
    frame, filler = pairs[rng.integers(len(pairs))]
    sentence = frame.format(filler)
    return sentence[0].upper() + sentence[1:]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _words(rng: np.random.Generator, clip: DemoClip) -> dict[str, str]:
    """One way to say what the clip shows: the fields of the caption templates."""
    face, motion, tone, _ = _groups(clip.emotion)
    cues = [_pick(rng, FACES[face][i][1:]) for i in clip.face] or [HIDDEN["face"]]
    return {
        "cue": cues[0],
        "face": " and ".join(cues),
        "motion": MOTIONS[motion][clip.motion[0]] if clip.motion else HIDDEN["motion"],
        "tone": TONES[tone][clip.tone[0]] if clip.tone else HIDDEN["tone"],
        "topic": HIDDEN["topic"] if clip.topic is None else TOPICS[clip.topic],
        "emotion": clip.emotion,
    }


def _draw_texts(rng: np.random.Generator, count: int, wordings: Instructions, exclude: set[str]) -> list[str]:
    """Prompts in the template with their answers, of clips that are in no list; words stand where features will be.

    From these the language model learns the language, and what goes with what in words, as a real one would know it.
    It sees no feature, and knows both kinds of captions, but not which task asks for which. Captions in `exclude` (those
    of the test clips) are left out.
    """
    lines: list[str] = []
    while len(lines) < count:
        clip = _draw_clip(rng, "", unseen=False)
        seen, words = _words(rng, clip), _words(rng, clip)
        task = _pick(rng, tuple(wordings))
        instruction = _pick(rng, wordings[task]).replace("{labels}", ", ".join(EMOTIONS))
        caption = _pick(rng, FINE if rng.integers(2) else COARSE).format(**words)
        answer = clip.emotion if task == "emotion" else blip_caption(caption, 200)
        if caption not in exclude:
            lines.append(
                f"[INST] <video> {seen['face']} </video> <feature> {seen['face']} {seen['motion']} {seen['tone']} "
                f"</feature> The person in video says: {clip.sentence}.  [{task}] {instruction}  [/INST] {answer}"
            )
    return lines


def _write_annotations(folder: Path, clips: Sequence[DemoClip], rng: np.random.Generator, fine: int | None) -> set[str]:
    """Lists, captions, transcripts. `fine`: length of the fine list, None for a test folder. Returns the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = [int(n) for n in rng.integers(20, 150, len(clips))]
    counted = [f"{clip.name} {n}" for clip, n in zip(clips, counts, strict=True)]
    coarse_list = [f"{row} {clip.emotion}" for row, clip in zip(counted, clips, strict=True)]
    fine_list = [f"{row} {VALENCE[row.split()[-1]] + rng.normal(0, 0.2):.6f}" for row in coarse_list]
    if fine is None:
        lists = {"test_NCEV.txt": fine_list, "EMER_NCE.txt": [f"{row} 0" for row in counted]}
    else:
        lists = {"MERR_coarse_grained.txt": coarse_list, "MERR_fine_grained.txt": fine_list[:fine]}
    for name, lines in lists.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    peaks = [str(rng.integers(n)) for n in counts]
    captions = [_pick(rng, COARSE).format(**_words(rng, clip)) for clip in clips]
    triples = list(zip(clips, peaks, captions, strict=True))
    coarse = {c.name: {"caption": caption, "peak_index": peak, "text": c.sentence} for c, peak, caption in triples}
    detailed = {c.name: _fine_entry(rng, c, peak) for c, peak, _ in triples[:fine]}
    for name, entries in (("coarse", coarse), ("fine", detailed)):
        (folder / f"MERR_{name}_grained.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
    _write_transcripts(folder, [(c.name, c.sentence) for c in clips])
    return {*captions, *(str(entry["smp_reason_caption"]) for entry in detailed.values())}


def _fine_entry(rng: np.random.Generator, clip: DemoClip, peak: str) -> dict[str, str | list[str]]:
    words = _words(rng, clip)
    units = [FACES[_groups(clip.emotion)[0]][i] for i in clip.face]
    return {
        "AU_list": [unit[0] for unit in units],
        "visual_prior_list": [unit[1] for unit in units] + [f"the person {words['motion']}"],
        "audio_prior_list": f"the voice is {words['tone']}",
        "peak_index": peak,
        "peak_AU_list": [unit[0] for unit in units[:1]],
        "pseu_emotion": clip.emotion,
        "text": clip.sentence,
        "smp_reason_caption": _pick(rng, FINE).format(**words),
    }


def _write_transcripts(folder: Path, rows: Sequence[tuple[str, str]]) -> None:
    with (folder / "transcription_en_all.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("name", "sentence"), *rows])


def _write_shuffled(corpus: DemoCorpus, clips: Sequence[DemoClip], rng: np.random.Generator) -> None:
    """The lists of the test folder, with every clip's features and sentence taken from another clip."""
    shutil.copytree(corpus.test, corpus.test_shuffled, ignore=WITHOUT_FEATURES, dirs_exist_ok=True)
    order = rng.permutation(len(clips))
    source = {clips[int(i)].name: clips[int(j)] for i, j in zip(order, np.roll(order, 1), strict=True)}
    _write_transcripts(corpus.test_shuffled, [(c.name, source[c.name].sentence) for c in clips])
    for folder in FOLDERS.values():
        for name, other in source.items():
            shutil.copyfile(corpus.test / folder / f"{other.name}.npy", corpus.test_shuffled / folder / f"{name}.npy")


class _Senses:
    """The invented encoders: in each slot's space, one fixed direction of unit mean square a cue and a speaker."""

    def __init__(self, rng: np.random.Generator) -> None:
        sizes = {"face": (4, SLOT_WIDTH), "video": (3, SLOT_WIDTH), "audio": (3, SLOT_WIDTH), "eva": (4, EVA_WIDTH)}
        self.cues = {slot: rng.standard_normal((3, *size)) for slot, size in sizes.items()}  # (group, cue, width)
        self.bias = {slot: rng.standard_normal(width) for slot, (_, width) in sizes.items()}
        self.speakers = {slot: rng.standard_normal((SPEAKERS, width)) for slot, (_, width) in sizes.items()}

    def encode(self, rng: np.random.Generator, clip: DemoClip) -> dict[str, Array]:
        """The clip's arrays: face, video, audio (1024,) of RMS 0.5 or so, eva (1 + patches, 1408) of 1."""
        face, motion, tone, _ = _groups(clip.emotion)
        speaker = int(rng.integers(SPEAKERS))
        shown = {"face": (face, clip.face), "video": (motion, clip.motion), "audio": (tone, clip.tone)}
        arrays = {slot: 0.35 * self._rows(rng, slot, 1, speaker, cues)[0] for slot, cues in shown.items()}
        rows = self._rows(rng, "eva", 1 + EVA_PATCHES, speaker, shown["face"])
        return arrays | {"eva": ((rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)).astype(np.float16)}

    def _rows(self, rng: np.random.Generator, slot: str, count: int, speaker: int, shown: Shown) -> Array:
        """`count` rows (count, width): bias, speaker's mark, noise, and each cue at its own random intensity."""
        group, cues = shown
        noise = rng.standard_normal((count, self.bias[slot].size))
        rows = 0.5 * self.bias[slot] + 0.3 * self.speakers[slot][speaker] + 0.3 * noise
        for cue in cues:
            rows += rng.uniform(0.7, 1.3) * self.cues[slot][group, cue]
        return np.asarray(rows, np.float32)


def _write_features(folder: Path, clips: Sequence[DemoClip], senses: _Senses, rng: np.random.Generator) -> None:
    """Write the feature folders; every second slot vector as (1, 1024), as real folders hold both shapes."""
    for name in FOLDERS.values():
        (folder / name).mkdir(exist_ok=True)
    for index, clip in enumerate(clips):
        for slot, array in senses.encode(rng, clip).items():
            np.save(folder / FOLDERS[slot] / f"{clip.name}.npy", array[None] if slot != "eva" and index % 2 else array)
