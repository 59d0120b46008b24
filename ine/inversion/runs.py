"""Several inversions that differ by their seed alone, and which of them is kept.

How much vectors defend differs from seed to seed by more than a longer inversion gains. So a recipe
can ask for several short ones; the previews of all are on the same prompts and seeds, and the
vectors of the best preview of all are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ine.inversion.history import Inversion
from ine.inversion.invert import Progress
from ine.runtime import seed_for


def run_seed(seed: int, run: int) -> int:
    """Return the seed of a run; the first run's is the user's own."""
    return seed if run == 1 else seed_for(seed, "run", run)


def run_state(folder: Path, run: int) -> Path:
    """Return the state file of a run in a run folder."""
    return folder / ("state.safetensors" if run == 1 else f"state-run-{run}.safetensors")


def best_of_runs(
    count: int,
    invert: Callable[[int, Callable[[Progress], None]], Inversion],
    target: float,
    on_step: Callable[[Progress], None] | None = None,
) -> Inversion:
    """Make inversions one after the other; return the best, which holds the others as `runs`.

    Args:
        count: How many.
        invert: `(run from 1, on_step) -> Inversion`; a finished run comes back from its state.
        target: Preservation that previews have to reach, see `Preview.order`.
        on_step: Called after every step, with the run that it belongs to.
    """

    def said(run: int) -> Callable[[Progress], None]:
        return lambda progress: on_step(replace(progress, run=run)) if on_step else None

    made = [replace(invert(run, said(run)), run=run) for run in range(1, count + 1)]
    return made[0] if count == 1 else replace(best(made, target), runs=tuple(made))


def best(made: Sequence[Inversion], target: float) -> Inversion:
    """Return the inversion whose kept preview comes first, the earliest of equals."""
    seen = [one for one in made if one.kept is not None]
    return min(seen or made[:1], key=lambda one: one.kept.order(target) if one.kept else ())
