"""An HTTP server with OpenAI-compatible routes, ``emollama serve``. Its libraries are those of the extra ``serve``."""
