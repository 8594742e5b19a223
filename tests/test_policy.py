"""Rules for the source code: layers, style, documentation, sizes and shipped configurations."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from sources import nodes_of, tree_of

from emollama import config

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "emollama"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
ENTRY_POINTS = [ROOT / "train.py", ROOT / "eval_emotion_EMER.py"]
MAX_FILE, MAX_FUNCTION = 300, 60  # lines

# What each group imports, from the bottom up. A group is a package or a module of emollama; a module that is listed itself,
# such as data.batch, is not part of its package's group. The table is exact: a new import, or one that is gone, changes it.
IMPORTS = {
    "heartbeat": "",
    "parallel_modes": "",
    "recomputation": "",
    "__init__": "",
    "data.int8_vectors": "",
    "data.batch": "data.int8_vectors",
    "decoding_state": "",
    "distributed": "",
    "dtypes": "",
    "errors": "",
    "component_configs": "errors",
    "field_texts": "",
    "text_encoding": "errors",
    "json_io": "text_encoding",
    "component_errors": "errors",
    "disk": "errors",
    "memory": "errors",
    "system_errors": "disk memory",
    "logs.bars": "",
    "logs.verbosity": "",
    "sharded_tensors": "",
    "optim": "sharded_tensors",
    "interface_check": "",
    "suggestions": "",
    "variables": "",
    "weight_parts": "sharded_tensors",
    "run_folder": "json_io",
    "distributed.worker_variables": "errors variables",
    "logs.console": "disk errors heartbeat logs.bars logs.verbosity text_encoding",
    "remote": "disk errors heartbeat variables",
    "paths": "disk errors remote text_encoding variables",
    "folder_lock": "disk errors paths",
    "precision": "dtypes",
    "demo.folder": "disk errors paths",
    "listing": "paths",
    "distributed.nodes": "__init__ distributed.worker_variables errors listing logs.console",
    "distributed.torchrun_options": "suggestions",
    "distributed.node_launch": "distributed.nodes distributed.torchrun_options distributed.worker_variables errors logs.console"
    " variables",
    "distributed.process_group": "distributed.nodes distributed.worker_variables errors heartbeat listing",
    "distributed.groups": "distributed.nodes distributed.worker_variables errors parallel_modes",
    "distributed.parallel": "distributed.process_group dtypes optim sharded_tensors",
    "distributed.sharding": "distributed.groups distributed.process_group dtypes parallel_modes recomputation sharded_tensors"
    " weight_parts",
    "distributed.stop_requests": "distributed.process_group distributed.worker_variables errors variables",
    "distributed.worker_errors": "distributed.worker_variables errors variables",
    "distributed.watchdog": "distributed.worker_errors distributed.worker_variables errors heartbeat",
    "checkpoint_average": "errors listing",
    "logs": "disk errors json_io logs.console logs.verbosity paths run_folder",
    "tensor_files": "",
    "distributed.launcher": "distributed.node_launch distributed.worker_errors distributed.worker_variables errors logs.console"
    " variables",
    "entry": "distributed.worker_errors distributed.worker_variables errors logs.console logs.verbosity system_errors variables",
    "config.omegaconf_errors": "suggestions",
    "config.nested": "config.omegaconf_errors",
    "registration": "config.nested errors field_texts interface_check listing suggestions",
    "registry": "registration",
    "stores": "disk errors heartbeat json_io listing paths remote",
    "checkpoint_files": "component_configs disk errors listing paths registry",
    "config.packaged": "errors listing paths suggestions variables",
    "lr_schedules": "registry suggestions",
    "file_digests": "errors paths",
    "replaced_file": "disk errors file_digests paths",
    "checkpoint_parts": "errors file_digests paths replaced_file sharded_tensors tensor_files",
    "checkpoint": "checkpoint_files checkpoint_parts disk errors file_digests listing optim replaced_file weight_parts",
    "config": "config.omegaconf_errors config.packaged disk errors field_texts listing paths registration registry suggestions",
    "data": "config.packaged data.batch data.int8_vectors disk distributed.stop_requests dtypes errors field_texts json_io"
    " listing logs.console memory paths remote stores suggestions text_encoding variables",
    "evaluation": "component_errors data disk errors field_texts json_io listing logs.console paths registry run_folder stores"
    " suggestions text_encoding",
    "media": "data disk errors listing paths",
    "components": "data data.batch decoding_state evaluation run_folder stores",
    "datasets": "config data data.batch disk errors field_texts listing logs.console media paths remote stores suggestions",
    "encoders": "config data dtypes errors field_texts listing logs media paths",
    "importers": "data disk errors json_io listing logs.console media paths suggestions text_encoding",
    "reporting": "__init__ data disk errors evaluation json_io listing logs logs.console paths run_folder suggestions",
    "starter": "config data demo.folder errors media paths registration registry stores",
    "demo": "data demo.folder encoders errors logs logs.console media paths run_folder tensor_files variables",
    "extraction": "__init__ config data datasets disk distributed.process_group encoders errors field_texts folder_lock listing"
    " logs logs.console media paths stores",
    "models": "checkpoint_files component_configs component_errors config data data.batch decoding_state dtypes"
    " encoders errors field_texts"
    " json_io listing paths recomputation registry stores suggestions tensor_files weight_parts",
    "convert": "__init__ checkpoint checkpoint_average checkpoint_parts"
    " config data errors file_digests json_io listing logs models paths"
    " registry replaced_file run_folder stores tensor_files",
    "planning": "component_configs components config data data.batch errors listing logs.console memory models"
    " parallel_modes precision recomputation",
    "decoding": "components data data.batch decoding_state",
    "runners": "__init__ checkpoint checkpoint_average checkpoint_files checkpoint_parts"
    " component_configs component_errors components config data"
    " data.batch data.int8_vectors decoding disk distributed.groups distributed.nodes distributed.parallel"
    " distributed.process_group"
    " distributed.sharding distributed.stop_requests distributed.worker_variables dtypes encoders errors evaluation field_texts"
    " file_digests folder_lock heartbeat"
    " interface_check listing logs logs.console lr_schedules memory optim parallel_modes paths planning precision recomputation"
    " registry replaced_file run_folder sharded_tensors stores suggestions variables",
    "checks": "config data disk distributed.process_group errors listing logs logs.console memory optim planning remote runners",
    "tasks": "components data data.batch decoding errors evaluation field_texts run_folder",
    "inference": "__init__ checkpoint checkpoint_files component_configs config data data.batch decoding"
    " distributed.process_group encoders errors evaluation extraction file_digests folder_lock json_io listing logs logs.console"
    " media memory models optim paths precision remote reporting run_folder runners suggestions tasks text_encoding variables",
    "commands": "__init__ checks config convert data demo demo.folder disk distributed.launcher distributed.node_launch"
    " distributed.stop_requests"
    " distributed.watchdog distributed.worker_variables entry errors evaluation folder_lock importers inference json_io listing"
    " logs logs.console logs.verbosity media models paths planning registry reporting run_folder runners starter stores"
    " suggestions text_encoding variables",
    "session": "commands config distributed.launcher distributed.stop_requests distributed.worker_variables errors inference"
    " logs reporting run_folder runners system_errors",
    "cli": "commands entry",
    "__main__": "cli",
}


def module_name(path):
    """Return the dotted name below emollama, such as ``data.batch``; the name of an ``__init__.py`` is that of its package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def group_of(module):
    if module in IMPORTS:
        return module
    return module.partition(".")[0]


def dotted(node):
    """Return ``a.b.c`` for a name or its attributes, or an empty string for other nodes."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


MODULES = {module_name(path): path for path in FILES}


# Registries and configurations name the Protocols of all components as types, but do not import them: a look-up imports only the
# module of one component. The package itself imports the names of its API when they are used.
IMPORTS_OF_TYPES = {"registry", "config.loading", "components", "__init__"}


def imported(path):
    """Yield (line, dotted module) of a file's imports, also inside functions; ``from a import b`` gives a.b if it is a module."""
    of_types = set()
    if module_name(path) in IMPORTS_OF_TYPES:
        blocks = [node for node in nodes_of(path)[ast.If] if dotted(node.test) == "TYPE_CHECKING"]
        of_types = {child for block in blocks for child in block.body}
    for node in nodes_of(path)[ast.Import]:
        for alias in node.names:
            yield node.lineno, alias.name
    for node in (node for node in nodes_of(path)[ast.ImportFrom] if node not in of_types):
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


def test_each_group_of_modules_imports_exactly_what_the_table_says():
    imports = {group: set() for group in IMPORTS}
    for name, path in MODULES.items():
        group = group_of(name)
        assert group in IMPORTS, f"{where(path, 1)}: the table has no entry '{group}'"
        imports[group] |= {group_of(target) for _, target in own_imports(path)} - {group}
    table = {group: set(targets.split()) for group, targets in IMPORTS.items()}
    assert {group: sorted(imports[group] ^ table[group]) for group in table if imports[group] != table[group]} == {}


def test_the_table_of_layers_goes_from_the_bottom_up():
    lower = set()
    for group, targets in IMPORTS.items():
        assert set(targets.split()) <= lower, f"{group} imports a later group: {sorted(set(targets.split()) - lower)}"
        lower.add(group)


def test_modules_have_no_circular_imports():
    targets = {name: {target for _, target in own_imports(path)} & set(MODULES) for name, path in MODULES.items()}
    resolved: set[str] = set()
    while len(resolved) < len(targets):
        ready = {name for name, needs in targets.items() if name not in resolved and needs - {name} <= resolved}
        assert ready, f"a circle among {sorted(set(targets) - resolved)}"
        resolved |= ready


# The modules that may import a library.
LIBRARY_USERS = {
    "omegaconf": {"config.loading", "config.merging", "config.nested", "config.reading", "config.omegaconf_errors"},
    "transformers": {"models.llm", "models.llm_weights", "models.packing_check", "models.attention", "models.kv_cache"}
    | {"models.fused_layer"}
    | {"models.random_copy", "models.lora_targets", "decoding.running_batch"}
    | {"convert.hub.modeling_emollama", "convert.hub.processing_emollama"}
    | {"encoders.hugging_face", "encoders.qformer", "demo.tiny_llama", "demo.tiny_encoders", "demo.tiny_projection"},
    "timm": {"encoders.eva_vit", "encoders.originals"},
    "decord": {"media.frames"},
    "av": {"media.containers", "media.frames", "media.audio", "demo.videos"},
    "cv2": {"media.faces"},
    "peft": {"models.llm_weights", "models.adapters", "models.lora_linear"},
    "triton": {"models.dropout_kernel"},
    "liger_kernel": {"models.fused_ops"},
    "iopath": {"remote.manager", "remote.handler"},
    "requests": {"remote.http"},
    "fsspec": {"remote.object_stores"},
    "filelock": {"remote.downloads"},
    "openai": {"evaluation.judges.endpoint", "inference.remote_llm"},
    "httpx2": {"inference.remote_llm"},
    "gradio": {"inference.app.events", "inference.app.page"},
    "fastapi": {"inference.serve.app", "inference.serve.server", "inference.app.page"},
    "starlette": {
        f"inference.serve.{name}" for name in ("answering", "app", "bodies", "connections", "emotions", "guard", "outermost")
    }
    | {f"inference.app.{name}" for name in ("bodies", "guard", "host_guard", "page")},
    "pydantic": {f"inference.serve.{name}" for name in ("bodies", "emotions", "schema")},
    "uvicorn": {"inference.serve.connections", "inference.serve.listening", "inference.app.server"},
    "h11": {"inference.serve.connections", "inference.serve.downloads"},
    "prometheus_client": {"inference.serve.metrics"},
    "matplotlib": {"reporting.plotting", "reporting.confusion", "reporting.panels", "reporting.curves"},
    "wandb": {"logs.tracking"},
    "rich": {"logs.bars"},
    "pycocoevalcap": {"evaluation.captions.metric_inputs"},
    "nltk": {"evaluation.captions.tokenizers"},
}
# Packages and single modules that need no tensors.
TORCH_FREE = {"evaluation", "reporting", "registry", "registration", "config", "errors", "paths", "remote", "stores"}
TORCH_FREE |= {
    "importers",
    "starter",
    "dtypes",
    "logs.bars",
    "logs.console",
    "logs.logger",
    "component_configs",
    "lr_schedules",
    "runners.run_config",
    "runners.sharding_check",
    "distributed.groups",
    "datasets.clip_config",
    "encoders.shapes",
}
TORCH_FREE |= {"data.slots", "decoding.sampling_params"}
TORCH_FREE |= {f"data.prompts.{name}" for name in ("configs", "end_symbol", "image_tag", "prompt_style", "segments")}
TORCH_FREE |= {f"data.prompts.{name}" for name in ("template", "tokenizer_check")}
TORCH_FREE |= {f"{package}.configs" for package in ("models", "models.fusion", "datasets", "encoders", "extraction", "tasks")}


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


# Types

COMPONENTS = "model dataset fusion prompt prompt_format task runner encoder extractor metric metric_input judge scoring".split()
COMPONENT_NAMES = {*COMPONENTS, *(f"{name}s" for name in COMPONENTS), "member", "members", "schedule", "scheduler"}
BLOCK = re.compile(r"(?:dict|Mapping)\[str, Any\]")
CONFIG_CLASSES = re.compile(r"\w*Config|EvaluationBlock")


def annotated(path):
    """Yield (name, annotation) of a file's parameters, variables, attributes and functions, except the fields of Configs."""
    classes = [node for node in nodes_of(path)[ast.ClassDef] if CONFIG_CLASSES.fullmatch(node.name)]
    fields = {child for node in classes for child in node.body}
    for node in nodes_of(path)[ast.AnnAssign]:
        if node not in fields:
            yield dotted(node.target).rpartition(".")[2], node.annotation
    for node in nodes_of(path)[ast.arg]:
        if node.annotation is not None:
            yield node.arg, node.annotation
    for node in nodes_of(path)[ast.FunctionDef]:
        if node.returns is not None:
            yield node.name.removeprefix("build_"), node.returns


def test_no_component_has_the_type_any():
    """A value with the name of a component, or of its class, has the type of its Protocol.

    ``dict[str, Any]`` is allowed for one component, and as an element of several, because it is a config block.
    """
    untyped = set()
    for module, path in MODULES.items():
        for name, annotation in annotated(path):
            text = ast.unparse(annotation)
            stem = re.sub("_class(es)?$", "", name.strip("_"))
            maps_names_to_components = stem not in COMPONENTS and BLOCK.fullmatch(text)
            rest = text if maps_names_to_components else BLOCK.sub("", text)
            if "Registry[Any]" in text or (stem in COMPONENT_NAMES and re.search(r"\bAny\b", rest)):
                untyped.add(f"{module} {name}: {text}")
    assert untyped == set()


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
            if not listed:
                continue
            fields = {ast.arg: "arg", ast.Name: "id", ast.Attribute: "attr", ast.FunctionDef: "name"}
            inner = {getattr(each, fields[type(each)]) for each in ast.walk(node) if type(each) in fields}
            wrong += [f"{where(path, node.lineno)} {name}" for text in listed for name in text.split(", ") if name not in inner]
    assert wrong == []


MAX_PARAMETERS = 6
# attention: the signature that transformers calls. tiny_llama, corpus: the sizes of a synthetic model and corpus.
MORE_PARAMETERS = {"models.attention", "demo.tiny_llama", "demo.corpus"}


def test_functions_have_few_parameters():
    wrong = []
    for path in FILES:
        for node in nodes_of(path)[ast.FunctionDef]:
            names = [item.arg for item in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
            if len([name for name in names if name not in ("self", "cls")]) > MAX_PARAMETERS:
                wrong.append(f"{where(path, node.lineno)} {node.name}")
    exempt = {str(MODULES[name].relative_to(ROOT)) for name in MORE_PARAMETERS}
    assert [item for item in wrong if item.partition(":")[0] not in exempt] == []


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
