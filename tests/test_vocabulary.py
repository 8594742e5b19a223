"""Names and prose use the terms of PyTorch, Hugging Face and LAVIS; those that they replaced do not come back."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from running import ROOT
from sources import nodes_of, tree_of

PACKAGE = ROOT / "emollama"
FILES = sorted([*PACKAGE.rglob("*.py"), ROOT / "train.py", ROOT / "eval_emotion_EMER.py", *(ROOT / "benchmarks").glob("*.py")])
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")])
CONFIGS = sorted(ROOT.glob("*_configs/**/*.yaml"))
PROMPTS = {PACKAGE / "evaluation/judges/prompts.py"}  # sent to a model, with check values

# Identifiers

CLASSES = set(
    "Order Deck Draw Split Rows KeptRows Seen Made Facts Evidence Choice Reader Sweep Intake"
    " Placeholders Problems EchoedError EchoedCrash Answered Answering Answers Question Truth TruthFile".split()
)
MODULES = set(
    "order seen kept image_placeholder recipes sweeping exchange predecessors doctor prediction intake lenient canvas basis"
    " upstream".split()
)
FUNCTIONS = set(
    "deck lap wording wordings said worded rows_out raw_rows kept keep seen made unlike main_first on_main everywhere"
    " synchronised course begin advance told known found given with_frames at_least_steady looked_up likelihoods"
    " watched_key exhausted from_plain end_epoch_when_due".split()
)
VARIABLES = set(
    "UNSEEN MAY_DIFFER STEADY_ROWS MIXING_BLOCK ABOUT FREE_KEYS OWNER ABSENT_TOGETHER to_generate recipe found known given"
    " told made truth truths".split()
)

# Prose: a pattern of what is rejected, and what to write instead

PHRASES = {
    r"(?:go|goes|gone|going|went) on\b": "resume, continue",
    r"(?:is|are|was|were|be|been|it|not|and) told\b": "print, report, say; `reported as`",
    r"is answered with": "is rejected with",
    r"nothing (?:that was|of)\b": "no ...",
    r"(?:what|that|which) (?:is|are) no\b(?! longer)": "that is not a ...",
    r"(?:of|from|with|by|around|beside|against) what (?:is|was|are|were|has|no)\b": "name the thing",
    r"(?<!there )(?:is|are) no (?!longer\b|more\b|less\b)\w+": "is not a ...",
    r"(?:lie|lies|lying|stand|stands) (?:in|under|beside|below|behind|there)\b": "is in, is next to",
    r"(?:comes?|came) to (?:be\b|it\b|the end\b|nothing\b)": "becomes, ends, fails",
    r"worded|wordings?\b": "instruction, text",
    r"laps?\b": "dataset epoch",
    r"decks?\b": "sampling",
    r"recipes? (?:of|that)\b": "provenance, settings",
    r"(?:kept|raw|packed) rows\b": "cached features, feature vectors, packed features",
    r"(?:image|face|audio|video|class|zero) rows?\b": "feature vectors, feature tokens",
    r"nobody (?:knows|has|is)\b": "unknown, missing",
    r"whatever (?:the|its|it|is)\b": "for every ..., regardless of ...",
    r"that (?:much|many)\b": "the number",
    r"as such\b": "unchanged",
    r"(?:is|are) (?:asked|called) (?:after|by)\b": "is named after",
    r"of (?:one's|ones) own\b": "custom, user-defined",
    r"is of no use\b": "cannot be used",
    r"(?:the|prompt|same) renderers?\b": "prompt format",
    r"tokens by placeholders?\b": "feature tokens by name",
    r"(?:\d+|transformer) blocks\b": "transformer layers",
    r"memory of its own": "as a copy",
    r"numbers? of the (?:dataset|shard)\b(?! set)": "index of the dataset",
    r"global lock": "GIL",
    r"(?:has|have|had|says?) nothing (?:of|to)\b": "is empty, does not need",
    r"EVA caches?\b": "EVA features",
    r"working folder\b": "current directory",
    r"(?:is|are) an error\b": "is rejected, raises an error",
    r"starts? at (?:the folder|data_root)|paths start\b": "relative to",
    r"(?:an|the|file|no) endings?\b": "extension",
    r"name (?:a|one|another|a single) (?:file|folder|checkpoint)\b": "specify a file",
    r"another (?:shape|size|dtype|format|width|architecture)\b": "a different shape",
}
PATTERNS = {re.compile(rf"\b(?:{pattern})", re.IGNORECASE): better for pattern, better in PHRASES.items()}
ANY = re.compile(rf"\b(?:{'|'.join(PHRASES)})", re.IGNORECASE)


def where(path, line):
    return f"{path.relative_to(ROOT)}:{line}"


def identifiers(path) -> Iterator[tuple[str, int, str]]:
    """Yield (kind, line, name) for each class, function and variable that a file defines."""
    nodes = nodes_of(path)
    yield from (("class", node.lineno, node.name) for node in nodes[ast.ClassDef])
    yield from (("function", node.lineno, node.name) for node in nodes[ast.FunctionDef])
    yield from (("variable", node.lineno, node.id) for node in nodes[ast.Name] if isinstance(node.ctx, ast.Store))
    yield from (("variable", node.lineno, node.arg) for node in nodes[ast.arg])


def test_replaced_names_are_not_used_again():
    rejected = {"class": CLASSES, "function": FUNCTIONS, "variable": VARIABLES}
    names = [
        f"{where(path, line)}: {kind} {name}"
        for path in FILES
        for kind, line, name in identifiers(path)
        if name.strip("_") in rejected[kind]
    ]
    names += [where(path, 1) for path in FILES if MODULES & {*path.relative_to(ROOT).with_suffix("").parts}]
    assert names == []


def test_class_names_are_unique():
    lines = defaultdict(list)
    for path in FILES:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                lines[node.name].append(where(path, node.lineno))
    assert {name: same for name, same in lines.items() if len(same) > 1} == {}


@cache
def prose_of(path: Path) -> list[tuple[int, str]]:
    """Return [(line, text)] for the prose of a file: strings and comments of Python, comments of YAML, Markdown without code."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        constants = nodes_of(path)[ast.Constant] if path not in PROMPTS else []
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        return [
            *((node.lineno, node.value) for node in constants if isinstance(node.value, str)),
            *((token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT),
        ]
    if path.suffix == ".yaml":
        return [(number, line.partition("#")[2]) for number, line in enumerate(source.splitlines(), 1)]
    prose = re.sub(r"(?ms)^```.*?^```$", lambda block: "\n" * block[0].count("\n"), source)
    return [(1, re.sub(r"`[^`\n]*`", lambda code: "`" * len(code[0]), prose))]


def phrases_in(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line in the text, phrase) for each rejected phrase; a line break counts as a space."""
    flat = text.replace("\n", " ")
    for pattern, better in PATTERNS.items() if ANY.search(flat) else ():
        for match in pattern.finditer(flat):
            yield text.count("\n", 0, match.start()), f"'{match[0]}' ({better})"


@pytest.mark.parametrize("paths", [FILES, PAGES, CONFIGS], ids=["code", "pages", "configurations"])
def test_prose_has_none_of_the_listed_phrases(paths):
    rejected = [
        f"{where(path, first + line)}: {phrase}"
        for path in paths
        for first, text in prose_of(path)
        for line, phrase in phrases_in(text)
    ]
    assert len(paths) > 5
    assert rejected == []


@pytest.mark.parametrize(
    ("text", "count"),
    [("It goes\non.", 1), ("It ongoes.", 0), ("It is no clip.", 1), ("It is no longer read.", 0), ("The rows of a table.", 0)],
)
def test_a_phrase_is_rejected_across_lines_and_by_whole_words(text, count):
    assert len(list(phrases_in(text))) == count


def test_entries_of_raises_sections_are_sentences():
    """Each entry begins with "If ...", "As in ...", or a sentence."""
    lower_case = []
    for path in FILES:
        for line, text in prose_of(path):
            for section in re.findall(r"^ *Raises:\n((?: .*\n)+)", text, re.MULTILINE):
                entries = re.findall(r"^ +[A-Z]\w+(?:, [A-Z]\w+)*: (.*)", section, re.MULTILINE)
                lower_case += [f"{where(path, line)}: {entry}" for entry in entries if not entry[:1].isupper()]
    assert lower_case == []
