"""Choosing guidance, strength, window, threshold and restarts on the tuning prompts.

A look-ahead decides before the first step, so a picture is either the undefended one or steered
from the start. What a threshold does therefore follows from the score of each picture's look, its
undefended outcome and its steered ones: no threshold needs pictures of its own, and only pictures
for which the lowest threshold opens are steered at all. Restarts are then tried on the settings
that do best without.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ine.errors import IneError
from ine.evaluation.choosing import best_of
from ine.evaluation.grid import GridGuidance
from ine.guidance.gate_file import Calibration
from ine.guidance.table import METHODS
from ine.studies.defend.job import Job
from ine.studies.defend.looks import Looks
from ine.studies.defend.outcomes import (
    EMBEDDING,
    Outcome,
    Places,
    Plain,
    defended,
    embedding_of,
    names_objects,
    picked,
    run_in,
    sets_of,
    undefended,
)
from ine.studies.defend.prompts import BENIGN, IMPLYING
from ine.studies.defend.restarts import is_whole, restarted
from ine.studies.defend.settings import Setting, Tried, Tuning
from ine.studies.reading import GridResult

OPENED = "opened-"
"""What the sets of pictures that may be steered are called."""

ROUNDING = 1e-9
"""A mean of shares may fall short of a target that it is by this much."""


def tune(job: Job, looks: Looks, gate_of: Callable[[Setting], Calibration]) -> Tuning:
    """Make the pictures of the tuning prompts, and choose.

    Args:
        job: The defence.
        looks: The scores of the tuning prompts' pictures.
        gate_of: Returns the gates with the thresholds and window of a setting.

    Raises:
        IneError: The look-ahead opens for no picture whose prompt implies the concept.
        PromptError: Benign prompts are all alike.
    """
    plain = undefended(job)
    thresholds = looks.thresholds(job.recipe.defence.false_open)
    lowest = min(thresholds.values())
    opened = {
        name: np.flatnonzero(np.array(scores) > lowest) for name, scores in looks.scores.items()
    }
    if not len(opened[IMPLYING]):
        raise IneError(
            f"the look-ahead opens for none of the {len(looks.scores[IMPLYING])} tuning pictures "
            f"whose prompt implies {job.recipe.name}, so a defence behind it would do nothing; "
            "learn from more pictures (--set defence.examples=N), look further "
            "(--set defence.look_ahead=K), or let it open more often (defence.false_open)"
        )
    once = list(_without_restarts(job, looks, plain, opened, thresholds))
    best = _best(job, [one for one in once if margin(job, one) >= -ROUNDING])
    tried = [*once, *restarted(job, looks, plain, best, gate_of)]
    whole = [one for one in tried if is_whole(job, one.setting)]
    chosen, reached = chosen_of(job, whole or tried, once)
    before = plain.tried(chosen.setting, plain.outcome, 0.0)
    return Tuning(tried=tuple(tried), chosen=chosen, reached=reached, undefended=before.left)


def chosen_of(job: Job, options: Sequence[Tried], once: Sequence[Tried]) -> tuple[Tried, bool]:
    """Return (the setting to recommend, whether it keeps the targets).

    Of those that keep the targets and leave at most one picture more than the least, which another
    seed could change: the gate that opens most often, since phrases that nobody tuned on are missed
    more; then the one that leaves least without restarts, as loops have it that cannot make any;
    then the one that keeps the subject most. Where none keeps the targets, the one that is closest.

    Args:
        job: The defence.
        options: What can be recommended.
        once: All settings without restarts.
    """
    without = {one.setting: one.left.value for one in once}

    def order(one: Tried) -> tuple[float, ...]:
        kept = 0.0 if one.subject is None else -one.subject.value
        alone = without[replace(one.setting, restart=(), last=None)]
        return (-one.setting.false_open, alone, kept, *_size(one))

    able = [one.left.value for one in options if margin(job, one) >= -ROUNDING]
    near = min(able, default=0.0) + 1 / options[0].left.count + ROUNDING
    # What is within a picture of the least counts as equal.
    found = [(one, max(one.left.value, near), margin(job, one)) for one in options]
    (chosen, *_), reached = best_of(found, -ROUNDING, order)
    return chosen, reached


def margin(job: Job, one: Tried) -> float:
    """Return by how much a setting keeps more than the targets of preservation and subject."""
    kept = one.kept.value - job.target
    if one.subject is None:
        return kept
    return min(kept, one.subject.value - job.recipe.defence.subject)


def _best(job: Job, able: Sequence[Tried]) -> list[Tried]:
    """Return the settings to try with restarts: of each guidance the best strengths and windows."""
    found: dict[str, dict[tuple[Any, ...], Tried]] = {}
    for one in sorted(able, key=_order):
        setting = one.setting
        own = found.setdefault(setting.method, {})
        own.setdefault((setting.strength, setting.window), one)
    most = job.recipe.defence.restarted
    return [one for own in found.values() for one in list(own.values())[:most]]


def _order(one: Tried) -> tuple[float, ...]:
    return (one.left.value, -one.setting.false_open, *_size(one))


def _size(one: Tried) -> tuple[float, ...]:
    """Return what grows with all that a setting does to a picture."""
    first, last = one.setting.window
    return (len(one.setting.restart), last - first, one.setting.strength or 0.0)


# --- the settings without restarts


def _without_restarts(
    job: Job, looks: Looks, plain: Plain, opened: Places, thresholds: Mapping[float, float]
) -> Iterator[Tried]:
    """Yield what every setting does on the tuning prompts."""
    opens = {
        rate: {name: np.array(scores) > at for name, scores in looks.scores.items()}
        for rate, at in thresholds.items()
    }
    steered = _steered(job, opened)
    for setting, outcome in _outcomes(job, plain, steered, opened):
        for rate, threshold in thresholds.items():
            yield plain.tried(
                Setting(**setting, false_open=rate, threshold=threshold),
                outcome.where(opens[rate], plain.outcome),
                float(opens[rate][BENIGN].mean()),
            )


def _steered(job: Job, opened: Places) -> GridResult:
    """Return the pictures that may open, under every method, strength and window."""
    cases = picked(job, opened)
    search = job.recipe.defence
    guidances = [
        GridGuidance(
            name=_name(method, window),
            method=method,
            preset=METHODS[method].compared,
            strengths=strengths,
            window=None if window == (0, 1) else window,
        )
        for method, strengths in search.guidances.items()
        for window in search.windows
    ]
    file = job.grid(
        "steered",
        sets_of(cases, job.folder, OPENED),
        [embedding_of(job)],
        guidances,
        count=max(map(len, cases.values())),
        subject=names_objects(job),
    )
    return run_in(job, file, "steered")[1]


def _name(method: str, window: tuple[float, float]) -> str:
    return f"{method}@{window[0]:g}-{window[1]:g}"


def _outcomes(
    job: Job, plain: Plain, steered: GridResult, opened: Places
) -> Iterator[tuple[dict[str, Any], Outcome]]:
    """Yield (what a `Setting` says but its threshold, the outcome where all that may open do)."""
    search = job.recipe.defence
    for method, strengths in search.guidances.items():
        for window in search.windows:
            for strength in strengths or (None,):
                row = steered.row(_name(method, window), strength, EMBEDDING)
                setting = {"method": method, "strength": strength, "window": window}
                yield setting, defended(job, plain, steered, row, opened, OPENED)
