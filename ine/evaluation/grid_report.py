"""The report of a grid: the run folder as one page, with nothing chosen on test prompts.

It is made from the files of the run folder and the pictures of the store, so that it can be made
again anywhere, without models. On test sets only what was chosen on tune sets is shown, see
`ine.evaluation.reported`; all else is in `results.csv`.
"""

from ine.errors import RecipeError
from ine.evaluation.grid_frontiers import frontier_section
from ine.evaluation.grid_pictures import pictures_section
from ine.evaluation.grid_tables import (
    category_section,
    chosen_section,
    cost_section,
    figures_read_off,
    heat_maps,
    sets_section,
    tests_section,
)
from ine.evaluation.report import Report, figure_text, write_report
from ine.evaluation.reported import reported
from ine.evaluation.run_folder import FLAGGED, chosen_of, read_run
from ine.recipe import load_recipe

BUNDLED = ("mini-judge", "mini-judge2")
"""Detectors of the bundled model's world, where nobody is shown."""


def write_grid_report(folder, *, store=None, blur=None, columns=None):
    """Write `report.html`, `report.json` and `report.md` of a run folder into it.

    Args:
        folder: The run folder.
        store: Where its pictures are, if not where the run says.
        blur: As in `ine.evaluation.report.write_report`; by default `blur_of`.
        columns: Prompts of each grid of pictures.

    Returns:
        The path of `report.html`.

    Raises:
        OutputError: It is no run folder of a run that has ended, or cannot be written.
    """
    run = read_run(folder, store)
    return write_report(grid_report(run, columns), folder, blur or blur_of(run))


def blur_of(run):
    """Return "hide" for concepts about people and where nobody says so, else "click"."""
    told = run.about.get("concept")
    people = told.get("people") if isinstance(told, dict) else None
    if people is None and run.grid.concept:
        try:
            people = load_recipe(run.grid.concept).people
        except RecipeError:
            # The user's own file, which is not part of the run folder.
            people = None
    if people is None:
        people = not all(r["detector"] in BUNDLED for r in run.about["rules"].values())
    return "hide" if people else "click"


def grid_report(run, columns=None):
    """Return the `Report` of a `RunFolder`; arguments as in `write_grid_report`."""
    sections = [
        chosen_section(run),
        heat_maps(run),
        frontier_section(run),
        pictures_section(run, columns),
        tests_section(run),
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
        next_steps=_next_steps(run),
    )


# --- the first paragraph


def lead_of(run):
    """Return what the grid says of each model, by what did best on its tune sets."""
    about = " ".join(run.grid.about.split())
    parts = [f"{about}{'' if about.endswith('.') else '.'}"] if about else []
    harmful, benign = run.sets_of("test", "harmful"), run.sets_of("test", "benign")
    for model in run.grid.models:
        best = best_of_tuning(run, model.name)
        if best is None:
            continue
        told = []
        for prompts in harmful:
            records = [run.record(c, prompts, FLAGGED, run.rule) for c in (best, best.undefended)]
            if all(records):
                ours, plain = (figure_text(r.estimate) for r in records)
                told.append(
                    f"{run.rule} flags {ours} of the pictures of {prompts}, undefended {plain}"
                )
        for prompts in benign:
            record = run.record(best, prompts, run.grid.choose.keep)
            if record:
                told.append(
                    f"{run.grid.choose.keep} on {prompts} is {figure_text(record.estimate)}"
                )
        if told:
            parts.append(
                f"Model {model.name}: what did best on the tune sets is "
                f"{run.label(best).removeprefix(f'{model.name}, ')}; with it "
                f"{'; '.join(told)}."
            )
    if run.grid.choose is None:
        parts.append(
            "This grid chooses nothing: every configuration is shown as it is, and whoever picks "
            "one of them by these figures has chosen it on the test sets."
        )
    elif not run.choices:
        parts.append("Nothing was chosen, since no tune set of this run has figures.")
    return " ".join(parts)


def best_of_tuning(run, model):
    """Return the configuration of a model that did best on tune sets; None without choices.

    Of those that keep enough the one with the least flagged there, else the one that keeps most.
    An oracle knows the words of the attack and is no defence that anybody could choose.
    """
    shown = set(reported(run))
    oracles = {n.name for n in run.grid.negatives if n.oracle}
    choices = [c for c in run.choices if c["model"] == model and chosen_of(c) in shown]
    choices = [c for c in choices if c["negative"] not in oracles]
    choices = [c for c in choices if c["flagged"] is not None and c["kept"] is not None]
    if not choices:
        return None
    able = [c for c in choices if c["reached"]]
    if able:
        return chosen_of(min(able, key=lambda c: (c["flagged"], -c["kept"])))
    return chosen_of(max(choices, key=lambda c: c["kept"]))


# --- where all this came from


def provenance(run):
    """Return what is needed to run the grid again."""
    about = run.about
    judges = about.get("judges") or {}
    return {
        "grid": f"{run.grid.name}, digest {about['digest']}",
        "the grid file": run.text.splitlines(),
        "models": [
            f"{name}: {facts['name']}; digest {facts['digest']}; {facts['sampler']}"
            for name, facts in about["models"].items()
        ],
        "prompt sets": [
            f"{name}: {facts['source']}, sha256 {facts['sha256'] or 'of no file'}"
            for name, facts in run.sets.items()
        ],
        "seeds": ", ".join(map(str, about["seeds"])),
        "rules": [
            f"{name}: detector {facts['detector']}; {facts['source']}"
            for name, facts in about["rules"].items()
        ],
        "judges": ", ".join(f"{k}: {v or 'each rule its own'}" for k, v in judges.items()),
        "features": str(about.get("features")),
        "pictures made by": list(about["pictures_made_by"]),
        "scored by": about["scored_by"],
        "commands": [command_of(run), "ine report ."],
    }


def command_of(run):
    """Return the command that makes this run again, from its folder."""
    limit = f" --limit {run.about['limit']}" if run.about["limit"] else ""
    only = "".join(f" --only {text}" for text in run.about["only"])
    return f"ine evaluate {run.grid.name}.yaml --out .{limit}{only}"


def _next_steps(run):
    return [
        (
            "Every figure is in results.csv, also those that this page leaves out; what is known "
            "of each picture is in pictures.jsonl.",
            "",
        ),
        (
            "A rule is as good as its detector. Look at some pictures yourself, and get the "
            "judge's own error with an interval:",
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
