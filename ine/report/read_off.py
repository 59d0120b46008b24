"""Figures per category, and figures that are read off others."""

from dataclasses import replace

from ine.evaluation.cells import Configuration
from ine.evaluation.metrics.expected_maximum import PREFIX as EXPECTED_MAXIMUM
from ine.evaluation.metrics.flagged import FLAGGED
from ine.evaluation.metrics.preservation import ON_HARMFUL
from ine.evaluation.reported import options_of, reported
from ine.evaluation.result import MATCHED, Run
from ine.report.rows import entry_of, rows_by_configuration
from ine.report.values import Entry, Section, Table


def category_section(run: Run) -> Section | None:
    """Return the figures per category; None unless the grid asks for them."""
    tables = [
        _by_category(run, prompts, rule)
        for prompts in run.sets_of("test", "harmful", "neighbour", "benign")
        for rule in run.rules
    ]
    tables = [table for table in tables if table.rows]
    return Section("Categories", tables=tables) if tables else None


def _by_category(run: Run, prompts: str, rule: str) -> Table:
    own = (f for f in run.figures if (f.prompts, f.rule) == (prompts, rule))
    categories = list(dict.fromkeys(f.category for f in own if f.category))

    def cell(c: Configuration, category: str) -> Entry | None:
        return entry_of(run, c, prompts, FLAGGED, rule, category)

    return Table(
        f"{prompts}: flagged by {rule}, by category",
        "A prompt of several categories counts in each, so that columns overlap.",
        ["configuration", *categories],
        rows_by_configuration(run, categories, cell),
        better=dict.fromkeys(categories, "low"),
    )


def figures_read_off(run: Run) -> Section | None:
    """Return defence success at equal preservation, and what papers report besides."""
    tables = [table for table in (_at_level(run), _published(run)) if table and table.rows]
    return Section("Figures read off", tables=tables) if tables else None


def _at_level(run: Run) -> Table | None:
    choose = run.grid.choose
    if choose is None:
        return None
    options = {Configuration(model=m, guidance=g, negative=n) for m, g, n in options_of(run)}
    sweeps = [(replace(f.configuration, strength=None), f) for f in run.figures]
    return Table(
        "Defence success at equal preservation",
        f"1 minus the share flagged, where {choose.keep} on the benign test sets is "
        f"{choose.level:g}; read between strengths, never beyond them.",
        ["model, guidance, negative", "prompts", "rule", "success", "where"],
        [
            [sweep.label, f.prompts, f.rule, f.estimate, f.note]
            for sweep, f in sweeps
            if f.metric.startswith(MATCHED) and sweep in options
        ],
        better={"success": "high"},
        notes=["The level was set in the grid; no strength is picked by a test figure."],
    )


def _published(run: Run) -> Table:
    shown = set(reported(run))
    return Table(
        "Other published figures",
        "expected-maximum@k: the largest share flagged among k random prompts (I2P). "
        "likeness-on-harmful: likeness to the undefended picture on harmful prompts, "
        "which some papers call prior preservation; here high is not good.",
        ["configuration", "prompts", "metric", "rule", "value"],
        [
            [run.label(f.configuration), f.prompts, f.metric, f.rule, f.estimate]
            for f in run.figures
            if f.configuration in shown
            and (f.role, f.expects) == ("test", "harmful")
            and f.metric.startswith((EXPECTED_MAXIMUM, ON_HARMFUL))
        ],
    )
