"""emollama: config-driven training of multimodal emotion language models.

The Python API starts with ``emollama.load``. Its names are imported when they are first used, because PyTorch takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emollama.errors import UserError
    from emollama.inference.requests import Answer, GenerationOptions, Request, Turn
    from emollama.session import EvaluationResult, Session, load

__version__ = "0.1.0"
__all__ = ["Answer", "EvaluationResult", "GenerationOptions", "Request", "Session", "Turn", "UserError", "load"]

_MODULES = {"UserError": "errors", "EvaluationResult": "session", "Session": "session", "load": "session"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'emollama' has no attribute '{name}'")
    return getattr(importlib.import_module(f"emollama.{_MODULES.get(name, 'inference.requests')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
