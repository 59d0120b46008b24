"""Which configurations of a run may be shown on test sets: those that were chosen on tune sets."""

from ine.evaluation.cells import Configuration
from ine.evaluation.grid import NONE, GridNegative
from ine.evaluation.result import Run


def options_of(run: Run) -> dict[tuple[str, str, str], list[Configuration]]:
    """Return {(model, guidance, negative or group): its strengths as configurations}.

    Negatives of a group are left out: the group is reported.
    """
    pooled = {name for names in run.groups.values() for name in names}
    found: dict[tuple[str, str, str], list[Configuration]] = {}
    for c in run.configurations:
        if c.is_defended and c.negative not in pooled:
            found.setdefault((c.model, c.guidance, c.negative), []).append(c)
    return found


def reported(run: Run) -> tuple[Configuration, ...]:
    """Return the configurations that may be shown on test sets, undefended ones first per model.

    Of a sweep that is the one that was chosen on tune sets. If the grid chooses and nothing was
    chosen, a sweep is left out: any one of it would be picked on the test sets. A grid that
    chooses nothing shows all that it has.
    """
    found: list[Configuration] = []
    for model in (m.name for m in run.grid.models):
        plain = Configuration(model=model)
        found += [plain] if plain in run.configurations else []
        for (own, *_), options in options_of(run).items():
            if own != model:
                continue
            if run.grid.choose is None or len(options) == 1:
                found += options
            else:
                found += [c for c in options if c in run.chosen]
    return tuple(found)


def withheld(run: Run) -> int:
    """Return how many configurations have test figures that are not shown."""
    shown = set(reported(run))
    return sum(c not in shown for options in options_of(run).values() for c in options)


def reference_negative(run: Run) -> str | None:
    """Return the negative that others are compared with: words alone, else the first."""
    negatives = [n for n in run.grid.negatives if n.name != NONE]
    plain = [n for n in negatives if is_words(n)]
    return next((n.group or n.name for n in (*plain, *negatives)), None)


def is_words(negative: GridNegative) -> bool:
    """Return whether a negative is words alone, and not those of an oracle."""
    return bool(not negative.embeddings and not negative.oracle and not negative.is_empty)
