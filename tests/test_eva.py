"""EVA: the published features with the original tensor names, any image size, and files that do not fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN
from media_files import picture, write_video
from safetensors.torch import load_file, save_file

from emollama.encoders.eva import Eva
from emollama.encoders.eva_vit import EvaFiles, EvaVit, interpolate_positions, read_eva, read_ln_vision
from emollama.encoders.shapes import EvaShape
from emollama.errors import UserError
from emollama.media.source import Source

WEIGHTS = GOLDEN / "vision/eva_tiny.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reference():
    return load_file(GOLDEN / "vision/image_to_features.safetensors")


def load(path=WEIGHTS, *, size=112, ln_vision="identity", precision="fp32", depth=39):
    return EvaVit.load(EvaFiles(str(path), size, precision, depth, str(ln_vision)), device=CPU, key="weights")


def bare():
    """The tensors under the names of ``eva_vit_g.pth``."""
    return {name.removeprefix("visual_encoder."): value for name, value in load_file(WEIGHTS).items()}


def test_eva_features_equal_the_reference_with_the_original_tensor_names(reference):
    assert (load(ln_vision=WEIGHTS)(reference["image"]) - reference["features"]).abs().max() < 1e-4


def test_the_norm_after_the_transformer_is_the_identity_or_loaded_from_a_file(reference, tmp_path):
    expected = F.layer_norm(reference["vit_out"], (176,), eps=1e-5)
    assert (load()(reference["image"]) - expected).abs().max() < 1e-4
    norm = {"ln_vision.weight": torch.randn(176), "ln_vision.bias": torch.randn(176)}
    torch.save({"model": norm}, tmp_path / "blip2.pth")
    features = load(ln_vision=tmp_path / "blip2.pth")(reference["image"])
    assert (features - (expected * norm["ln_vision.weight"] + norm["ln_vision.bias"])).abs().max() < 1e-3


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pth_file_with_an_extra_block_and_a_head_gives_the_same_features(reference, tmp_path, wrapped):
    tensors = {name: value for name, value in bare().items() if not name.startswith("ln_vision")}
    tensors |= {name.replace("blocks.1.", "blocks.2."): value + 1 for name, value in tensors.items() if "blocks.1." in name}
    tensors |= {"norm.weight": torch.ones(176), "head.bias": torch.ones(3), "mask_token": torch.ones(1, 1, 176)}
    torch.save({"model": tensors} if wrapped else tensors, tmp_path / "eva_vit_g.pth")
    vit = load(tmp_path / "eva_vit_g.pth", depth=2)
    assert torch.equal(vit(reference["image"]), load()(reference["image"]))


def test_half_precision_weights_are_read_into_float32(reference, tmp_path):
    save_file({name: value.half() for name, value in load_file(WEIGHTS).items()}, tmp_path / "half.safetensors")
    vit = load(tmp_path / "half.safetensors")
    assert {value.dtype for value in vit.parameters()} == {torch.float32}
    assert (vit(reference["image"]) - load()(reference["image"])).abs().max() < 0.05


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.1), ("fp16", 0.02)])
def test_mixed_precision_features_are_close_to_float32_and_returned_as_float32(reference, precision, bound):
    vit = load(precision=precision)
    features = vit(reference["image"])
    assert features.dtype == torch.float32
    assert 0 < (features - load()(reference["image"])).abs().max() < bound
    assert vit.visual_encoder.blocks[0].mlp.fc1.weight.dtype in (torch.bfloat16, torch.float16)
    assert vit.visual_encoder.blocks[0].norm1.weight.dtype == torch.float32


def test_position_embeddings_are_interpolated_bicubically_without_antialiasing():
    positions = torch.randn(1, 1 + 64, 176)
    interpolated = interpolate_positions(positions, 16)
    grid = positions[:, 1:].reshape(1, 8, 8, 176).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (4, 4), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 16, 176)
    assert torch.allclose(interpolated[:, 1:], expected, atol=1e-6)
    assert torch.equal(interpolated[:, :1], positions[:, :1])
    assert interpolate_positions(positions, 64) is positions


@pytest.mark.parametrize(("size", "num_vectors"), [(56, 17), (112, 65), (224, 257)])
def test_any_image_size_gives_one_vector_for_each_patch_and_the_class_token(size, num_vectors):
    features = load(size=size)(torch.randn(1, 3, size, size))
    assert features.shape == (1, num_vectors, 176)
    assert features.isfinite().all()


def test_the_eva_encoder_stays_frozen_and_in_eval_mode():
    vit = load().train()
    assert not vit.training
    assert not any(value.requires_grad for value in vit.parameters())
    assert vit(torch.randn(1, 3, 112, 112, requires_grad=True)).grad_fn is None


def test_a_model_on_the_meta_device_loads_without_parameter_values():
    vit = EvaVit.load(EvaFiles(str(WEIGHTS), 112, "fp32"), device=torch.device("meta"), key="k")
    assert {value.device.type for value in vit.parameters()} == {"meta"}


def spoiled(tmp_path, change):
    tensors = load_file(WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / "spoiled.safetensors")
    return tmp_path / "spoiled.safetensors"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: t.pop("visual_encoder.blocks.1.attn.v_bias"),
            "missing tensors or wrong shapes (1 tensor: blocks.1.attn.v_bias",
        ),
        (lambda t: t.pop("visual_encoder.pos_embed"), "pos_embed"),
        (lambda t: t.update({"visual_encoder.blocks.0.more": torch.ones(1)}), "1 unknown tensor: blocks.0.more"),
        (lambda t: t.pop("visual_encoder.blocks.0.attn.q_bias"), "contains no EVA transformer"),
        (lambda t: t.update({"visual_encoder.patch_embed.proj.weight": torch.ones(176, 3, 16, 16)}), "patches of 16"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_name_and_the_tensor(tmp_path, change, expected):
    with pytest.raises(UserError, match=r"weights: '.*spoiled\.safetensors'") as refusal:
        load(spoiled(tmp_path, change))
    assert expected in str(refusal.value)


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match=r"weights: no file .*nowhere\.pth"):
        load(tmp_path / "nowhere.pth")


def test_ln_vision_of_another_width_or_missing_from_its_file_is_refused(tmp_path):
    save_file({"ln_vision.weight": torch.ones(8), "ln_vision.bias": torch.zeros(8)}, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match="has width 8, but the image encoder has width 176"):
        read_ln_vision(str(tmp_path / "narrow.safetensors"), 176, "ln_vision")
    save_file({"x": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="contains no ln_vision"):
        read_ln_vision(str(tmp_path / "none.safetensors"), 176, "ln_vision")


# The encoder of an extraction


def encoder(**keys):
    return Eva(Eva.Config(**{"weights": str(WEIGHTS), "image_size": 112, **keys}), device=CPU, key="encoders.e")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_video(folder / f"clip_{number}.mp4", pictures=[picture(number + more) for more in range(4)])
    return [Source(f"clip_{number}", folder / f"clip_{number}.mp4") for number in range(5)]


def test_the_features_of_a_clip_do_not_depend_on_the_other_clips_of_a_batch(videos):
    eva = encoder(batch_size=4)
    loaded = [eva.load(source) for source in videos]
    together = eva.encode(loaded)
    for index, alone in enumerate(loaded):
        assert (eva.encode([alone])[0] == together[index]).all()


def test_the_encoder_description_matches_the_encoded_arrays(videos):
    eva = encoder(frame_selection="middle")
    described = Eva.describe(eva.cfg, "encoders.eva")
    (array,) = eva.encode([eva.load(videos[0])])
    assert array.shape == (1 + described.shape.num_vectors, described.shape.dim) == (65, 176)
    assert str(array.dtype) == "float32"
    assert described.settings["frame_selection"] == "middle"


def test_the_provenance_distinguishes_an_identity_norm_from_a_loaded_norm():
    norms = [Eva.describe(encoder(ln_vision=choice).cfg, "k").settings["ln_vision"] for choice in ("identity", str(WEIGHTS))]
    assert norms[0] == "identity"
    assert norms[1] != norms[0]
    assert "eva_tiny" not in norms[1]  # the same norm in another file gives the same features


@pytest.mark.parametrize(("keys", "expected"), [({"image_size": 100}, "multiple of 28"), ({"image_size": 14}, "multiple of 28")])
def test_an_image_size_that_is_not_a_multiple_of_the_patch_grid_is_refused(keys, expected):
    with pytest.raises(ValueError, match=expected):
        Eva.Config(weights="x", **keys)


def test_random_weights_require_their_flag_and_are_reproducible(videos):
    encoders = [encoder(random_weights=True, weights="", width=176, depth=1) for _ in range(2)]
    arrays = [eva.encode([eva.load(videos[0])])[0] for eva in encoders]
    assert (arrays[0] == arrays[1]).all()
    with pytest.raises(UserError, match=r"^encoders\.e\.weights: "):
        encoder(weights="")


def test_random_weights_are_logged_and_leave_the_generator_alone(caplog):
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    encoder(random_weights=True, weights="", width=176, depth=1)
    assert torch.equal(torch.rand(2), expected)
    assert "encoders.e.weights: random weights" in caplog.text


def test_tf32_convolutions_are_disabled_only_while_the_encoder_runs(videos):
    eva, flags, before = encoder(), [], torch.backends.cudnn.allow_tf32
    eva.vit.visual_encoder.patch_embed.proj.register_forward_hook(lambda *inputs: flags.append(torch.backends.cudnn.allow_tf32))
    eva.encode([eva.load(videos[0])])
    assert flags == [False] and torch.backends.cudnn.allow_tf32 is before is True


@pytest.mark.slow
def test_a_vit_of_the_width_of_vit_g_runs_an_image_of_448_pixels_on_the_cpu(tmp_path):
    """The file has width 1408, random weights, the original names, positions for 224 pixels, and three of the 39 layers."""
    shape = EvaShape()
    with torch.device("meta"):
        built = EvaVit(shape, image_size=224, precision="fp32", device=torch.device("meta"))
    assert 0.98e9 < sum(value.numel() for value in built.visual_encoder.parameters()) < 1.0e9
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(value.shape, dtype=torch.float16).normal_(0, 0.02, generator=generator)
        for name, value in built.visual_encoder.state_dict().items()
        if not re.match(r"blocks\.([3-9]|\d\d)\.", name)
    }
    torch.save(tensors, tmp_path / "eva_vit_g.pth")
    assert read_eva(str(tmp_path / "eva_vit_g.pth"), "weights", 39)[0] == replace(shape, depth=3)
    # With bf16, this takes a minute on a CPU without bf16 instructions.
    vit = load(tmp_path / "eva_vit_g.pth", size=448, precision="fp32")
    features = vit(torch.randn(1, 3, 448, 448))
    assert features.shape == (1, 1025, 1408)
    assert features.isfinite().all()
