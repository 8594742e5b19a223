"""The page of ``emollama app``, in a browser: a clip, its answers and label probabilities. It needs the extra ``app``."""
