"""How far observers agree on the same previews: the table of a run of the grid mini-observers.

    ine evaluate mini-observers --out observers
    python tests/benchmarks/observers_agree.py observers

Pictures of one prompt and seed are compared by what each observer said at each look. The second
judge's verdict on the finished picture stands for the truth. Prints a Markdown table.
"""

from collections import defaultdict
from itertools import combinations
from pathlib import Path

import click

from ine.evaluation.run_folder import read_run
from ine.evaluation.stats import wilson
from ine.store.pictures import Store

LEVEL = 0.5
"""A judge's score from which it says that the concept is there."""


def said_by(run):
    """Return {(model, prompt set, key, step): {observer: whether it saw the concept, or None}}."""
    store, found = Store(run.store), defaultdict(dict)
    for (configuration, prompts), pictures in run.pictures.items():
        if configuration.strength != 0:
            continue
        notes = {unit: store.about(unit).notes for unit in {unit for unit, _ in pictures.units}}
        for key, (unit, place) in zip(pictures.keys, pictures.units, strict=True):
            for look in notes[unit][place].get("looks", ()):
                value = look["found"].get(run.grid.concept)
                where = (configuration.model, prompts, key, look["step"])
                found[where][configuration.guidance] = None if value is None else value >= LEVEL
    return found


def truth_of(run):
    """Return {(model, prompt set, key): whether the finished, undefended picture is flagged}."""
    return {
        (configuration.model, prompts, key): bool(flagged)
        for (configuration, prompts), pictures in run.pictures.items()
        if not configuration.is_defended
        for key, flagged in zip(pictures.keys, next(iter(pictures.flagged.values())), strict=True)
    }


def share(hits):
    """Return "0.98 [0.95, 0.99] (N 192)" of a list of yes and no, "-" of an empty one."""
    if not hits:
        return "-"
    rate = wilson(sum(hits), len(hits))
    return f"{rate.share:.3f} [{rate.low:.3f}, {rate.high:.3f}] (N {rate.trials})"


def rows_of(said, truth):
    """Yield the cells of every row: a step, two observers, how they agree."""
    steps = sorted({where[-1] for where in said}, key=lambda step: (isinstance(step, int), step))
    names = sorted({name for one in said.values() for name in one})
    for step in steps:
        here = {where: one for where, one in said.items() if where[-1] == step}
        for name in names:
            known = [(one[name], truth[w[:-1]]) for w, one in here.items() if name in one]
            yield (
                str(step),
                f"{name}, finished picture",
                share([found is true for found, true in known if found is not None]),
                share([bool(found) for found, true in known if true]),
                share([bool(found) for found, true in known if not true]),
                share([found is None for found, _ in known]),
            )
        for one, other in combinations(names, 2):
            pairs = [(a[one], a[other]) for a in here.values() if one in a and other in a]
            agree = [x is y for x, y in pairs if None not in (x, y)]
            yield (str(step), f"{one}, {other}", share(agree), "", "", "")


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(run):
    """Print the table of RUN, a folder of `ine evaluate mini-observers`."""
    found = read_run(run)
    head = ("step", "who", "agree", "found where it is", "found where it is not", "no answer")
    click.echo("| " + " | ".join(head) + " |\n" + "|" + "---|" * len(head))
    for row in rows_of(said_by(found), truth_of(found)):
        click.echo("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
