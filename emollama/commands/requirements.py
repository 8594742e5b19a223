"""The packages that emollama and its extras require."""

from __future__ import annotations

from pathlib import Path

import emollama
from emollama.errors import UserError


def requirements() -> list[str]:
    """Return requirements such as ``rich>=14``; those of an extra have its name in their marker."""
    from importlib.metadata import PackageNotFoundError, requires

    # The files of a clone come first, because the metadata of an editable installation may be older.
    clone = Path(emollama.__file__).parent.parent
    if (clone / "requirements.txt").is_file() and (clone / "pyproject.toml").is_file():
        import tomllib

        extras = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        lines = (line.strip() for line in (clone / "requirements.txt").read_text(encoding="utf-8").splitlines())
        plain = [line for line in lines if line and not line.startswith("#")]
        return plain + [f"{each}; extra == '{extra}'" for extra, members in extras.items() for each in members]
    try:
        return requires("emollama") or []
    except PackageNotFoundError:
        return []


def require_extra(command: str, extra: str) -> None:
    """Check that the packages of an extra are installed in versions that fit.

    Raises:
        UserError: If one is missing or has another version. The message says how to install it.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    wrong = []
    for requirement in map(Requirement, requirements()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.marker.evaluate({"extra": extra}):
            continue
        needed = f"{requirement.name}{requirement.specifier}"
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{needed} (not installed)")
        else:
            if not requirement.specifier.contains(installed, prereleases=True):
                wrong.append(f"{needed} (installed: {installed})")
    if wrong:
        raise UserError(f"emollama {command} needs {', '.join(wrong)}: pip install 'emollama[{extra}]'")
