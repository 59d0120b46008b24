"""The frontiers of a grid: per model, what strengths leave against what they keep."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ine.evaluation.cells import Configuration
from ine.evaluation.grid import KEPT_SUBJECT, NONE
from ine.evaluation.metrics.flagged import FLAGGED
from ine.evaluation.metrics.table import metric_of
from ine.evaluation.reported import is_words, options_of
from ine.evaluation.result import Run
from ine.evaluation.stats import Estimate, cluster_bootstrap
from ine.report.frontier import Curve, Point, frontier_svg
from ine.report.values import Drawing, Entry, Section, Table

WHY = {
    "tune": "These are the sets on which choices are made; the test sets are not drawn.",
    "test": "There are no figures on tune sets, so the test sets are drawn, whole curves: a point "
    "picked from them is chosen on the test sets.",
}


def frontier_section(run: Run) -> Section | None:
    """Return the drawing and the figures of every model, on tune sets where there are any."""
    measure = run.grid.choose.keep if run.grid.choose else run.measures[0]
    if measure == KEPT_SUBJECT:
        return None
    # Whole curves on test sets only where the grid chooses nothing anyway.
    for role in ("tune",) if run.grid.choose else ("tune", "test"):
        found = _of_role(run, role, measure)
        if found:
            return found
    return None


def _of_role(run: Run, role: str, measure: str) -> Section | None:
    harmful, benign = run.sets_of(role, "harmful"), run.sets_of(role, "benign")
    drawings, tables = [], []
    for number, model in enumerate(run.grid.models):
        plain = over_sets(run, Configuration(model=model.name), harmful, FLAGGED, run.rule)
        curves = list(_curves(run, model.name, harmful, benign, measure))
        if curves and plain is not None:
            svg = frontier_svg(curves, plain, f"what {run.rule} flags", f"frontier-{number}")
            drawings.append(
                Drawing(
                    f"Model {model.name}",
                    "One curve per guidance and negative, from its smallest strength to its "
                    "largest. Markers tell guidances apart and colours negatives; dashed and "
                    "hollow is one in words.",
                    svg,
                )
            )
            tables.append(_table(model.name, plain, curves, measure))
    if not drawings:
        return None
    return Section(
        "Frontiers: what is left against what is kept",
        [
            f"Left: the share that {run.rule} flags on {', '.join(harmful)}. Kept: {measure} on "
            f"{', '.join(benign)}, unrelated pictures at 0 and identical ones at 1. {WHY[role]}",
        ],
        drawings=drawings,
        tables=tables,
    )


def _table(model: str, plain: Estimate, curves: Sequence[Curve], measure: str) -> Table:
    rows: list[list[Entry]] = [["undefended", "", plain, "1 by definition"]]
    rows += [[c.name, p.label, p.left, p.kept] for c in curves for p in c.points]
    return Table(
        f"Model {model}, in figures",
        "",
        ["guidance, negative", "strength", "flagged", measure],
        rows,
        better={"flagged": "low", measure: "high"},
    )


def _curves(
    run: Run, model: str, harmful: Sequence[str], benign: Sequence[str], measure: str
) -> Iterator[Curve]:
    guidances = [g.name for g in run.grid.guidances]
    # The last is what a refinement alone has.
    negatives = list(dict.fromkeys([*(n.group or n.name for n in run.grid.negatives), NONE]))
    words = {n.group or n.name for n in run.grid.negatives if is_words(n)}
    for (own, guidance, negative), options in options_of(run).items():
        points = []
        for c in options if own == model else ():
            left = over_sets(run, c, harmful, FLAGGED, run.rule)
            kept = over_sets(run, c, benign, measure)
            if left and kept and math.isfinite(kept.value):
                at = "" if c.strength is None else f"{c.strength:g}"
                points.append(Point(label=at, kept=kept, left=left))
        if points:
            yield Curve(
                name=f"{guidance}, {negative}",
                points=tuple(sorted(points, key=lambda p: float(p.label or 0))),
                colour=negatives.index(negative),
                marker=guidances.index(guidance),
                hollow=negative in words,
            )


def over_sets(
    run: Run, configuration: Configuration, sets: Sequence[str], metric: str, rule: str = ""
) -> Estimate | None:
    """Return a figure over prompt sets together; None where it is not known of all that were made.

    Of one set it is the figure of the run, else the mean over the pictures of all.
    """
    found: list[np.ndarray] = []
    clusters: list[str] = []
    for name in sets:
        figure, parts = (
            run.figure(configuration, name, metric, rule),
            run.parts(configuration, name),
        )
        if figure and len(sets) == 1:
            return figure.estimate
        if not parts:
            continue
        values = metric_of(metric, run.grid).values(run, figure) if figure else None
        if values is None:
            return None
        found += map(values, parts)
        clusters += [label for part in parts for label in part.clusters]
    return cluster_bootstrap(np.concatenate(found), clusters) if found else None
