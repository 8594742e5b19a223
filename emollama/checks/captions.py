"""Two checks of a caption: is it a refusal of the language model that generated it, and does it name a wrong label?

Both checks ignore speech, which is text in quotation marks or after a phrase such as "she says:".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_STRAIGHT = str.maketrans("‘’“”", "''\"\"")
_QUOTED = re.compile(r'"[^"]*"')
_SPEECH = re.compile(
    r"\b(?:says?|said|saying|asks?|asked|asking|repl(?:y|ies|ied|ying)|answer(?:s|ed|ing)|whisper(?:s|ed|ing)?|tell(?:s|ing)?|told"
    r"|shout(?:s|ed|ing)?|mutter(?:s|ed|ing)?|exclaim(?:s|ed|ing)?|apologi[sz](?:es?|ed|ing)|add(?:s|ed|ing)?|repeat(?:s|ed|ing)?"
    r"|words|sentence|subtitles?|transcript|line)(?: \w+){0,5}?:.*",
    re.DOTALL,
)

# A refusal says "I", at the start of the caption or of a sentence, where a description has a person as its subject.
_START = r"(?:^|[.!?]\s+|\bbut,? |\bhowever,? )"
_UNABLE = (
    r"(?:i|we)(?: can ?not| can't|(?:'m| am|'re| are) (?:unable|not able) to| could ?n[o']t| do(?: not|n't) have the ability to)"
)
_WORK = (
    r"(?:\w+ly )?(?:assist|help|fulfill?|comply|provide|identify|determine|analy[sz]e|describe|interpret|infer|assess|answer"
    r"|respond|complete|generate|create|process|view|see|watch|access|recogni[sz]e|make|offer|give|continue|engage|produce|write)"
)
_MATTER = (
    r"(?:image|video|audio|clip|picture|photo|frame|footage|file|request|content|description|caption|transcript|clue|context)s?"
)
_REFUSALS = (  # typical replies of language models that do not describe the clip
    rf"^(?:i(?:'m| am) (?:\w+ )?sorry|(?:my |i )?apolog(?:y|ies|i[sz]e)|sorry|unfortunately)\b[^.!?]*?\b{_UNABLE} {_WORK}",
    r"^(?:i(?:'m| am) (?:\w+ )?sorry|(?:my |i )?apolog(?:y|ies|i[sz]e))\b[^.!?]*\b(?:not|no|n't) (?:enough|sufficient|any) "
    r"(?:information|context|detail|clue)",
    r"(?:^|[.!?,;]\s*|\bbut )as an? (?:(?:ai|artificial intelligence)(?:,| i\b| (?:language |text )?(?:model|assistant|system)\b)"
    r"|(?:\S+ ){0,2}language model\b)",
    rf"{_START}i(?:'m| am) (?:just |only |merely )?an? (?:ai|artificial intelligence|(?:\S+ )?language model)\b",
    rf"{_START}{_UNABLE} {_WORK}\b[^.!?]*\b(?:{_MATTER}|emotions?|information)\b",
    rf"{_START}{_UNABLE} assist (?:you )?with",
    rf"{_START}i do(?: not|n't) have (?:access to|enough information|sufficient information|the capability)",
    rf"{_START}please (?:provide|share|upload|supply)\b[^.!?]*\b(?:{_MATTER}|information|details|text)\b",
    rf"{_START}no (?:{_MATTER}|information) (?:was|were|is|has been) (?:provided|given|attached|uploaded)",
    r"^(?:很|非常|十分)?(?:抱歉|对不起)[，,。！!\s]*(?:但是?)?我?(?:无法|不能)",  # "sorry, I am unable to"
    r"(?:^|[。！？，,\s])作为(?:一个|一名|一款)?(?:ai|人工智能|大型?)*(?:语言模型|人工智能|助手)",  # "as a language model"
)
_REFUSAL = re.compile("|".join(_REFUSALS))
# Every refusal contains one of these words. Searching for them first is much faster than matching all patterns.
_FIRST_PERSON = re.compile(r"\b(?:i|we|apolog\w+|please|no|model|ai|artificial)\b|[抱对作]")

FORMS = {  # label -> words that name it
    "happy": "happy happily happiness happier",
    "sad": "sad sadly sadness saddened",
    "neutral": "neutral neutrally neutrality",
    "angry": "angry angrily anger angered",
    "worried": "worried worriedly worry worries worrying",
    "surprise": "surprise surprised surprises surprising",
    "fear": "fear fears feared fearful fearfully",
    "contempt": "contempt contemptuous contemptuously",
    "doubt": "doubt doubts doubted doubting doubtful doubtfully",
    "disgust": "disgust disgusted disgusting",
}
NEAR = {  # label -> related words, which support the label without naming it
    "happy": "joy joyful joyfully cheerful cheerfully pleased glad delight delighted",
    "sad": "sorrow sorrowful grief unhappy unhappiness tearful melancholy depressed upset",
    "neutral": "calm calmly composed indifferent indifference unemotional expressionless",
    "angry": "furious fury rage irritated irritation annoyed annoyance mad outraged",
    "worried": "anxious anxiously anxiety nervous nervously concern concerned uneasy apprehensive apprehension",
    "surprise": "astonished astonishment amazed amazement shock shocked startled",
    "fear": "afraid scared frightened terrified terror panic",
    "contempt": "scorn scornful scornfully disdain disdainful sneer sneers sneering mocking",
    "doubt": "sceptical skeptical suspicion suspicious confused confusion uncertain uncertainty puzzled",
    "disgust": "revulsion repelled repulsed",
}
_NEGATION = (
    r"(?:\b(?:not|no|never|without|neither|nor|than|hardly|barely|lacks?|lacking|instead of|absence of|free of|\w+n't)"
    r"[ '-]+(?:(?!but\b)\w+[ '-]+){0,2})?"
)


def is_refusal(caption: str) -> bool:
    """Return whether a caption is a refusal, such as "I'm sorry, but I cannot ...".

    An apology that a description quotes ("she says: I am sorry") is not a refusal.
    """
    text = _plain(caption)
    if text.count('"') == 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return _FIRST_PERSON.search(text) is not None and _REFUSAL.search(_without_speech(text)) is not None


class LabelWords:
    """Finds captions that name exactly one label, which is not the label of the clip.

    A caption names a label if it contains the label or one of its forms (:data:`FORMS`) without a negation in the three words
    before it. Captions that name the clip's own label, contain a related word (:data:`NEAR`), or name several other labels are
    not reported.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._named = {label: _words(_forms(label)) for label in labels}
        near = {label: NEAR.get(label.lower(), "").split() for label in labels}
        self._own = {label: _words([*_forms(label), *near[label]]) for label in labels}
        self._label_of = {form: label for label in labels for form in _forms(label)}
        self._any = re.compile(rf"({_NEGATION})\b({'|'.join(map(re.escape, self._label_of))})\b")

    def other(self, caption: str, own: str) -> str | None:
        """Return the single other label that a caption names, or None. The result is None if ``own`` is an unknown label."""
        text = _without_speech(_plain(caption))
        if own not in self._own or self._own[own].search(text):
            return None
        named = {self._label_of[match[2]] for match in self._any.finditer(text) if not match[1]}
        return named.pop() if len(named) == 1 else None


def _forms(label: str) -> list[str]:
    """Return the words that name a label: those of :data:`FORMS`, or else the label and its regular adverb and noun."""
    plain = label.lower()
    stem = plain[:-1] + "i" if plain.endswith("y") else plain
    return FORMS[plain].split() if plain in FORMS else [plain, f"{stem}ly", f"{stem}ness"]


def _words(words: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the words as a whole word."""
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b")


def _plain(caption: str) -> str:
    """Return a caption in lower case, with straight quotation marks and single spaces."""
    text = caption.lower().translate(_STRAIGHT)
    return " ".join(text.split())


def _without_speech(text: str) -> str:
    """Return a text without its speech."""
    return _SPEECH.sub("", _QUOTED.sub("", text))
