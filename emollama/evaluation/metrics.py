"""The interfaces of metrics and of metric inputs.

A metric is a number that is computed from a metric input. A metric input contains what metrics need to know about the samples of
one task (losses, extracted labels, verdicts, sets of words). It states what it needs, computes itself from predictions, and can
be restricted to some of its samples; the bootstrap needs nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, Self

from emollama.component_errors import ComponentFailed, reported, source_file
from emollama.errors import UserError
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.resources import ScoringResources
from emollama.listing import abbreviated
from emollama.registry import METRIC_INPUTS, METRICS


@dataclass(frozen=True, eq=False)
class MetricInput:
    """Base class of metric inputs, which are registered in METRIC_INPUTS. A subclass must define :meth:`compute`.

    Subclasses are frozen dataclasses. Each field that is a tuple has one entry per sample. A class with lists, arrays or other
    fields that depend on the samples overrides :meth:`take`.

    Attributes:
        names: names of the samples.
        content: what the answers contain, such as "emotion words", for tables of predictions without a task; "" if anything.
        uses_judge: whether the judge may be asked. Such inputs are computed last, so that a judge that cannot be reached costs no
            other metric.
    """

    names: tuple[str, ...]

    content: ClassVar[str] = ""
    uses_judge: ClassVar[bool] = False

    @dataclass
    class Config:
        """Keys of ``metric_inputs.<name>`` in a block under ``evaluation_datasets``; by default, there are none."""

    @classmethod
    def missing(cls, resources: ScoringResources, task: str) -> str | None:
        """Return what is missing to compute this input for a task, such as "a judge"; None if nothing is."""
        return None

    @classmethod
    def warning(cls, resources: ScoringResources) -> str | None:
        """Return a warning to log before predictions are generated; None if there is none."""
        return None

    @classmethod
    def compute(cls, predictions: Sequence[Prediction], resources: ScoringResources) -> Self:
        """Compute the input from the predictions for one task; samples may be left out.

        Raises:
            UserError: If the data or a file cannot be used.
        """
        raise NotImplementedError(f"{cls.__name__} does not define compute(predictions, resources)")

    def take(self, indices: Sequence[int]) -> Self:
        """Return the entries of the samples at these indices; an index may repeat."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self)(
            **{
                name: tuple(value[index] for index in indices) if isinstance(value, tuple) else value
                for name, value in values.items()
            }
        )

    def scored(self) -> Self:
        """Return the entries of the samples that have a score, to which intervals and differences refer; by default all."""
        return self

    def details(self, predictions: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, Any]:
        """Return what ``metrics_*.json`` contains about this input besides its metrics, as plain values.

        Args:
            predictions: the predictions from which the input was computed.
            metrics: names of the metrics that were computed from the input.

        Returns:
            Key -> value. Two keys are merged with those of other inputs: ``clip_scores``, a list of ``{name, ...}`` with the
            scores of each sample, and ``failures``, a list of ``{name, metric, failure}`` of samples without a score. Other keys
            must differ from those of a task, such as ``clips`` and ``metrics``.
        """
        return {}

    def sample_rows(self, metrics: Sequence[str]) -> list[dict[str, Any]]:
        """Return the columns of each sample in ``scores.csv``, with ``name``; by default, the metrics of the sample alone."""
        alone = [take(self, [index]) for index in range(len(self.names))]
        return [{"name": one.names[0]} | {key: metric_value(key, one) for key in metrics} for one in alone]


@dataclass(frozen=True)
class Metric:
    """A metric. It is registered in METRICS by its name.

    Attributes:
        title: name of the metric in tables and plots.
        metric_input: name in METRIC_INPUTS of the input that ``compute`` takes, such as "answers".
        compute: function from the metric input to the value, never NaN; None if the value is undefined, as for no samples.
        higher_is_better: whether larger values are better.
        max_value: upper end of the scale: 1 for fractions, 10 for a judge's scores; None without an upper limit, or if lower is
            better.

    Raises:
        TypeError: If ``title`` or ``metric_input`` is not a string, ``compute`` is not a function, or ``max_value`` not a number.
    """

    title: str
    metric_input: str
    compute: Callable[[Any], float | None]
    higher_is_better: bool = True
    max_value: float | None = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.title, str):
            raise TypeError(f"metric {self.title!r}: title must be a string, not {type(self.title).__name__}")
        if not callable(self.compute):
            raise TypeError(f"metric '{self.title}': compute must be a function of the metric input, not {self.compute!r}")
        if not isinstance(self.max_value, Real | None):
            raise TypeError(f"metric '{self.title}': max_value must be a number or None, not {self.max_value!r}")
        if not isinstance(self.metric_input, str):
            expected = "the name of a registered metric input, such as 'answers'"
            raise TypeError(f"metric '{self.title}': metric_input must be {expected}, not {self.metric_input!r}")

    def is_better(self, value: float, than: float) -> bool:
        """Return whether a value is strictly better than another one."""
        return value > than if self.higher_is_better else value < than


def metric(name: str) -> Metric:
    """Return the metric that is registered under a name.

    Raises:
        UserError: If no metric has this name.
    """
    return METRICS.get(name, "metric")


def input_type(name: str) -> type[MetricInput]:
    """Return the class of the metric input from which a metric is computed.

    Args:
        name: name of the metric.

    Raises:
        UserError: If the metric or its input is not registered, or the input is not a :class:`MetricInput`.
    """
    input_name = metric(name).metric_input
    try:
        registered = METRIC_INPUTS.get(input_name, f"metric '{name}'")
    except UserError as error:
        remedy = f"Register its class with @METRIC_INPUTS.register('{input_name}'), in a module that is imported."
        raise UserError(f"{error}. {remedy}") from None
    where = f"metric input '{input_name}' ({source_file(registered)})"
    if not (isinstance(registered, type) and issubclass(registered, MetricInput)):
        raise UserError(f"{where}: {registered!r} must be a subclass of emollama.evaluation.metrics.MetricInput")
    own_classes = registered.__mro__[: registered.__mro__.index(MetricInput)]
    if not any("compute" in vars(base) for base in own_classes):
        raise UserError(f"{where}: {registered.__name__} does not define compute(predictions, resources)")
    return registered


def input_config(name: str, keys: Any) -> Any:
    """Return the Config of a metric input.

    Args:
        name: the registered name.
        keys: its keys and values.

    Raises:
        UserError: If the input is not registered, or keys or values are invalid.
    """
    key = f"metric_inputs.{name}"
    if not isinstance(keys, Mapping):
        raise UserError(f"{key}: expected {{key: value}}, got {keys!r}")
    return METRIC_INPUTS.configured({**keys, "type": name}, key)[1]


def compute_input(metrics: Sequence[str], predictions: Sequence[Prediction], resources: ScoringResources) -> MetricInput:
    """Compute a metric input, and check its samples.

    Args:
        metrics: names of the metrics that need it, at least one.
        predictions: the predictions for one task.
        resources: what the block offers.

    Raises:
        UserError: If the data or a file cannot be used.
        ComponentFailed: If the input raised an exception or is unusable.
    """
    metric_input = input_type(metrics[0])
    what = f"metric input '{metric(metrics[0]).metric_input}' of {', '.join(metrics)}, class {metric_input.__name__}"
    with reported(what, metric_input):
        computed: Any = metric_input.compute(predictions, resources)
    place = f"{what} ({source_file(metric_input)})"
    if not isinstance(computed, metric_input):
        raise ComponentFailed(f"{place}: compute returned {computed!r:.60}. Expected an object of this class.")
    if not isinstance(computed.names, tuple) or not all(isinstance(name, str) for name in computed.names):
        raise ComponentFailed(f"{place}: names is {computed.names!r:.60}. Expected a tuple of strings.")
    if surplus := Counter(computed.names) - Counter(prediction.name for prediction in predictions):
        problem = f"names has {abbreviated(map(repr, surplus))} more often than the predictions"
        raise ComponentFailed(f"{place}: {problem}. Expected each sample at most once.")
    for field in dataclasses.fields(computed) if metric_input.take is MetricInput.take else ():
        value = getattr(computed, field.name)
        if isinstance(value, list) or getattr(value, "shape", None):
            problem = f"{field.name} is of type {type(value).__name__}, of which take selects no entries"
            raise ComponentFailed(f"{place}: {problem}. Use a tuple with one entry per sample, or override take.")
        if isinstance(value, tuple) and len(value) != len(computed.names):
            problem = f"{field.name} has {len(value)} entries for {len(computed.names)} samples"
            raise ComponentFailed(f"{place}: {problem}. A tuple must have one entry per sample, unless the class overrides take.")
    return computed


def explanation(metric_input: type[MetricInput], method: Literal["missing", "warning"], *args: Any) -> str | None:
    """Return the result of ``missing`` or ``warning`` of a metric input.

    Raises:
        ComponentFailed: If the method raised an exception, or returned something other than a string or None.
    """
    text = _call(metric_input, method, *args)
    if text is None or isinstance(text, str):
        return text
    raise _unusable(metric_input, method, f"{text!r:.60}. Expected a string or None")


def take(metric_input: MetricInput, indices: Sequence[int]) -> MetricInput:
    """Return the entries of the samples at these indices, and check that they are these samples.

    Raises:
        ComponentFailed: If ``take`` of the input raised an exception, or returned something else.
    """
    selected = _call(metric_input, "take", indices)
    if not isinstance(selected, type(metric_input)):
        raise _unusable(type(metric_input), "take", f"{selected!r:.60}. Expected an object of the same class")
    if selected.names != tuple(map(metric_input.names.__getitem__, indices)):
        raise _unusable(type(metric_input), "take", "other samples than those at the indices. Expected these, in their order")
    return selected


def scored_samples(metric_input: MetricInput) -> MetricInput:
    """Return the entries of the samples that have a score, and check that they are samples of the input.

    Raises:
        ComponentFailed: If ``scored`` of the input raised an exception, or returned something else.
    """
    selected = _call(metric_input, "scored")
    if not isinstance(selected, type(metric_input)):
        raise _unusable(type(metric_input), "scored", f"{selected!r:.60}. Expected an object of the same class")
    if surplus := Counter(selected.names) - Counter(metric_input.names):
        raise _unusable(type(metric_input), "scored", f"{abbreviated(map(repr, surplus))} in addition to the input's samples")
    return selected


def _call(metric_input: MetricInput | type[MetricInput], method: str, *args: Any) -> Any:
    cls = metric_input if isinstance(metric_input, type) else type(metric_input)
    with reported(f"{method} of the metric input {cls.__name__}", cls):
        return getattr(metric_input, method)(*args)


def _unusable(metric_input: type[MetricInput], method: str, returned: str) -> ComponentFailed:
    place = f"{method} of the metric input {metric_input.__name__} ({source_file(metric_input)})"
    return ComponentFailed(f"{place} returned {returned}.")


def metric_value(name: str, metric_input: MetricInput) -> float | None:
    """Compute a metric.

    Args:
        name: name of the metric.
        metric_input: an input of the class that the metric takes.

    Raises:
        ComponentFailed: If the metric raised an exception, or its value is neither a finite number nor None.
    """
    compute = metric(name).compute
    with reported(f"metric '{name}'", compute):
        value: Any = compute(metric_input)
        # float fails for integers that are too large.
        number = float(value) if isinstance(value, Real) else math.nan
    if value is None or math.isfinite(number):
        return None if value is None else number
    remedy = "Expected a finite number, or None if the value is undefined."
    raise ComponentFailed(f"metric '{name}' ({source_file(compute)}) returned {value!r:.60}. {remedy}")
