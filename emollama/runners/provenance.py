"""Compare the provenance of features: among the blocks of a run, with its ``encoders``, and with its checkpoint.

Features without a manifest are not compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from emollama.config import RunConfig
from emollama.data.dataset import SampleDataset
from emollama.data.features import Features
from emollama.data.slots import Pooling
from emollama.encoders.configs import FACE_KEYS
from emollama.encoders.weights import recorded_weights
from emollama.errors import UserError
from emollama.listing import LINES, abbreviated
from emollama.logs.logger import get_logger
from emollama.stores.manifest import Manifest, differences

ProvenanceFields = dict[str, Any]
ROUNDING = ("precision",)  # fields that change features by rounding only
REMEDY = (
    "Extract the features with the same settings, or correct the configuration of the encoders; to continue with a warning,"
    " set run.allow_other_features: True."
)


class FeatureProvenance(NamedTuple):
    """Provenance of the features of one source.

    Attributes:
        where: configuration key and path of the source, for messages.
        slots: the slots that the features are used for.
        manifest: how the features were extracted, or how the model computes them.
        pooling: how the dataset pools the vectors of each array; None if it does not.
    """

    where: str
    slots: tuple[str, ...]
    manifest: Manifest
    pooling: Pooling | None = None

    @property
    def stored_fields(self) -> ProvenanceFields:
        """All manifest fields that change the stored arrays by more than rounding."""
        return {key: value for key, value in self.manifest.fields().items() if key not in ROUNDING}

    @property
    def fields(self) -> ProvenanceFields:
        """All fields that change the features which the model gets by more than rounding, after pooling."""
        fields = self.stored_fields
        if self.pooling is None or self.manifest.num_vectors == 1:
            return fields
        stored = fields.get("pooling", "none")
        return fields | {"rows": 1, "pooling": f"{self.pooling} of all vectors (stored: {stored})"}


def mismatches(config: RunConfig, datasets: Iterable[SampleDataset]) -> list[str]:
    """Return messages about features of datasets that cannot be combined.

    Args:
        config: the resolved configuration; its ``encoders``, if any, define how the features should have been extracted.
        datasets: datasets of a run.
    """
    return _problems(config, list(_provenance_of_sources(config, datasets)))


def provenance_of_run(
    config: RunConfig, datasets: Iterable[SampleDataset], others: Iterable[SampleDataset] = ()
) -> dict[str, ProvenanceFields]:
    """Return slot -> provenance of the features of these datasets, for slots with a manifest.

    Args:
        config: the resolved configuration.
        datasets: the training datasets; in an evaluation, the evaluated datasets.
        others: more datasets, whose features must have the same provenance.

    Raises:
        UserError: If features cannot be combined and ``run.allow_other_features`` is False.
    """
    own = list(_provenance_of_sources(config, datasets))
    require_no_mismatches(_problems(config, [*own, *_provenance_of_sources(config, others)]), config.run.allow_other_features)
    return {source.slots[0]: source.fields for source in reversed(own)}


def _problems(config: RunConfig, sources: Sequence[FeatureProvenance]) -> list[str]:
    problems = [
        f"{source.where} {_kind(source.manifest)}, expected {' + '.join(source.slots)}"
        for source in sources
        if _misplaced(source)
    ]
    first: dict[str, FeatureProvenance] = {}
    for source in (source for source in sources if not _misplaced(source)):
        other = first.setdefault(source.slots[0], source)
        if different := differences(other.fields, source.fields):
            problems.append(f"{other.where} and {source.where} were extracted differently: {'; '.join(different)}")
    problems += _encoder_mismatches(config, first)
    return list(dict.fromkeys(problems))


def require_no_mismatches(problems: list[str], allowed: bool) -> None:
    """Raise an error about features that cannot be combined, or log the problems as warnings if they are allowed.

    Raises:
        UserError: If there are problems and they are not allowed.
    """
    if problems and not allowed:
        raise UserError(f"these features do not fit together:{LINES}{abbreviated(problems, LINES)}\n{REMEDY}")
    for problem in problems:
        get_logger().warning("%s", problem)


def checkpoint_mismatches(stored: Any, features: Mapping[str, ProvenanceFields], source: str) -> list[str]:
    """Return messages about differences between the features that a checkpoint was trained on and those of this run.

    Args:
        stored: slot -> provenance fields from the checkpoint, or None if it contains none.
        features: slot -> provenance fields of this run.
        source: path of the checkpoint for messages.
    """
    trained_on = stored if isinstance(stored, dict) else {}
    different = {slot: differences(trained_on[slot], fields) for slot, fields in features.items() if slot in trained_on}
    text = "was trained on {} features that were extracted differently: {}"
    return [f"{source} {text.format(slot, '; '.join(changes))}" for slot, changes in different.items() if changes]


def _provenance_of_sources(config: RunConfig, datasets: Iterable[SampleDataset]) -> Iterator[FeatureProvenance]:
    for source in (source for dataset in datasets for source in dataset.features):
        manifest: Manifest | None
        if source.frame_selection is not None:
            manifest = config.model_class.frame_manifest(config.model, source.frame_selection)
            slots = manifest.slots
        else:
            manifest, slots = Manifest.read(source.path), source.slots
        if manifest is not None:
            pooling = source.pooling if isinstance(source, Features) else None
            yield FeatureProvenance(f"{source.key} ({source.path})", slots, manifest, pooling)


def _misplaced(source: FeatureProvenance) -> bool:
    return source.manifest.slots != source.slots


def _kind(manifest: Manifest) -> str:
    return f"contains {' + '.join(manifest.slots)} features of the encoder {manifest.settings.get('encoder')}"


def _encoder_mismatches(config: RunConfig, first: Mapping[str, FeatureProvenance]) -> Iterator[str]:
    """Yield messages about features that the run's ``encoders`` would compute differently."""
    for block_name, cfg in config.encoders.items():
        encoder = config.encoder_class(f"encoders.{block_name}")
        source = first.get(encoder.SLOTS[0])
        if source is None:
            continue
        try:
            settings = encoder.describe(cfg, f"encoders.{block_name}").settings
            weights = recorded_weights(cfg)
        except UserError as error:
            # The weights of the encoders are often not on the machine that trains, where only features are needed.
            get_logger().info("encoders.%s is not compared with %s: %s", block_name, source.where, error)
            continue
        ignored = ROUNDING + (FACE_KEYS if "faces" in source.manifest.inputs else ())
        expected = {key: value for key, value in settings.items() if key not in ignored} | {"weights": weights}
        stored = {key: source.stored_fields.get(key) for key in expected}
        if different := differences(expected, stored):
            yield f"encoders.{block_name} and {source.where} do not agree: {'; '.join(different)}"
