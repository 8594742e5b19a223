"""The shipped configurations in a wheel and in a clone, and when they are used."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import GOLDEN
from running import ROOT

from emollama import paths
from emollama.config import load, packaged
from emollama.config.packaged import find_shipped
from emollama.errors import UserError
from emollama.paths import packaged_copy

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
CONFIGS = sorted(str(path.relative_to(ROOT)) for folder in paths.SHIPPED for path in (ROOT / folder).rglob("*") if path.is_file())
STAGE_1 = "train_configs/demo_stage_1.yaml"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current directory. Uses of packaged copies are logged again even if they were logged before."""
    monkeypatch.chdir(tmp_path)
    packaged._log_copy.cache_clear()
    return tmp_path


def test_each_shipped_file_has_a_packaged_copy_with_the_same_bytes():
    different = [path for path in CONFIGS if packaged_copy(path).read_bytes() != (ROOT / path).read_bytes()]
    assert len(CONFIGS) > 15
    assert different == []


def test_a_shipped_file_missing_from_the_working_folder_is_read_from_the_package(elsewhere, caplog):
    with caplog.at_level(logging.INFO, "emollama"):
        config = load(STAGE_1)
        load(STAGE_1)
    assert config.model.llama_model == "demo_run/llm"
    assert [record.getMessage() for record in caplog.records] == [
        f"using the packaged copy of {STAGE_1} ({(ROOT / STAGE_1).resolve()})"
    ]


def test_a_file_in_the_working_folder_takes_precedence_over_the_packaged_copy(elsewhere, caplog):
    (elsewhere / "train_configs").mkdir()
    text = (ROOT / STAGE_1).read_text()
    (elsewhere / STAGE_1).write_text(text.replace("batch_size: 12", "batch_size: 7"))
    with caplog.at_level(logging.INFO, "emollama"):
        config = load(STAGE_1)
    assert config.datasets["feature_face_caption"].batch_size == 7
    assert caplog.records == []


def test_the_prompts_of_a_shipped_configuration_are_readable_from_any_folder(elsewhere):
    config = load("train_configs/minigpt4_flickr_finetune.yaml")
    assert not Path(config.model.prompt_path).exists()
    from emollama.data.prompts.image_tag import read_prompts

    assert read_prompts(config.model.prompt_path, "model.prompt_path")


@pytest.mark.parametrize("path", ["train_configs/demo_stage_3.yaml", "./train_configs//demo_stage_3.yaml"])
def test_a_missing_shipped_file_is_reported_with_both_searched_paths_and_existing_files(elsewhere, path):
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert f"--cfg-path: no file '{path}'" in message
    assert str(elsewhere) in message
    assert str(paths.PACKAGE / "train_configs/demo_stage_3.yaml") in message
    assert STAGE_1 in message


@pytest.mark.parametrize("path", ["demo_stage_1.yaml", "mine/train_configs/demo_stage_1.yaml", "train_configs/../README.md"])
def test_only_paths_below_the_shipped_folders_have_a_packaged_copy(elsewhere, path):
    assert packaged_copy(path) is None
    with pytest.raises(UserError, match="--cfg-path: no file"):
        find_shipped(path, "--cfg-path")


def test_a_misspelled_shipped_file_is_refused_with_a_suggestion(elsewhere):
    with pytest.raises(UserError, match=r"Did you mean 'train_configs/custom\.yaml'\? The package contains "):
        find_shipped("train_configs/custm.yaml", "--cfg-path")
    with pytest.raises(UserError, match=r"\)\. Correct the path\. The package contains "):
        find_shipped("train_configs/zqzq.yaml", "--cfg-path")
    (elsewhere / "train_configs").mkdir()
    (elsewhere / "train_configs/zqz.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"Did you mean 'train_configs/zqz\.yaml'\?"):
        find_shipped("train_configs/zqzq.yaml", "--cfg-path")


def test_an_absolute_path_has_no_packaged_copy(elsewhere):
    with pytest.raises(UserError, match="no file"):
        find_shipped(str(elsewhere / STAGE_1), "--cfg-path")


def test_only_the_first_rank_logs_the_packaged_copy(elsewhere, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.INFO, "emollama"):
        load(STAGE_1)
    assert caplog.records == []


def test_use_of_a_packaged_copy_is_printed_to_stderr_before_logging_is_configured(elsewhere, capsys, monkeypatch):
    logger = logging.getLogger("emollama")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    load(STAGE_1)
    assert capsys.readouterr().err.startswith(f"using the packaged copy of {STAGE_1} (")
    packaged._log_copy.cache_clear()
    monkeypatch.setattr(logger, "level", logging.WARNING)
    load(STAGE_1)
    assert capsys.readouterr().err == ""


def copy_sources(source):
    """Copy the files that an installation needs."""
    source.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("emollama", "docs", *paths.SHIPPED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return source


def test_a_wheel_contains_every_module_configuration_page_and_template(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = copy_sources(tmp_path / "source")
    build = "import setuptools.build_meta, sys; setuptools.build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("emollama-*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    expected = {f"emollama/{path}" for path in [*CONFIGS, *PAGES]}
    expected |= {
        str(path.relative_to(ROOT)) for path in (ROOT / "emollama").rglob("*.*") if path.suffix in (".py", ".yaml", ".j2", ".css")
    }
    expected.add("emollama/py.typed")
    assert {name for name in files if name.startswith("emollama/")} == expected
    assert sum(name.endswith("/describe_image.txt") for name in files) == 1


def environment(folder):
    """Create a virtual environment with this one's libraries but without the package; return its folder of programs."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in libraries))
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--editable"]], ids=["wheel", "editable"])
def test_an_installed_package_works_in_an_empty_folder(tmp_path, options):
    source, programs, work = copy_sources(tmp_path / "source"), environment(tmp_path / "environment"), tmp_path / "work"
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "EMOLLAMA_DATA")}

    def called(*command):
        result = subprocess.run(list(map(str, command)), cwd=work, env=variables, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    work.mkdir()
    install = ("install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", *options, source)
    called(sys.executable, "-m", "pip", "--python", programs / "python", *install)
    location = called(programs / "python", "-c", "import emollama; print(emollama.__path__[0])").strip()
    package = source / "emollama" if options else programs.parent
    assert Path(location).is_relative_to(package)
    if not options:
        shutil.rmtree(source)  # the installation must not need it
    emollama = programs / "emollama"
    pages = re.search(r"The pages listed above are in (.*)\.\n", called(emollama, "--help"))
    assert all((Path(pages[1]) / page).is_file() for page in PAGES)

    shutil.copytree(GOLDEN / "data", work / "data/MERR")
    shutil.copytree(GOLDEN / "llama", work / "data/llama")
    shutil.copy(GOLDEN / "checkpoint_slim.pth", work / "data/minigptv2_checkpoint.pth")
    assert "Wrote stage1.yaml for " in called(emollama, "init", "stage1", "--data", "data")
    few = ["run.iters_per_epoch=2", "run.max_epoch=1", "run.device=cpu", "run.amp=False", "run.num_workers=0"]
    few += ["run.output_dir=runs", "run.job_id=short", "model.lora_r=4"]
    assert "using the packaged copy of train_configs/demo_stage_1.yaml" in called(
        emollama, "config", "show", "--cfg-path", "train_configs/demo_stage_1.yaml"
    )
    # A wheel may lack files that training reads; an editable installation reads those of the clone.
    if options:
        called(emollama, "train", "--cfg-path", "stage1.yaml", "--dry-run", "--options", *few)
        return
    called(emollama, "train", "--cfg-path", "stage1.yaml", "--options", *few)
    assert (work / "runs/short/checkpoint_0.pth").is_file()
    assert (work / "runs/short/result/report.html").is_file()
