"""Weights & Biases, beside TensorBoard. Once a run has begun, nothing that goes wrong here ends it."""

from __future__ import annotations

import logging
import secrets
import threading
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.paths import atomic_write, read_text

ID = "wandb_id.txt"  # in the run's folder: the run's id there
LAST_WORDS = 2.0  # seconds that a failing run has to send what it logged; the launcher ends it soon after
UPLOAD = 300.0  # seconds that a finished one has; what is left lies in its folder


def require() -> None:
    """Refuse a run that could not be tracked, before anything else costs time.

    Raises:
        UserError: the package is missing, or nobody is logged in.
    """
    wandb = _library()
    try:
        connected = wandb.setup().settings.mode in ("online", "run", "shared")
        known = not connected or wandb.login(prompt=False, verify=False)
    except Exception as error:  # the library's, and pydantic's about its settings
        raise _not_started(error) from None
    if not known:
        raise _not_started("nobody is logged in")


class Tracking:
    """A run at Weights & Biases; its files lie under ``wandb`` in the run's folder.

    Args:
        folder: of the run, whose name it bears.
        project: there.
        config: of the run, interpolations unresolved.
        resumed: go on with the run that the folder belongs to, if it does.

    Raises:
        UserError: it does not start.
    """

    def __init__(self, folder: Path, project: str, config: dict[str, Any], *, resumed: bool) -> None:
        wandb, known = _library(), folder / ID
        run_id = read_text(str(known)).strip() if resumed and known.is_file() else secrets.token_hex(4)
        settings = {"console": "off", "finish_timeout": UPLOAD}
        try:
            self._run: Any = wandb.init(
                project=project,
                name=folder.absolute().name,
                id=run_id,
                resume="allow",
                dir=str(folder.absolute()),
                config=config,
                settings=wandb.Settings(**settings),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")  # wandb's own steps would refuse to go back when a run is resumed
        except Exception as error:
            raise _not_started(error) from None
        with atomic_write(known) as file:
            file.write(run_id + "\n")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Values of a step."""
        if self._run is None:
            return
        try:
            self._run.log({"step": step, **values})
        except Exception as error:
            self._give_up(error)

    def close(self, *, failed: bool) -> None:
        """Send what is left."""
        if self._run is None:
            return
        thread = threading.Thread(target=self._finish, args=(int(failed),), daemon=True)
        thread.start()
        thread.join(LAST_WORDS if failed else None)

    def _finish(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        text = "Weights & Biases gets no more of this run: %s. log.jsonl and TensorBoard have everything."
        logging.getLogger("emollama").warning(text, _reason(error))


def _library() -> Any:
    try:
        import wandb
    except ImportError:
        text = "run.wandb_log: the package wandb is not installed. Install it (pip install wandb), or set run.wandb_log: False."
        raise UserError(text) from None
    return wandb


def _not_started(reason: Exception | str) -> UserError:
    told = reason if isinstance(reason, str) else _reason(reason)
    return UserError(
        f"run.wandb_log: Weights & Biases did not start: {told}. Log in (wandb login), set WANDB_MODE=offline in the environment"
        " to keep everything in the run's folder, or set run.wandb_log: False."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(". :")
