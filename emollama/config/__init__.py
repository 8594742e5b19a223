"""Configuration: check YAML files and ``--options`` and merge them into the Config objects of the components."""

from emollama.config.loading import MISSING, EvaluationBlock, RunConfig, from_dict, load, write_yaml

__all__ = ["MISSING", "EvaluationBlock", "RunConfig", "from_dict", "load", "write_yaml"]
