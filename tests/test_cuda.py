"""Tests that need a GPU; they are skipped on other machines."""

from __future__ import annotations

from contextlib import contextmanager

import encoding
import numpy as np
import pytest
import torch
import yaml
from flickr_world import make_flickr_world
from helpers import GOLDEN, golden_tree, loaded
from host_syncs import SETTINGS, STEPS, train_with_steps_in
from media_files import write_video
from running import golden_config, read_jsonl

from emollama.config import load
from emollama.encoders.eva import Eva
from emollama.encoders.hubert import Hubert
from emollama.encoders.mae import Mae
from emollama.encoders.videomae import VideoMae
from emollama.media.source import Source
from emollama.models import fp8_linear
from emollama.models.dropout import dropped_elements
from emollama.models.fused_ops import PLAIN, liger_ops

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_dropout_masks_on_the_gpu_are_those_on_the_cpu():
    keys = torch.randint(-(2**31), 2**31, (300,), generator=torch.Generator().manual_seed(0)).int()
    assert dropped_elements(keys.cuda(), 999, -5, 3277).cpu().equal(dropped_elements(keys, 999, -5, 3277))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dropout_kernel_of_the_gpu_gives_the_values_of_the_cpu(dtype):
    from emollama.models import dropout_kernel

    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**31), 2**31, (300,), generator=generator).int()
    values, total, added = (torch.randn(300, 1500, generator=generator).to(dtype) for _ in range(3))
    mask = (-5, 3277)
    assert dropout_kernel.dropout(values.cuda(), keys.cuda(), *mask).cpu().equal(torch.ops.emollama.dropout(values, keys, *mask))
    on_gpu = total.cuda()
    dropped = dropout_kernel.dropout_and_add_(values.cuda(), on_gpu, added.cuda(), keys.cuda(), *mask)
    assert dropped.cpu().equal(torch.ops.emollama.dropout_and_add_(values, total, added, keys, *mask))
    assert on_gpu.cpu().equal(total)


def test_norm_rotary_embedding_and_swiglu_of_liger_give_the_values_of_the_cpu():
    pytest.importorskip("liger_kernel")
    torch.manual_seed(0)
    x, weight, up = torch.randn(1, 30, 64), torch.randn(64), torch.randn(1, 30, 64)
    query, key, angles = torch.randn(1, 4, 30, 16), torch.randn(1, 2, 30, 16), torch.randn(1, 30, 8).repeat(1, 1, 2)

    def results(ops, device):
        inputs = [tensor.to(device, copy=True).requires_grad_() for tensor in (x, weight, up, query, key)]
        x_, weight_, up_, query_, key_ = inputs
        rotated = ops.rope(query_ * 1, key_ * 1, angles.cos().to(device), angles.sin().to(device))
        outputs = [ops.rms_norm(x_, weight_, 1e-5), ops.silu_mul(x_ * 1, up_ * 1), *rotated]
        gradients = torch.autograd.grad(sum(output.square().sum() for output in outputs), inputs)
        return [tensor.cpu() for tensor in (*outputs, *gradients)]

    for own, expected in zip(results(liger_ops(), "cuda"), results(PLAIN, "cpu"), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


products_in_8_bits = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < fp8_linear.CAPABILITY, reason="no products in 8 bits"
)


class Frozen(torch.nn.Sequential):
    def get_output_embeddings(self):
        return None


@products_in_8_bits
def test_products_in_8_bits_on_the_gpu_are_those_of_the_emulation():
    torch.manual_seed(0)
    left, right = (fp8_linear.rounded(torch.randn(rows, 64)) for rows in (37, 48))
    on_gpu = [fp8_linear.Rounded(*(tensor.cuda() for tensor in matrix)) for matrix in (left, right)]
    product = fp8_linear.product(*on_gpu, torch.bfloat16).cpu().float()
    torch.testing.assert_close(product, fp8_linear.product(left, right, torch.float32), rtol=2e-2, atol=2e-2)


@products_in_8_bits
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 5, 37])
def test_a_layer_in_8_bits_has_the_outputs_and_gradients_of_the_emulation(rows, dtype):
    torch.manual_seed(0)
    model, x, direction = Frozen(torch.nn.Linear(64, 48)), torch.randn(1, rows, 64), torch.randn(1, rows, 48)
    fp8_linear.use_fp8(model.requires_grad_(False))

    def results(device):
        input_ = x.to(device, dtype).requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            output = model.to(device)(input_)
        # In the layers of a language model, gradients arrive with other strides, too.
        (gradient,) = torch.autograd.grad(output, input_, direction.to(device, torch.bfloat16).mT.contiguous().mT)
        return output.detach().cpu().float(), gradient.cpu().float()

    for emulated, on_gpu in zip(results("cpu"), results("cuda"), strict=True):
        torch.testing.assert_close(on_gpu, emulated, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("amp", "dtype"), [(True, "bf16"), (True, "fp16"), (False, "auto")])
def test_training_losses_on_the_gpu_match_those_on_the_cpu(tmp_path, amp, dtype):
    losses = {}
    for device in ("cpu", "cuda"):
        settings = {"device": device, "amp": amp and device == "cuda", "amp_dtype": dtype}
        config = load(str(golden_config(tmp_path / device, run=settings)))
        losses[device] = [row["loss"] for row in read_jsonl(config.runner_class(config).train() / "log.jsonl")]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05 if amp else 1e-3)


def test_losses_of_compiled_layers_on_the_gpu_are_those_of_other_layers(tmp_path):
    losses = []
    for compiled in (False, True):
        keys = {"run": {"device": "cuda", "amp": False}, "model": {"compile": compiled, "lora_dropout": 0.1}}
        config = load(str(golden_config(tmp_path / str(compiled), **keys)))
        losses.append([row["loss"] for row in read_jsonl(config.runner_class(config).train() / "log.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_training_steps_do_not_wait_for_the_gpu(tmp_path, options):
    mixed = ["run.device=cuda", "run.amp=True", "run.amp_dtype=bf16"]
    config = loaded(tmp_path, golden_tree(tmp_path), *STEPS, *mixed, *options)

    @contextmanager
    def without_waiting():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    train_with_steps_in(config.runner_class(config), without_waiting)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Each encoder's class, the keys of its weights, and three clips for it."""
    root = tmp_path_factory.mktemp("encoders")
    films = [Source(f"film_{count}", write_video(root / f"film_{count}.mp4", count)) for count in (20, 31, 47)]
    sounds = [encoding.sound_clip(root, name, seconds) for name, seconds in (("a", 0.7), ("bb", 1.4), ("ccc", 2.3))]
    faces = [encoding.face_clip(root, name, count) for name, count in (("anna", 3), ("ben", 1), ("clara", 9))]
    return {
        "eva": (Eva, {"weights": str(GOLDEN / "vision/eva_tiny.safetensors"), "image_size": 112}, films),
        "hubert": (Hubert, {"weights": str(encoding.save_hubert(root / "hubert"))}, sounds),
        "mae": (Mae, {"weights": str(encoding.save_mae(root / "mae"))}, faces),
        "videomae": (VideoMae, {"weights": str(encoding.save_videomae(root / "videomae"))}, films),
    }


def built(encoders, name, device, **keys):
    kind, cfg, _ = encoders[name]
    return kind(kind.Config(**cfg, **keys), device=torch.device(device), key="encoders.x")


@pytest.mark.parametrize("name", ["eva", "hubert", "mae", "videomae"])
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 0.1), ("fp16", 0.02)])
def test_features_computed_on_the_gpu_match_those_of_the_cpu(encoders, name, precision, bound):
    exact, encoder = built(encoders, name, "cpu"), built(encoders, name, "cuda", precision=precision)
    loaded = [exact.load(clip) for clip in encoders[name][2]]
    for one, other in zip(exact.encode(loaded), encoder.encode(loaded), strict=True):
        assert other.dtype == np.float32 and np.abs(one - other).max() < bound * np.abs(one).max()


@pytest.mark.parametrize("name", ["eva", "hubert", "mae", "videomae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_features_on_the_gpu_do_not_depend_on_the_other_clips_of_a_batch(encoders, name, precision):
    encoder = built(encoders, name, "cuda", precision=precision, batch_size=4)
    loaded = [encoder.load(clip) for clip in encoders[name][2]]
    alone = [encoder.encode([one])[0] for one in loaded]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 0, 1, 1]):
        together = encoder.encode([loaded[number] for number in order])
        assert all(np.array_equal(features, alone[number]) for features, number in zip(together, order, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_minigpt4_trains_with_cached_features_as_without_a_cache_on_the_gpu(tmp_path, precision):
    world = make_flickr_world(tmp_path)
    losses = []
    for cached, name in ((False, "plain"), (True, "first"), (True, "again")):
        changes = {"cache_visual": cached, "visual_cache_path": str(tmp_path / "cache"), "vit_precision": precision}
        settings = {"device": "cuda", "amp": True, "amp_dtype": "bf16", "max_epoch": 2, "iters_per_epoch": 4, "num_workers": 0}
        tree = {
            "model": world.model(**changes),
            "datasets": {"flickr30k_caption": {"annotation_file": str(world.train), "image_path": str(world.images)}},
            "run": settings | {"log_freq": 1, "output_dir": str(tmp_path / "out"), "job_id": name},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        config = load(str(path))
        losses.append([row["loss"] for row in read_jsonl(config.runner_class(config).train() / "log.jsonl")])
    plain, first, again = losses
    assert first == pytest.approx(plain, rel=1e-3) and again == pytest.approx(plain, rel=1e-3)
