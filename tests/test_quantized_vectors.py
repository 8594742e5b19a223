"""int8 feature vectors stay int8 until they are on the device, and become the same numbers as in the store."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emollama.data.augmentation import Augmentation
from emollama.data.batch import PackedFeatures
from emollama.data.features import Features
from emollama.data.int8_vectors import dequantized
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.stores.packed import PackedStore
from emollama.stores.quantization import encode
from emollama.stores.shard_writers import PackedWriter


def store_of(folder, arrays):
    """A store of these arrays in int8."""
    folder.mkdir()
    writer = PackedWriter(folder, 2**30)
    for name, array in arrays.items():
        writer.add(name, encode(array, "int8")[0])
    writer.finish()
    return PackedStore.open(folder)


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (5, 8), (1, 5, 8)])
def test_vectors_are_read_in_int8_and_become_the_stored_numbers(tmp_path, shape):
    store = store_of(tmp_path / "packed", {"a": numbers(*shape), "b": np.zeros(shape, np.float32)})
    features = Features.open(str(tmp_path / "packed"), ("face",), SlotShape(None, 8), "features.face")
    for name in ("a", "b"):
        vectors = features.read(name)["face"]
        assert vectors.dtype == torch.int8 and vectors.shape[1] == 8 + 4
        assert torch.equal(dequantized(vectors), torch.from_numpy(store.load(name)).reshape(-1, 8))


def test_a_single_vector_may_have_any_number_of_values(tmp_path):
    store = store_of(tmp_path / "packed", {"a": numbers(7)})
    vectors = Features.open(str(tmp_path / "packed"), ("face",), SlotShape(1, 7), "features.face").read("a")["face"]
    assert torch.equal(PackedFeatures.pack([vectors]).float().values, torch.from_numpy(store.load("a"))[None])


def test_the_class_token_is_the_first_vector(tmp_path):
    store = store_of(tmp_path / "packed", {"a": numbers(5, 8)})
    features = Features.open(str(tmp_path / "packed"), ("image", "cls"), SlotShape(4, 8, "cls"), "features.image").read("a")
    assert torch.equal(dequantized(features["cls"]), torch.from_numpy(store.load("a")[:1]))
    assert torch.equal(dequantized(features["image"]), torch.from_numpy(store.load("a")[1:]))


def test_a_batch_has_the_same_numbers_with_and_without_samples_of_other_dtypes(tmp_path):
    store = store_of(tmp_path / "packed", {"a": numbers(5, 8), "b": numbers(3, 8, seed=2)})
    features = Features.open(str(tmp_path / "packed"), ("face",), SlotShape(None, 8), "features.face")
    quantized = [features.read(name)["face"] for name in ("a", "b")]
    expected = [torch.from_numpy(store.load(name)) for name in ("a", "b")]
    packed = PackedFeatures.pack(quantized)
    assert packed.values.dtype == torch.int8 and packed.offsets == (0, 5, 8)
    assert torch.equal(packed.float().values, torch.cat(expected))
    for other in (torch.zeros(0, 8), torch.ones(2, 8, dtype=torch.float16)):
        mixed = PackedFeatures.pack([*quantized, other]).float()
        assert torch.equal(mixed.values, torch.cat([*expected, other.float()]))


def test_a_value_that_overflows_the_dtype_of_the_run_is_reported_as_before(tmp_path):
    store_of(tmp_path / "packed", {"a": numbers(5, 8) * 1e6, "b": numbers(5, 8) * 1e4})
    features = Features.open(str(tmp_path / "packed"), ("face",), SlotShape(5, 8, compute_dtype="fp16"), "features.face")
    with pytest.raises(UserError, match=r"a \(slot face\): contains a value of size .* but this run computes in fp16"):
        features.read("a")
    assert features.read("b")["face"].dtype == torch.int8


@pytest.mark.parametrize("scale", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_scale_that_is_not_finite_is_reported(tmp_path, scale, dtype):
    (scales, values), _ = encode(numbers(5, 8), "int8")
    scales[3] = scale
    (tmp_path / "packed").mkdir()
    writer = PackedWriter(tmp_path / "packed", 2**30)
    writer.add("a", (scales, values))
    writer.finish()
    features = Features.open(str(tmp_path / "packed"), ("face",), SlotShape(5, 8, compute_dtype=dtype), "features.face")
    with pytest.raises(UserError, match=r"a \(slot face\): contains NaN or inf"):
        features.read("a")


def test_an_array_of_another_shape_is_reported_as_before(tmp_path):
    store_of(tmp_path / "packed", {"a": numbers(5, 8)})
    features = Features.open(str(tmp_path / "packed"), ("face",), SlotShape(1, 4), "features.face")
    with pytest.raises(UserError, match=r"shape \(5, 8\), expected"):
        features.read("a")


def test_augmented_vectors_are_those_of_the_same_numbers_in_float32(tmp_path):
    store_of(tmp_path / "packed", {"a": numbers(5, 8)})
    vectors = Features.open(str(tmp_path / "packed"), ("face",), SlotShape(5, 8), "features.face").read("a")["face"]
    augmentation = Augmentation(1.0, ("noise", "mask_rows"), 0.1, 0.5, (("face",),))
    results = [augmentation({"face": part}, np.random.default_rng(0))["face"] for part in (vectors, dequantized(vectors))]
    assert torch.equal(*results) and results[0].shape == (5, 8)
