"""Rules for the source code: layers, style, documentation, sizes and shipped configurations."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from emollama import config

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "emollama"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
ENTRY_POINTS = [ROOT / "train.py", ROOT / "eval_emotion_EMER.py"]
MAX_FILE, MAX_FUNCTION = 300, 60  # lines

# The groups that each group may import. A group is a module or package of emollama; "data.batch" is below the rest of data.
BASE = {"errors", "registry", "paths", "config.packaged", "listing", "dtypes", "logs.console"}
DATA = BASE | {"config", "stores", "data.batch", "data"}
MACHINERY = {"optim", "lr_schedules", "checkpoint", "checkpoint_files", "distributed.process_group"}
MACHINERY |= {"logs", "precision", "distributed.worker_variables"}
WORKERS = {"distributed.worker_errors", "distributed.worker_variables"}
ALLOWED = {
    "errors": set(),
    "variables": set(),
    "dtypes": set(),
    "paths": {"errors", "variables"},
    "listing": {"paths"},
    "registry": {"errors", "listing"},
    "logs.bars": set(),
    "logs.verbosity": set(),
    "logs.console": {"errors", "logs.bars", "logs.verbosity"},
    "logs": {"errors", "paths", "logs.console", "logs.verbosity"},
    "distributed": set(),
    "distributed.worker_variables": {"errors", "variables"},
    "distributed.worker_errors": {"errors", "distributed.worker_variables", "variables"},
    "distributed.launcher": WORKERS | {"errors", "logs.console", "variables"},
    "distributed.process_group": {"errors", "optim", "distributed.worker_variables"},
    "entry": WORKERS | {"errors", "logs.console", "logs.verbosity", "variables"},
    "config.packaged": {"errors", "listing", "paths", "registry", "variables"},
    "config": BASE,
    "data.batch": set(),
    "tensor_files": {"paths"},
    "evaluation": BASE | {"data"},
    "reporting": BASE | {"data", "evaluation", "__init__"},
    "stores": {"errors", "paths", "listing"},
    "data": BASE | {"stores", "data.batch"},
    "media": {"errors", "paths", "data"},
    "encoders": DATA | {"media"},
    "datasets": DATA | {"media"},
    "models": DATA | {"media", "encoders", "tensor_files", "checkpoint_files"},
    "extraction": DATA | MACHINERY | {"media", "encoders", "__init__"},
    "tasks": DATA | {"evaluation", "models"},
    "precision": {"dtypes"},
    "optim": set(),
    "lr_schedules": {"registry"},
    "checkpoint_files": {"errors", "paths", "registry"},
    "checkpoint": BASE | {"optim", "checkpoint_files"},
    "planning": DATA | MACHINERY | {"evaluation"},
    "runners": DATA | MACHINERY | {"media", "encoders", "evaluation", "planning", "reporting"},
    "inference": DATA | MACHINERY | {"media", "encoders", "extraction", "datasets", "reporting", "runners"},
    "demo": DATA | {"media", "encoders", "logs", "tensor_files", "variables", "demo.folder"},
    "demo.folder": {"errors", "paths"},
    "importers": BASE | {"data", "media"},
    "starter": BASE | {"config", "data", "media", "stores", "demo.folder"},
    "checks": DATA | MACHINERY | {"datasets", "runners", "planning"},
    "convert": BASE | MACHINERY | {"models", "stores", "tensor_files"},
    "commands": DATA
    | MACHINERY
    | {"models", "evaluation", "reporting", "planning", "distributed.launcher", "logs.verbosity", "variables", "__init__"}
    | {"demo", "demo.folder", "encoders", "extraction", "inference", "importers", "convert", "checks", "starter"},
    "cli": {"entry", "commands"},
    "__main__": {"cli"},
    "__init__": set(),
}


def module_name(path):
    """Return the dotted name below emollama, such as ``data.batch``; the name of an ``__init__.py`` is that of its package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def group_of(module):
    if module in ALLOWED:
        return module
    return module.partition(".")[0]


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def nodes_of(path):
    """All nodes of a file by their class."""
    nodes = defaultdict(list)
    for node in ast.walk(tree_of(path)):
        nodes[type(node)].append(node)
    return nodes


def dotted(node):
    """Return ``a.b.c`` for a name or its attributes, or an empty string for other nodes."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


MODULES = {module_name(path): path for path in FILES}


def imported(path):
    """Yield (line, dotted module) of a file's imports, also inside functions; ``from a import b`` gives a.b if it is a module."""
    for node in nodes_of(path)[ast.Import]:
        for alias in node.names:
            yield node.lineno, alias.name
    for node in nodes_of(path)[ast.ImportFrom]:
        assert node.level == 0, f"{path}:{node.lineno}: a relative import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            is_module = inner.removeprefix("emollama.") in MODULES
            yield node.lineno, inner if is_module else str(node.module)


def own_imports(path):
    """Yield (line, module below emollama) of a file's imports of the package."""
    for line, name in imported(path):
        if name.partition(".")[0] == "emollama":
            yield line, name.removeprefix("emollama").removeprefix(".") or "__init__"


def where(path, line):
    return f"{path.relative_to(ROOT)}:{line}"


# Layers


def test_every_module_is_in_the_table_of_layers():
    assert sorted({group_of(name) for name in MODULES} - set(ALLOWED)) == []


def test_imports_follow_the_table_of_layers():
    wrong = []
    for name, path in MODULES.items():
        group = group_of(name)
        for line, target in own_imports(path):
            if group_of(target) != group and group_of(target) not in ALLOWED.get(group, set()):
                wrong.append(f"{where(path, line)} {name} imports {target}")
    assert wrong == []


def test_the_table_of_layers_has_no_cycle():
    resolved: set[str] = set()
    while len(resolved) < len(ALLOWED):
        ready = {group for group, targets in ALLOWED.items() if group not in resolved and targets <= resolved}
        assert ready, f"a circle among {sorted(set(ALLOWED) - resolved)}"
        resolved |= ready


def test_modules_have_no_circular_imports():
    targets = {name: {target for _, target in own_imports(path)} & set(MODULES) for name, path in MODULES.items()}
    resolved: set[str] = set()
    while len(resolved) < len(targets):
        ready = {name for name, needs in targets.items() if name not in resolved and needs - {name} <= resolved}
        assert ready, f"a circle among {sorted(set(targets) - resolved)}"
        resolved |= ready


# The modules that may import a library.
LIBRARY_USERS = {
    "omegaconf": {"config.loading", "config.merging", "config.reading", "config.omegaconf_errors"},
    "transformers": {"models.llm", "models.llm_weights", "models.attention", "models.decoding"}
    | {"encoders.hugging_face", "encoders.qformer", "demo.tiny_llama", "demo.tiny_encoders", "demo.tiny_projection"},
    "timm": {"encoders.eva_vit", "encoders.originals"},
    "decord": {"media.frames"},
    "av": {"media.containers", "media.frames", "media.audio", "demo.videos"},
    "cv2": {"media.faces"},
    "peft": {"models.llm_weights", "models.adapters"},
    "iopath": {"paths"},
    "openai": {"evaluation.judges.endpoint"},
    "matplotlib": {"reporting.plotting", "reporting.confusion", "reporting.panels", "reporting.curves"}
    | {"reporting.checkpoint_chart"},
    "wandb": {"logs.tracking"},
    "rich": {"logs.bars"},
    "pycocoevalcap": {"evaluation.captions.metric_inputs"},
    "nltk": {"evaluation.captions.tokenizers"},
}
# Packages and single modules that need no tensors.
TORCH_FREE = {"evaluation", "reporting", "registry", "config", "errors", "paths", "stores"}
TORCH_FREE |= {
    "importers",
    "starter",
    "dtypes",
    "logs.bars",
    "logs.console",
    "logs.logger",
    "lr_schedules",
    "runners.run_config",
    "datasets.clip_config",
    "encoders.shapes",
}
TORCH_FREE |= {"data.slots", "data.prompts.prompt_style", "data.prompts.image_placeholder", "models.sampling_params"}
TORCH_FREE |= {f"{package}.configs" for package in ("models", "datasets", "encoders", "extraction", "tasks")}


def test_restricted_libraries_are_imported_only_by_the_listed_modules():
    importers = {library: set() for library in LIBRARY_USERS}
    for name, path in MODULES.items():
        for library in {target.partition(".")[0] for _, target in imported(path)} & LIBRARY_USERS.keys():
            importers[library].add(name)
    assert {
        library: importers[library] - users for library, users in LIBRARY_USERS.items() if not importers[library] <= users
    } == {}
    assert [library for library, users in LIBRARY_USERS.items() if not importers[library] & users] == []


def test_modules_that_need_no_tensors_do_not_import_torch():
    heavy = {"torch", "transformers", "peft", "torchvision"}
    light = {name: path for name, path in MODULES.items() if TORCH_FREE & {name, group_of(name)}}
    assert {module for name in light for module in (name, group_of(name))} >= TORCH_FREE
    files = list(light.values())
    assert [where(path, line) for path in files for line, name in imported(path) if name.partition(".")[0] in heavy] == []


def test_the_runner_does_not_use_ddp_or_process_groups_directly():
    forbidden = {"DistributedDataParallel", "init_process_group", "all_reduce", "no_sync", "dist"}
    wrong = []
    for path in (path for name, path in MODULES.items() if group_of(name) == "runners"):
        wrong += [f"{where(path, node.lineno)} {node.attr}" for node in nodes_of(path)[ast.Attribute] if node.attr in forbidden]
        wrong += [f"{where(path, node.lineno)} {node.id}" for node in nodes_of(path)[ast.Name] if node.id in forbidden]
    assert wrong == []


# Style


def test_no_file_has_a_print_star_import_or_bare_except():
    wrong = []
    for path in FILES + ENTRY_POINTS:
        for node in nodes_of(path)[ast.Call]:
            if dotted(node.func) in ("print", "breakpoint", "eval", "exec"):
                wrong.append(f"{where(path, node.lineno)} {dotted(node.func)}()")
        for node in nodes_of(path)[ast.ImportFrom]:
            if any(alias.name == "*" for alias in node.names):
                wrong.append(f"{where(path, node.lineno)} import *")
        wrong += [f"{where(path, node.lineno)} bare except" for node in nodes_of(path)[ast.ExceptHandler] if node.type is None]
    assert wrong == []


ABSOLUTE = re.compile(r"^(?:/(?:home|root|work|mnt|data|tmp|usr|opt|workspace|share|scratch)\b|[A-Za-z]:\\|~/)")


def strings_of(path):
    """Yield (line, text) of a file's string constants other than docstrings."""
    documentation = {id(node.value) for node in nodes_of(path)[ast.Expr]}
    for node in nodes_of(path)[ast.Constant]:
        if isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def test_no_file_of_the_package_contains_an_absolute_path():
    texts = [(where(path, line), text) for path in FILES + ENTRY_POINTS for line, text in strings_of(path)]
    wrong = [f"{location} {text}" for location, text in texts if ABSOLUTE.match(text)]
    assert len(texts) > 300
    assert wrong == []


def test_no_file_seeds_the_global_random_generators_of_python_or_numpy():
    wrong = []
    for path in FILES:
        for node in nodes_of(path)[ast.Call]:
            if dotted(node.func) in ("random.seed", "np.random.seed", "numpy.random.seed"):
                wrong.append(where(path, node.lineno))
    assert wrong == []


def test_no_file_reads_the_configuration_with_get():
    """No ``cfg.get(key, default)``: defaults are in the Config classes."""
    wrong = []
    for path in FILES:
        for node in nodes_of(path)[ast.Call]:
            if dotted(node.func) in ("cfg.get", "self.cfg.get", "config.get", "self.config.get"):
                wrong.append(where(path, node.lineno))
    assert wrong == []


# Documentation and sizes


def definitions(tree):
    """Yield (dotted name, node) of a module's classes and functions that are not inside a function."""

    def inside(node, prefix):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from inside(child, f"{prefix}{child.name}.")

    return inside(tree, "")


def is_public(name):
    return not any(part.startswith("_") for part in name.split("."))


def test_every_file_and_all_its_public_names_are_documented():
    silent = []
    for path in FILES + ENTRY_POINTS:
        tree = tree_of(path)
        public = [(name, node) for name, node in definitions(tree) if is_public(name) and not is_stub(node)]
        silent += [] if ast.get_docstring(tree) else [f"{where(path, 1)} the module"]
        silent += [f"{where(path, node.lineno)} {name}" for name, node in public if not ast.get_docstring(node)]
    assert silent == []


def is_stub(node):
    return isinstance(node, ast.FunctionDef) and len(node.body) == 1 and ast.unparse(node.body[0]) == "..."


def test_every_field_of_a_config_class_is_documented():
    """A string follows each field of the classes whose name ends in Config and whose fields are YAML keys."""
    silent, count = [], 0
    for path in FILES:
        for name, node in definitions(tree_of(path)):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config") or node.name == "RunConfig":
                continue
            for child, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(child, ast.AnnAssign):
                    count += 1
                    text = following.value if isinstance(following, ast.Expr) else None
                    if not isinstance(text, ast.Constant) or not isinstance(text.value, str):
                        silent.append(f"{where(path, child.lineno)} {name}.{ast.unparse(child.target)}")
    assert silent == []
    assert count > 60


def test_every_function_is_annotated():
    bare = []
    for path in FILES:
        for node in nodes_of(path)[ast.FunctionDef]:
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            unmarked = [item.arg for item in arguments if item.annotation is None and item.arg not in ("self", "cls")]
            if unmarked or (node.returns is None and node.name != "__init__"):
                bare.append(f"{where(path, node.lineno)} {node.name}({', '.join(unmarked)})")
    assert bare == []


def test_files_and_functions_do_not_exceed_their_maximum_length():
    long = []
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        long += [f"{where(path, 1)} {lines} lines"] if lines > MAX_FILE else []
        for node in nodes_of(path)[ast.FunctionDef]:
            if node.end_lineno - node.lineno + 1 > MAX_FUNCTION:
                long.append(f"{where(path, node.lineno)} {node.name} {node.end_lineno - node.lineno + 1} lines")
    assert long == []


def test_parameters_and_attributes_named_in_docstrings_exist():
    wrong = []
    for path in FILES:
        for node in nodes_of(path)[ast.FunctionDef] + nodes_of(path)[ast.ClassDef]:
            section = re.search(r"\n\s*(?:Args|Attributes):\n((?:\s{2,}.*\n?)+)", ast.get_docstring(node, clean=True) or "")
            listed = re.findall(r"^    (\w+(?:, \w+)*): ", section[1], re.MULTILINE) if section else []
            inner = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
            inner |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            inner |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
            inner |= {each.name for each in ast.walk(node) if isinstance(each, ast.FunctionDef)}
            wrong += [f"{where(path, node.lineno)} {name}" for text in listed for name in text.split(", ") if name not in inner]
    assert wrong == []


# Shipped configurations


RUNS = sorted([*(ROOT / "train_configs").glob("**/*.yaml"), *(ROOT / "eval_configs").glob("**/*.yaml")])
PRESETS = sorted((PACKAGE / "config/presets").glob("*/*.yaml"))


def test_every_shipped_configuration_loads(shipped_configs):
    assert sorted(shipped_configs) == [str(path.relative_to(ROOT)) for path in RUNS]
    assert [name for name, loaded in shipped_configs.items() if not (loaded.datasets or loaded.evaluation_datasets)] == []


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_preset_loads(path, tmp_path):
    keys = {"models": "model.", "datasets": "datasets.feature_face_caption."}[path.parent.name]
    base = "model: {arch: minigpt_v2, llama_model: x}\ndatasets: {feature_face_caption: {annotation_file: x}}\n"
    (tmp_path / "config.yaml").write_text(base)
    assert config.load(str(tmp_path / "config.yaml"), [f"{keys}preset={path.stem}"]).model
