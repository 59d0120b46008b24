"""Heat maps: a coloured table per metric, rule and test set."""

from ine.evaluation.cells import Configuration
from ine.evaluation.grid import NONE
from ine.evaluation.metrics.base import Metric
from ine.evaluation.metrics.table import METRICS
from ine.evaluation.reported import options_of, reported
from ine.evaluation.result import Run
from ine.evaluation.stats import BOOTSTRAP
from ine.report.rows import NOT_MADE
from ine.report.values import Entry, Noted, Section, Table

FEW = 15
TOO_NARROW = f"Fewer than {FEW} clusters: intervals by bootstrap are too narrow then."
PROMPTS_ARE = {"harmful": "harmful", "benign": "benign", "neighbour": "neighbours of the concept"}


def heat_maps(run: Run) -> Section:
    """Return a coloured table per metric, rule and test set."""
    found = [
        _heat_map(run, prompts, metric, name, rule)
        for metric in METRICS
        for name in metric.names(run.grid)
        for rule in (run.rules if metric.by_rule else ("",))
        for prompts in run.sets_of("test", *metric.mapped)
    ]
    return Section(
        "Heat maps: model and guidance by negative",
        [
            "One map per rule and test set: the share of pictures that the rule flags, with its "
            "95% interval. A rule's figure says what its detector sees; how often that is wrong "
            "is no part of the interval (`ine judge check` finds out).",
        ],
        tables=[table for table in found if table],
    )


def _heat_map(run: Run, prompts: str, metric: Metric, name: str, rule: str) -> Table | None:
    """Return the `Table` of a metric: (model, guidance) by negative; None without figures."""
    found = (run.figure(c, prompts, name, rule) for c in reported(run))
    figures = [figure for figure in found if figure]
    if not figures:
        return None
    rows: dict[str, dict[str, Entry]] = {}
    for figure in figures:
        row, at = _place(run, figure.configuration)
        note = "; ".join(filter(None, (at, metric.beside(figure))))
        cell = Noted(figure.estimate, note) if note else figure.estimate
        rows.setdefault(row, {})[figure.configuration.negative] = cell
    in_order = dict.fromkeys([NONE, *(n.group or n.name for n in run.grid.negatives)])
    negatives = {figure.configuration.negative for figure in figures}
    columns = [name for name in in_order if name in negatives]
    notes = metric.notes(figures)
    if any(f.interval == BOOTSTRAP and f.estimate.clusters < FEW for f in figures):
        notes.append(TOO_NARROW)
    last = figures[-1]
    judge = f"Looked at by {last.judge}. " if last.judge else ""
    return Table(
        f"{prompts}: {name} by {rule}" if rule else f"{prompts}: {name}",
        f"{judge}Role: test; the prompts are {PROMPTS_ARE[last.expects]}.",
        ["model, guidance", *columns],
        [[row, *(cells.get(n, NOT_MADE) for n in columns)] for row, cells in rows.items()],
        notes=notes,
        better=dict.fromkeys(columns, metric.better) if metric.better else {},
    )


def _place(run: Run, c: Configuration) -> tuple[str, str]:
    """Return the row of a configuration, and its strength if that was chosen from several."""
    if not c.is_defended:
        return f"{c.model}, undefended", ""
    at = "" if c.strength is None else f"at {c.strength:g}"
    options = options_of(run).get((c.model, c.guidance, c.negative), [c])
    if run.grid.choose is not None and len(options) > 1:
        return f"{c.model}, {c.guidance}", at
    return f"{c.model}, {c.guidance} {at}".rstrip(), ""
