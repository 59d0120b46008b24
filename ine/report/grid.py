"""The report of a grid: the run folder as one page, with nothing chosen on test prompts.

It is made from a `Run` and the pictures of the store, so that it can be made again from a run
folder anywhere, without models. On test sets only what was chosen on tune sets is shown, see
`ine.evaluation.reported`; all else is in `results.csv`.
"""

from pathlib import Path

from ine.errors import RecipeError
from ine.evaluation.result import Run
from ine.evaluation.run_folder import read_run
from ine.recipe import load_recipe
from ine.report.chosen import chosen_section, lead_of
from ine.report.costs import blank_section, cost_section
from ine.report.frontiers import frontier_section
from ine.report.heat_maps import heat_maps
from ine.report.page import write_report
from ine.report.paired_tests import tests_section
from ine.report.pictures import pictures_section
from ine.report.provenance import provenance, sets_section
from ine.report.read_off import category_section, figures_read_off
from ine.report.values import Report

BUNDLED = ("mini-judge", "mini-judge2")
"""Detectors of the bundled model's world, where nobody is shown."""

NEXT_STEPS = [
    (
        "Every figure is in results.csv, also those that this page leaves out; what is known of "
        "each picture is in pictures.jsonl.",
        "",
    ),
    (
        "A rule is as good as its detector. Look at some pictures yourself, and get the judge's "
        "own error with an interval:",
        "ine judge check --help",
    ),
    (
        "Another run of the same grid, or of a changed one, figure by figure:",
        "ine report diff THIS OTHER",
    ),
    (
        "The page again, here or where only this folder and its pictures are. The grid file "
        "stands in the folder as grid.yaml; files that it names are relative to where it was.",
        "ine report .",
    ),
]


def write_grid_report(
    run: Run | Path,
    *,
    store: Path | None = None,
    blur: str | None = None,
    columns: int | None = None,
) -> Path:
    """Write `report.html`, `report.json` and `report.md` into the run folder.

    Args:
        run: A `Run`, or the run folder it is read from.
        store: Where the pictures of a run folder are, if not where the run says.
        blur: As in `ine.report.page.write_report`; by default `blur_of`.
        columns: Prompts of each grid of pictures.

    Returns:
        The path of `report.html`.

    Raises:
        OutputError: It is not a run folder of a run that has ended, or cannot be written.
    """
    found = run if isinstance(run, Run) else read_run(run, store)
    return write_report(grid_report(found, columns), found.folder, blur or blur_of(found))


def blur_of(run: Run) -> str:
    """Return "hide" for concepts about people and where nobody says so, else "click"."""
    concept = run.about.get("concept")
    people = concept.get("people") if isinstance(concept, dict) else None
    if people is None and run.grid.concept:
        try:
            people = load_recipe(run.grid.concept).people
        except RecipeError:
            # The user's own file, which is not part of the run folder.
            people = None
    if people is None:
        people = not all(r["detector"] in BUNDLED for r in run.about["rules"].values())
    return "hide" if people else "click"


def grid_report(run: Run, columns: int | None = None) -> Report:
    """Return the `Report` of a `Run`; arguments as in `write_grid_report`."""
    sections = [
        chosen_section(run),
        heat_maps(run),
        frontier_section(run),
        pictures_section(run, columns),
        tests_section(run),
        blank_section(run),
        cost_section(run),
        category_section(run),
        figures_read_off(run),
        sets_section(run),
    ]
    return Report(
        title=f"ine evaluate: {run.grid.name}",
        lead=lead_of(run),
        sections=[s for s in sections if s],
        provenance=provenance(run),
        next_steps=NEXT_STEPS,
    )
