"""What was chosen on tune sets, with its figures on test sets."""

import math

from ine.evaluation.cells import Configuration
from ine.evaluation.grid import GridChoose
from ine.evaluation.metrics.flagged import FLAGGED
from ine.evaluation.reported import reported, withheld
from ine.evaluation.result import Choice, Run
from ine.evaluation.stats import decimal
from ine.report.costs import ratio_text
from ine.report.rows import NOT_MADE, entry_of, missing
from ine.report.text import figure_text
from ine.report.values import Section, Table


def chosen_section(run: Run) -> Section | None:
    """Return a table per model; None for a grid that chooses nothing."""
    choose = run.grid.choose
    if choose is None:
        return None
    tables = [_of_model(run, model.name, choose) for model in run.grid.models]
    kept_off = withheld(run)
    return Section(
        "Chosen on the tune sets, reported on the test sets",
        [
            f"For every guidance and negative one strength was chosen: of those whose "
            f"{choose.keep} on the benign tune sets ({_names(run, 'benign')}) is at least "
            f"{choose.level:g}, the one of which rule {run.rule} flags least on the harmful tune "
            f"sets ({_names(run, 'harmful')}). Where none keeps that much, it is the one that "
            'keeps most, marked "too little". The test sets had no part in it.',
            f"{kept_off} other configurations have figures on test sets too. They are in "
            "results.csv and not on this page, since picking one by those figures would be "
            "choosing on the test sets."
            if kept_off
            else "Every configuration of the grid is shown.",
            '"of": how many strengths there were to choose from. "cost": U-Net evaluations of a '
            "picture, as a multiple of the undefended model's.",
        ],
        tables=[table for table in tables if table.rows],
    )


def _names(run: Run, expects: str) -> str:
    return ", ".join(run.sets_of("tune", expects)) or "none"


def _of_model(run: Run, model: str, choose: GridChoose) -> Table:
    figures = [(name, FLAGGED, run.rule, "low") for name in run.sets_of("test", "harmful")]
    figures += [(name, choose.keep, "", "high") for name in run.sets_of("test", "benign")]
    headings = [f"{prompts}: {metric}" for prompts, metric, _, _ in figures]
    rows = [
        [
            run.label(c).removeprefix(f"{model}, "),
            *_of_choice(run.chosen.get(c)),
            *(
                entry_of(run, c, prompts, metric, rule) or missing(run, c, metric)
                for prompts, metric, rule, _ in figures
            ),
            ratio_text(run, c) or NOT_MADE,
        ]
        for c in reported(run)
        if c.model == model and (c in run.chosen or not c.is_defended)
    ]
    columns = ["configuration", "of", "tune: flagged", "tune: kept", *headings, "cost"]
    better = {heading: way for heading, (*_, way) in zip(headings, figures, strict=True)}
    return Table(f"Model {model}", "", columns, rows, better=better)


def _of_choice(choice: Choice | None) -> list[str]:
    if choice is None:
        return ["", "", ""]
    little = "" if choice.reached else " (too little)"
    return [str(choice.options), decimal(choice.flagged), decimal(choice.kept) + little]


# --- the first paragraph


def lead_of(run: Run) -> str:
    """Return what the grid says of each model, by what did best on its tune sets."""
    about = " ".join(run.grid.about.split())
    parts = [f"{about}{'' if about.endswith('.') else '.'}"] if about else []
    parts += [_lead_of_model(run, model.name) for model in run.grid.models]
    if run.grid.choose is None:
        parts.append(
            "This grid chooses nothing: every configuration is shown as it is, and whoever picks "
            "one of them by these figures has chosen it on the test sets."
        )
    elif not run.choices:
        parts.append("Nothing was chosen, since no tune set of this run has figures.")
    return " ".join(part for part in parts if part)


def _lead_of_model(run: Run, model: str) -> str:
    best = best_of_tuning(run, model)
    if best is None:
        return ""
    cells = []
    for prompts in run.sets_of("test", "harmful"):
        ours, plain = (
            entry_of(run, c, prompts, FLAGGED, run.rule) for c in (best, best.undefended)
        )
        if ours and plain:
            cells.append(
                f"{run.rule} flags {figure_text(ours)} of the pictures of {prompts}, undefended "
                f"{figure_text(plain)}"
            )
    keep = run.grid.choose.keep if run.grid.choose else ""
    for prompts in run.sets_of("test", "benign"):
        if kept := entry_of(run, best, prompts, keep):
            cells.append(f"{keep} on {prompts} is {figure_text(kept)}")
    if not cells:
        return ""
    name = run.label(best).removeprefix(f"{model}, ")
    return f"Model {model}: what did best on the tune sets is {name}; with it {'; '.join(cells)}."


def best_of_tuning(run: Run, model: str) -> Configuration | None:
    """Return the configuration of a model that did best on tune sets; None without choices.

    Of those that keep enough the one with the least flagged there, else the one that keeps most.
    An oracle knows the words of the attack and is no defence that anybody could choose.
    """
    shown = set(reported(run))
    oracles = {n.name for n in run.grid.negatives if n.oracle}
    choices = [
        choice
        for c, choice in run.chosen.items()
        if c.model == model and c in shown and c.negative not in oracles
    ]
    choices = [c for c in choices if not math.isnan(c.flagged) and not math.isnan(c.kept)]
    if not choices:
        return None
    able = [c for c in choices if c.reached]
    if able:
        return min(able, key=lambda c: (c.flagged, -c.kept)).configuration
    return max(choices, key=lambda c: c.kept).configuration
