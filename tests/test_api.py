"""The Python API: what ``emollama.load`` reads, and that a session does the same as the commands."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import golden_tree, write
from ranks import start
from running import ROOT, golden_config

import emollama
from emollama.session import options_of

NOTEBOOK = ROOT / "examples/quickstart.ipynb"


@pytest.fixture
def run_folder(tmp_path):
    """A run's folder without checkpoints, and a function that adds one of a step."""
    folder = tmp_path / "runs/mine"
    folder.mkdir(parents=True)
    write(folder, golden_tree(tmp_path))
    return folder


def add(folder, name, step):
    """Save a checkpoint with its digest."""
    from emollama import checkpoint

    checkpoint.save(folder / name, {"model": {}, "step": step})
    return folder / name


def test_the_names_of_the_package_are_those_of_its_modules():
    assert [name for name in emollama.__all__ if getattr(emollama, name).__name__ != name] == []
    assert {*emollama.__all__} < {*dir(emollama)}
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        emollama.loads


def test_options_are_those_of_the_command_line_or_a_mapping_of_python_values(tmp_path):
    path = write(tmp_path, golden_tree(tmp_path))
    values = {"run.max_epoch": 3, "run.evaluate": True, "run.metric": None, "run.job_id": "a 'b' \"c\": #é", "run.init_lr": 1e-9}
    config = emollama.load(path, {**values, "run.output_dir": tmp_path}).config.run
    assert [config.max_epoch, config.evaluate, config.metric, config.job_id, config.init_lr] == list(values.values())
    assert config.output_dir == str(tmp_path)
    assert emollama.load(path, ["run.max_epoch=3"]).config.run.max_epoch == 3
    assert options_of(("a=1",)) == ["a=1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("run.seed=1", r"a single text. Write a list: options=\['run.seed=1'\]"),
        ({"run.seed": {1}}, "the value of 'run.seed' cannot be written in YAML"),
        ({"run.sed": 1}, "'run.sed'.* Did you mean 'seed'"),
    ],
)
def test_invalid_options_are_user_errors(options, message, tmp_path):
    with pytest.raises(emollama.UserError, match=message):
        emollama.load(write(tmp_path, golden_tree(tmp_path)), options)


def test_the_best_checkpoint_of_a_run_takes_precedence_over_later_ones(run_folder):
    best = add(run_folder, "checkpoint_best.pth", 2)
    add(run_folder, "checkpoint_3.pth", 8)
    assert emollama.load(run_folder).config.model.ckpt == str(best)


def test_a_run_without_best_checkpoint_is_loaded_from_the_highest_step(run_folder):
    add(run_folder, "checkpoint_last.pth", 5)
    latest = add(run_folder, "checkpoint_10.pth", 22)
    add(run_folder, "checkpoint_9.pth", 20)
    assert emollama.load(str(run_folder)).config.model.ckpt == str(latest)


def test_a_named_checkpoint_takes_precedence_over_the_folder(run_folder, tmp_path):
    other = tmp_path / "other.pth"
    assert emollama.load(run_folder, checkpoint=other).config.model.ckpt == str(other)
    assert emollama.load(run_folder, checkpoint=[other, "b.pth"]).config.model.ckpt == [str(other), "b.pth"]
    assert emollama.load(run_folder, {"model.ckpt": other}).config.model.ckpt == str(other)


@pytest.mark.parametrize("name", ["checkpoint_best.pth", "checkpoint_1.pth"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:40]), r"is truncated"),
        (lambda path: Path(f"{path}.sha256").write_text("0" * 64), "was changed after it was saved"),
    ],
)
def test_a_damaged_checkpoint_is_not_replaced_by_an_earlier_one(name, damage, message, run_folder):
    add(run_folder, "checkpoint_0.pth", 2)
    damage(add(run_folder, name, 4))
    with pytest.raises(emollama.UserError, match=f"{name}: .*{message}.*specify the checkpoint to use"):
        emollama.load(run_folder)


def test_a_folder_that_is_not_a_run_or_has_no_checkpoint_is_reported(run_folder, tmp_path):
    with pytest.raises(emollama.UserError, match="contains no checkpoint. Train first"):
        emollama.load(run_folder)
    with pytest.raises(emollama.UserError, match=f"'{tmp_path}' is not the folder of a run: it has no config.yaml"):
        emollama.load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"video": 3}, "video: expected a path, the content of a file as bytes, or None, got int"),
        ({"features": [1.0]}, "features: expected a mapping of slots to arrays, got list"),
        ({"text": b"secret"}, "text: expected a str or None, got bytes"),
        ({"history": [("a", "b")]}, "history[0]: expected emollama.Turn, got tuple"),
        ({"history": [emollama.Turn("a", None)]}, "history[0].answer: expected a str, got NoneType"),
        ({"mask_slots": "audio"}, "mask_slots: expected a list of str, the names of slots, got str"),
        ({"label_probabilities": "yes"}, "label_probabilities: expected a bool, got str"),
        ({"options": {"seed": 1}}, "options: expected an emollama.GenerationOptions, got dict"),
    ],
)
def test_a_field_of_another_type_is_a_user_error_that_names_both_types(fields, message):
    with pytest.raises(emollama.UserError) as error:
        emollama.Request(**fields)
    assert str(error.value) == f"{message}. Correct the request."
    assert error.value.param == next(iter(fields))


def test_generation_options_are_numbers():
    for name, value in {"temperature": "hot", "seed": 1.5, "max_new_tokens": True}.items():
        with pytest.raises(emollama.UserError, match=f"options.{name}: expected a .*number or None, got {type(value).__name__}"):
            emollama.GenerationOptions(**{name: value})
    assert emollama.GenerationOptions(seed=np.int64(3), temperature=np.float32(0.5)).seed == 3


def test_a_file_that_was_changed_after_it_was_loaded_is_not_run(tmp_path):
    tree = golden_tree(tmp_path)
    session = emollama.load(write(tmp_path, tree))
    write(tmp_path, {**tree, "run": {**tree["run"], "seed": 7}})
    with pytest.raises(emollama.UserError, match="config.yaml was changed after it was loaded"):
        session.evaluate()


def test_a_session_that_only_evaluates_does_not_train(tmp_path):
    session = emollama.load(write(tmp_path, golden_tree(tmp_path)), {"run.evaluate_only": True})
    with pytest.raises(emollama.UserError, match="Call evaluate"):
        session.train()
    with pytest.raises(emollama.UserError, match="nproc is 0"):
        session.evaluate(nproc=0)


def test_the_notebook_was_executed_and_its_outputs_are_small_and_contain_no_paths_of_a_machine():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = json.dumps([cell["outputs"] for cell in cells])
    assert len(outputs) < 10_000
    assert re.findall(r"(?<![\w.])/\w+/|\d\d:\d\d:\d\d", outputs) == []


class ForkedKernel:
    """A process with a Jupyter kernel that is forked from the server of ranks.py, as jupyter_client uses ``Popen``.

    Args:
        command: the interpreter and its arguments.
        cwd: current directory.
        env: environment variables.
        settings: further arguments of ``Popen``, which are not needed.
    """

    stdin = stdout = stderr = None

    def __init__(self, command, *, cwd, env, **settings):
        process = start(*command[command.index("-m") :], cwd=cwd, env=env)
        (self.pid,) = process.pids
        self.poll, self.wait, self.send_signal = process.poll, process.wait, process.send_signal
        # Signals are sent to its group of processes, which it leads in a moment.
        while os.getpgid(self.pid) != self.pid:
            time.sleep(0.01)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, fork_server):
    """A folder in which the notebook was executed, and the executed notebook."""
    import nbformat
    from jupyter_client.provisioning import local_provisioner
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("quickstart")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("EMOLLAMA_DEMO_VIDEOS", raising=False)
        patch.setattr(local_provisioner, "launch_kernel", ForkedKernel)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return folder, notebook


@pytest.fixture(scope="module")
def session(quickstart):
    """A session of the run that the notebook has trained, with the option that finds its data from any folder."""
    root = quickstart[0] / "demo_videos"
    with emollama.load(root / "trained", {"paths.root": root}) as session:
        yield session


@pytest.fixture(scope="module")
def result(session):
    """The result of its evaluation."""
    return session.evaluate()


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_and_end_with_an_answer(quickstart):
    cells = [cell for cell in quickstart[1].cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream") for cell in cells]
    labels = ("happy", "sad", "neutral", "angry", "worried", "surprise")
    assert texts[-2] in labels
    assert texts[-3].split("\n")[0] in labels
    (trained,) = [cell.outputs[0].data["text/plain"] for cell in cells if cell.source == "trained"]
    assert trained.startswith("Session('demo_videos/trained/config.yaml', options=['model.ckpt=")


@pytest.mark.slow
def test_an_evaluation_returns_the_answers_and_metrics_of_the_command(session, result, quickstart, emollama):
    root = quickstart[0] / "demo_videos"
    options = [f"paths.root={root}", f"model.ckpt={session.config.model.ckpt}", "run.job_id=command"]
    assert emollama("eval", "--cfg-path", root / "trained/config.yaml", "--options", *options).returncode == 0
    files = ["predictions_held_out.jsonl", "metrics_held_out.json"]
    assert [(result.folder / name).read_bytes() for name in files] == [
        (root / "command/result" / name).read_bytes() for name in files
    ]
    lines = [json.loads(line) for line in (result.folder / files[0]).read_text().splitlines()]
    assert [(row.name, row.task, row.prediction) for row in result.predictions] == [
        (line["name"], line["task"], line["prediction"]) for line in lines
    ]
    scores = json.loads((result.folder / files[1]).read_text())["tasks"]
    assert result.metrics == {f"held_out/emotion/{name}": value for name, value in scores["emotion"]["metrics"].items()}


@pytest.mark.slow
def test_answers_and_streams_about_videos_equal_those_of_the_evaluation(session, result, quickstart):
    root = quickstart[0] / "demo_videos"
    with (root / "labels.csv").open(newline="", encoding="utf-8") as file:
        sentences = {row["name"]: row["sentence"] for row in csv.DictReader(file)}
    for row in result.predictions[:4]:
        video = root / f"videos/{row.name}.mp4"
        answer = session.answer(video, text=sentences[row.name])
        assert (answer.prompt, answer.text) == (row.instruction, row.prediction)
        assert "".join(session.stream(video.read_bytes(), text=sentences[row.name])) == row.prediction


@pytest.mark.slow
def test_a_session_loads_the_model_again_after_it_was_closed(session, quickstart):
    video = quickstart[0] / "demo_videos/unseen/happy_1.mp4"
    first, engine = session.answer(video), session.engine()
    session.close()
    assert session.answer(video).text == first.text
    assert session.engine() is not engine


@pytest.mark.slow
def test_a_script_without_main_guard_trains_in_several_processes(tmp_path, launch):
    """The new processes run the command, not the script, and the script gets their error."""
    (tmp_path / "only_here.py").write_text(
        "import os\nfrom emollama.errors import UserError\nif 'RANK' in os.environ:\n    raise UserError('from a worker')\n"
    )
    golden_config(tmp_path)
    (tmp_path / "script.py").write_text(
        "import emollama\nopen('runs.txt', 'a').write('x')\n"
        "try:\n    emollama.load('config.yaml', {'run.device': 'cpu', 'imports': ['only_here']}).train(nproc=2)\n"
        "except emollama.UserError as error:\n    print(error)\n"
    )
    completed = launch("script.py", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.endswith("from a worker.\n")
    assert (tmp_path / "runs.txt").read_text() == "x"
