"""How features were made, compared: a run's blocks with each other, with its ``encoders``, and with its checkpoint.

Features without a manifest tell nothing, and are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from emollama.config import RunConfig
from emollama.data.slots import FRAME
from emollama.encoders.configs import FACE_KEYS
from emollama.encoders.weights import digest
from emollama.errors import UserError
from emollama.listing import LINES, abbreviated
from emollama.logs.logger import get_logger
from emollama.stores.manifest import Manifest, differences

ProvenanceFields = dict[str, Any]
ROUNDING = ("precision",)  # facts that change numbers by rounding only
REMEDY = "Extract them alike, or name the same encoders; or set run.allow_other_features: True to go on with a warning."


class FeatureProvenance(NamedTuple):
    """What one place's features are: where they lie, by configuration key and path, and how they were or will be made."""

    where: str
    slots: tuple[str, ...]
    manifest: Manifest

    @property
    def fields(self) -> ProvenanceFields:
        """Everything that makes features differ by more than rounding."""
        return {key: value for key, value in self.manifest.fields().items() if key not in ROUNDING}


def mismatches(config: RunConfig, datasets: Iterable[Any]) -> list[str]:
    """What does not fit together among the features of some datasets, in words.

    Args:
        config: its ``encoders``, where there are any, say how features are meant to be made.
        datasets: of a run.
    """
    return _problems(config, list(_provenance_of_sources(config, datasets)))


def provenance_of_run(config: RunConfig, datasets: Iterable[Any], others: Iterable[Any] = ()) -> dict[str, ProvenanceFields]:
    """slot -> how the features of these datasets were made, where that is known.

    Args:
        config: of the run.
        datasets: those that are trained on; where nothing is trained, those that are answered.
        others: more datasets, which have to fit to them.

    Raises:
        UserError: they do not fit together, and ``run.allow_other_features`` is False.
    """
    own = list(_provenance_of_sources(config, datasets))
    require_no_mismatches(_problems(config, [*own, *_provenance_of_sources(config, others)]), config.run.allow_other_features)
    return {made.slots[0]: made.fields for made in reversed(own)}


def _problems(config: RunConfig, found: Sequence[FeatureProvenance]) -> list[str]:
    problems = [
        f"{made.where}: {_kind(made.manifest)}, and {' + '.join(made.slots)} is expected" for made in found if _misplaced(made)
    ]
    first: dict[str, FeatureProvenance] = {}
    for made in (made for made in found if not _misplaced(made)):
        other = first.setdefault(made.slots[0], made)
        if different := differences(other.fields, made.fields):
            problems.append(f"{other.where} and {made.where} were made differently: {'; '.join(different)}")
    problems += _encoder_mismatches(config, first)
    return list(dict.fromkeys(problems))


def require_no_mismatches(problems: list[str], allowed: bool) -> None:
    """Refuse features that do not fit together, or warn of them where that is wanted.

    Raises:
        UserError: all of the problems.
    """
    if problems and not allowed:
        raise UserError(f"features that do not fit together:{LINES}{abbreviated(problems, LINES)}\n{REMEDY}")
    for problem in problems:
        get_logger().warning("%s", problem)


def checkpoint_mismatches(stored: Any, features: Mapping[str, ProvenanceFields], source: str) -> list[str]:
    """What differs between the features that a checkpoint was trained on and those of this run.

    Args:
        stored: the checkpoint's own slot -> facts; None in files that do not tell.
        features: slot -> facts of this run.
        source: the checkpoint's path, for messages.
    """
    known = stored if isinstance(stored, dict) else {}
    found = {slot: differences(known[slot], facts) for slot, facts in features.items() if slot in known}
    return [f"{source} was trained on {slot} features made otherwise: {'; '.join(told)}" for slot, told in found.items() if told]


def _provenance_of_sources(config: RunConfig, datasets: Iterable[Any]) -> Iterator[FeatureProvenance]:
    for source in (source for dataset in datasets for source in getattr(dataset, "features", ())):
        online = source.slots == (FRAME,)
        if online:
            manifest = config.classes["model"].frame_manifest(config.model, source.store.choice)
        else:
            manifest = Manifest.read(source.path)
        if manifest is not None:
            yield FeatureProvenance(f"{source.key} ({source.path})", manifest.slots if online else source.filled_slots, manifest)


def _misplaced(made: FeatureProvenance) -> bool:
    return made.manifest.slots != made.slots


def _kind(manifest: Manifest) -> str:
    return f"holds {' + '.join(manifest.slots)} features of the encoder {manifest.recipe.get('encoder')}"


def _encoder_mismatches(config: RunConfig, first: Mapping[str, FeatureProvenance]) -> Iterator[str]:
    """What was made otherwise than the run's own ``encoders`` would make it; weights that are not here tell nothing."""
    for label, cfg in config.encoders.items():
        encoder = config.classes[f"encoders.{label}"]
        made = first.get(encoder.SLOTS[0])
        if made is None:
            continue
        try:
            recipe = encoder.describe(cfg, f"encoders.{label}").recipe
            weights = "random" if cfg.random_weights else digest(cfg.weights)
        except UserError as error:
            get_logger().info("encoders.%s is not compared with %s: %s", label, made.where, error)
            continue
        silent = ROUNDING + (FACE_KEYS if "faces" in made.manifest.inputs else ())
        wanted = {key: value for key, value in recipe.items() if key not in silent} | {"weights": weights}
        held = {key: made.fields.get(key) for key in wanted}
        if different := differences(wanted, held):
            yield f"encoders.{label} and {made.where} do not agree: {'; '.join(different)}"
