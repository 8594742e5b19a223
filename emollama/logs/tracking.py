"""Logging to Weights & Biases. After the start of a run, an error here never stops the training."""

from __future__ import annotations

import logging
import re
import secrets
import threading
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.paths import atomic_write

ID = "wandb_id.txt"  # file in the run's folder with the id of its run at Weights & Biases
FAILED_UPLOAD = 2.0  # seconds for the upload after an error; the launcher ends this process soon afterwards
UPLOAD = 300.0  # seconds for the upload at the end of a run; data that are not sent then stay in its folder


def require() -> None:
    """Check that logging to Weights & Biases is possible, before expensive work starts.

    Raises:
        UserError: If the package is not installed, or there is no login.
    """
    wandb = _library()
    try:
        is_online = wandb.setup().settings.mode in ("online", "run", "shared")
        is_logged_in = not is_online or wandb.login(prompt=False, verify=False)
    except Exception as error:  # exceptions of wandb, and of pydantic about invalid settings
        raise _not_started(error) from None
    if not is_logged_in:
        raise _not_started("you are not logged in")


class Tracking:
    """A run at Weights & Biases. Its files are in the subfolder ``wandb`` of the run's folder.

    Args:
        folder: folder of the run, whose name is also that of the run at Weights & Biases.
        project: project at Weights & Biases.
        config: configuration of the run with unresolved interpolations.
        resumed: continue the earlier run of this folder, if there is one.

    Raises:
        UserError: If the run cannot be started.
    """

    def __init__(self, folder: Path, project: str, config: dict[str, Any], *, resumed: bool) -> None:
        wandb, id_path = _library(), folder / ID
        run_id = (stored_id(id_path) if resumed else None) or secrets.token_hex(4)
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
            # wandb's own step counter only increases, but a resumed run logs some steps again.
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            raise _not_started(error) from None
        with atomic_write(id_path) as file:
            file.write(run_id + "\n")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step."""
        if self._run is None:
            return
        try:
            self._run.log({"step": step, **values})
        except Exception as error:
            self._give_up(error)

    def close(self, *, failed: bool) -> None:
        """End the run and upload the remaining data; after a failure, wait only briefly."""
        if self._run is None:
            return
        thread = threading.Thread(target=self._finish, args=(int(failed),), daemon=True)
        thread.start()
        thread.join(FAILED_UPLOAD if failed else None)

    def _finish(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        text = "logging to Weights & Biases has stopped: %s. log.jsonl and TensorBoard contain all values."
        logging.getLogger("emollama").warning(text, _reason(error))


def stored_id(path: Path) -> str | None:
    """Return the id of a run that an earlier process has stored; None, after a warning, if the file is damaged."""
    try:
        stored = path.read_bytes().strip()
    except FileNotFoundError:
        return None
    if re.fullmatch(rb"[A-Za-z0-9_-]{1,64}", stored):
        return stored.decode()
    text = "%s does not contain the id of a run, so that a new run is started at Weights & Biases"
    logging.getLogger("emollama").warning(text, path)
    return None


def _library() -> Any:
    try:
        import wandb
    except ImportError:
        text = "run.wandb_log needs the package wandb. Install it (pip install wandb), or set run.wandb_log: False."
        raise UserError(text) from None
    return wandb


def _not_started(reason: Exception | str) -> UserError:
    text = reason if isinstance(reason, str) else _reason(reason)
    return UserError(
        f"run.wandb_log: Weights & Biases did not start: {text}. Log in (wandb login), set WANDB_MODE=offline in the environment"
        " to store all data in the run's folder, or set run.wandb_log: False."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(". :")
