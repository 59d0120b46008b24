"""The difference of two runs as tables, as a sentence, and as plain values for JSON."""

import math
from dataclasses import asdict
from typing import Any

from ine.evaluation.result import FigureKey
from ine.evaluation.stats import decimal
from ine.report.diff import FIRST, SECOND, Change, Difference
from ine.report.values import Entry, Table

KEYS = ("prompts", "metric", "rule", "category")
SIDES = ("what", FIRST, SECOND)


def diff_tables(difference: Difference) -> list[Table]:
    """Return the `Table`s of a difference; empty ones are left out."""
    chance = (
        f"Of {difference.compared} figures about one in twenty would stand out by chance, if the "
        "pictures were new ones."
    )
    tables = [
        Table(
            "Configurations of one run only",
            "",
            ["configuration", "run"],
            [[c.label, run] for run, c in difference.one_only],
        ),
        Table(
            "Figures of one run only",
            "",
            ["of", "metric", "run"],
            [[*_names(key), run] for run, key in difference.lost],
        ),
        Table(
            "Figures that differ",
            "",
            ["of", "metric", FIRST, SECOND, "difference", "by"],
            [_change_row(change) for change in difference.beyond],
            notes=[chance],
        ),
        Table("What was run differs", "", SIDES, difference.settings),
        Table("Versions and machines differ", "", SIDES, difference.surroundings),
    ]
    return [table for table in tables if table.rows]


def _names(key: FigureKey) -> list[str]:
    c, prompts, metric, rule, category = key
    named = (metric, rule, category and f"({category})")
    return [f"{c.label}, on {prompts}", " ".join(filter(None, named))]


def _change_row(change: Change) -> list[Entry]:
    values = [decimal(figure.estimate.value) for figure in (change.first, change.second)]
    return [*_names(change.first.key), *values, change.difference, change.how]


def diff_summary(difference: Difference) -> str:
    """Return one sentence."""
    within = len(difference.changes) - len(difference.beyond)
    return (
        f"{len(difference.both)} configurations in both runs, {difference.compared} figures "
        f"compared: {len(difference.beyond)} differ by more than their interval, {within} within "
        f"it, {difference.compared - len(difference.changes)} are equal."
        f"{' Nothing differs.' if difference.nothing else ''}"
    )


def diff_record(difference: Difference) -> dict[str, object]:
    """Return a difference as plain values for JSON."""
    only: dict[str, list[dict[str, Any]]] = {FIRST: [], SECOND: []}
    for run, c in difference.one_only:
        only[run].append(asdict(c))
    return {
        "nothing_differs": difference.nothing,
        "both": [asdict(c) for c in difference.both],
        "first_only": only[FIRST],
        "second_only": only[SECOND],
        "lost": [{"run": run, **_key_record(key)} for run, key in difference.lost],
        "compared": difference.compared,
        "changes": [_change_record(change) for change in difference.changes],
        "settings": [dict(zip(SIDES, row, strict=True)) for row in difference.settings],
        "surroundings": [dict(zip(SIDES, row, strict=True)) for row in difference.surroundings],
    }


def _key_record(key: FigureKey) -> dict[str, Any]:
    configuration, *rest = key
    return {**asdict(configuration), **dict(zip(KEYS, rest, strict=True))}


def _change_record(change: Change) -> dict[str, Any]:
    numbers = {
        FIRST: change.first.estimate.value,
        SECOND: change.second.estimate.value,
        "difference": change.difference.value,
        "low": change.difference.low,
        "high": change.difference.high,
    }
    return {
        **_key_record(change.first.key),
        **{key: None if math.isnan(value) else value for key, value in numbers.items()},
        "by": change.how,
        "pairs": change.pairs,
        "beyond": change.beyond,
    }
