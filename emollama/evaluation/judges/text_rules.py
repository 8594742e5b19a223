"""Rules for words in English descriptions: emotion words that a text does not negate, and weighted clues."""

from __future__ import annotations

import re

from emollama.evaluation.judges.wheel import FAMILY

_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)*|[.,;:!?()\n]")
_NEGATIONS = """no, not, never, without, neither, nor, cannot, hardly, barely, lack, lacks, lacking, nothing,
    instead of, rather than, free of, free from, far from, absence of"""
_NOT_NEGATIONS = re.compile(r"\b(?:not (?:only|just|merely|simply)|no doubt)\b")
_BREAKS = {"but", "and", "although", "though", "however", "yet", "while", "whereas", "because", "that", "which", "who", "instead"}
REACH = 5  # words after a negation in which emotion words are negated

_STOP_WORDS = """a about after again all also although an and any are aren as at be because been before being both but by can
    could did do does doing during each else ever for from further had has have having he her here hers herself him himself
    his how however i if in into is it its itself just like may me might more most much must my no nor not of on once only or
    other our out over own perhaps quite rather same shall she should since so some still such than that the their them then
    there these they this those though through thus to too under until up upon us very was we were what when where whereas
    which while who whose why will with within without would yet you your
    emotion emotional emotionally feel feeling feelings felt mood state person people man woman boy girl individual
    character speaker subject video clip scene frame audio image seem seems seemed appear appears appeared appearing show
    shows showed shown showing suggest suggests suggesting suggested indicate indicates indicating indicated reveal reveals
    express expresses expressed expressing convey conveys conveying reflect reflects reflecting overall likely possibly
    probably therefore"""
_IRREGULAR = {"eyebrow": "brow", "facial": "fac", "laughter": "laugh", "tearful": "tear", "teary": "tear", "louder": "loud"}
_IRREGULAR |= {"speech": "speak", "spok": "speak", "spoken": "speak", "shook": "shak", "shaken": "shak", "wept": "weep"}
_CLUES = """face eye gaze stare glance blink brow forehead frown furrow mouth lip teeth jaw chin cheek nose smile grin smirk
    laugh giggle chuckle cry sob tear weep wail sigh pout grimace scowl sneer glare squint nod shake head tilt shrug shoulder
    arm hand fist clench finger gesture posture lean body tremble shiver voice tone pitch volume loud soft whisper shout yell
    scream murmur stammer stutter hoarse choke pause breath breathe pace fast slow rapid intonation speak say word talk
    exclaim question raise lower tighten press corner widen wide narrow droop stiff rigid"""
CLUE_WEIGHT = 2.0  # weight of words about face, body, voice and speech; other words have weight 1


def stem(word: str) -> str:
    """Return a stem that common forms of a word share (brows and brow, smiling and smiled), by suffix rules, not a dictionary."""
    if word.endswith(("ies", "ied")) and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    if word.endswith("ly") and len(word) > 4:
        word = word[:-2]
    root = word.removesuffix("ing") if word.endswith("ing") else word.removesuffix("ed")
    if root != word and len(root) > 2 and not word.endswith("eed") and re.search("[aeiouy]", root):
        word = root[:-1] if root[-1] == root[-2] and root[-1] not in "lsz" else root
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    word = word[:-1] + "y" if word.endswith("i") else word
    return _IRREGULAR.get(word, word)


NEGATIONS = {phrase.strip() for phrase in _NEGATIONS.replace("\n", " ").split(",")}
STOP_WORDS = frozenset(_STOP_WORDS.split())
CLUES = frozenset(map(stem, _CLUES.split()))


def emotion_words(text: str) -> tuple[str, ...]:
    """Return the distinct words of the wheel that a text contains and does not negate, in order.

    A negation ("not", "no", "without", "n't") covers the next REACH words and starts again at each emotion word that it negates.
    It passes a comma only if another emotion word or "or" follows, and never passes "but", "and" or the end of a clause.
    """
    tokens = _tokens(_NOT_NEGATIONS.sub(" ", text.lower()))
    words: dict[str, None] = {}  # an ordered set
    reach = 0
    for token, following in zip(tokens, [*tokens, ""][1:], strict=True):
        if token in NEGATIONS or token.endswith("n't") or f"{token} {following}" in NEGATIONS:
            reach = REACH
        elif token in _BREAKS or (not token[0].isalpha() and not _continues_list(token, following)):
            reach = 0
        elif token not in FAMILY:
            reach = max(0, reach - 1)
        elif reach:
            reach = REACH
        else:
            words[token] = None
    return tuple(words)


def _continues_list(mark: str, following: str) -> bool:
    """Return whether a negation passes a punctuation mark: a comma within a list of emotions."""
    return mark == "," and (following in FAMILY or following in ("or", "nor"))


def clues(text: str) -> dict[str, str]:
    """Map stems to their first form in the text, for all words except stop words and emotion words."""
    forms: dict[str, str] = {}
    for token in (token.removesuffix("'s") for token in _tokens(text)):
        if token[0].isalpha() and token not in FAMILY and token not in STOP_WORDS and "n't" not in token:
            forms.setdefault(stem(token), token)
    return forms


def weight(stemmed: str) -> float:
    """Return the weight of a clue, given its stem."""
    return CLUE_WEIGHT if stemmed in CLUES else 1.0


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower().replace("\u2019", "'"))
