"""docs/troubleshooting.md and docs/hardware.md: keys, values, commands and messages exist; computed numbers are correct."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import cache

import pytest
import yaml
from helpers import LLAMA_2_7B
from ranks import ROOT

from emollama.config import RunConfig, load
from emollama.planning.card import required_bytes

PAGES = {name: (ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("troubleshooting", "hardware")}
BLOCKS = ("model", "datasets", "evaluation_datasets", "encoders", "extraction", "run")
STAGE_1, FLICKR = "train_configs/Emotion-LLaMA_finetune.yaml", "train_configs/minigpt4_flickr_finetune.yaml"
ALONE = {
    "load_in_4bit",
    "low_resource",
    "train_llm",
    "merge_adapters",
    "compile",
    "frozen_dtype",
    "kernels",
}  # keys that exclude each other
ONLY_MINIGPT4 = {"cache_visual", "has_qformer"}
# Messages of other programs: PyTorch, the shell, the system.
FOREIGN = {"CUDA out of memory", "Bus error", "emollama: command not found"}


def code_of(page):
    """The code spans of a page, and the lines of its code blocks without comments."""
    spans, blocks = re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    return [
        *re.findall(r"`([^`\n]+)`", spans),
        *(line.partition(" #")[0].strip() for text in blocks for line in text.splitlines()),
    ]


def rows_of(page, *heads):
    """The rows of each table whose header begins with these cells, as lists of cells."""
    lines, table_rows, inside = page.splitlines(), [], False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if following.startswith("|---"):
            inside = tuple(cells[: len(heads)]) == heads
        elif not cells:
            inside = False
        elif inside and not line.startswith("|---"):
            table_rows.append(cells)
    return table_rows


# Keys, values, commands, messages


@cache
def keys_of_the_reference():
    """Block -> its keys in docs/configuration.md, which test_reference.py compares with the program."""
    keys = {block: set() for block in BLOCKS}
    for section in re.split("^## ", (ROOT / "docs/configuration.md").read_text(), flags=re.MULTILINE)[1:]:
        if match := re.match(r"(\w+)[,:] .*?(?:`(\w+): \w+`)?\n", section):  # the block, and the key that names its component
            keys[match[1]] |= {*re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE), *filter(None, [match[2]])}
    keys["evaluation_datasets"] |= keys["datasets"]
    return keys


def dotted_keys(page):
    """(block, key, value) of every code span or option that names a key; a missing value is None."""
    pattern = rf"\b({'|'.join(BLOCKS)})((?:\.\w+)+)(?:(?:: |=)(.+))?$"
    matches = [re.match(pattern, span) for span in code_of(page) if "..." not in span]
    return [(match[1], match[2].rpartition(".")[2], match[3]) for match in matches if match]


@pytest.mark.parametrize("name", PAGES)
def test_every_configuration_key_in_the_pages_exists(name):
    named, existing = dotted_keys(PAGES[name]), keys_of_the_reference()
    assert len({key for _, key, _ in named}) > 10
    assert sorted({f"{block}.{key}" for block, key, _ in named if key not in existing[block]}) == []


def as_option(block, key, value):
    label = {"datasets": "datasets.feature_face_caption", "evaluation_datasets": "evaluation_datasets.emer"}.get(block, block)
    return f"{label}.{key}={value}"


def test_every_value_in_the_pages_is_accepted_for_its_key(tmp_path):
    """Set each ``key: value`` in a configuration that has the block and the key, many at once."""
    stage_1 = yaml.safe_load((ROOT / STAGE_1).read_text())
    evaluated = yaml.safe_load((ROOT / "eval_configs/eval_emotion_EMER.yaml").read_text())["evaluation_datasets"]
    both = tmp_path / "both.yaml"
    both.write_text(yaml.safe_dump(stage_1 | {"evaluation_datasets": evaluated}))
    named = {each for page in PAGES.values() for each in dotted_keys(page) if each[2] is not None and each[0] != "encoders"}
    assert len(named) > 40
    rounds, times = defaultdict(list), Counter()
    for block, key, value in sorted(named):
        if key in ALONE:
            rounds[block, key, value].append(as_option(block, key, value))
        elif key not in ONLY_MINIGPT4:  # the second value of a key is set in the second round
            rounds[times[block, key]].append(as_option(block, key, value))
            times[block, key] += 1
    for options in rounds.values():
        load(str(both), options)
    for _, key, value in (each for each in named if each[1] in ONLY_MINIGPT4):
        load(str(ROOT / FLICKR), [f"model.{key}={value}"])


@pytest.mark.parametrize("name", PAGES)
def test_every_command_in_the_pages_exists_with_its_options(name, emollama):
    lines = [code for code in code_of(PAGES[name]) if code.startswith("emollama ") and "command not found" not in code]
    commands = {}
    for line in lines:
        commands.setdefault(line.split()[1], set()).update(re.findall(r"--[a-z-]+", line))
    assert {"plan", "check-data", "env"} <= commands.keys()
    for command, options in commands.items():
        arguments = [command, "show"] if command == "config" else [command]
        shown = emollama(*arguments, "--help")
        assert shown.returncode == 0, f"{command}: {shown.stderr}"
        assert sorted(option for option in options if option not in shown.stdout) == [], command


def test_every_message_quoted_in_troubleshooting_is_in_the_program():
    """The messages are code spans in the first column of tables; ``...`` stands for variable parts."""
    files = sorted((ROOT / "emollama").rglob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    text = re.sub(r'"\s*\n\s*f?"', "", text).replace("{LINES}", "")  # strings that continue on the next line
    quoted = {span for row in rows_of(PAGES["troubleshooting"], "you see") for span in re.findall(r"`([^`]+)`", row[0])}
    messages = {span for span in quoted - FOREIGN if not re.fullmatch(r"[a-z]+_[a-z]+|fp16|batch_size", span)}
    assert len(messages) > 35
    parts = {part.strip(" ,;") for message in messages for part in re.split(r"\.\.\.", message)} - {""}
    assert sorted(part for part in parts if part not in text) == []
    fields = {span for span in quoted if re.fullmatch(r"[a-z]+_[a-z]+", span)} - {"batch_size"}
    assert fields and sorted(field for field in fields if f'"{field}"' not in text) == []


# Numbers of hardware.md

PARTS = [  # in the order of the table columns
    "frozen weights",
    "frozen encoders",
    "trained weights (float32)",
    "gradients (float32)",
    "AdamW moments (float32)",
    "features of a batch",
    "activations",
    "logits at the answers",
    "temporary tensors",
    "key-value cache",
    "sum",
]
GIB = 2**30
GPUS = (12, 16, 24, 40, 80)
# Keys in the tables by which models differ.
SHAPES = ("train_llm", "lora_r", "image_size", "has_qformer", "low_resource", "load_in_4bit", "frozen_dtype")


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """``planned(path, options)``: the plan of a shipped configuration with Llama-2-7B's shape. Equal models are built once."""
    from emollama.planning.estimate import plan

    folder, models = tmp_path_factory.mktemp("llama"), {}
    (folder / "config.json").write_text(json.dumps(LLAMA_2_7B))

    @cache
    def figures(path, options=()):
        config = load(str(ROOT / path), [f"model.llama_model={folder}", *options])
        model_class = config.model_class

        def build(cfg, **how):
            key = (model_class, str(how), *(getattr(cfg, name, None) for name in SHAPES))
            if key not in models:
                models[key] = model_class(cfg, **how)
            return models[key]

        build.check_language_model = model_class.check_language_model
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunConfig, "model_class", property(lambda self: build))
            return config, plan(config)

    return figures


def row_of(plan):
    """The cells of a GPU memory table after the configuration and options."""
    memory = plan.memory_gib
    needed = required_bytes({name: size * GIB for name, size in memory.items() if name != "sum"})
    gpu = next((f"{size} GB" for size in GPUS if needed <= size * 1e9), "none")
    return [*(f"{memory[part]:.2f}" if part in memory else "-" for part in PARTS), gpu]


def spans(cell):
    return tuple(re.findall(r"`([^`]+)`", cell))


@pytest.mark.slow
def test_the_documented_memory_of_shipped_configurations_equals_that_of_plan(planned):
    rows = rows_of(PAGES["hardware"], "configuration", "frozen language model")
    shipped = {
        str(path.relative_to(ROOT)) for folder in ("train_configs", "eval_configs") for path in (ROOT / folder).glob("*.yaml")
    }
    assert {spans(row[0])[0] for row in rows} == {path for path in shipped if "demo_" not in path}
    assert {row[0]: row[1:] for row in rows} == {row[0]: row_of(planned(spans(row[0])[0])[1]) for row in rows}


def variants():
    return [
        (spans(row[0])[0], spans(row[1]), row[2:])
        for row in rows_of(PAGES["hardware"], "configuration", "options", "frozen language model")
    ]


def builds_another_model(options):
    return any(option.partition("=")[0].removeprefix("model.") in SHAPES or option == "run.amp=False" for option in options)


@pytest.mark.slow
def test_the_documented_memory_with_options_equals_that_of_plan(planned):
    rows = [row for row in variants() if not builds_another_model(row[1])]
    assert len(rows) >= 8
    assert rows == [(path, options, row_of(planned(path, options)[1])) for path, options, _ in rows]


@pytest.mark.slow
def test_the_documented_memory_with_shape_options_equals_that_of_plan(planned):
    rows = [row for row in variants() if builds_another_model(row[1])]
    assert len(rows) >= 6
    assert rows == [(path, options, row_of(planned(path, options)[1])) for path, options, _ in rows]
    at_448 = planned(FLICKR, ("model.has_qformer=False", "model.image_size=448"))[1].memory_gib
    assert f"{at_448['frozen encoders']:.2f} GiB at 224 and at 448 pixels" in PAGES["hardware"]


def checkpoint_row(config, plan):
    trained, run = plan.parameters["trainable"], config.run
    files = run.max_epoch + (run.save_every_iters is not None)
    return [f"{trained:,}", f"{12 * trained / GIB:.3f}", str(files), f"{12 * trained * files / GIB:.2f}"]


@pytest.mark.slow
def test_the_documented_checkpoint_sizes_equal_those_of_plan(planned):
    rows = rows_of(PAGES["hardware"], "configuration", "options", "trained parameters")
    shipped = [(spans(row[0])[0], row[2:]) for row in rows if row[1] == "-"]
    assert {path for path, _ in shipped} == {spans(row[0])[0] for row in rows if spans(row[0])[0].startswith("train_configs/")}
    assert shipped == [(path, checkpoint_row(*planned(path))) for path, _ in shipped]


@pytest.mark.slow
def test_the_documented_checkpoint_sizes_with_options_equal_those_of_plan(planned):
    rows = rows_of(PAGES["hardware"], "configuration", "options", "trained parameters")
    others = [(spans(row[0])[0], spans(row[1]), row[2:]) for row in rows if row[1] != "-"]
    assert others and others == [(path, options, checkpoint_row(*planned(path, options))) for path, options, _ in others]


@pytest.mark.slow
def test_the_documented_memory_by_length_and_batch_size_follows_from_plan(planned):
    """Activations scale with the tokens of a micro-batch, logits with its answer tokens, the cache with all tokens."""
    parts, tokens = planned(STAGE_1)[1].memory_gib, sum(planned(STAGE_1)[1].tokens.values())
    without = planned(STAGE_1, ("model.use_grad_checkpoint=False",))[1].memory_gib["activations"]
    evaluated = "eval_configs/eval_emotion_EMER.yaml"
    cache_of_a_token = (
        planned(evaluated)[1].memory_gib["key-value cache"] / 8 / (sum(planned(evaluated)[1].tokens.values()) + 500)
    )
    rows = rows_of(PAGES["hardware"], "tokens of the answer")
    assert len(rows) == 6
    for answer, batch, *figures in rows:
        length, size = int(answer.split()[0]), int(batch)
        total = tokens - 100 + length
        each = [parts["activations"] / tokens * total, without / tokens * total, parts["logits at the answers"] * length / 100]
        assert figures == [f"{size * figure:.2f}" for figure in (*each, cache_of_a_token * total)], answer
    mib = [f"{figure * 1024 / tokens:.3f} MiB a token" for figure in (parts["activations"], without)]
    assert all(text in PAGES["hardware"] for text in [*mib, f"{cache_of_a_token * 1024:.1f} MiB a token of prompt"])


@pytest.mark.slow
def test_the_documented_memory_of_quantized_weights_follows_from_the_parameters(planned):
    """The embedding table and the output layer are float32; 64 weights of 4 bits share a float32 scale."""
    tables = 2 * 32000 * 4096
    row = next(line for line in PAGES["hardware"].splitlines() if line.startswith("| frozen language model |"))
    for key, bytes_each in (("model.low_resource", 1), ("model.load_in_4bit", 0.5 + 4 / 64)):
        expected = ((6_738_415_616 - tables) * bytes_each + 4 * tables) / GIB
        # The norms are float32, too.
        assert planned(STAGE_1, (f"{key}=True",))[1].memory_gib["frozen weights"] == pytest.approx(expected, rel=1e-3)
        assert f" {expected:.2f} " in row.replace(",", " ")


def test_the_documented_feature_sizes_are_correct():
    """GB of the arrays: EVA features of 1 + P vectors, and three utterances of 1024 numbers, each after a header of 128 bytes."""
    eva, head = 1025 * 1408, 128
    bytes_each = [4 * eva + head, 2 * eva + head, eva + 4 * 1025, 4 * 257 * 1408 + head]
    rows = rows_of(PAGES["hardware"], "clips", "EVA at 448 pixels, float32")
    assert len(rows) == 3
    for clips, *figures in rows:
        count = int(clips.split()[0].replace(",", ""))
        utterances = f"{count * 3 * (4 * 1024 + head) / 1e9:.2f}"
        assert figures == [*(f"{count * size / 1e9:.1f}" for size in bytes_each), utterances], clips


@pytest.mark.parametrize("name", PAGES)
def test_the_sections_that_links_refer_to_exist(name):
    """``#section`` of a page is one of its headings, as GitHub names them."""
    for target, section in re.findall(r"\]\(([\w.]*)#([\w-]+)\)", PAGES[name]):
        text = (ROOT / "docs" / target).read_text() if target else PAGES[name]
        headings = [
            re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in re.findall(r"^#+ .*", text, re.MULTILINE)
        ]
        assert section in headings, f"{target}#{section}"
