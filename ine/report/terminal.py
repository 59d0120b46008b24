"""A grid's figures as tables for the terminal."""

from ine.evaluation.cells import Configuration
from ine.evaluation.metrics.flagged import DSR
from ine.evaluation.metrics.table import metric_of
from ine.evaluation.reported import reported
from ine.evaluation.result import MATCHED, Figure, Run
from ine.report.rows import entry_of, missing
from ine.report.values import Entry, Table


def tables(run: Run) -> list[Table]:
    """Return one `Table` per prompt set: what rules flag, what is kept, what it costs."""
    return [table for name in run.sets if (table := _table(run, name)) is not None]


def _table(run: Run, prompts: str) -> Table | None:
    """Return the table of a prompt set; None if `--only` left it out."""
    facts = run.sets[prompts]
    figures = _by_column(run, prompts)
    made = {c for own in figures.values() for c in own}
    # Test sets show only what tune sets chose; results.csv has all figures.
    shown = reported(run) if facts["role"] == "test" else run.configurations
    shown = tuple(c for c in shown if c in made)
    if not shown:
        return None
    judge = (run.about.get("judges") or {}).get(facts["role"]) or "each rule's own detector"
    headings, notes = [], [f"Role: {facts['role']}; judge: {judge}; 95% intervals."]
    columns: list[list[Entry]] = [
        [run.label(c) + (" *" if c in run.chosen else "") for c in shown],
    ]
    for (name, rule), own in figures.items():
        metric = metric_of(name, run.grid)
        heading = f"{metric.header(next(iter(own.values())))} {rule}".rstrip()
        headings.append(heading)
        columns.append(
            [entry_of(run, c, prompts, name, rule) or missing(run, c, name) for c in shown]
        )
        notes += [f"{heading}: {n}" for n in metric.notes([own[c] for c in shown if c in own])]
    if run.choices and facts["role"] == "test":
        notes.append("*: chosen on the tune sets; what was not chosen is in results.csv.")
    title = f"{prompts}: {facts['expects']}, {facts['role']}"
    by_row = list(zip(*columns, strict=True))
    return Table(title, "", ["configuration", *headings], by_row, notes=notes)


def _by_column(run: Run, prompts: str) -> dict[tuple[str, str], dict[Configuration, Figure]]:
    """Return {(metric, rule): {configuration: figure}} of a prompt set."""
    found: dict[tuple[str, str], dict[Configuration, Figure]] = {}
    for f in run.figures:
        wanted = f.metric != DSR and not f.metric.startswith(MATCHED) and not f.category
        if f.prompts == prompts and wanted:
            found.setdefault((f.metric, f.rule), {})[f.configuration] = f
    return found
