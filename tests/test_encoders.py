"""HuBERT, MAE and VideoMAE: the same features as transformers for any batch composition, and weights that do not fit."""

from __future__ import annotations

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import encoding
import numpy as np
import pytest
import torch
import transformers
from encoding import CPU, RATE, face_clip, faces_of, save_hubert, save_mae, save_videomae, shaken, sound_clip, sound_of
from media_files import write_video
from PIL import Image
from safetensors.torch import load_file, save_file

from emollama.data.slots import SlotShape
from emollama.encoders.hubert import Hubert, chunk_lengths
from emollama.encoders.mae import Mae
from emollama.encoders.videomae import VideoMae
from emollama.encoders.weights import digest, read_tensors
from emollama.errors import UserError
from emollama.media.frame_selection import segment_middles, segment_pairs
from emollama.media.frames import read_frames
from emollama.media.source import Source

SLOW = pytest.mark.slow
SECONDS = {"short": 0.4, "spoken": 1.3, "longer": 2.5}
PATCHES = (encoding.IMAGE["image_size"] // encoding.IMAGE["patch_size"]) ** 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The three encoders in their published form, and clips: sound, faces and a video."""
    root = tmp_path_factory.mktemp("encoders")
    save_hubert(root / "hubert")
    save_mae(root / "mae")
    save_videomae(root / "videomae")
    write_video(root / "clip.mp4", 40)
    write_video(root / "other.mp4", pictures=[np.full((80, 64, 3), 30 * number, np.uint8) for number in range(7)])
    return root


@pytest.fixture(scope="module")
def clips(folders):
    return {
        "hubert": [sound_clip(folders, name, seconds) for name, seconds in SECONDS.items()],
        "mae": [face_clip(folders, name, count) for name, count in (("anna", 5), ("ben", 1), ("clara", 9))],
        "videomae": [Source(name, folders / f"{name}.mp4") for name in ("clip", "other")],
    }


CLASSES = {"hubert": Hubert, "mae": Mae, "videomae": VideoMae}


def build_encoder(name, path, device=CPU, **keys):
    encoder = CLASSES[name]
    return encoder(encoder.Config(weights=str(path), **keys), device=device, key="encoders.x")


def encoded(encoder, *sources):
    return encoder.encode([encoder.load(source) for source in sources])


def close(features, expected, bound=1e-5):
    assert features.dtype == np.float32
    assert features.shape == tuple(expected.shape)
    assert np.abs(expected).max() > 0.1
    return np.abs(features - np.asarray(expected)).max() <= bound


# HuBERT


def direct_states(folder, source, *, silence=0):
    """All hidden states (T, D) of a clip's sound as published: the last one is after the final norm."""
    values = transformers.AutoFeatureExtractor.from_pretrained(folder)(
        sound_of(source), sampling_rate=RATE, return_tensors="pt"
    ).input_values
    values = torch.cat([values, torch.zeros(1, silence)], dim=1)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        outputs = model(values, output_hidden_states=True)
    return [state[0] for state in outputs.hidden_states[:-1]] + [outputs.last_hidden_state[0]]


@pytest.mark.parametrize(
    ("stable", "normalize"),
    [(True, True), (False, False), pytest.param(True, False, marks=SLOW), pytest.param(False, True, marks=SLOW)],
)
def test_hubert_features_equal_the_time_mean_of_the_transformers_output(tmp_path, stable, normalize):
    folder, clip = save_hubert(tmp_path / "hubert", stable=stable, normalize=normalize), sound_clip(tmp_path, "clip", 1.7)
    (features,) = encoded(build_encoder("hubert", folder), clip)
    assert close(features, direct_states(folder, clip)[-1].mean(0))


def test_the_last_hubert_layer_is_taken_after_the_final_norm(folders, clips):
    (features,) = encoded(build_encoder("hubert", folders / "hubert"), clips["hubert"][1])
    model = transformers.HubertModel.from_pretrained(folders / "hubert", dtype=torch.float32).eval()
    behind = []
    model.encoder.layer_norm.register_forward_hook(lambda module, inputs, result: behind.append(result))
    sound = transformers.AutoFeatureExtractor.from_pretrained(folders / "hubert")(
        sound_of(clips["hubert"][1]), sampling_rate=RATE, return_tensors="pt"
    )
    with torch.no_grad():
        model(sound.input_values)
    assert close(features, behind[0][0].mean(0))


@pytest.mark.parametrize("stable", [True, pytest.param(False, marks=SLOW)])
@pytest.mark.parametrize("layers", [[-2, -1], [-3], *(pytest.param(these, marks=SLOW) for these in ([-1], [-1, -2, -3, -4]))])
def test_the_hidden_states_of_several_layers_are_summed(tmp_path, stable, layers):
    folder, clip = save_hubert(tmp_path / "hubert", stable=stable), sound_clip(tmp_path, "clip", 1.2)
    states = direct_states(folder, clip)
    (features,) = encoded(build_encoder("hubert", folder, layers=layers), clip)
    assert close(features, sum(states[layer] for layer in layers).mean(0), 2e-5)


@pytest.mark.parametrize("kind", ["Wav2Vec2", "WavLM"])
def test_wav2vec_and_wavlm_models_are_accepted_too(tmp_path, kind):
    folder, clip = save_hubert(tmp_path / "model", kind=kind), sound_clip(tmp_path, "clip", 1.2)
    (features,) = encoded(build_encoder("hubert", folder), clip)
    assert close(features, direct_states(folder, clip)[-1].mean(0))


def test_audio_shorter_than_one_second_is_padded_with_silence(folders, clips):
    encoder, clip = build_encoder("hubert", folders / "hubert"), clips["hubert"][0]
    assert len(encoder.load(clip)) == RATE
    expected = direct_states(folders / "hubert", clip, silence=RATE - len(sound_of(clip)))[-1].mean(0)
    assert close(encoded(encoder, clip)[0], expected)


@pytest.mark.parametrize(
    ("samples", "pieces"),
    [(5, [5]), (10, [10]), (12, [12]), (13, [10, 3]), (20, [10, 10]), (21, [10, 11]), (22, [10, 12]), (29, [10, 10, 9])],
)
def test_the_remainder_of_long_audio_is_a_chunk_unless_it_is_too_short(samples, pieces):
    assert chunk_lengths(samples, 10, 3) == pieces


def test_long_audio_is_encoded_in_chunks_and_averaged_over_all_of_them(folders, clips):
    clip = clips["hubert"][2]
    values = transformers.AutoFeatureExtractor.from_pretrained(folders / "hubert")(
        sound_of(clip), sampling_rate=RATE, return_tensors="pt"
    ).input_values
    model = transformers.HubertModel.from_pretrained(folders / "hubert", dtype=torch.float32).eval()
    with torch.no_grad():
        states = torch.cat([model(values[:, :16800]).last_hidden_state[0], model(values[:, 16800:]).last_hidden_state[0]])
    (features,) = encoded(build_encoder("hubert", folders / "hubert", chunk_seconds=1.05), clip)
    assert close(features, states.mean(0))
    assert not close(features, encoded(build_encoder("hubert", folders / "hubert"), clip)[0])


def test_hubert_weights_with_older_names_load_without_the_mask_embedding(folders, clips, tmp_path):
    tensors = load_file(folders / "hubert/model.safetensors")
    del tensors["masked_spec_embed"]
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, old in older.items():
        tensors[f"encoder.pos_conv_embed.conv.{old}"] = tensors.pop(f"encoder.pos_conv_embed.conv.{new}")
    shutil.copytree(folders / "hubert", tmp_path / "older", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(tensors, tmp_path / "older/pytorch_model.bin")
    features, expected = (
        encoded(build_encoder("hubert", path), clips["hubert"][1])[0] for path in (tmp_path / "older", folders / "hubert")
    )
    assert np.array_equal(features, expected)


@pytest.mark.parametrize("layers", [[], [0], [1], [-1, -1]])
def test_an_empty_non_negative_or_repeated_layer_selection_is_refused(layers):
    with pytest.raises(ValueError, match="expected different negative numbers, counted from the last layer"):
        Hubert.Config(weights="x", layers=layers)


def test_a_layer_that_the_model_does_not_have_is_refused(folders):
    cfg = Hubert.Config(weights=str(folders / "hubert"), layers=[-5])
    with pytest.raises(UserError, match=r"encoders\.h\.layers: the model has 3 layers"):
        Hubert.describe(cfg, "encoders.h")


# MAE


def direct_face_tokens(folder, images, mean=encoding.MEAN, std=encoding.STD):
    """Hidden states (F, 1 + P, D) of face images."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, image_mean=mean, image_std=std)
    pixels = processor(images, return_tensors="pt").pixel_values
    model = transformers.ViTMAEModel.from_pretrained(folder, mask_ratio=0.0, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(pixels, noise=torch.arange(float(PATCHES)).repeat(len(images), 1)).last_hidden_state


@pytest.mark.parametrize("pooling", ["cls", "patches"])
def test_mae_features_equal_the_image_mean_of_the_transformers_output(folders, clips, pooling):
    tokens = direct_face_tokens(folders / "mae", faces_of("clara", 9))
    expected = tokens[:, 0].mean(0) if pooling == "cls" else tokens[:, 1:].mean((0, 1))
    (features,) = encoded(build_encoder("mae", folders / "mae", pooling=pooling, batch_size=4), clips["mae"][2])
    assert close(features, expected)


def test_mae_masks_no_patches_and_preserves_their_order(folders, clips):
    encoder = build_encoder("mae", folders / "mae")
    tokens = encoder.tokens(encoder.load(clips["mae"][0]))
    assert tokens.shape[1] == 1 + PATCHES
    assert torch.allclose(tokens, direct_face_tokens(folders / "mae", faces_of("anna", 5)), atol=1e-5)


def test_a_zero_mean_and_a_unit_deviation_leave_pixels_unnormalised(folders, clips):
    loaded = build_encoder("mae", folders / "mae", image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0]).load(clips["mae"][1])
    resized = np.asarray(Image.fromarray(faces_of("ben", 1)[0]).resize((32, 32), Image.Resampling.BILINEAR)) / 255
    assert np.abs(loaded[0].permute(1, 2, 0).numpy() - resized).max() < 1.01 / 255


def save_original_mae(path):
    """Save a file in the format of MAE's code, with decoder, optimizer and arguments; return its tensors."""
    width, inner = encoding.SIZES["hidden_size"], encoding.SIZES["intermediate_size"]
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + PATCHES, width), "mask_token": (1, 1, 8)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 8, 8), "patch_embed.proj.bias": (width,), "norm.weight": (width,)}
    shapes |= {"norm.bias": (width,), "decoder_blocks.0.norm1.weight": (8,), "decoder_embed.weight": (8, width)}
    for number in range(encoding.SIZES["num_hidden_layers"]):
        block = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (inner, width),
            "mlp.fc2": (width, inner),
        }
        parts = {f"{name}.weight": shape for name, shape in block.items()} | {
            f"{name}.bias": shape[:1] for name, shape in block.items()
        }
        parts |= {f"{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in parts.items()}
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, shape in shapes.items():
        spread = 0.3 if len(shape) == 1 else torch.Size(shape[1:]).numel() ** -0.5
        tensors[name] = torch.randn(shape, generator=generator) * spread + ("norm" in name and "weight" in name)
    torch.save({"model": tensors, "optimizer": {"state": {}}, "epoch": 340, "args": argparse.Namespace(lr=0.1)}, path)
    return tensors


MAE_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.": "encoder.layer.",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "attn.": "attention.attention.",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def published_names(tensors, names):
    """Original names -> names in Hugging Face folders, independent of the package."""
    renamed = {}
    for name, value in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        if ".qkv." in name:
            for part, share in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace(".qkv.", f".{part}.")] = share
        else:
            renamed[name.replace("norm.", "layernorm.") if name.startswith("norm.") else name] = value
    return renamed


def test_an_original_mae_file_equals_transformers_with_the_same_weights(clips, tmp_path):
    tensors = save_original_mae(tmp_path / "mae_340.pth")
    used = {name: value for name, value in tensors.items() if "decoder" not in name and name != "mask_token"}
    model, report = transformers.ViTMAEModel.from_pretrained(
        None,
        config=transformers.ViTMAEConfig(**encoding.SIZES, **encoding.IMAGE, mask_ratio=0.0),
        state_dict=published_names(used, MAE_NAMES),
        output_loading_info=True,
    )
    assert not report["missing_keys"]
    encoder = build_encoder("mae", tmp_path / "mae_340.pth")
    pixels = encoder.load(clips["mae"][2])
    with torch.no_grad():
        tokens = model.eval()(pixels, noise=torch.arange(float(PATCHES)).repeat(len(pixels), 1)).last_hidden_state
    assert close(encoder.encode([pixels])[0], tokens[:, 0].mean(0))
    assert Mae.describe(encoder.cfg, "encoders.m").shape == SlotShape(1, 64)


def test_an_original_mae_file_gets_the_normalisation_of_imagenet(folders, clips, tmp_path):
    save_original_mae(tmp_path / "mae.pth")
    assert torch.equal(
        build_encoder("mae", tmp_path / "mae.pth").load(clips["mae"][0]),
        build_encoder("mae", folders / "mae").load(clips["mae"][0]),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("blocks.1.mlp.fc2.bias"),
            r"missing tensors or wrong shapes \(1 tensor: blocks\.1\.mlp\.fc2\.bias",
        ),
        (lambda tensors: tensors.update({"blocks.0.gamma_1": torch.ones(64)}), r"1 unknown tensor: blocks\.0\.gamma_1"),
        (lambda tensors: tensors.pop("pos_embed"), r"contains no MAE encoder \(its tensors: cls_token, mask_token"),
    ],
)
def test_a_file_that_is_not_an_mae_encoder_is_refused(tmp_path, change, message):
    tensors = save_original_mae(tmp_path / "mae.pth")
    change(tensors)
    torch.save(tensors, tmp_path / "mae.pth")
    with pytest.raises(UserError, match=message):
        build_encoder("mae", tmp_path / "mae.pth")


def test_a_file_of_another_encoder_type_is_refused(tmp_path):
    save_original_mae(tmp_path / "mae.pth")
    with pytest.raises(UserError, match=r"encoders\.x\.weights: '.*mae\.pth' contains no VideoMAE encoder"):
        build_encoder("videomae", tmp_path / "mae.pth")
    with pytest.raises(UserError, match=r"encoders\.x\.weights: no folder '.*mae\.pth'"):
        build_encoder("hubert", tmp_path / "mae.pth")


# VideoMAE


def direct_tokens(folder, frames, **changes):
    """Hidden states (T, D) of 16 frames."""
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(list(frames), return_tensors="pt").pixel_values
    model = transformers.VideoMAEModel.from_pretrained(folder, dtype=torch.float32, **changes).eval()
    with torch.no_grad():
        return model(pixels).last_hidden_state[0]


def test_videomae_features_equal_the_token_mean_of_the_transformers_output(folders, clips):
    frames = read_frames(folders / "clip.mp4", lambda count: segment_middles(count, 16))
    (features,) = encoded(build_encoder("videomae", folders / "videomae"), clips["videomae"][0])
    tokens = direct_tokens(folders / "videomae", frames)
    assert tokens.shape == (8 * PATCHES, 64)
    assert close(features, tokens.mean(0))


def test_a_fine_tuned_videomae_has_no_final_norm_and_a_pretrained_one_can_omit_it(folders, clips, tmp_path):
    frames = read_frames(folders / "clip.mp4", lambda count: segment_middles(count, 16))
    tuned = save_videomae(tmp_path / "tuned", kind="VideoClassification", mean_pooling=True)
    (features,) = encoded(build_encoder("videomae", tuned), clips["videomae"][0])
    assert close(features, direct_tokens(tuned, frames).mean(0))
    (bare,) = encoded(build_encoder("videomae", folders / "videomae", final_norm=False), clips["videomae"][0])
    assert close(bare, direct_tokens(folders / "videomae", frames, use_mean_pooling=True).mean(0))
    with pytest.raises(UserError, match=r"lack 2 tensors: layernorm\.bias, layernorm\.weight"):
        build_encoder("videomae", tuned, final_norm=True)


VIDEOMAE_NAMES = {**{old: new for old, new in MAE_NAMES.items() if old not in ("cls_token", "pos_embed")}}


@pytest.mark.parametrize("final_norm", [None, False])
def test_an_original_videomae_file_equals_transformers_with_the_same_weights(tmp_path, clips, final_norm):
    width, inner, layers = 64, 96, 2
    config = transformers.VideoMAEModel.config_class(
        **{**encoding.SIZES, "num_hidden_layers": layers},
        patch_size=32,
        layer_norm_eps=1e-6,
        use_mean_pooling=final_norm is False,
    )
    generator = torch.Generator().manual_seed(4)
    shapes = {"patch_embed.proj.weight": (width, 3, 2, 32, 32), "patch_embed.proj.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    for number in range(layers):
        block = {"attn.qkv.weight": (3 * width, width), "attn.q_bias": (width,), "attn.v_bias": (width,)}
        for part, shape in {"attn.proj": (width, width), "mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}.items():
            block |= {f"{part}.weight": shape, f"{part}.bias": shape[:1]}
        block |= {f"{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    tensors = {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else torch.Size(shape[1:]).numel() ** -0.5)
        for name, shape in shapes.items()
    }
    stored = {f"encoder.{name}": value for name, value in tensors.items()} | {"decoder.head.weight": torch.ones(3, 3)}
    torch.save({"module": stored | {"mask_token": torch.ones(1, 1, 3)}}, tmp_path / "maev_399.pth")
    named = published_names(tensors, VIDEOMAE_NAMES)
    biases = {name.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): value for name, value in named.items()}
    biases |= {name.replace("query", "key"): torch.zeros(width) for name in biases if name.endswith("query.bias")}
    model, report = transformers.VideoMAEModel.from_pretrained(None, config=config, state_dict=biases, output_loading_info=True)
    assert not report["missing_keys"]
    encoder = build_encoder("videomae", tmp_path / "maev_399.pth", final_norm=final_norm)
    pixels = encoder.load(clips["videomae"][0])
    assert pixels.shape == (16, 3, 224, 224)
    with torch.no_grad():
        expected = model.eval()(pixels[None]).last_hidden_state[0].mean(0)
    assert close(encoder.encode([pixels])[0], expected)


def test_videomae_biases_are_read_under_their_published_names(folders, clips, tmp_path):
    tensors = {}
    for name, value in load_file(folders / "videomae/model.safetensors").items():
        if not name.endswith(".key.bias"):
            tensors[name.replace("query.bias", "q_bias").replace("value.bias", "v_bias")] = value
    assert any("q_bias" in name for name in tensors)
    shutil.copytree(folders / "videomae", tmp_path / "older")
    save_file(tensors, tmp_path / "older/model.safetensors", {"format": "pt"})
    features, expected = (
        encoded(build_encoder("videomae", path), clips["videomae"][0])[0] for path in (tmp_path / "older", folders / "videomae")
    )
    assert np.abs(features - expected).max() < 1e-5


@pytest.mark.parametrize(("count", "pairs"), [(17, [2, 3, 6, 7, 10, 11, 14, 15]), (4, [0, 1, 1, 2, 1, 2, 2, 3]), (1, [0] * 8)])
def test_pair_sampling_selects_two_neighbouring_frames_in_the_middle_of_each_segment(count, pairs):
    assert segment_pairs(count, 8) == pairs


def test_videomae_uses_pairs_and_faces_if_configured(folders, clips):
    path, clip = folders / "videomae", clips["videomae"][0]
    pairs = read_frames(clip.video, lambda count: segment_pairs(count, 16))
    assert close(encoded(build_encoder("videomae", path, sampling="pairs"), clip)[0], direct_tokens(path, pairs).mean(0))
    faces = [faces_of("clara", 9)[number] for number in segment_pairs(9, 16)]
    (features,) = encoded(build_encoder("videomae", path, sampling="pairs", images="faces"), clips["mae"][2])
    assert close(features, direct_tokens(path, faces).mean(0))


def test_a_video_with_too_few_frames_repeats_some_of_them(folders, clips):
    assert build_encoder("videomae", folders / "videomae").load(clips["videomae"][1]).shape == (16, 3, 32, 32)


# All encoders


@pytest.mark.parametrize("name", CLASSES)
def test_encoders_load_on_the_meta_device_and_a_missing_folder_is_reported_there(folders, tmp_path, name):
    build_encoder(name, folders / name, torch.device("meta"))
    with pytest.raises(UserError, match=r"^encoders\.x\.weights: no folder"):
        build_encoder(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", CLASSES)
def test_tf32_convolutions_are_disabled_only_while_the_encoder_runs(folders, clips, name):
    encoder, flags, before = build_encoder(name, folders / name), [], torch.backends.cudnn.allow_tf32
    with torch.nn.modules.module.register_module_forward_hook(lambda *inputs: flags.append(torch.backends.cudnn.allow_tf32)):
        encoded(encoder, clips[name][0])
    assert set(flags) == {False} and torch.backends.cudnn.allow_tf32 is before is True


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("batch_size", [2, 8])
def test_the_features_of_a_clip_do_not_depend_on_the_other_clips_of_a_batch(folders, clips, name, batch_size):
    encoder = build_encoder(name, folders / name, batch_size=batch_size)
    loaded = [encoder.load(source) for source in clips[name]]
    alone = [encoder.encode([one])[0] for one in loaded]
    for order in (range(len(loaded)), reversed(range(len(loaded))), [1, 0, 0, 1, 1]):
        numbers = list(order)
        together = encoder.encode([loaded[number] for number in numbers])
        assert all(np.array_equal(features, alone[number]) for features, number in zip(together, numbers, strict=True))


def test_images_and_clips_are_always_encoded_in_batches_of_batch_size(folders, clips):
    """Libraries choose kernels by the shape of a batch, so features are only reproducible with a constant shape."""
    sizes = []
    mae, videomae = (build_encoder(name, folders / name, batch_size=4) for name in ("mae", "videomae"))
    tokens = mae.tokens
    mae.tokens = lambda images: sizes.append(len(images)) or tokens(images)
    encoded(mae, *clips["mae"])
    videomae.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    encoded(videomae, clips["videomae"][0])
    assert sizes == [4] * 5


@pytest.mark.parametrize("name", CLASSES)
def test_clips_are_loaded_identically_in_several_threads(folders, clips, name):
    encoder = build_encoder(name, folders / name)
    expected = [encoder.load(source) for source in clips[name]]
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(encoder.load, clips[name] * 4))
    assert all(torch.equal(one, other) for one, other in zip(loaded, expected * 4, strict=True))


@pytest.mark.parametrize("name", CLASSES)
def test_bfloat16_features_are_close_to_float32_and_returned_as_float32(folders, clips, name):
    exact, mixed = (encoded(build_encoder(name, folders / name, precision=kind), *clips[name]) for kind in ("fp32", "bf16"))
    for one, other in zip(exact, mixed, strict=True):
        assert other.dtype == np.float32
        assert 0 < np.abs(one - other).max() < 0.05 * np.abs(one).max()


@pytest.mark.parametrize("name", CLASSES)
def test_half_precision_weights_are_used_in_float32(folders, clips, tmp_path, name):
    shutil.copytree(folders / name, tmp_path / "half")
    settings = json.loads((tmp_path / "half/config.json").read_text(encoding="utf-8"))
    (tmp_path / "half/config.json").write_text(json.dumps(settings | {"dtype": "float16"}), encoding="utf-8")
    halves = {key: value.half() for key, value in load_file(folders / name / "model.safetensors").items()}
    save_file(halves, tmp_path / "half/model.safetensors", {"format": "pt"})
    features, expected = (encoded(build_encoder(name, path), clips[name][0])[0] for path in (tmp_path / "half", folders / name))
    assert 0 < np.abs(features - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("name", CLASSES)
def test_random_weights_are_logged_and_the_same_each_time_and_leave_the_generator_alone(folders, clips, tmp_path, caplog, name):
    shutil.copytree(folders / name, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    encoders = [build_encoder(name, tmp_path / "bare", random_weights=True) for _ in range(2)]
    assert torch.equal(torch.rand(2), expected)
    first, second = (encoded(encoder, clips[name][0])[0] for encoder in encoders)
    assert np.array_equal(first, second)
    assert "random weights" in caplog.text
    assert not np.allclose(first, encoded(build_encoder(name, folders / name), clips[name][0])[0], atol=1e-2)


SETTINGS = {
    "hubert": [{"layers": [-2, -1]}, {"chunk_seconds": 10.0}, {"precision": "bf16"}],
    "mae": [{"pooling": "patches"}, {"face": "centre"}, {"max_frames": 3}, {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}],
    "videomae": [
        {"images": "faces"},
        {"sampling": "pairs"},
        {"final_norm": False},
        {"image_mean": [0.0] * 3, "image_std": [1.0] * 3},
    ],
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_provenance_is_plain_json_and_contains_every_setting_that_affects_features(folders, name):
    cfg = CLASSES[name].Config(weights=str(folders / name))
    plain = CLASSES[name].describe(cfg, "encoders.x")
    assert plain.shape == SlotShape(1, 64)
    assert json.loads(json.dumps(plain.settings)) == plain.settings
    all_settings = [plain.settings] + [
        CLASSES[name].describe(replace(cfg, **keys), "encoders.x").settings for keys in SETTINGS[name]
    ]
    assert len({json.dumps(settings) for settings in all_settings}) == len(all_settings)
    assert CLASSES[name].describe(replace(cfg, batch_size=3, folder="other"), "encoders.x") == plain


# Weights that do not fit


@pytest.mark.parametrize("name", CLASSES)
def test_a_missing_folder_says_what_to_download(tmp_path, name):
    with pytest.raises(UserError, match=r"encoders\.x\.weights: no folder '.*nowhere'.*Download a .*Hugging Face"):
        CLASSES[name].describe(CLASSES[name].Config(weights=str(tmp_path / "nowhere")), "encoders.x")


@pytest.mark.parametrize("name", CLASSES)
def test_another_architecture_is_refused_with_both_names(folders, name):
    other = "mae" if name != "mae" else "hubert"
    kind = {"hubert": "'hubert'", "mae": "'vit_mae'"}[other]
    expected_type = {"hubert": "hubert or", "mae": "vit_mae", "videomae": "videomae"}[name]
    for attempt in (
        lambda: build_encoder(name, folders / other),
        lambda: CLASSES[name].describe(CLASSES[name].Config(weights=str(folders / other)), "encoders.x"),
    ):
        with pytest.raises(UserError, match=rf"has model_type {kind}, expected {expected_type}"):
            attempt()


def spoiled(folder, target, change):
    """Copy a folder and change its tensors."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", CLASSES)
def test_missing_tensors_and_tensors_of_another_shape_are_reported_by_name(folders, tmp_path, name, device):
    victim = next(key for key in load_file(folders / name / "model.safetensors") if "layers.1.f" in key or "layer.1.i" in key)
    for number, (change, message) in enumerate(
        [
            (lambda tensors: tensors.pop(victim), r"lack 1 tensor: "),
            (
                lambda tensors: tensors.update({victim: torch.ones(3)}),
                r"other shapes than in config\.json \(1 tensor: .* \(3,\), expected \(96,",
            ),
        ]
    ):
        with pytest.raises(UserError, match=message) as error:
            build_encoder(name, spoiled(folders / name, tmp_path / str(number), change), torch.device(device))
        assert victim.split(".")[-1] in str(error.value)


@pytest.mark.parametrize("name", CLASSES)
def test_missing_or_broken_parts_of_a_model_folder_are_reported_by_name(folders, tmp_path, name):
    shutil.copytree(folders / name, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"version https://example.org/pointer\noid sha256:00\n")
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or not a file of weights"):
        build_encoder(name, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        build_encoder(name, tmp_path / "broken")
    (tmp_path / "broken/preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"no preprocessor_config\.json in the folder"):
        build_encoder(name, tmp_path / "broken")
    (tmp_path / "broken/config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json, line 1: not valid JSON"):
        build_encoder(name, tmp_path / "broken")
    (tmp_path / "broken/config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json in the folder"):
        build_encoder(name, tmp_path / "broken")


def test_a_model_configuration_with_invalid_values_is_refused(folders, tmp_path):
    shutil.copytree(folders / "videomae", tmp_path / "wrong")
    settings = json.loads((tmp_path / "wrong/config.json").read_text(encoding="utf-8"))
    (tmp_path / "wrong/config.json").write_text(json.dumps(settings | {"hidden_size": "wide"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"encoders\.x\.weights: .*"):
        build_encoder("videomae", tmp_path / "wrong")


def test_an_image_processor_of_another_image_size_is_refused(folders, tmp_path):
    shutil.copytree(folders / "mae", tmp_path / "other")
    settings = json.loads((tmp_path / "other/preprocessor_config.json").read_text(encoding="utf-8"))
    (tmp_path / "other/preprocessor_config.json").write_text(json.dumps(settings | {"size": 48}), encoding="utf-8")
    with pytest.raises(UserError, match="produces images of 48 x 48 pixels, but the model expects 32 x 32"):
        build_encoder("mae", tmp_path / "other")


@pytest.mark.parametrize("values", [{"image_mean": [0.0] * 3}, {"image_mean": [0.0], "image_std": [1.0]}])
def test_an_incomplete_normalisation_is_refused(values):
    with pytest.raises(ValueError, match="set both to three numbers"):
        Mae.Config(weights="x", **values)


def test_a_file_that_could_run_code_is_not_opened(tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "hook": shaken}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"contains more than tensors and plain values \(encoding\.shaken\)\. It was not loaded"):
        read_tensors(str(tmp_path / "evil.pth"), "weights")


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 and no more"])
def test_a_file_without_weights_is_refused(tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.pth is truncated or not a file of weights.*Download it again"):
        read_tensors(str(tmp_path / "broken.pth"), "weights")


def test_tensors_are_read_from_legacy_files_and_from_sharded_folders(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_tensors(str(tmp_path / "old.pth"), "weights").keys() == {"a"}
    (tmp_path / "pieces").mkdir()
    for number in (1, 2):
        save_file({f"part{number}": torch.ones(1)}, tmp_path / f"pieces/model-0000{number}-of-00002.safetensors")
    torch.save({"unread": torch.ones(1)}, tmp_path / "pieces/pytorch_model.bin")
    assert read_tensors(str(tmp_path / "pieces"), "weights").keys() == {"part1", "part2"}


def test_the_digest_of_a_folder_depends_only_on_its_weights_and_configuration(folders, tmp_path):
    shutil.copytree(folders / "mae", tmp_path / "copy")
    before = digest(str(folders / "mae"))
    (tmp_path / "copy/README.md").write_text("words", encoding="utf-8")
    assert digest(str(tmp_path / "copy")) == before
    (tmp_path / "copy/config.json").write_text("{}", encoding="utf-8")
    changed = digest(str(tmp_path / "copy"))
    (tmp_path / "copy/model.safetensors").write_bytes(b"other")
    assert len({before, changed, digest(str(tmp_path / "copy"))}) == 3
