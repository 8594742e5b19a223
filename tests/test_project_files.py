"""Commands, versions and files that are named in the files for contributors and tools exist."""

from __future__ import annotations

import re

import pytest
import yaml
from running import ROOT

import emollama

MAKEFILE = (ROOT / "Makefile").read_text()
RULES = dict(re.findall(r"^([a-z-]+):(.*)", MAKEFILE, re.MULTILINE))  # target -> prerequisites
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def make_targets(text):
    """Return the targets of the ``make`` commands in a text."""
    return set(re.findall(r"\bmake ([a-z][a-z-]*)", text))


def hooks():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    return {hook["id"]: hook["entry"] for repository in repositories for hook in repository["hooks"]}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_make_targets_of_a_workflow_exist(path):
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    targets = make_targets("\n".join(step.get("run", "") for job in jobs for step in job["steps"]))
    assert {"lint", "format-check", "types", "spelling", "test", "test-slow", "wheel"} <= targets <= set(RULES)


def test_a_workflow_tests_every_python_version_that_the_package_supports():
    (workflow,) = WORKFLOWS
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert yaml.safe_load(workflow.read_text())["jobs"]["test"]["strategy"]["matrix"]["python"] == classifiers


def test_make_check_runs_every_hook_of_pre_commit():
    assert set(hooks()) == {"ruff", "ruff-format", "mypy", "codespell"}
    targets = make_targets("\n".join(hooks().values()))
    assert len(targets) == len(hooks())
    assert targets | {"test"} == set(RULES["check"].split())


def test_constraints_pin_every_development_tool():
    tools = re.search(r"^TOOLS = (.+)", MAKEFILE, re.MULTILINE)[1].split()
    pinned = re.findall(r"^(\S+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert len(tools) >= 4
    assert set(tools) <= set(pinned)


def test_the_citation_has_the_version_of_the_package():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == emollama.__version__


def test_files_and_make_targets_named_in_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in link} - {""}
    code_spans = re.findall(r"`([\w./-]+)`", prose)
    quoted = {word for word in code_spans if "/" in word or word.endswith((".py", ".md", ".txt", ".toml", ".yaml", ".cff"))}
    assert {"docs/architecture.md", "CHANGELOG.md"} <= links
    assert len(quoted) > 5
    assert sorted(path for path in links | quoted if not (ROOT / path).exists()) == []
    assert {"test", "test-slow", "test-all", "test-random", "check"} <= make_targets(text) <= set(RULES)


def test_the_renaming_table_of_the_changelog_names_modules_and_objects_that_exist():
    table = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("### Renamed in this version")[2]
    new_names = [line.split("|")[2] for line in table.splitlines() if line.startswith("| `emollama.")]
    missing = []
    for name in re.findall(r"`(emollama\.[\w.]+(?::\w+)?)", " ".join(new_names)):
        module, _, item = name.partition(":")
        path = ROOT / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file() or (item and not re.search(rf"^ *(class|def) {item}\b|^{item}\b", file.read_text(), re.MULTILINE)):
            missing.append(name)
    assert len(new_names) > 100
    assert missing == []


def test_the_gpu_image_has_what_the_kernels_of_triton_need():
    image = (ROOT / "Dockerfile").read_text().split(" AS cuda\n")[1]
    assert re.search(r"apt-get install .*\bgcc libc6-dev\b", image) and "[serve,fast]" in image
    assert re.search("^liger-kernel==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
