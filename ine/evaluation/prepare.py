"""Preparing a grid: its plan, and checks that need no picture.

`ine.evaluation.run` then generates and reads what is missing.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from ine.calibration.check import check_calibrated
from ine.detectors.features import check_extractor, has_features, is_bare_clip
from ine.detectors.table import check_detector
from ine.embeddings.fit import check_fits_and_log
from ine.errors import IneError, MissingDependency, OutputError, RecipeError
from ine.evaluation.cells import Configuration
from ine.evaluation.expand import expand
from ine.evaluation.grid import FEATURE_MEASURE, PIXEL_MEASURE, named
from ine.evaluation.grid_file import GridFile
from ine.evaluation.models import ModelCache, ModelFacts
from ine.evaluation.plan import Plan
from ine.guidance.protocol import Guidance, Prompts
from ine.models.parts import DiffusionParts
from ine.runtime import pick_device, pick_dtype
from ine.sampling import SamplerSettings
from ine.store.pictures import Store
from ine.text.syntax import is_weighted

log = logging.getLogger("ine")


def prepare(
    file: GridFile,
    folder: str | Path,
    *,
    store: str | Path | None = None,
    only: Sequence[str] = (),
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    lenient: bool = False,
    models: Mapping[str, DiffusionParts] | None = None,
    guidances: Mapping[str, Guidance] | None = None,
) -> Plan:
    """Return the `Plan` of a grid; all is checked that needs no picture.

    Args:
        file: A `GridFile`.
        folder: The run folder; all that is written is what was found out about models.
        store: Folder of the store; by default the run folder.
        only: As `expand`.
        limit: As `expand`.
        device: Where to compute.
        dtype: Precision of the weights.
        lenient: Note what is missing instead of raising, for a dry run.
        models: {model name: parts} of models that are in memory already.
        guidances: As `expand`.

    Raises:
        IneError: Whatever is wrong, by cell.
    """
    expansion = expand(file, only=only, limit=limit, lenient=lenient, guidances=guidances)
    kept, where = Store(Path(store or folder)), pick_device(device)
    shelf = ModelCache(
        expansion=expansion,
        store=kept,
        device=where,
        dtype=pick_dtype(dtype, where),
        writes=not lenient,
        loaded=models or {},
    )
    facts, unknown = _facts(shelf, lenient)
    plan = Plan(
        **{field.name: getattr(expansion, field.name) for field in fields(expansion)},
        folder=Path(folder),
        store=kept,
        shelf=shelf,
        facts=facts,
        only=tuple(only),
        limit=limit,
    )
    return replace(plan, missing=(*expansion.missing, *unknown, *_check_looks(plan, lenient)))


def _facts(shelf: ModelCache, lenient: bool) -> tuple[dict[str, ModelFacts | None], list[str]]:
    """Return ({model: what is known of it}, why some are not known); only `lenient` has such."""
    facts: dict[str, ModelFacts | None] = {}
    missing = []
    file, unets = shelf.expansion.file, shelf.expansion.unets
    for model in dict.fromkeys(c.model for c in shelf.expansion.configurations):
        try:
            unread = named(file.grid.models, model).unet and unets[model] is None
            facts[model] = None if unread else shelf.facts(model)
        except OutputError:
            raise
        except IneError as error:
            if not lenient:
                raise type(error)(f"{file.path}: model {model!r}: {error}") from error
            missing.append(f"model {model!r}: {error}")
            facts[model] = None
    return facts, missing


def _check_looks(plan: Plan, lenient: bool) -> list[str]:
    """Raise, or return texts, where a detector cannot be had or a rule cannot be applied."""
    names = dict.fromkeys(name for prompts in plan.sets for name in plan.detectors_of(prompts))
    if FEATURE_MEASURE in plan.file.grid.metrics.preservation:
        names[plan.features_by] = None
        if not has_features(plan.features_by):
            raise RecipeError(
                f"{plan.file.path}: {plan.file.at('metrics')}{FEATURE_MEASURE} needs a detector "
                f"with picture features, and {plan.features_by} has none; give metrics.features: "
                f"mini-judge or a clip detector, or measure {PIXEL_MEASURE}"
            )
    missing = []
    for name in names:
        try:
            check_extractor(name) if is_bare_clip(name) else check_detector(name)
        except MissingDependency as error:
            if not lenient:
                raise
            missing.append(str(error))
    metrics = plan.file.grid.metrics
    for metric, extractor in (("clip_score", metrics.clip_score), ("frechet", metrics.frechet)):
        if extractor is None:
            continue
        try:
            check_extractor(extractor)
        except IneError as error:
            problem = f"{plan.file.at('metrics', metric)}{metric}: {error}"
            if not lenient:
                raise type(error)(f"{plan.file.path}: {problem}") from error
            missing.append(problem)
    return missing


def check_cells(plan: Plan, models: Iterable[str]) -> None:
    """Begin every configuration of some models once: what cannot work is named before it runs.

    Raises:
        IneError: A configuration cannot work; it is named.
    """
    for model in models:
        parts, sampler = plan.shelf.parts(model), plan.sampler(model)
        known: set[str] = set()
        for configuration in plan.configurations:
            if configuration.model == model:
                try:
                    _check_cell(plan, configuration, parts, sampler, known)
                except IneError as error:
                    where = f"{plan.file.path}: cell {configuration.label}"
                    raise type(error)(f"{where}: {error}") from error


def _check_cell(
    plan: Plan,
    configuration: Configuration,
    parts: DiffusionParts,
    sampler: SamplerSettings,
    known: set[str],
) -> None:
    guidance = plan.guidances[configuration]
    cells = [c for c in plan.cells if c.configuration == configuration]
    items = [i for c in cells for i in plan.sets[c.prompts].items(c.seed)]
    for size in {i.size for i in items}:
        parts.of_size(*size)
    if guidance is None:
        return
    embeddings = guidance.negative.embeddings
    # Each is logged once, not with every strength.
    check_fits_and_log([e for e in embeddings if e.digest not in known], parts)
    known |= {e.digest for e in embeddings}
    calibration = plan.calibrations.get(configuration)
    if calibration:
        for note in check_calibrated(calibration, embeddings, parts, sampler):
            log.info("note: %s: %s", configuration.label, note)
    if sampler.reading.weights and guidance.reads_prompts:
        weighted = next((i.prompt for i in items if is_weighted(i.prompt)), None)
        if weighted:
            raise RecipeError(
                f"prompt {weighted[:60]!r} has weights, which this guidance cannot read; leave "
                "sampler.weights out"
            )
    guidance.cost(sampler.guidance_scale, sampler.steps)  # looks outside the run are refused
    scales = {sampler.guidance_scale if i.guidance is None else i.guidance for i in items}
    for scale in sorted(scales):
        prompts = Prompts(
            parts=parts,
            texts=(items[0].prompt,),
            scale=1.0 if parts.timestep_cond is not None else scale,
            reading=sampler.reading,
        )
        for attempt in guidance.attempts:
            with torch.no_grad(), attempt.begin(prompts):
                pass
