"""Choosing guidance, strength, window and threshold on the tuning prompts.

A look-ahead decides before the first step, so a picture is either the undefended one or steered
from the start. What a threshold does therefore follows from the score of each picture's look, its
undefended outcome and its steered ones: no threshold needs pictures of its own, and only pictures
for which the lowest threshold opens are steered at all.

Shape letter: P pictures.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ine.detectors.likeness import rescaled_cosine
from ine.errors import IneError, PromptError
from ine.evaluation.choosing import best_of
from ine.evaluation.grid import GridGuidance, GridNegative, GridPrompts
from ine.evaluation.grid_file import GridFile
from ine.evaluation.metrics.preservation import floor_of
from ine.evaluation.prepare import Plan, prepare
from ine.evaluation.run import Progress
from ine.evaluation.stats import cluster_bootstrap
from ine.guidance.table import METHODS
from ine.studies.cases import Case, Expects, prompts_of
from ine.studies.defend.job import MODEL, Job
from ine.studies.defend.looks import Looks
from ine.studies.defend.prompts import BENIGN, IMPLYING, TUNED
from ine.studies.defend.settings import Setting, Tried, Tuning
from ine.studies.grids import run_plan
from ine.studies.reading import GridResult

EMBEDDING = "embedding"
"""Name of the negative in the grids."""

EXPECTS: dict[str, Expects] = {IMPLYING: "harmful", BENIGN: "benign"}


def tune(job: Job, looks: Looks) -> Tuning:
    """Make the pictures of the tuning prompts, and choose.

    Args:
        job: The defence.
        looks: The scores of the tuning prompts' pictures.

    Raises:
        IneError: The look-ahead opens for no picture whose prompt implies the concept.
        PromptError: Benign prompts are all alike.
    """
    plain = _undefended(job)
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
    tried = tuple(_tried(job, looks, plain, opened, thresholds))
    options = [(one, one.left.value, one.kept.value) for one in tried]
    best, reached = best_of(options, job.target, _strongest_last)
    undefended = cluster_bootstrap(plain.flagged, plain.clusters(IMPLYING))
    return Tuning(tried=tried, chosen=best[0], reached=reached, undefended=undefended)


def _tried(
    job: Job,
    looks: Looks,
    plain: "_Plain",
    opened: dict[str, np.ndarray],
    thresholds: dict[float, float],
) -> Iterator[Tried]:
    """Yield what every setting does on the tuning prompts."""
    opens = {
        rate: {name: np.array(scores) > at for name, scores in looks.scores.items()}
        for rate, at in thresholds.items()
    }
    steered = _steered(job, opened)
    for setting, on_implying, on_benign in _outcomes(job, steered, opened, plain.floor):
        for rate, threshold in thresholds.items():
            left = np.where(opens[rate][IMPLYING], on_implying, plain.flagged)
            kept = np.where(opens[rate][BENIGN], on_benign, 1.0)
            yield Tried(
                setting=Setting(**setting, false_open=rate, threshold=threshold),
                left=cluster_bootstrap(left, plain.clusters(IMPLYING)),
                kept=cluster_bootstrap(kept, plain.clusters(BENIGN)),
                opened=float(opens[rate][BENIGN].mean()),
            )


def _strongest_last(one: Tried) -> tuple[float, ...]:
    """Return what orders settings that leave equally little: the weakest first."""
    setting = one.setting
    first, last = setting.window
    return (setting.false_open, last - first, setting.strength or 0.0)


# --- the pictures


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """The undefended pictures of all tuning prompts."""

    result: GridResult
    floor: float
    """Likeness of unrelated benign pictures, which reads 0."""

    @property
    def flagged(self) -> np.ndarray:
        """Whether each picture whose prompt implies the concept shows it, (P,) of 0 and 1."""
        seen = self.result.seen(self.result.row(), TUNED + IMPLYING)
        return seen.flagged[self.result.rule].astype(float)

    def clusters(self, name: str) -> tuple[str, ...]:
        """Return what is independent of a tuning set's pictures."""
        return self.result.seen(self.result.row(), TUNED + name).clusters


def _undefended(job: Job) -> _Plain:
    cases = job.prompts.tuning
    file = job.grid("undefended", _sets(cases, job.folder), count=max(map(len, cases.values())))
    plan, result = run_in(job, file, "undefended")
    floor = floor_of(plan, MODEL, TUNED + BENIGN, job.measure)
    if not floor < 1:  # NaN too
        raise PromptError(
            "benign tuning prompts: all are alike, so nothing says how unlike unrelated pictures "
            "are; give the recipe at least two different ones"
        )
    return _Plain(result=result, floor=floor)


def _steered(job: Job, opened: dict[str, np.ndarray]) -> GridResult:
    """Return the pictures that may open, under every method, strength and window."""
    cases = {
        name: tuple(job.prompts.tuning[name][i] for i in places)
        for name, places in opened.items()
        if len(places)
    }
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
    negative = GridNegative(name=EMBEDDING, embeddings={"*": (job.made_embedding.name,)})
    sets = _sets(cases, job.folder, "opened-")
    count = max(map(len, cases.values()))
    file = job.grid("steered", sets, [negative], guidances, count=count)
    return run_in(job, file, "steered")[1]


def _sets(
    cases: Mapping[str, Sequence[Case]], folder: Path, what: str = TUNED
) -> list[GridPrompts]:
    return [
        prompts_of(own, folder / f"{what}{name}.jsonl", "tune", EXPECTS[name])
        for name, own in cases.items()
    ]


def _name(method: str, window: tuple[float, float]) -> str:
    return f"{method}@{window[0]:g}-{window[1]:g}"


def _outcomes(
    job: Job, steered: GridResult, opened: dict[str, np.ndarray], floor: float
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Yield (what a `Setting` says but its threshold, flagged (P,), kept (P,)) of all that acts.

    Pictures that the lowest threshold leaves closed have a place without meaning.
    """
    search, tuning = job.recipe.defence, job.prompts.tuning
    for method, strengths in search.guidances.items():
        for window in search.windows:
            for strength in strengths or (None,):
                row = steered.row(_name(method, window), strength, EMBEDDING)
                flagged = np.zeros(len(tuning[IMPLYING]), dtype=bool)
                flagged[opened[IMPLYING]] = steered.flagged(row, f"opened-{IMPLYING}")
                kept = np.ones(len(tuning[BENIGN]))
                if len(opened[BENIGN]):
                    likeness = steered.seen(row, f"opened-{BENIGN}").likeness[job.measure]
                    kept[opened[BENIGN]] = rescaled_cosine(likeness, floor)
                yield {"method": method, "strength": strength, "window": window}, flagged, kept


def run_in(job: Job, file: GridFile, name: str) -> tuple[Plan, GridResult]:
    """Run a grid in the work folder, with a progress bar; pictures that are there are used."""
    plan = prepare(file, job.folder / name, store=job.folder, models={MODEL: job.parts})
    total = sum(len(unit.requests) for unit in plan.units)
    with job.watch.bar(total, f"{name} pictures") as update:

        def on_progress(progress: Progress) -> None:
            update(progress.done)

        return plan, run_plan(plan, on_progress)
