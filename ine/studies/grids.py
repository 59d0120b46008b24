"""Grids as values: written to a file, and run in a folder."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from ine.detectors.features import has_features
from ine.evaluation.entering import enter_folder
from ine.evaluation.grid import FEATURE_MEASURE, PIXEL_MEASURE, Grid, GridMetrics, GridSampler
from ine.evaluation.grid_file import GridFile, load_grid
from ine.evaluation.plan import Plan
from ine.evaluation.prepare import prepare
from ine.evaluation.results import write_results
from ine.evaluation.run import Progress, run_and_score
from ine.files import write_text
from ine.guidance.protocol import Guidance
from ine.models.parts import DiffusionParts
from ine.sampling import SamplerSettings
from ine.studies.reading import GridResult
from ine.weights.stack import WeightStack, layers_of


def write_grid(grid: Grid, path: Path, about: str = "") -> GridFile:
    """Write a grid as a YAML file and return it read back, checked.

    Args:
        grid: The grid.
        path: The file.
        about: A comment for its first lines.

    Raises:
        OutputError: The file cannot be written.
        RecipeError: The grid is wrong.
    """
    write_text(path, "".join(f"# {line}\n" for line in about.splitlines()) + _yaml(grid))
    return load_grid(path)


def grid_file(grid: Grid, path: Path) -> GridFile:
    """Return a grid as if read from a file, which is not written; it has no concept."""
    return GridFile(grid=grid, path=path, text=_yaml(grid), places={})


def _yaml(grid: Grid) -> str:
    data = grid.model_dump(mode="json", exclude_defaults=True)
    data = {"kind": grid.kind, "version": grid.version, **data}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def sampler_of(settings: SamplerSettings, count: int) -> GridSampler:
    """Return the entry of a grid for sampler settings; a batch has no more pictures than a cell.

    Args:
        settings: The settings.
        count: Pictures of a cell.
    """
    return GridSampler(
        scheduler=settings.scheduler,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        batch=min(settings.batch, count),
        clip_skip=settings.reading.clip_skip,
        weights=settings.reading.weights,
    )


def metrics_by(detector: str) -> GridMetrics:
    """Return the entry of a grid for preservation by features of a detector, or of pixels."""
    if has_features(detector):
        return GridMetrics(preservation=(FEATURE_MEASURE,), features=detector)
    return GridMetrics(preservation=(PIXEL_MEASURE,))


def unet_texts(unet: Path | WeightStack | None) -> tuple[str, ...]:
    """Return what `unet` of a grid's model says for `--unet`, from wherever the grid file is."""
    found = []
    for layer in layers_of(unet) if unet else ():
        own = layer.path.absolute() if layer.path.exists() else layer.path
        found.append(str(replace(layer, path=own)))
    return tuple(found)


def run_grid(
    file: GridFile,
    folder: Path,
    *,
    store: Path | None = None,
    models: Mapping[str, DiffusionParts] | None = None,
    guidances: Mapping[str, Guidance] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> GridResult:
    """Make, look at and score what is missing of a grid, and write its results.

    Args:
        file: The grid.
        folder: The run folder, as that of `ine evaluate`; it is taken from an earlier grid.
        store: Where pictures are kept; by default the run folder.
        models: {model name: parts} of models that are in memory already.
        guidances: {guidance name: `Guidance`} that act as they are.
        on_progress: Called with `Progress`.

    Raises:
        IneError: Whatever is wrong, by cell.
    """
    plan = prepare(file, folder, store=store, models=models, guidances=guidances)
    return run_plan(plan, on_progress)


def run_plan(plan: Plan, on_progress: Callable[[Progress], None] | None = None) -> GridResult:
    """Run a plan as `run_grid` does."""
    enter_folder(plan, force=True)
    run = run_and_score(plan, progress=on_progress)
    assert run is not None, "only a shard waits for others"
    write_results(run)
    return GridResult(run)
