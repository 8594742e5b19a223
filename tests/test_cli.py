"""The command line: light imports, help, errors, options that every command has, the small commands."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from emollama import __version__, cli
from emollama.commands import COMMANDS
from emollama.commands.importing import SOURCES
from emollama.commands.parser import build_parser, overview, pages
from emollama.errors import UserError
from emollama.logs.logger import set_up

ROOT = Path(__file__).parent.parent
NAMES = [name for name, _, _ in COMMANDS]
CONFIGURATIONS = sorted(path for folder in ("train_configs", "eval_configs") for path in (ROOT / folder).glob("*.yaml"))


def called(capsys, *arguments):
    """(exit status, standard output, standard error) of a command in this process."""
    capsys.readouterr()
    status = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = ended.code or 0
    return status, *capsys.readouterr()


@pytest.fixture(autouse=True)
def _verbosity():
    """Each test starts and ends with the normal verbosity."""
    logger = logging.getLogger("emollama")
    level = logger.level
    yield
    cli.apply_output_options(cli.Parser().parse_args([]))
    logger.setLevel(level)


# Imports


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """The results of tests/workers/light_commands.py: one process runs all commands that must not import torch."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "work").mkdir()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    variables = os.environ | {"PYTHONPATH": paths, "EMOLLAMA_DATA": "data", "COLUMNS": "80", "MPLBACKEND": "Agg"}
    script = ROOT / "tests/workers/light_commands.py"
    line = [sys.executable, str(script), str(folder / "commands.json"), *map(str, CONFIGURATIONS)]
    completed = subprocess.run(line, cwd=folder / "work", env=variables, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return json.loads((folder / "commands.json").read_text())


def test_commands_without_tensors_import_no_torch(light):
    heavy = {name: set(loaded) for name, loaded in light["loaded"].items() if loaded}
    assert heavy == {"compare run_a run_b": {"matplotlib"}, "report run_a": {"matplotlib", "jinja2"}}  # the last lines
    assert {"build_judge", "import_reporting", "load_session"} < light["loaded"].keys()
    shown = [name for name in light["loaded"] if name.startswith("config show ")]
    imported = {name.split()[1] for name in light["loaded"] if name.startswith("import ")}
    assert len(shown) == len(CONFIGURATIONS) > 10
    assert imported == {*SOURCES}


def test_commands_without_tensors_succeed_and_print_the_expected_output(light):
    failed = {name: text for name, (status, text) in light["output"].items() if status != (2 if name == "trian" else 0)}
    assert failed == {}
    output = {name: text for name, (_, text) in light["output"].items()}
    assert output[""] == output["--help"]
    assert output["--version"] == f"emollama {__version__}\n"
    assert output["reference"] == (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert "run.metric (runner: runner_base)\n  default: null\n" in output["reference run.metric"]
    assert "all shards match their digests" in output["pack --check packed"]
    assert output["report run_a"] == "run_a/result/report.html\n"


# Help


def test_the_help_overview_lists_every_command_with_its_example():
    text = overview()
    for name, group, module in COMMANDS:
        command = importlib.import_module(f"emollama.commands.{module}")
        assert re.search(rf"^{group}:$", text, re.MULTILINE)
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
        assert f"$ {command.EXAMPLE}\n" in text
        assert command.HELP.split()[0] in text


@pytest.mark.parametrize(("name", "module"), [(name, module) for name, _, module in COMMANDS])
def test_the_example_is_a_valid_command_line(name, module):
    example = importlib.import_module(f"emollama.commands.{module}").EXAMPLE
    arguments = shlex.split(example.partition(" > ")[0])
    assert arguments[:2] == ["emollama", name]
    assert build_parser([name]).parse_args(arguments[1:]).command == name


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_documentation_that_the_help_names_exists():
    wrong = []
    for _, _, module in COMMANDS:
        page, _, anchor = importlib.import_module(f"emollama.commands.{module}").DOCS.partition("#")
        if not (pages() / page).is_file() or (anchor and anchor not in anchors(pages() / page)):
            wrong.append(f"{module}: {page}#{anchor}")
    assert wrong == []
    assert overview().endswith(f"The pages listed above are in {ROOT}.\n")


def test_the_help_of_a_command_ends_with_its_example_and_documentation(capsys):
    status, text, _ = called(capsys, "pack", "--help")
    assert status == 0
    assert text.rstrip().endswith(f"documentation: {ROOT}/docs/data.md#features")
    assert "usage: emollama pack " in text
    assert "--debug" in text


def test_a_description_is_wrapped_to_the_width_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = called(capsys, "rate", "--help")[1]
    paragraphs = text.partition("\n\n")[2].partition("\n\noptions:")[0].split("\n\n")
    assert len(paragraphs) == 3 and max(map(len, "\n".join(paragraphs).splitlines())) <= 58


def test_the_help_of_a_sub_command_has_a_description_and_a_link(capsys):
    text = called(capsys, "checkpoint", "diff", "--help")[1]
    assert "\n\nCompare two checkpoints; the exit status is 1 if they differ.\n\n" in text
    assert text.rstrip().endswith(f"documentation: {ROOT}/docs/checkpoints.md")


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("--help train", "usage: emollama train "),
        ("-q -h train --cfg-path x", "usage: emollama train "),
        ("--help config show", "usage: emollama config show "),
        ("--help sweep", "usage: emollama eval-checkpoints "),
        ("--", "usage: emollama [options] COMMAND ..."),
    ],
)
def test_help_before_a_command_is_the_help_of_the_command(line, usage, capsys):
    status, text, err = called(capsys, *line.split())
    assert (status, err) == (0, "")
    assert text.startswith(usage)


def test_no_help_text_contains_docstring_markup(capsys):
    marked = [name for name in NAMES if re.search(r"``|:[a-z]+:`", called(capsys, name, "--help")[1])]
    assert marked == []


# Errors


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian --cfg-path x", "emollama: error: unknown command 'trian'. Did you mean 'train'?"),
        ("chek-data", "emollama: error: unknown command 'chek-data'. Did you mean 'check-data'?"),
        ("zzzz", "emollama: error: unknown command 'zzzz'."),
        ("--frob", "emollama: error: unknown option '--frob'."),
        ("--verion", "emollama: error: unknown option '--verion'. Did you mean '--version'?"),
        ("train --cfg-pth x", "emollama train: error: unknown option '--cfg-pth'. Did you mean '--cfg-path'?"),
        ("train --cfg-path x --optoins a.b=1", "unknown option '--optoins'. Did you mean '--options'?"),
        ("train --cfg-path x --npro=2 --gpuss=1", "unknown option '--gpuss'. Did you mean '--gpus'?"),
        ("train --cfg-path x -z", "unknown option '-z'."),
        ("train --cfg-path x --bogus", "unknown option '--bogus'."),
        ("checkpoint inspect a --jsn", "unknown option '--jsn'. Did you mean '--json'?"),
        ("checkpoint inspct a", "Did you mean 'inspect'? Choices: inspect, diff, average, consolidate, convert"),
        ("pack --source a --output b --to zip", "argument --to: invalid choice: 'zip'. Choices: packed, tar"),
        ("train", "emollama train: error: the following arguments are required: --cfg-path"),
        ("report run --quiet --verbose", "not allowed with argument"),
        ("train --cfg-path x --options", "--options: expected at least one value, such as --options run.max_epoch=1"),
        ("sweep --cfg-path x --options --run-folder y", "--options: expected at least one value"),
        ("train --cfg-path x --options a.b=1 --options", "--options: expected at least one value"),
        (
            "train --cfg-path x --cfg-path y",
            "emollama train: error: argument --cfg-path: the option occurs twice, with 'x' and 'y'. Keep one.",
        ),
        ("config show --cfg-path x --cfg=y", "emollama config show: error: argument --cfg-path: the option occurs twice"),
        ("train --cfg-path x --nproc 2 --nproc 4", "argument --nproc: the option occurs twice, with '2' and '4'."),
        (
            "predict --cfg-path x --video a b --video c",
            "the option occurs twice, with 'a b' and 'c'. Write all values after one --video.",
        ),
        ("train --cfg-path x --nprocs 2", "emollama train: error: unknown option '--nprocs'. Did you mean '--nproc'?"),
        ("env --jsn", "emollama env: error: unknown option '--jsn'. Did you mean '--json'?"),
        ("env extra", "emollama env: error: unexpected argument 'extra'."),
        ("config show --cfg-path x extra", "emollama config show: error: unexpected argument 'extra'."),
        ("-x train", "emollama: error: unknown option '-x'."),
        ("--cfg-path x train", "emollama: error: '--cfg-path' must follow the command: emollama train --cfg-path ..."),
        (
            "--run-folder=x sweep",
            "emollama: error: '--run-folder' must follow the command: emollama eval-checkpoints --run-folder ...",
        ),
        ("--cfg-path x", "emollama: error: '--cfg-path' must follow the command: emollama COMMAND --cfg-path ..."),
        ("-- trian", "emollama: error: unknown command 'trian'. Did you mean 'train'?"),
        ("-- train", "emollama train: error: the following arguments are required: --cfg-path"),
        ("train x.yaml", "arguments are required: --cfg-path. Did you mean '--cfg-path x.yaml'?"),
        ("config show --json x.yml", "arguments are required: --cfg-path. Did you mean '--cfg-path x.yml'?"),
        ("-qv env", "emollama: error: argument -v/--verbose: not allowed with argument -q/--quiet"),
        ("-q env -v", "emollama: error: argument -v/--verbose: not allowed with argument -q/--quiet"),
        ("config -v show --cfg-path x -q", "emollama: error: argument -v/--verbose: not allowed with argument -q/--quiet"),
    ],
)
def test_an_invalid_command_line_is_reported_in_one_line_with_the_nearest_name(line, message, capsys):
    status, out, err = called(capsys, *line.split())
    first, second = err.splitlines()
    assert (status, out) == (2, "")
    assert message in first and ("Did you mean" in message) == ("Did you mean" in first)
    assert re.fullmatch(r"'emollama( [\w-]+)* --help' lists the (options|commands)\.", second)


def test_repeated_options_are_combined_and_the_last_value_of_a_key_wins(capsys):
    line = ["config", "show", "--json", "--cfg-path", ROOT / "train_configs/demo_stage_1.yaml"]
    line += ["--options", "run.seed=1", "run.job_id=x", "--options", "run.max_epoch=5", "run.seed=2"]
    status, text, _ = called(capsys, *line)
    assert status == 0
    values = {key: entry["value"] for key, entry in json.loads(text).items() if entry["layer"] == "--options"}
    assert values == {"run.seed": 2, "run.job_id": "x", "run.max_epoch": 5}
    arguments = cli.parse_run("Train.", ["--cfg-path", "x", "--options", "a.b=1", "--options", "c.d=2"])
    assert arguments.options == ["a.b=1", "c.d=2"]
    assert cli.parse_run("Train.", ["--cfg-path", "x"]).options == []


def test_the_entry_scripts_report_unknown_options_like_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse_run("Train.", ["--cfg-pth", "x"])
    assert ended.value.code == 2
    assert "unknown option '--cfg-pth'. Did you mean '--cfg-path'?" in capsys.readouterr().err


def test_an_error_of_a_command_is_printed_and_gives_exit_status_1(capsys):
    status, out, err = called(capsys, "config", "show", "--cfg-path", "nowhere.yaml")
    assert (status, out) == (1, "")
    assert err.startswith("error: --cfg-path: no file 'nowhere.yaml'")


# Options that every command has


@pytest.mark.parametrize("position", ["before", "after"])
def test_debug_prints_the_traceback_before_the_error(position, capsys):
    line = ["config", "show", "--cfg-path", "nowhere.yaml"]
    status, _, err = called(capsys, *(["--debug", *line] if position == "before" else [*line, "--debug"]))
    assert status == 1
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("error: --cfg-path: no file 'nowhere.yaml'")


def test_debug_does_not_affect_the_next_command(capsys):
    called(capsys, "--debug", "reference", "run.metrc")
    _, _, err = called(capsys, "reference", "run.metrc")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "main", "others"),
    [
        ([], logging.INFO, logging.WARNING),
        (["-q"], logging.WARNING, logging.WARNING),
        (["--verbose"], logging.DEBUG, logging.WARNING),
    ],
)
def test_quiet_and_verbose_set_the_level_of_the_log_lines(options, main, others, capsys):
    for line in ([*options, "reference", "run.metric"], ["reference", "run.metric", *options]):
        assert called(capsys, *line)[0] == 0
        set_up(is_main=True)
        assert logging.getLogger("emollama").level == main
        set_up(is_main=False)
        assert logging.getLogger("emollama").level == others
    arguments = cli.parse_run("Train.", ["--cfg-path", "x", *options])
    assert {"quiet", "verbose", "debug"} & vars(arguments).keys() == set()
    set_up(is_main=True)
    assert logging.getLogger("emollama").level == main


def test_verbose_prints_debug_messages_and_quiet_hides_everything_below_warnings(capsys, monkeypatch):
    monkeypatch.setenv("EMOLLAMA_DATA", "data")
    line = ["config", "show", "--cfg-path", CONFIGURATIONS[0]]
    status, shown, err = called(capsys, *line, "-v")
    assert status == 0
    assert f"configuration layer {CONFIGURATIONS[0]}: " in err
    assert called(capsys, *line, "-q")[1:] == (shown, "")


def test_commands_do_not_receive_the_global_options(monkeypatch, capsys):
    received = []
    monkeypatch.setattr(importlib.import_module("emollama.commands.report"), "run", received.append)
    assert called(capsys, "-q", "report", "folder", "--debug")[0] == 0
    assert {"quiet", "verbose", "debug"} & vars(received[0]).keys() == set()


# Small commands


def test_a_key_of_several_components_is_described_once_for_each_text(capsys):
    _, text, _ = called(capsys, "reference", "batch_size")
    assert text.startswith("datasets.batch_size (type: custom; type: dfew;")
    assert "encoders.batch_size (type: mae)\n  default: 32\n" in text
    _, labelled, _ = called(capsys, "reference", "evaluation_datasets.mine.num_beams")
    assert labelled.startswith("evaluation_datasets.num_beams (added by task: image_text_pretrain)\n  default: 1\n")
    _, shared, _ = called(capsys, "reference", "evaluation_datasets.held_out")
    assert shared.startswith("evaluation_datasets.held_out (type: custom;")


@pytest.mark.parametrize(("key", "current"), [("datasets.audio_feature_path", "features"), ("model.slot_dims", "slots")])
def test_a_second_name_of_a_key_is_described_by_its_current_name(emollama, key, current):
    assert f".{current} (" in emollama("reference", key).stdout


@pytest.mark.parametrize("block", ["model", "encoders", "datasets", "evaluation_datasets", "extraction", "run"])
def test_a_block_is_described_by_its_section_of_the_reference(block, capsys):
    status, text, _ = called(capsys, "reference", block)
    assert status == 0
    assert set(re.findall(r"^## (\w+)", text, re.MULTILINE)) == {block}
    assert text in (ROOT / "docs/configuration.md").read_text(encoding="utf-8")


def test_the_keys_imports_and_paths_are_described(capsys):
    assert called(capsys, "reference", "imports")[1].startswith("imports\n  A list of Python modules")
    described = called(capsys, "reference", "paths")[1]
    assert described.startswith("paths\n  Values of your own, which other keys refer to as ${paths.x}")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("run.metrc", " Did you mean 'run.metric'?"),
        ("metrc", " Did you mean 'run.metric'?"),
        ("run.iters", " Did you mean 'run.iters_per_epoch'?"),
        ("save_every", " Did you mean 'run.save_every_iters'?"),
        ("run.zzzzzz", ""),
        ("model.metric", ""),
        ("run.metric.x", " Did you mean 'run.metric'?"),
        ("datasets.mine.task_pool.reason", " Did you mean 'datasets.task_pool'?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key, hint, capsys):
    status, out, err = called(capsys, "reference", key)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: no configuration key '{key}'.{hint}")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_completion_contains_every_command_and_its_options(shell, capsys):
    status, text, _ = called(capsys, "completion", shell)
    assert status == 0
    assert [name for name in NAMES if name not in text] == []
    assert "cfg-path" in text
    assert "on-problem" in text


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_is_a_valid_script(shell, capsys, tmp_path):
    import shutil

    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    (tmp_path / "script").write_text(called(capsys, "completion", shell)[1])
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_env_reports_versions_devices_and_programs(capsys, monkeypatch):
    import torch

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr("emollama.commands.env._program", lambda name, option: f"{name} 1.0")
    status, text, _ = called(capsys, "env", "--json")
    report = json.loads(text)
    assert status == 0
    assert report["emollama"] == __version__
    assert report["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert report["torch"]["cuda"] == torch.version.cuda
    assert len(report["torch"]["devices"]) == torch.cuda.device_count()
    assert report["programs"] == {name: f"{name} 1.0" for name in ("java", "ffmpeg", "nvidia-smi")}
    _, plain, _ = called(capsys, "env")
    assert f"emollama: {__version__}\n" in plain
    assert "  torch: " in plain
    assert "sk-secret" not in text + plain


def test_env_reports_every_package_that_is_required(monkeypatch, tmp_path):
    from emollama.commands import env

    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {re.split(r"[<>=!; ]", line)[0] for line in lines if line and not line.startswith("#")}
    extras = {"bitsandbytes", "liger-kernel", "gradio", "fastapi", "uvicorn", "python-multipart", "prometheus_client"}
    assert set(env.required_packages()) == required | extras
    monkeypatch.setattr(env.emollama, "__file__", str(tmp_path / "emollama/__init__.py"))
    installed = ["torch<2.16,>=2.11", "bitsandbytes>=0.46; extra == 'quant'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: installed if name == "emollama" else None)
    assert env.required_packages() == ["torch", "bitsandbytes"]


def test_env_reports_program_versions_and_missing_or_broken_programs(monkeypatch, tmp_path, capsys):
    for name, script in (("nvidia-smi", "#!/nowhere/interpreter\n"), ("ffmpeg", "#!/bin/sh\necho ffmpeg 9\necho more\n")):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    _, text, _ = called(capsys, "env", "--json")
    report = json.loads(text)
    assert report["torch"]["error"].startswith(("ImportError", "ModuleNotFoundError"))
    assert report["programs"] == {"java": None, "ffmpeg": "ffmpeg 9", "nvidia-smi": "does not run: FileNotFoundError"}


def test_debug_prints_the_cause_of_an_error_before_the_error(monkeypatch, capsys):
    from emollama import entry
    from emollama.logs.verbosity import SETTINGS

    def fails():
        try:
            raise OSError("the disk")
        except OSError as error:
            raise UserError("no room") from error

    monkeypatch.setattr(SETTINGS, "debug", True)
    assert entry.run(fails) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "OSError: the disk" in lines
    assert lines[-1] == "error: no room"
    monkeypatch.setattr(SETTINGS, "debug", False)
    assert entry.run(fails) == 1
    assert capsys.readouterr().err == "error: no room\n"
