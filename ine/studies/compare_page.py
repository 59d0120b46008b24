"""The page of `ine compare`: pictures side by side, and the frontier."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ine.evaluation.cells import Configuration
from ine.evaluation.metrics.blank import BLANK
from ine.evaluation.metrics.evaluations import CALLS
from ine.evaluation.metrics.flagged import FLAGGED
from ine.evaluation.stats import Estimate, decimal
from ine.guidance.table import METHODS
from ine.report.frontier import Curve, Point, frontier_svg
from ine.report.page import write_report
from ine.report.values import Cell, Drawing, PictureGrid, Report, Section, Table
from ine.runtime import library_versions
from ine.studies.comparison import KEPT_SET, SHEET, SWEPT, Comparison, Entry
from ine.studies.reading import GridResult, blur_for, figure_table

KEPT = 0.95
"""Preservation that the lead asks for when it names the best."""


def write_compare(
    comparison: Comparison, sheet: GridResult, sweep: GridResult, blur: str | None
) -> tuple[Path, Table]:
    """Write the report of both grids; return the path of report.html and the frontier's table."""
    concept = comparison.recipe.name
    undefended = sweep.value(sweep.row(), SWEPT, FLAGGED)
    curves, table = curves_of(comparison, sweep), frontier_table(comparison, sweep)
    drawing = Drawing(
        f"{concept} left against preservation",
        "One curve per method and negative, from its smallest strength to its largest; dashed and "
        "hollow is a negative in words. Intervals are in the table below.",
        frontier_svg(curves, undefended, concept),
    )
    report = Report(
        title=f"ine compare: {concept}",
        lead=lead_of(concept, undefended, curves),
        sections=[
            Section("Pictures", grids=[picture_grid(comparison, sheet)]),
            Section("Frontier", tables=[table], drawings=[drawing]),
        ],
        provenance=_provenance(comparison),
        next_steps=[
            (
                "Pictures of your own with one of these:",
                'ine generate --guidance additive --negative-strength 7 --prompt "..." '
                f"--negative-embedding {concept}-neg.safetensors",
            )
        ],
    )
    blur = blur or blur_for(comparison.recipe)
    return write_report(report, comparison.folder, blur), table


def picture_grid(comparison: Comparison, result: GridResult) -> PictureGrid:
    """Return the pictures: a row per prompt, a column per defence, the same seeds.

    Args:
        comparison: What is compared.
        result: Of its sheet.
    """
    cases, columns = comparison.rows(), {"undefended": result.row()}
    for entry in comparison.entries:
        at = comparison.shown(entry)
        columns[entry.title(at)] = result.row(entry.guidance, at, entry.negative)

    def column(row: Configuration) -> list[Cell]:
        seen = result.seen(row, SHEET)
        found = zip(
            result.cells(row, SHEET, len(cases)), seen.scores[result.rule], seen.calls, strict=True
        )
        return [
            replace(cell, note=f"{comparison.recipe.name} {decimal(float(score))}, {calls} calls")
            for cell, score, calls in found
        ]

    cells = [column(row) for row in columns.values()]
    return PictureGrid(
        "The same prompts and seeds",
        f"Under each picture: the score of rule {result.rule}, and how many U-Net evaluations the "
        "picture took.",
        list(columns),
        [(case.prompt, [own[i] for own in cells]) for i, case in enumerate(cases)],
    )


def swept(comparison: Comparison, result: GridResult) -> dict[Entry, list[Configuration]]:
    """Return {entry: its rows, a strength each}.

    Args:
        comparison: What is compared.
        result: Of its sweep, as for the curves and the table.
    """
    return {
        entry: [
            result.row(entry.guidance, strength, entry.negative)
            for strength in comparison.choice.sweep(entry.method)
        ]
        for entry in comparison.entries
    }


def curves_of(comparison: Comparison, result: GridResult) -> list[Curve]:
    """Return a curve per entry over its strengths."""
    curves = []
    for entry, rows in swept(comparison, result).items():
        points = tuple(
            Point(
                label=_strength(row),
                kept=result.value(row, KEPT_SET, comparison.measure),
                left=result.value(row, SWEPT, FLAGGED),
            )
            for row in rows
        )
        number = list(METHODS).index(entry.method.name)
        curves.append(Curve(name=entry.name, points=points, colour=number, hollow=entry.in_words))
    return curves


def _strength(row: Configuration) -> str:
    return "" if row.strength is None else f"{row.strength:g}"


def frontier_table(comparison: Comparison, result: GridResult) -> Table:
    """Return the figures of the sweep, a strength per row."""
    choice, concept = comparison.choice, comparison.recipe.name
    rows = {result.row(): "undefended"}
    for entry, own in swept(comparison, result).items():
        rows |= dict.fromkeys(own, entry.name)

    def calls(row: Configuration) -> str:
        mean, benign = (result.entry(row, name, CALLS) for name in (SWEPT, KEPT_SET))
        return str(mean) if mean == benign else f"{mean} (benign {benign})"

    return figure_table(
        result,
        rows,
        {
            "strength": _strength,
            f"{concept} left": result.of(SWEPT, FLAGGED),
            "preservation": result.of(KEPT_SET, comparison.measure),
            "U-Net calls": calls,
            "blank": result.of(SWEPT, BLANK),
            "benign: blank": result.of(KEPT_SET, BLANK),
        },
        "The frontier in figures",
        f"{concept} left on prompts of {_named(choice.implying)}; preservation on those of "
        f"{_named(choice.benign)}.",
        first="guidance, negative",
        notes=[
            f"Rule {result.rule}; {choice.count} pictures a point and set; 95% intervals "
            "over phrase x object.",
            f"Preservation ({comparison.measure}): cosine of picture features with the same "
            "seed undefended, rescaled so that unrelated pictures read 0.",
            "U-Net calls: evaluations a picture, mean.",
            "blank: pictures wholly of one colour.",
            "Meant for choosing, by the judge and the prompts of choices: report on others.",
        ],
        better={f"{concept} left": "low", "preservation": "high"},
    )


def _named(given: str | Sequence[str]) -> str:
    return f"the set {given}" if isinstance(given, str) else f"{len(given)} prompts given"


def lead_of(concept: str, undefended: Estimate, curves: Sequence[Curve]) -> str:
    """Return one paragraph: what leaves least of those that preserve enough."""
    parts = []
    for hollow, what in ((False, "the embedding"), (True, "words")):
        able = [
            (point.left.value, curve.name, point.label)
            for curve in curves
            for point in curve.points
            if curve.hollow == hollow and point.kept.value >= KEPT
        ]
        if not able:
            parts.append(f"nothing with {what} reaches it")
            continue
        left, name, label = min(able, key=lambda found: found[0])
        at = f" at strength {label}" if label else ""
        parts.append(f"with {what} the least is left by {name}{at} ({decimal(left)})")
    return (
        f"Undefended, {decimal(undefended.value)} of the pictures whose prompt implies {concept} "
        f"show it. At a preservation of at least {decimal(KEPT)}, {' and '.join(parts)}."
    )


def _provenance(comparison: Comparison) -> dict[str, str | list[str]]:
    recipe = comparison.recipe
    return {
        "model": f"{comparison.parts.name}, U-Net {comparison.parts.unet_name}",
        "embeddings": [f"{e.count} vectors, trigger {e.trigger}" for e in comparison.embeddings],
        "words": recipe.words.negative_text(),
        "recipe": f"{recipe.name} {recipe.hash}",
        "sampler": repr(comparison.sampler),
        "seed": str(comparison.choice.seed),
        "versions": library_versions(),
    }
