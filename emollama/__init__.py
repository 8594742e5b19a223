"""emollama: config-driven training of multimodal emotion language models.

``emollama.load`` is the start of the Python API. Its names are imported when they are first used, because PyTorch takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emollama.errors import UserError
    from emollama.session import EvaluationResult, Session, load

__version__ = "0.1.0"
__all__ = ["EvaluationResult", "Session", "UserError", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'emollama' has no attribute '{name}'")
    module = {"UserError": "errors"}.get(name, "session")
    return getattr(importlib.import_module(f"emollama.{module}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
