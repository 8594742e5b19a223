"""A synthetic corpus in the file formats of MERR and MER, small enough to train on it in a few minutes on a CPU.

Every clip has hidden causes. Its emotion determines one group in each of four channels: facial cues, body motion, tone of
voice, and topic of the spoken sentence. A group belongs to three of the nine emotions, so no channel alone determines the
emotion, but any two channels do. In one of 25 clips, one channel is uninformative. The features encode face, motion and tone
(with random intensity, the signature of a speaker, and noise), the transcript contains the topic, and the captions describe all
channels. Nothing comes from real people or recordings.

The README's results depend on the random draws. The order of calls to the generators must not change.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emollama.data.csv_files import write_csv
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
SLOT_WIDTH, EVA_WIDTH, EVA_PATCHES = 1024, 1408, 4  # an EVA array is (1 + EVA_PATCHES, EVA_WIDTH), row 0 the class token
SPEAKERS = 24
# Each channel is uninformative in one clip of this many, and never two channels in one clip.
SILENCES = 100
Array = NDArray[np.floating]
Instructions = Mapping[str, Sequence[str]]  # task -> its instructions
GroupCues = tuple[int, tuple[int, ...]]  # a group, and the indices of its cues that are present


@dataclass(frozen=True)
class DemoClip:
    """The hidden causes of a clip: indices of the cues in the group of each channel. An empty channel is uninformative."""

    name: str
    emotion: str
    face: tuple[int, ...]
    motion: tuple[int, ...]
    tone: tuple[int, ...]
    topic: int | None
    sentence: str


@dataclass(frozen=True)
class DemoCorpus:
    """The result of :func:`make_corpus`.

    Attributes:
        train: the training data.
        test: unseen clips.
        test_shuffled: the same clips with features and sentences of other clips.
        test_sentence_only: the same clips without features.
        texts: texts for training the language model.
    """

    train: Path
    test: Path
    test_shuffled: Path
    test_sentence_only: Path
    texts: list[str]


def make_corpus(
    folder: Path, *, train_clips: int, fine_clips: int, test_clips: int, seed: int, texts: int = 6000,
    instructions: Instructions = BUILT_IN,
) -> DemoCorpus:  # fmt: skip
    """Write the corpus. The same arguments give the same files.

    Sentences with a topic in the test folders do not occur anywhere else.

    Args:
        folder: the folder to write to.
        train_clips: number of clips in the coarse training list.
        fine_clips: the fine training list contains the first ``fine_clips`` of them.
        test_clips: number of unseen clips in each of the three test folders.
        seed: seed of all random draws.
        texts: number of texts for the language model.
        instructions: task -> instructions that occur in these texts.

    Raises:
        ValueError: If the numbers of clips are not possible.
    """
    if not 0 < fine_clips <= train_clips or test_clips < 2:
        raise ValueError(f"clips: need 0 < fine {fine_clips} <= train {train_clips}, and test {test_clips} >= 2")
    corpus = DemoCorpus(folder / "train", folder / "test", folder / "test_shuffled", folder / "test_sentence_only", [])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.txt").write_text(README.format(seed=seed), encoding="utf-8")
    encoders = _Encoders(np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    clips = [_random_clip(rng, f"demo_{i:08d}", unseen=False) for i in range(train_clips)]
    _write_annotations(corpus.train, clips, rng, fine=fine_clips)
    _write_features(corpus.train, clips, encoders, rng)
    rng = np.random.default_rng([seed, 2])
    clips = [_random_clip(rng, f"demotest_{i:08d}", unseen=True) for i in range(test_clips)]
    captions = _write_annotations(corpus.test, clips, rng, fine=None)
    _write_features(corpus.test, clips, encoders, rng)
    _write_shuffled(corpus, clips, rng)
    shutil.copytree(corpus.test, corpus.test_sentence_only, ignore=WITHOUT_FEATURES, dirs_exist_ok=True)
    corpus.texts.extend(_random_texts(np.random.default_rng([seed, 3]), texts, instructions, captions))
    return corpus


def _groups(emotion: str) -> tuple[int, int, int, int]:
    """Return the (face, motion, tone, topic) groups of an emotion."""
    # The emotions are the points of a 3 x 3 plane modulo 3, and the groups are its lines in four directions. Two lines of
    # different directions meet in exactly one point, so any two channels determine the emotion.
    face, tone = FACE_TONE[emotion]
    return face, (face - tone) % 3, tone, (face + tone) % 3


def _random_clip(rng: np.random.Generator, name: str, *, unseen: bool) -> DemoClip:
    emotion = EMOTIONS[rng.integers(len(EMOTIONS))]
    silent = rng.integers(SILENCES)  # 0 to 3: index of the uninformative channel; other values: there is none
    face_group, *_, topic = _groups(emotion)
    cues = rng.permutation(len(FACES[face_group]))[: rng.integers(1, 3)]
    return DemoClip(
        name=name,
        emotion=emotion,
        face=() if silent == 0 else tuple(int(i) for i in sorted(cues)),
        motion=() if silent == 1 else (int(rng.integers(3)),),
        tone=() if silent == 2 else (int(rng.integers(3)),),
        topic=None if silent == 3 else topic,
        sentence=_pick(rng, FILLER_SENTENCES) if silent == 3 else _random_sentence(rng, topic, unseen),
    )


def _random_sentence(rng: np.random.Generator, topic: int, unseen: bool) -> str:
    """Return a sentence about a topic. Every fourth combination of frame and filler occurs only in unseen clips."""
    frames, fillers = SENTENCES[topic]
    pairs = [(f, x) for i, f in enumerate(frames) for j, x in enumerate(fillers) if ((i + j) % 4 == 3) == unseen]
    frame, filler = pairs[rng.integers(len(pairs))]
    sentence = frame.format(filler)
    return sentence[0].upper() + sentence[1:]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _caption_fields(rng: np.random.Generator, clip: DemoClip) -> dict[str, str]:
    """Return values for the fields of the caption templates: a random description of each channel."""
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


def _random_texts(rng: np.random.Generator, count: int, instructions: Instructions, exclude: set[str]) -> list[str]:
    """Return prompts with answers about random clips, with words in place of features.

    They give the tiny language model what a real one has learned in pretraining: the language, and which descriptions belong to
    which emotion. It sees no features, and cannot learn which task asks for which kind of caption.

    Captions in ``exclude``, those of the test clips, do not occur.
    """
    lines: list[str] = []
    while len(lines) < count:
        clip = _random_clip(rng, "", unseen=False)
        prompt, caption_fields = _caption_fields(rng, clip), _caption_fields(rng, clip)
        task = _pick(rng, tuple(instructions))
        instruction = _pick(rng, instructions[task]).replace("{labels}", ", ".join(EMOTIONS))
        caption = _pick(rng, FINE if rng.integers(2) else COARSE).format(**caption_fields)
        answer = clip.emotion if task == "emotion" else blip_caption(caption, 200)
        if caption not in exclude:
            lines.append(
                f"[INST] <video> {prompt['face']} </video> <feature> {prompt['face']} {prompt['motion']} {prompt['tone']} "
                f"</feature> The person in video says: {clip.sentence}.  [{task}] {instruction}  [/INST] {answer}"
            )
    return lines


def _write_annotations(folder: Path, clips: Sequence[DemoClip], rng: np.random.Generator, fine: int | None) -> set[str]:
    """Write annotation files, captions and transcripts.

    Args:
        folder: the folder to write to.
        clips: the clips.
        rng: the generator.
        fine: number of clips in the fine list; None for a test folder.

    Returns:
        All captions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = [int(n) for n in rng.integers(20, 150, len(clips))]
    counted = [f"{clip.name} {n}" for clip, n in zip(clips, counts, strict=True)]
    coarse_list = [f"{line} {clip.emotion}" for line, clip in zip(counted, clips, strict=True)]
    fine_list = [f"{line} {VALENCE[line.split()[-1]] + rng.normal(0, 0.2):.6f}" for line in coarse_list]
    if fine is None:
        lists = {"test_NCEV.txt": fine_list, "EMER_NCE.txt": [f"{line} 0" for line in counted]}
    else:
        lists = {"MERR_coarse_grained.txt": coarse_list, "MERR_fine_grained.txt": fine_list[:fine]}
    for name, lines in lists.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    peaks = [str(rng.integers(n)) for n in counts]
    captions = [_pick(rng, COARSE).format(**_caption_fields(rng, clip)) for clip in clips]
    triples = list(zip(clips, peaks, captions, strict=True))
    coarse = {c.name: {"caption": caption, "peak_index": peak, "text": c.sentence} for c, peak, caption in triples}
    detailed = {c.name: _fine_entry(rng, c, peak) for c, peak, _ in triples[:fine]}
    for name, entries in (("coarse", coarse), ("fine", detailed)):
        (folder / f"MERR_{name}_grained.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
    _write_transcripts(folder, [(c.name, c.sentence) for c in clips])
    return {*captions, *(str(entry["smp_reason_caption"]) for entry in detailed.values())}


def _fine_entry(rng: np.random.Generator, clip: DemoClip, peak: str) -> dict[str, str | list[str]]:
    fields = _caption_fields(rng, clip)
    units = [FACES[_groups(clip.emotion)[0]][i] for i in clip.face]
    return {
        "AU_list": [unit[0] for unit in units],
        "visual_prior_list": [unit[1] for unit in units] + [f"the person {fields['motion']}"],
        "audio_prior_list": f"the voice is {fields['tone']}",
        "peak_index": peak,
        "peak_AU_list": [unit[0] for unit in units[:1]],
        "pseu_emotion": clip.emotion,
        "text": clip.sentence,
        "smp_reason_caption": _pick(rng, FINE).format(**fields),
    }


def _write_transcripts(folder: Path, rows: Sequence[tuple[str, str]]) -> None:
    write_csv(folder / "transcription_en_all.csv", [("name", "sentence"), *rows], escape=False)


def _write_shuffled(corpus: DemoCorpus, clips: Sequence[DemoClip], rng: np.random.Generator) -> None:
    """Write the shuffled test folder: each clip has the features and the sentence of another clip."""
    shutil.copytree(corpus.test, corpus.test_shuffled, ignore=WITHOUT_FEATURES, dirs_exist_ok=True)
    order = rng.permutation(len(clips))
    source = {clips[int(i)].name: clips[int(j)] for i, j in zip(order, np.roll(order, 1), strict=True)}
    _write_transcripts(corpus.test_shuffled, [(c.name, source[c.name].sentence) for c in clips])
    for folder in FOLDERS.values():
        for name, other in source.items():
            shutil.copyfile(corpus.test / folder / f"{other.name}.npy", corpus.test_shuffled / folder / f"{name}.npy")


class _Encoders:
    """Simulated encoders. In each slot, every cue and every speaker has a fixed random direction of unit mean square."""

    def __init__(self, rng: np.random.Generator) -> None:
        sizes = {"face": (4, SLOT_WIDTH), "video": (3, SLOT_WIDTH), "audio": (3, SLOT_WIDTH), "eva": (4, EVA_WIDTH)}
        self.cues = {slot: rng.standard_normal((3, *size)) for slot, size in sizes.items()}  # (group, cue, width)
        self.bias = {slot: rng.standard_normal(width) for slot, (_, width) in sizes.items()}
        self.speakers = {slot: rng.standard_normal((SPEAKERS, width)) for slot, (_, width) in sizes.items()}

    def encode(self, rng: np.random.Generator, clip: DemoClip) -> dict[str, Array]:
        """Return the arrays of a clip: face, video and audio (1024,) with RMS of about 0.5, eva (1 + patches, 1408) with 1."""
        face, motion, tone, _ = _groups(clip.emotion)
        speaker = int(rng.integers(SPEAKERS))
        present = {"face": (face, clip.face), "video": (motion, clip.motion), "audio": (tone, clip.tone)}
        arrays = {slot: 0.35 * self._feature_vectors(rng, slot, 1, speaker, cues)[0] for slot, cues in present.items()}
        eva = self._feature_vectors(rng, "eva", 1 + EVA_PATCHES, speaker, present["face"])
        return arrays | {"eva": ((eva - eva.mean(1, keepdims=True)) / eva.std(1, keepdims=True)).astype(np.float16)}

    def _feature_vectors(self, rng: np.random.Generator, slot: str, count: int, speaker: int, present: GroupCues) -> Array:
        """Return (count, width): sum of a bias, the speaker's signature, noise, and each cue with a random intensity."""
        group, cues = present
        noise = rng.standard_normal((count, self.bias[slot].size))
        vectors = 0.5 * self.bias[slot] + 0.3 * self.speakers[slot][speaker] + 0.3 * noise
        for cue in cues:
            vectors += rng.uniform(0.7, 1.3) * self.cues[slot][group, cue]
        return np.asarray(vectors, np.float32)


def _write_features(folder: Path, clips: Sequence[DemoClip], encoders: _Encoders, rng: np.random.Generator) -> None:
    """Write the feature folders. Every second vector has shape (1, 1024), because both shapes occur in real folders."""
    for name in FOLDERS.values():
        (folder / name).mkdir(exist_ok=True)
    for index, clip in enumerate(clips):
        for slot, array in encoders.encode(rng, clip).items():
            np.save(folder / FOLDERS[slot] / f"{clip.name}.npy", array[None] if slot != "eva" and index % 2 else array)
