"""Checkpoints: tensor names, completeness, safe reading, and which file a run resumes from."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from helpers import GOLDEN, golden_tree, loaded

from emollama import checkpoint, checkpoint_files, file_digests
from emollama.errors import UserError
from emollama.file_digests import DamagedError
from emollama.models import checkpoint_names
from emollama.optim import trainable
from emollama.paths import atomic_write
from emollama.runners import checkpoints

SLIM = str(GOLDEN / "checkpoint_slim.pth")
META = torch.device("meta")


@pytest.fixture
def stored():
    """The tensors of the golden checkpoint, which a test may change."""
    return dict(torch.load(SLIM, weights_only=True)["model"])


@pytest.fixture
def model(golden_config):
    """The tiny model with adapters and projections that differ from the golden ones."""
    loaded_model = golden_config.model_class(golden_config.model, device=torch.device("cpu"), frozen_dtype=torch.float32)
    with torch.no_grad():
        for parameter in trainable(loaded_model).values():
            parameter.fill_(7.0)
    return loaded_model


@pytest.fixture(scope="module")
def laid_out(golden_config):
    """The tensor names and shapes of the same model."""
    return golden_config.model_class(golden_config.model, device=META, frozen_dtype=torch.float32)


def checked(model, stored, *allow_missing):
    return checkpoint.load_trainable(model, stored, path="file.pth", allow_missing=list(allow_missing), dry=True)


def refusal(call, *args):
    with pytest.raises(UserError) as error:
        call(*args)
    return str(error.value)


def by_stored_name(model):
    return {checkpoint_names.stored_name(name): parameter for name, parameter in trainable(model).items()}


# Names and values


def test_names_and_shapes_of_stored_tensors_are_those_of_the_published_files(laid_out, stored):
    ours = {name: parameter.shape for name, parameter in by_stored_name(laid_out).items()}
    assert ours == {name: tensor.shape for name, tensor in stored.items()}


def test_loading_copies_every_tensor(model, stored):
    assert checkpoint.load_trainable(model, stored, path=SLIM, allow_missing=[]) == []
    for name, parameter in by_stored_name(model).items():
        assert parameter.detach().equal(stored[name])


def test_a_dry_load_changes_no_parameter(model, stored):
    assert checked(model, stored) == []
    assert all(bool((parameter == 7).all()) for parameter in trainable(model).values())


def test_loading_leaves_frozen_weights_alone(model, stored):
    frozen = {name: parameter.clone() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    checkpoint.load_trainable(model, stored, path=SLIM, allow_missing=[])
    now = dict(model.named_parameters())
    assert frozen and all(now[name].equal(value) for name, value in frozen.items())


def test_a_saved_checkpoint_is_read_back_unchanged(tmp_path, stored):
    content = {"model": stored, "step": 3, "config": {"run": {"seed": 1, "list": [1, None, "x"]}}, "scaler": {}}
    path = tmp_path / "checkpoint_0.pth"
    checkpoint.save(path, content)
    back = checkpoint.read(str(path), "model.ckpt")
    assert back.keys() == content.keys() and back["config"] == content["config"]
    assert all(back["model"][name].equal(tensor) for name, tensor in stored.items())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint_0.pth", "checkpoint_0.pth.sha256"]


# Missing, unexpected and misshapen tensors


def test_the_eight_tensors_missing_from_a_minigpt_v2_file_are_accepted_with_a_note(model, stored):
    for name in checkpoint_names.OPTIONAL_TENSOR_GROUP:
        del stored[name]
    (note,) = checkpoint.load_trainable(model, stored, path="file.pth", allow_missing=[])
    assert (
        "is a MiniGPT-v2 checkpoint" in note
        and "8 missing tensors: " in note
        and all(name in note for name in checkpoint_names.OPTIONAL_TENSOR_GROUP)
    )
    parameters = by_stored_name(model)
    assert all(bool((parameters[name] == 7).all()) for name in checkpoint_names.OPTIONAL_TENSOR_GROUP)
    assert parameters["llama_proj.weight"].detach().equal(stored["llama_proj.weight"])


@pytest.mark.parametrize("present", checkpoint_names.OPTIONAL_TENSOR_GROUP)
def test_a_file_that_lacks_only_seven_of_the_eight_tensors_is_refused_by_name(laid_out, stored, present):
    absent = [name for name in checkpoint_names.OPTIONAL_TENSOR_GROUP if name != present]
    for name in absent:
        del stored[name]
    message = refusal(checked, laid_out, stored)
    assert message.startswith("checkpoint file.pth: 7 missing tensors: ") and all(name in message for name in absent)
    assert present not in message


def test_a_file_that_lacks_the_eight_tensors_and_another_is_refused(laid_out, stored):
    for name in (*checkpoint_names.OPTIONAL_TENSOR_GROUP, "llama_proj.bias"):
        del stored[name]
    assert "9 missing tensors: " in refusal(checked, laid_out, stored)


def test_a_minigpt_v2_file_that_lacks_allowed_tensors_too_is_accepted(laid_out, stored):
    for name in (*checkpoint_names.OPTIONAL_TENSOR_GROUP, "llama_proj.bias"):
        del stored[name]
    notes = checked(laid_out, stored, "llama_proj.bias")
    assert any("llama_proj.bias" in note and "ckpt_allow_missing" in note for note in notes)
    assert any("is a MiniGPT-v2 checkpoint" in note for note in notes)


def test_missing_tensors_are_named_with_their_count_and_the_remedy(laid_out, stored):
    gone = [name for name in stored if ".layers.1." in name]
    for name in gone:
        del stored[name]
    message = refusal(checked, laid_out, stored)
    assert "4 missing tensors: " in message and all(name in message for name in gone) and "ckpt_allow_missing" in message


def test_unexpected_tensors_are_named(laid_out, stored):
    stored["llama_model.extra.weight"] = torch.zeros(1)
    assert "1 unexpected tensor: llama_model.extra.weight" in refusal(checked, laid_out, stored)


def test_tensors_of_another_shape_are_reported_with_both_shapes(laid_out, stored):
    stored["llama_proj.weight"] = torch.zeros(64, 700)
    stored["llama_proj.bias"] = torch.zeros(1, 64)
    message = refusal(checked, laid_out, stored)
    assert "2 tensors with different shapes: " in message and "(do lora_r, slots, llama_model differ?)" in message
    assert (
        "llama_proj.weight has shape (64, 700), expected (64, 704)" in message and "llama_proj.bias has shape (1, 64)" in message
    )


def test_all_tensor_problems_are_reported_together(laid_out, stored):
    del stored["llama_proj.bias"]
    stored["other"] = torch.zeros(1)
    stored["feats_llama_proj1.bias"] = torch.zeros(3)
    message = refusal(checked, laid_out, stored)
    assert all(part in message for part in ("1 missing tensor:", "1 unexpected tensor:", "1 tensor with a different shape:"))


def test_the_unused_tensors_of_published_files_are_ignored_with_a_note(laid_out, stored):
    stored["attention.0.weight"] = torch.zeros(1)
    stored["attention.norm.bias"] = torch.zeros(1)
    (note,) = checked(laid_out, stored)
    assert "ignored 2 unused tensors: attention.0.weight, attention.norm.bias" in note


def test_tensors_that_match_ckpt_allow_missing_may_be_missing_and_are_noted(laid_out, stored):
    del stored["llama_proj.bias"]
    refusal(checked, laid_out, stored)
    (note,) = checked(laid_out, stored, "llama_proj.*")
    assert "llama_proj.bias" in note and "ckpt_allow_missing" in note
    refusal(checked, laid_out, stored, "feats_*")


def test_ckpt_allow_missing_does_not_allow_another_shape(laid_out, stored):
    stored["llama_proj.bias"] = torch.zeros(3)
    assert "1 tensor with a different shape: " in refusal(checked, laid_out, stored, "*")


@pytest.mark.parametrize("value", [3, None, [0.0] * 64, {"weight": 1}])
def test_an_entry_that_is_not_a_tensor_is_refused_by_name(laid_out, stored, value):
    stored["llama_proj.bias"] = value
    assert "llama_proj.bias" in refusal(checked, laid_out, stored)


# Reading


def saved(folder, content, name="checkpoint_0.pth"):
    path = folder / name
    checkpoint.save(path, content)
    return path


def newest(folder):
    """The path of the newest checkpoint, which is read, and the problems of the others."""
    problems = {}
    content = checkpoints.newest(folder, problems)
    return content and Path(content["path"]), problems


def test_a_missing_file_is_reported_with_its_key():
    assert refusal(checkpoint.read, "none.pth", "model.ckpt").startswith("model.ckpt: no file 'none.pth' (current directory: ")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("digest", [True, False])
def test_a_truncated_file_is_refused_with_and_without_its_digest(tmp_path, stored, share, digest):
    path = saved(tmp_path, {"model": stored})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    if not digest:
        file_digests.digest_path(path).unlink()
    message = refusal(checkpoint.read, str(path), "model.ckpt")
    assert message.startswith("model.ckpt: ") and str(path) in message


def test_a_flipped_bit_is_detected_by_the_digest(tmp_path, stored):
    path = saved(tmp_path, {"model": stored})
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert "its SHA-256 differs" in refusal(checkpoint.read, str(path), "run.resume_ckpt_path")


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs /proc")
def test_the_tensors_of_a_large_checkpoint_are_mapped_not_copied(tmp_path, stored, monkeypatch):
    checkpoint.save(tmp_path / "a.pth", {"model": stored, "step": 1})
    monkeypatch.setattr(checkpoint_files, "MAPPED", 1)
    content = checkpoint.read(str(tmp_path / "a.pth"), "model.ckpt")
    (line,) = (line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("a.pth"))
    start, end = (int(number, 16) for number in line.split()[0].split("-"))
    assert all(start <= tensor.data_ptr() < end for tensor in content["model"].values())
    assert content["step"] == 1 and all(torch.equal(content["model"][name], tensor) for name, tensor in stored.items())


def test_a_flipped_bit_in_a_large_checkpoint_is_detected(tmp_path, stored, monkeypatch):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"model": stored, "step": 1})
    monkeypatch.setattr(checkpoint_files, "MAPPED", 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="was changed after it was saved"):
        checkpoint.read(str(path), "model.ckpt")


def test_a_file_without_a_digest_is_read():
    assert checkpoint.read(SLIM, "model.ckpt")["model"]


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"model": [1]}, {"model": None}, 3])
def test_a_file_without_model_tensors_is_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    assert "expected a dictionary with an entry 'model'" in refusal(checkpoint.read, str(path), "model.ckpt")


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("new_format", [True, False])
def test_pickled_code_is_refused_and_never_executed(tmp_path, stored, new_format):
    proof, path = tmp_path / "executed", tmp_path / "bad.pth"
    torch.save({"model": stored, "config": Payload(proof)}, path, _use_new_zipfile_serialization=new_format)
    message = refusal(checkpoint.read, str(path), "model.ckpt")
    assert "could run code" in message and str(path) in message
    assert not proof.exists()
    torch.load(path, weights_only=False)["config"].close()
    assert proof.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_and_never_executed(tmp_path):
    proof, path = tmp_path / "executed", tmp_path / "bad.pth"
    path.write_bytes(pickle.dumps({"model": {}, "config": Payload(proof)}))
    refusal(checkpoint.read, str(path), "model.ckpt")
    assert newest(tmp_path)[0] is None
    assert not proof.exists()


def broken_files():
    """Files that are not checkpoints: random bytes, and the golden checkpoint with changed bytes (seeded)."""
    generator = random.Random(7)
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(3)}, "step": 1}, buffer)
    old = io.BytesIO()  # without tensors, because the old format names them after memory addresses
    torch.save({"model": {}, "step": 1, "list": [1, (2, "x")]}, old, _use_new_zipfile_serialization=False)
    yield b"name,sentence\n"
    yield b"<html></html>"
    for head in (b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x80\x02}q\x00"):
        for _ in range(8):
            yield head + generator.randbytes(60)
    for source in (buffer.getvalue(), old.getvalue()):
        for _ in range(60):
            raw = bytearray(source)
            for _ in range(generator.randrange(1, 4)):
                raw[generator.randrange(len(raw))] = generator.randrange(256)
            yield bytes(raw)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_corrupted_file_is_either_read_or_refused_with_a_user_error(tmp_path):
    path = tmp_path / "checkpoint_0.pth"
    refused, crashes = 0, {}
    for raw in broken_files():
        path.write_bytes(raw)
        try:
            checkpoint.read(str(path), "model.ckpt")
        except UserError:
            refused += 1
        except Exception as error:
            crashes.setdefault(type(error).__name__, str(error)[:80])
    assert refused > 40 and crashes == {}


@pytest.mark.parametrize("content", [3, [1], None, {"step": None}, {"step": "x"}, {"step": [1]}, {}, torch.zeros(3)])
def test_files_that_are_not_checkpoints_are_never_the_newest_checkpoint(tmp_path, content):
    path = saved(tmp_path, {"model": {}, "step": 5})
    torch.save(content, tmp_path / "checkpoint_1.pth")
    assert newest(tmp_path)[0] == path


def test_the_epoch_checkpoint_is_preferred_to_the_best_checkpoint_of_the_same_step(tmp_path):
    for name in ("checkpoint_best.pth", "checkpoint_3.pth"):
        saved(tmp_path, {"model": {}, "step": 5}, name)
    assert newest(tmp_path)[0].name == "checkpoint_3.pth"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_corrupted_file_does_not_disturb_the_search_for_the_newest_checkpoint(tmp_path):
    path = saved(tmp_path, {"model": {}, "step": 5}, "checkpoint_0.pth")
    broken = tmp_path / "checkpoint_1.pth"
    crashes = {}
    for raw in broken_files():
        broken.write_bytes(raw)
        try:
            assert newest(tmp_path)[0] == path
        except Exception as error:
            crashes.setdefault(type(error).__name__, str(error)[:80])
    assert crashes == {}


# Which checkpoint is resumed, and which are preserved


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(tmp_path):
    for name, step in (("0", 100), ("10", 300), ("9", 200), ("last", 250)):
        saved(tmp_path, {"model": {}, "step": step}, f"checkpoint_{name}.pth")
    assert newest(tmp_path)[0] == tmp_path / "checkpoint_10.pth"
    saved(tmp_path, {"model": {}, "step": 301}, "checkpoint_last.pth")
    assert newest(tmp_path)[0] == tmp_path / "checkpoint_last.pth"


def test_damaged_files_are_never_the_newest_checkpoint_and_are_listed(tmp_path, stored):
    for name, step in (("checkpoint_0.pth", 1), ("checkpoint_1.pth", 2), ("checkpoint_2.pth", 3)):
        saved(tmp_path, {"model": stored, "step": step}, name)
    truncated, flipped = (tmp_path / f"checkpoint_{number}.pth" for number in (1, 2))
    truncated.write_bytes(truncated.read_bytes()[:-1000])
    raw = bytearray(flipped.read_bytes())
    raw[len(raw) // 2] ^= 1
    flipped.write_bytes(raw)
    path, problems = newest(tmp_path)
    assert path == tmp_path / "checkpoint_0.pth" and set(problems) == {truncated, flipped}


def test_the_newest_checkpoint_may_lack_its_digest(tmp_path, stored):
    for name, step in (("checkpoint_0.pth", 1), ("checkpoint_1.pth", 2)):
        path = saved(tmp_path, {"model": stored, "step": step}, name)
    file_digests.digest_path(path).unlink()
    assert newest(tmp_path) == (path, {})


def test_an_empty_or_missing_folder_has_no_newest_checkpoint(tmp_path):
    assert newest(tmp_path)[0] is None and newest(tmp_path / "none")[0] is None
    (tmp_path / "checkpoint_notes.pth.txt").write_text("x")
    assert newest(tmp_path)[0] is None


def test_keep_last_deletes_older_epochs_with_their_digests_and_never_best_or_last(tmp_path):
    for name in ("checkpoint_1.pth", "checkpoint_9.pth", "checkpoint_10.pth", "checkpoint_best.pth", "checkpoint_last.pth"):
        saved(tmp_path, {"model": {}, "step": 1}, name)
    (tmp_path / "notes.txt").write_text("x")
    checkpoints.drop_old(tmp_path, 2)
    expected = {"checkpoint_9.pth", "checkpoint_10.pth", "checkpoint_best.pth", "checkpoint_last.pth"}
    assert {path.name for path in tmp_path.iterdir()} == expected | {f"{name}.sha256" for name in expected} | {"notes.txt"}


def test_keep_last_above_the_number_of_checkpoints_deletes_nothing(tmp_path):
    saved(tmp_path, {"model": {}, "step": 1}, "checkpoint_1.pth")
    checkpoints.drop_old(tmp_path, 3)
    assert (tmp_path / "checkpoint_1.pth").exists()


class CountingFile(io.FileIO):
    """A file that counts the bytes that are read."""

    bytes_read = 0

    def readinto(self, buffer):
        count = super().readinto(buffer)
        CountingFile.bytes_read += count
        return count

    def read(self, size=-1):
        data = super().read(size)
        CountingFile.bytes_read += len(data)
        return data


def test_resuming_reads_the_checkpoint_once_although_it_is_compared_with_its_digest(tmp_path, monkeypatch):
    tensors = {f"{index}": torch.full((50_000,), float(index)) for index in range(5)}
    path = saved(tmp_path, {"model": tensors, "step": 5})
    monkeypatch.setattr(file_digests.PATHS, "open", lambda path, mode: CountingFile(path))
    monkeypatch.setattr(CountingFile, "bytes_read", 0)
    content = checkpoints.newest(tmp_path, {})
    assert content["model"]["4"].eq(4).all()
    assert path.stat().st_size <= CountingFile.bytes_read < 1.02 * path.stat().st_size


@pytest.mark.parametrize("seed", range(3))
def test_the_hash_of_a_file_does_not_depend_on_the_order_of_reading(tmp_path, seed):
    generator, path = random.Random(seed), tmp_path / "file"
    path.write_bytes(generator.randbytes(3 * file_digests.LARGEST_GAP))
    with path.open("rb") as opened:
        file = file_digests.HashingReader(opened)
        for _ in range(9):
            file.seek(generator.randrange(path.stat().st_size))
            file.read(generator.randrange(2 * file_digests.LARGEST_GAP))
        assert file.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


# Writing


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(tmp_path, monkeypatch):
    path = saved(tmp_path, {"model": {}, "step": 1})

    def half(content, file):
        file.write(b"half of a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(UserError, match="checkpoint_0.pth could not be written: no space"):
        checkpoint.save(path, {"model": {}, "step": 2})
    monkeypatch.undo()
    assert checkpoint.read(str(path), "x")["step"] == 1 and newest(tmp_path)[0] == path
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint_0.pth", "checkpoint_0.pth.sha256"]


def test_a_copy_of_a_file_that_changes_after_it_was_opened_is_refused(tmp_path, monkeypatch):
    source, target = saved(tmp_path, {"model": {}, "step": 2}), saved(tmp_path, {"model": {}, "step": 1}, "checkpoint_best.pth")
    copy = shutil.copyfileobj

    def copy_changed(content, file):
        source.write_bytes(source.read_bytes()[::-1])
        copy(content, file)

    monkeypatch.setattr(checkpoint.shutil, "copyfileobj", copy_changed)
    with pytest.raises(file_digests.DamagedError, match="checkpoint_0.pth was changed after it was saved"):
        checkpoint.copy(source, target)
    assert checkpoint.read(str(target), "x")["step"] == 1 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moment", range(3))
def test_a_write_that_is_killed_at_any_moment_leaves_an_intact_checkpoint(tmp_path, monkeypatch, moment):
    path = saved(tmp_path, {"model": {}, "step": 2}, "checkpoint_last.pth")
    moves = []

    def killed(move):
        def step(*arguments):
            if len(moves) == moment:
                raise KeyboardInterrupt
            moves.append(arguments)
            return move(*arguments)

        return step

    monkeypatch.setattr(os, "replace", killed(os.replace))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"model": {}, "step": 3})
    monkeypatch.undo()
    assert newest(tmp_path)[0] == path
    assert checkpoint.read(str(path), "x")["step"] == (3 if moment == 2 else 2)


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_file_does_not_appear_before_it_is_complete(tmp_path, mode):
    path = tmp_path / "deep" / "file"
    with atomic_write(path, mode) as file:
        file.write(b"x" if mode == "wb" else "x")
        assert not path.exists()
    assert path.read_bytes() == b"x"


# In a run


def test_a_run_writes_checkpoints_with_the_published_tensor_names(tmp_path, stored):
    tree = golden_tree(tmp_path)
    tree["run"] |= {"iters_per_epoch": 1, "init_lr": 1e-3}
    config = loaded(tmp_path, tree)
    folder = config.runner_class(config).train()
    content = checkpoint.read(str(folder / "checkpoint_0.pth"), "model.ckpt")
    assert {name: tensor.shape for name, tensor in content["model"].items()} == {k: v.shape for k, v in stored.items()}
    assert (content["step"], content["epoch"]) == (1, 0)
    assert {1, 6, "torch.float32"} <= {value for value in content["facts"].values() if not isinstance(value, list)}
    assert content["config"] == config.unresolved()
    assert any(not content["model"][name].equal(tensor) for name, tensor in stored.items())
    assert all(tensor.isfinite().all() for tensor in content["model"].values())
    shutil.copy(folder / "checkpoint_0.pth", tmp_path / "start.pth")
    tree["model"]["ckpt"] = str(tmp_path / "start.pth")
    again = loaded(tmp_path, tree, "run.job_id=again")
    runner = again.runner_class(again)
    for name, parameter in by_stored_name(runner.model).items():
        assert parameter.detach().equal(content["model"][name])


def test_a_minigpt_v2_file_may_lack_further_allowed_tensors(laid_out, stored):
    together = sorted(laid_out.optional_tensor_group)
    tensors = {name: tensor for name, tensor in stored.items() if name not in together and name != "llama_proj.bias"}
    notes = checked(laid_out, tensors, "llama_proj.bias", "cls_tk_llama_proj.*")
    assert "is a MiniGPT-v2 checkpoint" in notes[0] and "1 missing tensor: llama_proj.bias" in notes[1]
