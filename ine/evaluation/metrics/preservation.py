"""Preservation: how alike defended and undefended pictures of the same prompt and seed are.

A measure is rescaled: unrelated pictures of the undefended model read 0, identical ones 1.

Shape letter: B pictures of a unit.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from ine.detectors.likeness import feature_floor
from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.cells import Cell, Configuration
from ine.evaluation.grid import FEATURE_MEASURE, PIXEL_MEASURE, Grid
from ine.evaluation.metrics.base import Column, Metric, Sample, UnitView, floors_of
from ine.evaluation.pictures import Columns, Pictures
from ine.evaluation.plan import Plan
from ine.evaluation.result import Figure, Run
from ine.evaluation.similarity import is_lpips, lpips, ssim
from ine.evaluation.units import UnitOfWork

ON_HARMFUL = "likeness-on-harmful "
"""How the metric begins on harmful sets, where a high value is no merit."""


class Preservation(Metric):
    """One figure per measure of `metrics.preservation`."""

    columns = (Column(name="likeness", digits=6, keyed=True),)
    mapped = ("benign", "neighbour")
    better = "high"
    undefended = "1 by definition"

    def needs(self, plan: Plan, prompts: str) -> tuple[str, ...]:
        """Return the features that measures of features compare."""
        names = (feature_name(plan, m) for m in plan.file.grid.metrics.preservation)
        return tuple(name for name in names if name)

    def read(self, view: UnitView) -> Columns:
        """Return the likeness by each measure, not rescaled; nothing of the undefended model."""
        if not view.cell.configuration.is_defended:
            return {}
        return {
            ("likeness", measure): np.asarray(
                alike(view.plan, measure, view.unit.key, view.before.key), dtype=np.float64
            )
            for measure in view.plan.file.grid.metrics.preservation
        }

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield a figure for each measure with a known floor."""
        for measure in sample.parts[0].likeness:
            floor = sample.run.floors.get(
                (sample.configuration.model, sample.prompts, measure), math.nan
            )
            if math.isnan(floor):
                continue
            rescale = sample.run.kept(sample.configuration, sample.prompts, measure)
            yield sample.mean(
                f"{ON_HARMFUL}{measure}" if sample.spec.expects == "harmful" else measure,
                np.concatenate([rescale(part) for part in sample.parts]),
                floor=floor,
                raw=float(sample.column("likeness", measure).mean()),
            )

    def names(self, grid: Grid) -> tuple[str, ...]:
        """Return the measures."""
        return tuple(grid.metrics.preservation)

    def owns(self, name: str, grid: Grid) -> bool:
        """Return whether it is a measure, on harmful sets or others."""
        return measure_of(name) in self.names(grid)

    def header(self, figure: Figure) -> str:
        """Return the measure."""
        return measure_of(figure.metric)

    def notes(self, figures: Sequence[Figure]) -> list[str]:
        """Return the floors."""
        floors = floors_of(figures)
        return [f"Unrelated pictures, which read 0 here: {floors}."] if floors else []

    def values(self, run: Run, figure: Figure) -> Callable[[Pictures], np.ndarray]:
        """Return the rescaled likeness."""
        return run.kept(figure.configuration, figure.prompts, measure_of(figure.metric))


def measure_of(name: str) -> str:
    """Return the measure of a metric, which has another name on harmful sets."""
    return name.removeprefix(ON_HARMFUL)


def feature_name(plan: Plan, measure: str) -> str | None:
    """Return the reading that a measure of features compares; None for other measures."""
    if measure == FEATURE_MEASURE:
        return f"features:{plan.features_by}"
    return f"features:{PIXEL_MEASURE}" if measure == PIXEL_MEASURE else None


def alike(plan: Plan, measure: str, key: str, before: str) -> np.ndarray:
    """Return the likeness of a unit's pictures to those of the undefended unit, (B,)."""
    name = feature_name(plan, measure)
    if name:
        one, other = (plan.store.numbers(k, name).astype(np.float64) for k in (key, before))
        return (one * other).sum(1)
    # Numbers under "lpips-alex@64:" are of earlier versions, which resized otherwise.
    resized = ":bilinear" if is_lpips(measure) else ""
    # A unit that was generated again in float32 may replace a black one that was compared with.
    again = "again " if any(plan.store.about(before).redone) else ""
    name = f"{measure}{resized}:{again}{before}"

    def compare_units() -> np.ndarray:
        return compare(measure, plan.store.pictures(key), plan.store.pictures(before))

    return plan.store.get_numbers(key, name, compare_units)


def compare(measure: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the likeness of pairs of pictures by SSIM or LPIPS, (B,)."""
    if measure == "ssim":
        return np.asarray(ssim(first, second))
    net, _, size = measure.removeprefix("lpips-").partition("@")
    # A distance: one minus it is larger where pictures are more alike.
    return 1 - lpips(first, second, net, int(size))


# --- floors: likeness of unrelated pictures


def floors(plan: Plan, cells: Iterable[Cell]) -> dict[tuple[str, str, str], float]:
    """Return {(model, prompt set, measure): floor} of every set with defended pictures."""
    found = {}
    for cell in cells:
        key = (cell.configuration.model, cell.prompts)
        for measure in plan.file.grid.metrics.preservation:
            if cell.configuration.is_defended and (*key, measure) not in found:
                found[*key, measure] = floor_of(plan, *key, measure)
    return {key: floor for key, floor in found.items() if not math.isnan(floor)}


def floor_of(plan: Plan, model: str, prompts: str, measure: str) -> float:
    """Return the mean likeness of undefended pictures that share no subject; NaN without two."""
    name = feature_name(plan, measure)
    groups: list[str] = []
    features, pairs = [], []
    for cell, units in plan.units_of.items():
        if cell.configuration != Configuration(model=model) or cell.prompts != prompts:
            continue
        items = plan.sets[prompts].items(cell.seed)
        for unit in units:
            own = [items[p].noun or items[p].cluster for p in unit.places]
            groups += own
            if name:
                features.append(plan.store.numbers(unit.key, name))
            elif len(own) > 1:
                apart = [a != b for a, b in pairwise(own)]
                pairs += list(_neighbours(plan, unit, measure)[apart])
    if name:
        return feature_floor(np.concatenate(features), groups) if len(set(groups)) > 1 else math.nan
    return float(np.mean(pairs)) if pairs else math.nan


def _neighbours(plan: Plan, unit: UnitOfWork, measure: str) -> np.ndarray:
    """Return the likeness of each picture of a unit to the next, (B - 1,)."""

    def compute() -> np.ndarray:
        # Neighbours within a unit, so that no two units are held at once.
        pictures = plan.store.pictures(unit.key)
        return compare(measure, pictures[:-1], pictures[1:])

    return plan.store.get_numbers(unit.key, f"{measure}:neighbours", compute)
