"""``emollama checkpoint``: output, exit codes, errors, and killed processes."""

from __future__ import annotations

import argparse
import json
import signal

import pytest
import torch
from helpers import GOLDEN

from emollama import checkpoint
from emollama.commands import checkpoint as commands
from emollama.errors import UserError

SLIM = str(GOLDEN / "checkpoint_slim.pth")
LLAMA = str(GOLDEN / "llama")


@pytest.fixture
def printed(capsys):
    """A function that runs ``emollama checkpoint`` in this process and returns what it prints."""
    parser = argparse.ArgumentParser()
    commands.add_arguments(parser)

    def call(*arguments):
        commands.run(parser.parse_args([str(argument) for argument in arguments]))
        return capsys.readouterr().out

    return call


@pytest.fixture
def changed(tmp_path):
    """The golden checkpoint with one changed value and one additional tensor."""
    content = torch.load(SLIM, weights_only=True)
    content["model"]["llama_proj.bias"][0] += 0.5
    content["model"]["attention.fc_out.bias"] = torch.zeros(6)
    content["config"]["run"]["seed"] = 7
    checkpoint.save(tmp_path / "changed.pth", content)
    return str(tmp_path / "changed.pth")


def refusal(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    return str(error.value)


def test_the_folder_of_a_run_is_its_best_or_else_its_last_checkpoint(printed, changed, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        folder.mkdir()
        (folder / "config.yaml").write_text("model: {}")
    checkpoint.save(run / "checkpoint_best.pth", torch.load(SLIM, weights_only=True) | {"step": 5})
    for folder, step in ((run, 9), (other, 7), (other, 3)):
        checkpoint.save(folder / f"checkpoint_{step}.pth", torch.load(changed, weights_only=True) | {"step": step})
    assert printed("inspect", run).startswith(f"{run}/checkpoint_best.pth: checkpoint")
    assert printed("inspect", other).startswith(f"{other}/checkpoint_7.pth: checkpoint")
    assert "2 checkpoints" in printed("average", run, SLIM, "--output", tmp_path / "mean.pth")
    assert "equal: " in printed("diff", run, tmp_path / "mean.pth")
    printed("convert", run, "--to", "peft", "--output", tmp_path / "peft")
    assert "equal: " in printed("diff", tmp_path / "peft", SLIM)
    with pytest.raises(UserError, match="contains no checkpoint. Train first"):
        (other / "checkpoint_7.pth").unlink()
        (other / "checkpoint_3.pth").unlink()
        printed("convert", other, "--to", "pth", "--output", tmp_path / "a.pth")


def test_inspect_prints_groups_adapters_and_digest(printed, changed):
    lines = printed("inspect", changed).splitlines()
    assert lines[0] == f"{changed}: checkpoint"
    assert "SHA-256 " in lines[1] and lines[1].endswith(", matches its .sha256 file")
    assert "LoRA        rank 4, alpha 16, 4 linear layers (q_proj, v_proj), 2,048 parameters" in lines
    assert "unused      1 tensors, in the groups marked -" in lines
    (row,) = (line for line in lines if "q_proj.lora_A" in line)
    assert row.split() == [
        "llama_model.base_model.model.model.layers.*.self_attn.q_proj.lora_A.weight",
        "4x64",
        "float32",
        "x",
        "2",
    ]
    assert next(line for line in lines if line.startswith("- ")).split()[1] == "attention.fc_out.bias"
    assert "no .sha256 file" in printed("inspect", SLIM)


def test_inspect_all_prints_every_tensor(printed):
    stored = torch.load(SLIM, weights_only=True)["model"]
    text = printed("inspect", SLIM, "--all")
    assert all(name in text for name in stored)
    report = json.loads(printed("inspect", SLIM, "--all", "--json"))
    assert report["all"] == {name: {"shape": list(tensor.shape), "dtype": "float32"} for name, tensor in stored.items()}
    assert "all" not in json.loads(printed("inspect", SLIM, "--json"))


def test_diff_of_equal_files_exits_with_0(printed):
    assert printed("diff", SLIM, SLIM) == "equal: 18 tensors compared, largest relative difference 0\n"


def test_diff_prints_what_differs_and_exits_with_1(printed, changed, capsys):
    with pytest.raises(SystemExit) as left:
        printed("diff", SLIM, changed)
    assert left.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"only in {changed}: attention.fc_out.bias"
    assert lines[1].startswith("llama_proj.bias: max |a - b| 0.5, relative ")
    assert lines[2] == "config (not compared): run.seed: 64 | 7"
    assert lines[3].startswith("different: 18 tensors compared, largest relative difference ")
    with pytest.raises(SystemExit):
        printed("diff", SLIM, changed, "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["equal"], report["beyond"], report["only_in_second"]) == (
        False,
        ["llama_proj.bias"],
        ["attention.fc_out.bias"],
    )


def test_diff_ignores_differences_within_the_tolerance(printed, changed, tmp_path):
    stored = torch.load(SLIM, weights_only=True)
    stored["model"]["llama_proj.bias"] *= 1 + 1e-6
    torch.save(stored, tmp_path / "near.pth")
    assert printed("diff", SLIM, tmp_path / "near.pth", "--tolerance", "1e-5").startswith("equal")
    with pytest.raises(SystemExit):
        printed("diff", SLIM, tmp_path / "near.pth", "--tolerance", "1e-7")


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_negative_or_infinite_tolerance_is_refused(printed, value):
    assert "--tolerance" in refusal(printed, "diff", SLIM, SLIM, f"--tolerance={value}")


def test_converting_to_peft_and_back_leaves_no_difference(printed, tmp_path):
    assert printed("convert", SLIM, "--to", "peft", "--output", tmp_path / "peft") == f"{tmp_path / 'peft'}: written\n"
    printed("convert", tmp_path / "peft", "--to", "pth", "--output", tmp_path / "back.pth")
    assert printed("diff", SLIM, tmp_path / "back.pth").endswith("equal: 18 tensors compared, largest relative difference 0\n")


def test_merging_and_averaging_write_their_results_to_the_output_path(printed, tmp_path, changed):
    printed("convert", SLIM, "--to", "merged", "--llama-model", LLAMA, "--output", tmp_path / "merged")
    assert (tmp_path / "merged/model.safetensors").is_file() and (tmp_path / "merged/tokenizer.json").is_file()
    output = printed("average", SLIM, SLIM, "--output", tmp_path / "mean.pth")
    assert output == f"{tmp_path / 'mean.pth'}: the mean of 2 checkpoints\n"
    assert printed("diff", SLIM, tmp_path / "mean.pth").startswith("equal")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--to", "merged"], "--to merged requires --llama-model"),
        (["--to", "pth", "--lora-alpha", "16"], "no effect with --to pth"),
        (["--to", "pth", "--llama-model", LLAMA], "no effect with --to pth"),
        (["--to", "peft", "--lora-alpha", "8"], "was trained with 16"),
        (["--to", "peft", "--llama-model", "nowhere"], "--llama-model: no folder 'nowhere'"),
        (["--to", "peft", "--llama-model", str(GOLDEN / "data")], "--llama-model: "),
    ],
)
def test_inconsistent_arguments_of_convert_are_refused(printed, tmp_path, arguments, expected):
    assert expected in refusal(printed, "convert", SLIM, *arguments, "--output", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "nothing.pth"],
        ["diff", SLIM, "nothing.safetensors"],
        ["average", SLIM, "nothing", "--output", "x.pth"],
        ["convert", "nothing.pth", "--to", "peft", "--output", "x"],
    ],
)
def test_a_missing_source_is_an_error_that_names_the_command(printed, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(printed, *arguments).startswith(f"{arguments[0]}: no file 'nothing")


def test_a_folder_where_a_file_is_expected_is_an_error(printed, tmp_path):
    assert "has no adapter_config.json" in refusal(printed, "inspect", tmp_path)
    assert "has no adapter_config.json" in refusal(printed, "inspect", LLAMA)


def test_the_command_line_program_exits_with_1_without_a_traceback(emollama, changed, tmp_path):
    different = emollama("checkpoint", "diff", SLIM, changed)
    assert (different.returncode, different.stderr) == (1, "") and "different: " in different.stdout
    wrong = emollama("checkpoint", "inspect", tmp_path)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: inspect: ") and "Traceback" not in wrong.stderr


KILLED = """
import os, signal, sys
from emollama.cli import main
from emollama.convert import formats

moment, *arguments = sys.argv[1:]
replace, save = os.replace, formats.save_tensors

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def replaced(source, target):
    if moment == "renaming" and os.path.isdir(source):
        kill()
    replace(source, target)

def saved(tensors, path, metadata):
    save(tensors, path, metadata)
    if moment == path.name:
        os.truncate(path, os.path.getsize(path) // 2)
        kill()

os.replace, formats.save_tensors = replaced, saved
main(arguments)
"""


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("adapter_model.safetensors", ["adapter_config.json", "adapter_model.safetensors"]),
        (
            "projectors.safetensors",
            [
                "adapter_config.json",
                "adapter_model.safetensors",
                "adapter_model.safetensors.sha256",
                "projectors.safetensors",
            ],
        ),
        (
            "renaming",
            [
                "adapter_config.json",
                "adapter_model.safetensors",
                "adapter_model.safetensors.sha256",
                "projectors.safetensors",
                "projectors.safetensors.sha256",
            ],
        ),
    ],
)
def test_a_killed_process_leaves_nothing_at_the_output_path(launch, tmp_path, moment, expected):
    """The process is killed when half of a file is written, or when the complete folder is about to be renamed."""
    (tmp_path / "killed.py").write_text(KILLED)
    arguments = ("checkpoint", "convert", SLIM, "--lora-alpha", "16", "--to", "peft", "--output", str(tmp_path / "out"))
    completed = launch(str(tmp_path / "killed.py"), moment, *arguments)
    assert completed.returncode == -signal.SIGKILL, completed.stderr
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.glob(".out.tmp*/*")) == expected
