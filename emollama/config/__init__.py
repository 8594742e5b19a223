"""Configuration: YAML files and ``--options`` are checked and merged into the Config objects of the components."""

from emollama.config.loading import MISSING, EvaluationBlock, RunConfig, from_plain, load, write_yaml

__all__ = ["MISSING", "EvaluationBlock", "RunConfig", "from_plain", "load", "write_yaml"]
