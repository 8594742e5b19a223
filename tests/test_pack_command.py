"""``emollama pack``: packed arrays are read back, failures leave no output, and the source does not change."""

from __future__ import annotations

import argparse
import os
import re
import resource
import time

import numpy as np
import pytest
import webdataset
from ranks import fork_context

from emollama import cli
from emollama.commands import pack
from emollama.errors import UserError
from emollama.stores.packed import PackedStore
from emollama.stores.store import NpyFolder, open_store
from emollama.stores.tars import TarStore


def packed(*arguments):
    """Run the command in this process."""
    parser = argparse.ArgumentParser()
    pack.add_arguments(parser)
    pack.run(parser.parse_args([str(argument) for argument in arguments]))


def refusal(*arguments):
    with pytest.raises(UserError) as error:
        packed(*arguments)
    return str(error.value)


def numbers(*shape, dtype=np.float32, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def folder_of(path, arrays):
    for name, array in arrays.items():
        (path / f"{name}.npy").parent.mkdir(parents=True, exist_ok=True)
        np.save(path / f"{name}.npy", array)
    return path


@pytest.fixture
def arrays():
    """Clips as in real data: two shapes and three types, and names with digits only, spaces, dots or slashes."""
    names = ["00012", "12", "a b", "deep/er/clip", "c.d", "表情"]
    kinds = [((64,), np.float32), ((1, 64), np.float32), ((64,), np.float64), ((9, 16), np.float16)]
    return {name: numbers(*kinds[index % 4][0], dtype=kinds[index % 4][1], seed=index) for index, name in enumerate(names)}


@pytest.fixture
def source(tmp_path, arrays):
    return folder_of(tmp_path / "source", arrays)


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def assert_same(store, arrays):
    assert sorted(store.names()) == sorted(arrays)
    for name, array in arrays.items():
        array_read = store.load(name)
        assert (array_read.dtype, array_read.shape) == (array.dtype, array.shape) and np.array_equal(array_read, array), name


def assert_nothing_was_left(folder):
    assert [path.name for path in folder.iterdir() if "out" in path.name] == []


# Packing


def test_packing_a_folder_preserves_every_array_and_does_not_change_the_folder(tmp_path, source, arrays, capsys):
    before = contents(source)
    packed("--source", source, "--output", tmp_path / "out")
    assert_same(open_store(str(tmp_path / "out"), "key"), arrays)
    assert contents(source) == before
    assert "6 clips packed" in capsys.readouterr().out
    packed("--check", tmp_path / "out")
    assert "6 clips, all shards match their digests" in capsys.readouterr().out


def test_packing_a_folder_to_tars_preserves_every_array(tmp_path, source, arrays):
    packed("--source", source, "--output", tmp_path / "out", "--to", "tar", "--shard-gib", 2**-20)
    store = open_store(str(tmp_path / "out"), "key")
    assert isinstance(store, TarStore) and len(list((tmp_path / "out").glob("shard-*.tar"))) > 1
    assert_same(store, arrays)


def test_the_configuration_path_of_tars_is_printed_if_clip_names_contain_dots(tmp_path, capsys):
    arrays = {"a.b": numbers(4), "deep.er/c.d.e": numbers(4)}
    packed("--source", folder_of(tmp_path / "source", arrays), "--output", tmp_path / "out", "--to", "tar")
    path = re.search(r"In the configuration, use '(.*)'\.", capsys.readouterr().out)[1]
    assert path == f"{tmp_path}/out::"
    assert_same(open_store(path, "key"), arrays)


def test_no_path_for_the_configuration_is_printed_if_it_equals_the_output(tmp_path, source, capsys):
    for kind in ("packed", "tar"):
        packed("--source", source, "--output", tmp_path / kind, "--to", kind)
    assert "In the configuration" not in capsys.readouterr().out


def test_webdataset_reads_the_tars_that_are_written(tmp_path):
    arrays = {f"clip_{number}": numbers(8, seed=number) for number in range(5)}
    folder_of(tmp_path / "source", arrays)
    packed("--source", tmp_path / "source", "--output", tmp_path / "out", "--to", "tar")
    samples = list(webdataset.WebDataset(f"{tmp_path}/out/shard-00000.tar", shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == list(arrays)
    assert all(np.array_equal(sample["npy"], arrays[sample["__key__"]]) for sample in samples)


@pytest.mark.parametrize("kind", ["packed", "tar"])
def test_packing_twice_gives_the_same_bytes(tmp_path, source, kind):
    for name in ("first", "second"):
        packed("--source", source, "--output", tmp_path / name, "--to", kind)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first == second and len(first) >= 2


def test_stores_of_each_kind_and_several_stores_are_accepted_as_sources(tmp_path, arrays):
    halves = [dict(list(arrays.items())[:3]), dict(list(arrays.items())[3:])]
    for number, half in enumerate(halves):
        folder_of(tmp_path / f"half_{number}", half)
    packed("--source", tmp_path / "half_0", tmp_path / "half_1", "--output", tmp_path / "tars", "--to", "tar")
    packed("--source", tmp_path / "tars", "--output", tmp_path / "packed")
    packed("--source", tmp_path / "packed", "--output", tmp_path / "again", "--shard-gib", 2**-22)
    assert_same(PackedStore.open(tmp_path / "again"), arrays)


def test_an_existing_empty_output_folder_is_accepted(tmp_path, source, arrays):
    (tmp_path / "out").mkdir()
    packed("--source", source, "--output", tmp_path / "out")
    assert_same(PackedStore.open(tmp_path / "out"), arrays)


def printed_bounds(text):
    match = re.search(r"rounding error at most (\S+), and at most (\S+) of the largest", text)
    return float(match[1]), float(match[2])


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_errors_of_smaller_dtypes_do_not_exceed_the_printed_bounds(tmp_path, dtype, capsys):
    rng = np.random.default_rng(3)
    arrays = {f"clip_{number}": numbers(17, 96, seed=number) * 10.0 ** rng.integers(-9, 3) for number in range(12)}
    arrays |= {"zeros": np.zeros((4, 8)), "tiny": np.full((2, 8), 1e-45), "wide": numbers(8, dtype=np.float64) * 1e3}
    arrays["row"] = np.concatenate([numbers(1, 96) * 1e4, numbers(1, 96) * 1e-4])
    folder_of(tmp_path / "source", arrays)
    packed("--source", tmp_path / "source", "--output", tmp_path / "out", "--dtype", dtype)
    absolute, relative = printed_bounds(capsys.readouterr().out)
    store = PackedStore.open(tmp_path / "out")
    errors = {name: np.abs(store.load(name).astype(np.float64) - array).max() for name, array in arrays.items()}
    shares = [errors[name] / np.abs(array).max() for name, array in arrays.items() if array.any()]
    assert 0.99 * absolute < max(errors.values()) <= absolute and 0.99 * relative < max(shares) <= relative
    assert {store.header(name) for name in arrays} == {(store.load(name).shape, store.load(name).dtype) for name in arrays}
    assert {store.load(name).dtype for name in arrays} == {np.dtype(np.float32 if dtype == "int8" else np.float16)}


def test_the_error_of_an_int8_value_is_at_most_half_a_step_of_its_row(tmp_path, capsys):
    array = np.concatenate([numbers(1, 96) * 1e4, numbers(1, 96) * 1e-4])
    folder_of(tmp_path / "source", {"clip": array})
    packed("--source", tmp_path / "source", "--output", tmp_path / "out", "--dtype", "int8")
    back = PackedStore.open(tmp_path / "out").load("clip")
    steps = np.abs(array).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - array) <= 0.5001 * steps).all()
    raw = sum(path.stat().st_size for path in (tmp_path / "out").glob("shard-*.bin"))
    assert raw == 2 * 96 + 2 * 4


@pytest.mark.parametrize(("figure", "text"), [(0.0, "0.00e+00"), (0.0123401, "1.24e-02"), (9.991, "1.00e+01"), (0.5, "5.00e-01")])
def test_a_bound_is_printed_rounded_up(figure, text):
    assert pack.rounded_up(figure) == text and float(text) >= figure


def test_a_single_array_larger_than_a_shard_gets_its_own(tmp_path):
    arrays = {"a": numbers(4), "b": numbers(64, 64), "c": numbers(4)}
    folder_of(tmp_path / "source", arrays)
    packed("--source", tmp_path / "source", "--output", tmp_path / "out", "--shard-gib", 2**-20)
    assert len(list((tmp_path / "out").glob("shard-*.bin"))) == 3
    assert_same(PackedStore.open(tmp_path / "out"), arrays)


NPY = {"plain": numbers(5, 8), "row": numbers(7), "fortran": np.asfortranarray(numbers(5, 8)), "large": numbers(3, 4, 5)}
NPY |= {"big endian": numbers(6, dtype=">f4"), "double": numbers(1, 9, dtype=np.float64), "half": numbers(4, dtype="f2")}


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_files_are_read_like_numpy_load(tmp_path, version):
    extra = {"scalar": np.float32(2), "empty": np.zeros((0, 4)), "bool": np.array([True]), "text": np.array(["a"])}
    for name, array in (NPY | extra | {"fields": np.zeros(2, "f4,f8")}).items():
        with open(tmp_path / f"{name}.npy", "wb") as file:
            np.lib.format.write_array(file, np.asanyarray(array), version)
        packed_array, expected = NpyFolder.open(tmp_path).load(name), np.load(tmp_path / f"{name}.npy")
        assert (packed_array.dtype, packed_array.shape) == (expected.dtype, expected.shape) and np.array_equal(
            packed_array, expected
        ), name
        assert packed_array.flags.f_contiguous == expected.flags.f_contiguous
        assert NpyFolder.open(tmp_path).header(name) == (expected.shape, expected.dtype)


def test_headers_of_numeric_arrays_are_read_without_the_python_parser(tmp_path, monkeypatch):
    """Python 3.11's parser raises SystemError if garbage is collected while another thread uses it."""

    def parse(*_, **__):
        raise SystemError

    monkeypatch.setattr("ast.parse", parse)
    np.save(tmp_path / "clip.npy", numbers(5, 8))
    np.save(tmp_path / "named.npy", np.zeros(2, [("x", "f4")]))
    store = NpyFolder.open(tmp_path)
    assert store.header("clip") == ((5, 8), np.float32)
    with pytest.raises(ValueError, match="header is damaged"):
        store.header("named")


# Errors


BAD = {
    "nan": (lambda path: np.save(path, np.array([1, np.nan], np.float32)), "contains NaN or inf"),
    "inf": (lambda path: np.save(path, np.array([1, np.inf], np.float16)), "contains NaN or inf"),
    "objects": (
        lambda path: np.save(path, np.array([{}], object), allow_pickle=True),
        "cannot be read: it contains Python objects",
    ),
    "integers": (lambda path: np.save(path, np.arange(4)), "dtype int64"),
    "empty": (lambda path: np.save(path, np.zeros((0, 4), np.float32)), "shape (0, 4)"),
    "scalar": (lambda path: np.save(path, np.float32(1)), "shape ()"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "cannot be read"),
    "nothing": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text": (lambda path: path.write_text("no array"), "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("to", ["packed", "tar"])
def test_an_unusable_array_is_refused_with_its_file_and_no_output_remains(tmp_path, source, kind, to):
    spoil, problem = BAD[kind]
    spoil(source / "a b.npy")
    text = refusal("--source", source, "--output", tmp_path / "out", "--to", to)
    assert f"{source}/a b.npy: {problem}" in text and "--skip-bad" in text
    assert_nothing_was_left(tmp_path)


def test_all_unusable_arrays_are_reported_together(tmp_path, source):
    for name in ("00012", "deep/er/clip"):
        np.save(source / f"{name}.npy", np.full(4, np.nan, np.float32))
    text = refusal("--source", source, "--output", tmp_path / "out")
    assert "arrays cannot be packed, 2:" in text and "00012.npy" in text and "deep/er/clip.npy" in text


def test_a_long_list_of_unusable_arrays_is_abbreviated(tmp_path):
    folder_of(tmp_path / "source", {f"clip_{number:02d}": np.full(4, np.nan) for number in range(33)})
    text = refusal("--source", tmp_path / "source", "--output", tmp_path / "out")
    assert "arrays cannot be packed, 33:" in text and "... and 23 more" in text and "clip_09" in text and "clip_10" not in text


def test_unfit_arrays_are_left_out_counted_and_listed_on_request(tmp_path, source, arrays, capsys):
    for number, (spoil, _) in enumerate(BAD.values()):
        path = source / f"bad_{number}.npy"
        np.save(path, numbers(4))
        spoil(path)
    packed("--source", source, "--output", tmp_path / "out", "--skip-bad")
    assert_same(PackedStore.open(tmp_path / "out"), arrays)
    out = capsys.readouterr().out
    assert "9 clips left out:" in out and all(f"bad_{number}.npy" in out for number in range(9))


def test_packing_only_unusable_arrays_is_refused(tmp_path):
    folder_of(tmp_path / "source", {"clip": np.full(4, np.nan)})
    assert "none of the arrays can be packed" in refusal(
        "--source", tmp_path / "source", "--output", tmp_path / "out", "--skip-bad"
    )
    assert_nothing_was_left(tmp_path)


@pytest.mark.parametrize(("dtype", "value"), [("float16", 65520.0), ("float16", -1e30), ("int8", 1e39), ("int8", 1e300)])
def test_a_value_that_overflows_the_dtype_is_refused_even_with_skip_bad(tmp_path, source, dtype, value):
    np.save(source / "12.npy", np.array([0.5, value]))
    text = refusal("--source", source, "--output", tmp_path / "out", "--dtype", dtype, "--skip-bad")
    assert f"{source}/12.npy" in text and f"too large for {dtype}" in text and "Choose another --dtype" in text
    assert_nothing_was_left(tmp_path)


def test_the_largest_value_of_float16_is_preserved(tmp_path, capsys):
    folder_of(tmp_path / "source", {"clip": np.array([65504.0, -65504.0])})
    packed("--source", tmp_path / "source", "--output", tmp_path / "out", "--dtype", "float16")
    assert printed_bounds(capsys.readouterr().out) == (0, 0)


def test_clips_of_the_same_name_in_two_sources_are_rejected_with_both_paths(tmp_path):
    for name in ("first", "second"):
        folder_of(tmp_path / name, {"a": numbers(4), name: numbers(4)})
    text = refusal("--source", tmp_path / "first", tmp_path / "second", "--output", tmp_path / "out")
    assert f"{tmp_path}/first/a.npy and {tmp_path}/second/a.npy" in text
    assert_nothing_was_left(tmp_path)


def test_an_empty_or_missing_source_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    assert "no arrays" in refusal("--source", tmp_path / "source", "--output", tmp_path / "out")
    assert "none" in refusal("--source", tmp_path / "none", "--output", tmp_path / "out")
    assert_nothing_was_left(tmp_path)


def test_an_existing_output_is_refused_and_not_changed(tmp_path, source):
    packed("--source", source, "--output", tmp_path / "out")
    before = contents(tmp_path / "out")
    assert "exists" in refusal("--source", source, "--output", tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    assert "exists" in refusal("--source", source, "--output", tmp_path / "file")
    assert contents(tmp_path / "out") == before and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("below", ["", "packed", "deep/packed"])
def test_nothing_is_written_into_a_source(tmp_path, source, below):
    before = contents(source)
    assert "source" in refusal("--source", source, "--output", source / below)
    assert contents(source) == before


def test_an_output_that_cannot_be_written_is_an_error(tmp_path, source):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal("--source", source, "--output", tmp_path / "file" / "out")


def test_a_full_disk_is_an_error_and_no_output_remains(tmp_path, source):
    """For a moment, this process can write files of at most 4 KiB."""
    np.save(source / "large.npy", numbers(4096))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        message = refusal("--source", source, "--output", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write" in message
    assert_nothing_was_left(tmp_path)


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "1e300"])
def test_an_invalid_shard_size_is_refused(tmp_path, source, size):
    assert "--shard-gib" in refusal("--source", source, "--output", tmp_path / "out", f"--shard-gib={size}")


def test_int8_tars_and_a_missing_output_option_are_refused(tmp_path, source):
    assert "--to packed" in refusal("--source", source, "--output", tmp_path / "out", "--to", "tar", "--dtype", "int8")
    assert "--output" in refusal("--source", source)


# Complete output or none


@pytest.mark.slow
def test_a_killed_pack_command_leaves_nothing_at_the_output_path(tmp_path, capsys):
    """The last array is a pipe without a writer, so that the command has packed all others and waits."""
    source = folder_of(tmp_path / "source", {f"clip_{number}": numbers(4096, seed=number) for number in range(40)})
    os.mkfifo(source / "zz.npy")
    arguments = ["--source", source, "--output", tmp_path / "out", "--shard-gib", 2**-16]
    process = fork_context().Process(target=packed, args=arguments)
    process.start()
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".out.*/shard-00005.bin")):
        assert process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not (tmp_path / "out").exists()
    (source / "zz.npy").unlink()
    packed("--source", source, "--output", tmp_path / "out")
    assert len(PackedStore.open(tmp_path / "out")) == 40
    assert (
        f"incomplete output of another pack command, which was killed or is still running: {tmp_path}/.out.tmp"
        in capsys.readouterr().out
    )


def test_the_command_prints_its_errors_without_a_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["pack", "--source", str(tmp_path), "--output", str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert ended.value.code == 1 and message.startswith("error: --output:") and "Traceback" not in message


# Checking and indexing


def test_check_detects_a_flipped_bit_and_names_the_shard_and_the_clip(tmp_path):
    folder_of(tmp_path / "source", {f"clip_{number}": numbers(2048, seed=number) for number in range(4)})
    packed("--source", tmp_path / "source", "--output", tmp_path / "out")
    shard = tmp_path / "out/shard-00000.bin"
    raw = bytearray(shard.read_bytes())
    raw[3 * 8192 + 5] ^= 16
    shard.write_bytes(bytes(raw))
    assert "shard-00000.bin: clip_3\n" in refusal("--check", tmp_path / "out")


def test_check_detects_a_truncated_shard(tmp_path, source):
    packed("--source", source, "--output", tmp_path / "out")
    shard = tmp_path / "out/shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:100])
    assert "shard-00000.bin: has 100 bytes" in refusal("--check", tmp_path / "out")
    assert "store.json: missing" in refusal("--check", source)


def test_indexes_are_written_next_to_the_tars_or_into_a_folder(tmp_path, source, arrays, capsys):
    packed("--source", source, "--output", tmp_path / "out", "--to", "tar")
    index = tmp_path / "out/shard-00000.tar.idx.npz"
    content = index.read_bytes()
    index.unlink()
    packed("--index", tmp_path / "out")
    assert index.read_bytes() == content
    index.unlink()
    packed("--index", tmp_path / "out/shard-{00000..00000}.tar", "--output", tmp_path / "indexes")
    assert f"In the configuration, use '{tmp_path}/indexes'" in capsys.readouterr().out
    assert_same(open_store(str(tmp_path / "indexes"), "key"), arrays)
    assert not index.exists()


def test_check_refuses_tar_shards_without_calling_them_damaged(tmp_path):
    source = folder_of(tmp_path / "source", {"a": numbers(4)}) or tmp_path / "source"
    packed("--source", source, "--output", tmp_path / "out", "--to", "tar")
    assert "contains tar shards, but --check verifies packed shards" in refusal("--check", tmp_path / "out")
