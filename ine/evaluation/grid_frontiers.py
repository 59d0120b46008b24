"""The frontiers of a grid: per model, what strengths leave against what they keep."""

import math

import numpy as np

from ine.evaluation.expand import Configuration
from ine.evaluation.frontier import Curve, Point, frontier_svg
from ine.evaluation.grid import KEPT_SUBJECT
from ine.evaluation.metrics import cluster_bootstrap
from ine.evaluation.report import Drawing, Section, Table
from ine.evaluation.reported import is_words, options_of
from ine.evaluation.run_folder import FLAGGED
from ine.evaluation.score import share_of


def frontier_section(run):
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


def _of_role(run, role, measure):
    harmful, benign = run.sets_of(role, "harmful"), run.sets_of(role, "benign")
    if not harmful or not benign:
        return None
    drawings, tables = [], []
    for number, model in enumerate(run.grid.models):
        plain = share_on(run, Configuration(model=model.name), harmful, run.rule)
        curves = list(_curves(run, model.name, harmful, benign, measure))
        if not curves or plain is None:
            continue
        drawings.append(
            Drawing(
                f"Model {model.name}",
                "One curve per guidance and negative, from its smallest strength to its largest. "
                "Markers tell guidances apart and colours negatives; dashed and hollow is one in "
                "words.",
                frontier_svg(curves, plain, _concept(run), f"frontier-{number}"),
            )
        )
        rows = [["undefended", "", plain, "1 by definition"]]
        rows += [[c.name, p.label, p.left, p.kept] for c in curves for p in c.points]
        tables.append(
            Table(
                f"Model {model.name}, in figures",
                "",
                ["guidance, negative", "strength", "flagged", measure],
                rows,
                better={"flagged": "low", measure: "high"},
            )
        )
    if not drawings:
        return None
    if role == "tune":
        why = "These are the sets on which choices are made; the test sets are not drawn."
    else:
        why = (
            "There are no figures on tune sets, so the test sets are drawn, whole curves: a point "
            "picked from them is chosen on the test sets."
        )
    return Section(
        "Frontiers: what is left against what is kept",
        [
            f"Left: the share that {run.rule} flags on {', '.join(harmful)}. Kept: {measure} on "
            f"{', '.join(benign)}, unrelated pictures at 0 and identical ones at 1. {why}",
        ],
        drawings=drawings,
        tables=tables,
    )


def _concept(run):
    return f"what {run.rule} flags"


def _curves(run, model, harmful, benign, measure):
    guidances = [g.name for g in run.grid.guidances]
    negatives = list(dict.fromkeys(n.group or n.name for n in run.grid.negatives))
    words = {n.group or n.name for n in run.grid.negatives if is_words(n)}
    for (own, guidance, negative), options in options_of(run).items():
        points = []
        for c in options if own == model else ():
            left = share_on(run, c, harmful, run.rule)
            kept = kept_on(run, c, benign, measure)
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


def share_on(run, configuration, sets, rule):
    """Return the share that a rule flags over prompt sets; None where nothing was made."""
    if len(sets) == 1:
        record = run.record(configuration, sets[0], FLAGGED, rule)
        return record.estimate if record else None
    parts = [p for name in sets for p in run.parts(configuration, name)]
    if not parts:
        return None
    values = np.concatenate([p.flagged[rule] for p in parts])
    return share_of(values, [c for p in parts for c in p.clusters])[0]


def kept_on(run, configuration, sets, measure):
    """Return the mean preservation over benign sets; None where it is not known."""
    if len(sets) == 1:
        record = run.record(configuration, sets[0], measure)
        return record.estimate if record else None
    found, clusters = [], []
    for name in sets:
        values = run.kept(configuration, name, measure)
        for part in run.parts(configuration, name):
            found.append(values(part))
            clusters += part.clusters
    if not found or not np.isfinite(np.concatenate(found)).all():
        return None
    return cluster_bootstrap(np.concatenate(found), clusters)
