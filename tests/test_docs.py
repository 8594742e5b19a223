"""Files, targets and keys that the README and docs name exist."""

from __future__ import annotations

import re

import pytest
from running import ROOT

from emollama.starter.kinds import KINDS

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
DOCS = [*PAGES, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TEXTS = {name: (ROOT / name).read_text() for name in DOCS}
SHIPPED = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("train_configs/*.yaml"), *ROOT.glob("eval_configs/*.yaml")])


def test_sixteen_configurations_are_shipped():
    assert len(SHIPPED) == 16


def test_the_header_of_every_shipped_configuration_contains_its_command(shipped_configs):
    assert sorted(shipped_configs) == SHIPPED
    for path, config in shipped_configs.items():
        command = "train" if config.datasets else "eval"
        assert f"emollama {command} --cfg-path {path}" in (ROOT / path).read_text(), path


@pytest.mark.parametrize("name", DOCS)
def test_links_and_configurations_in_the_docs_exist(name):
    folder = (ROOT / name).parent
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", TEXTS[name]) if "://" not in link]
    assert all((folder / link).exists() for link in links), links
    generated = {f"{kind}.yaml" for kind in KINDS}  # by emollama init
    paths = {*re.findall(r"--cfg-path (\S+\.yaml)", TEXTS[name])} - generated
    assert all((ROOT / path).is_file() for path in paths)


@pytest.mark.parametrize("name", [*DOCS, "tests/golden/README.md"])
def test_prose_of_the_docs_has_at_most_100_columns(name):
    prose = re.sub(r"(?ms)^ *```.*?^ *```$", lambda code: "\n" * code[0].count("\n"), (ROOT / name).read_text())
    exempt = re.compile(r"\||.*https?://|`[^`]*`\W*$")  # tables, URLs, lines of code
    lines = [
        f"{name}:{number}" for number, line in enumerate(prose.splitlines(), 1) if len(line) > 100 and not exempt.match(line)
    ]
    assert lines == []


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", TEXTS["README.md"]))
    assert {"demo", "test", "test-all", "check"} <= named <= targets


def test_ci_runs_the_fast_tests_before_the_slow_ones():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines.index("make test") < lines.index("make test-slow")


def test_constraints_pin_every_requirement():
    def names(path):
        lines = [line for line in (ROOT / path).read_text().splitlines() if line.strip() and line[0] != "#"]
        return {re.split(r"[<>=!]", line)[0].strip().lower().replace("_", "-") for line in lines}

    assert names("requirements.txt") <= names("constraints.txt")
    assert "2.13" not in re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def test_the_claims_table_names_exactly_the_existing_test_files():
    table = re.findall(r"^\|.*\|(.*)\|$", TEXTS["docs/testing.md"].partition("## Claims")[2], re.MULTILINE)
    named = {name for files in table for name in re.findall(r"`([^`]+)`", files)}
    assert sorted(named) == sorted(path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py"))
