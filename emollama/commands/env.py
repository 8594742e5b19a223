"""Print versions, devices and programs of this machine, for bug reports. The output contains no paths and no secrets."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Iterator
from typing import Any

import emollama
from emollama.commands.requirements import requirements
from emollama.logs.console import write_plain

HELP = "print versions, devices and programs, for bug reports"
EXAMPLE = "emollama env --json"
DOCS = "README.md#command-line"

PROGRAMS = {"java": "-version", "ffmpeg": "-version", "nvidia-smi": "--version"}
VARIABLES = ("OMP_NUM_THREADS", "MALLOC_MMAP_MAX_", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES", "WANDB_MODE", "LC_ALL")
SECONDS = 20  # time limit for a program to print its version


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Print the report."""
    values = report()
    write_plain(json.dumps(values, indent=2) + "\n" if arguments.json else "".join(f"{line}\n" for line in _lines(values)))


def report() -> dict[str, Any]:
    """Return all values of the report; a value that cannot be determined is None."""
    return {
        "emollama": emollama.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "usable": _usable_cores()},
        "memory_gib": _memory_gib(),
        "packages": {name: _version(name) for name in required_packages()},
        "torch": _torch(),
        "programs": {name: _program(name, option) for name, option in PROGRAMS.items()},
        "variables": {name: os.environ.get(name) for name in VARIABLES},
    }


def required_packages() -> list[str]:
    """Return the names of the packages that emollama and its extras require."""
    names = (re.match(r"[\w.-]+", line) for line in requirements())
    return list(dict.fromkeys(name[0] for name in names if name))


def _torch() -> dict[str, Any]:
    """Return the build and the devices of PyTorch, or the error if it cannot be imported."""
    try:
        import torch
    # Bug reports often concern broken installations, so any error becomes part of the report.
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    devices = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        devices.append(f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, compute capability {gpu.major}.{gpu.minor}")
    return {"cuda": torch.version.cuda, "hip": torch.version.hip, "devices": devices, "threads": torch.get_num_threads()}


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _program(name: str, option: str) -> str | None:
    """Return the first line of a program's version message, None if the program is not installed."""
    import shutil
    import subprocess

    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {type(error).__name__}"
    return (done.stdout or done.stderr).strip().partition("\n")[0] or "installed"


def _usable_cores() -> int | None:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_model() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError):
        return None


def _lines(values: dict[str, Any]) -> Iterator[str]:
    """Yield a line ``name: value`` for each value; the values of a group are indented."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield f"{name}:"
            yield from (f"  {line}" for line in _lines(value))
        elif isinstance(value, list):
            yield f"{name}: {'; '.join(value) or 'none'}"
        else:
            yield f"{name}: {'-' if value is None else value}"
