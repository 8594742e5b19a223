"""Every causal language model of transformers: the packing check, losses, answers, a training step, and export.

``make test-models`` runs these tests, which take minutes. The models are random copies of the default configurations, shrunken as
in the check, with the vocabulary of the golden tokenizer.
"""

from __future__ import annotations

import math
import shutil
from functools import cached_property

import language_models
import pytest
import torch
from helpers import joined_parts
from peft import PeftModel
from running import GOLDEN, golden_config, read_jsonl
from transformers import AutoModelForCausalLM

from emollama import checkpoint
from emollama.config import load
from emollama.convert import formats
from emollama.convert.weights import read
from emollama.data.batch import IGNORED, Sample, collate
from emollama.decoding.generate import generate
from emollama.decoding.sampling_params import SamplingParams
from emollama.models import random_copy, shrinking
from emollama.models.adapters import split_adapters
from emollama.planning.estimate import plan
from emollama.weight_parts import WeightShare

pytestmark = pytest.mark.models
VOCABULARY = 832  # larger than the tokenizer's vocabulary
LENGTHS = (30, 22)
NEW_TOKENS = 3
TOLERANCE = 1e-4

DOCUMENTED = language_models.documented()
PRESENT = [family for family, row in DOCUMENTED.items() if language_models.VERSION in row.results]
RUNNABLE = [family for family, row in DOCUMENTED.items() if row.runs]


class Family:
    """A small random model of a family in a folder, with the golden tokenizer, and what the tests compute from it."""

    def __init__(self, family, path):
        self.family, self.path = family, path

    @cached_property
    def folder(self):
        config = language_models.config_of(self.family)
        with pytest.MonkeyPatch.context() as patch, random_copy.isolated():
            patch.setattr(shrinking, "MAX_VOCABULARY", VOCABULARY)
            copy = random_copy.runnable_copy(config)
            text = copy.config.get_text_config()
            text.bos_token_id, text.eos_token_id = 1, 2
            copy.llm.save_pretrained(self.path)
            # A model that is a part of the whole stores only the configuration of that part.
            copy.config.save_pretrained(self.path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(GOLDEN / "llama" / name, self.path)
        return self.path

    def config(self, *options, **model):
        # A few families have positions for 512 tokens.
        keys = {"llama_model": str(self.folder), "ckpt": None, "max_context_len": 300, "max_txt_len": 100} | model
        return load(str(golden_config(self.path / "run", model=keys)), list(options))

    @cached_property
    def model(self):
        config = self.config(train_llm="none")
        return config.model_class(config.model, device=torch.device("cpu"), frozen_dtype=torch.float32).eval()

    @cached_property
    def plain(self):
        return plain_model(self.folder)

    @cached_property
    def samples(self):
        shapes = self.model.slot_shapes(self.config().model)
        slots = {slot: torch.zeros(0, shape.dim) for slot, shape in shapes.items()}
        samples = []
        for length in LENGTHS:
            ids = torch.randint(8, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))
            labels = ids.where(torch.arange(length) >= length // 2, IGNORED)
            samples.append(Sample("", "", ids, labels, (labels != IGNORED).float(), slots))
        return samples

    @cached_property
    def run(self):
        config = self.config("run.iters_per_epoch=1", "run.init_lr=1e-2", "run.warmup_steps=0", "run.evaluate=False")
        return config.runner_class(config, training=True).train()


def plain_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def plain_losses(llm, samples):
    """The losses of the labelled tokens, which plain transformers computes for each sample alone."""
    losses = []
    for sample in samples:
        logits = random_copy.plain_logits(llm, sample.input_ids)[:-1].float()
        of_sample = torch.nn.functional.cross_entropy(logits, sample.input_ids[1:], reduction="none")
        losses.append(of_sample[sample.labels[1:] != IGNORED])
    return torch.cat(losses)


@pytest.fixture(scope="module", params=RUNNABLE)
def family(request, tmp_path_factory):
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def test_the_page_is_up_to_date():
    assert language_models.PAGE.read_text(encoding="utf-8") == language_models.page(DOCUMENTED)


def test_the_page_lists_each_family_of_the_installed_version():
    assert language_models.families() == PRESENT


# The padded comparison differs by about its tolerance, so its result depends on the processor.
BORDERLINE = {"jamba": "one at a time, own caches"}


@pytest.mark.parametrize("name", PRESENT)
def test_the_check_gives_the_documented_result(name):
    documented = DOCUMENTED[name].of_installed_version
    assert language_models.checked(name) in (documented, BORDERLINE.get(name, documented))


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_default_lora_targets_are_those_of_the_documentation(name):
    assert language_models.default_targets(name) == DOCUMENTED[name].targets


def test_losses_together_and_alone_are_those_of_plain_transformers(family):
    model = family.model
    with torch.no_grad():
        alone = torch.cat([model(collate([sample])) for sample in family.samples])
        torch.testing.assert_close(alone, plain_losses(family.plain, family.samples), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(model(collate(family.samples)), alone, atol=TOLERANCE, rtol=0)


def test_the_parts_that_processes_load_are_the_weights_and_buffers(family):
    config, cpu = family.config(train_llm="none"), torch.device("cpu")
    shares = (WeightShare(0, 2), WeightShare(1, 2))
    parts = [config.model_class(config.model, device=cpu, frozen_dtype=torch.float32, weights=share) for share in shares]
    for named, expected in (
        (joined_parts([part.llama_model for part in parts]), family.model.llama_model.named_parameters(remove_duplicate=False)),
        (dict(parts[1].llama_model.named_buffers()), family.model.llama_model.named_buffers()),
    ):
        values = {name: value for name, value in expected if value.ndim}
        assert [name for name, value in values.items() if name not in named or not torch.equal(named[name], value)] == []


def test_the_plan_of_training_and_of_evaluation_has_an_estimate_of_the_memory(family):
    for options in (["datasets.clips.batch_size=1", "model.max_txt_len=20"], ["datasets=null"]):
        assert plan(family.config(*options)).memory_gib["sum"] > 0


def test_greedy_answers_are_those_of_plain_transformers(family):
    answers = []
    with torch.no_grad():
        for sample in family.samples:
            ids = sample.input_ids
            for _ in range(NEW_TOKENS):
                ids = torch.cat([ids, random_copy.plain_logits(family.plain, ids)[-1:].argmax(-1)])
            answers.append(ids[len(sample.input_ids) :].tolist())
    params = SamplingParams(max_new_tokens=NEW_TOKENS)
    assert generate([family.model], collate(family.samples), params, lambda ids: False, [0, 0]) == answers


def test_a_training_step_changes_the_adapters_of_each_layer(family):
    (row,) = read_jsonl(family.run / "log.jsonl")
    tensors = checkpoint.read(str(family.run / "checkpoint_0.pth"), "x")["model"]
    pairs = split_adapters(tensors, "x").layers
    unchanged = [layer for layer, pair in pairs.items() if not (pair["B"].any() and pair["B"].isfinite().all())]
    assert math.isfinite(row["loss"]) and pairs and not unchanged


def test_merged_and_exported_adapters_give_the_losses_of_the_trained_model(family, tmp_path):
    config = family.config(ckpt=str(family.run / "checkpoint_0.pth"))
    trained = config.model_class(config.model, device=torch.device("cpu"), frozen_dtype=torch.float32).eval()
    weights = read(str(family.run / "checkpoint_0.pth"), "x")
    checkpoint.load_trainable(trained, weights.tensors, path="x", allow_missing=[])
    with torch.no_grad():
        expected = trained(collate(family.samples))
        formats.to_merged(weights, str(tmp_path / "merged"), None, str(family.folder))
        merged = plain_model(tmp_path / "merged")
        torch.testing.assert_close(plain_losses(merged, family.samples), expected, atol=1e-3, rtol=0)
        formats.to_peft(weights, str(tmp_path / "peft"), None, str(family.folder))
        exported = PeftModel.from_pretrained(plain_model(family.folder), tmp_path / "peft").eval()
        torch.testing.assert_close(plain_losses(exported.get_base_model(), family.samples), expected, atol=1e-3, rtol=0)
