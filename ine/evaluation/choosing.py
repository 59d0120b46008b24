"""Choosing one strength of a sweep on tune sets, and reading a sweep at equal preservation.

Shape letters: S strengths, P pictures.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.errors import IneError
from ine.evaluation.cells import Configuration
from ine.evaluation.grid import KEPT_SUBJECT, GridChoose
from ine.evaluation.matched import Sweep, success_at
from ine.evaluation.pictures import Pictures
from ine.evaluation.plan import Plan
from ine.evaluation.result import MATCHED, Choice, Figure, Run
from ine.evaluation.stats import BOOTSTRAP, Estimate, cluster_bootstrap

T = TypeVar("T")
Values = Callable[[Pictures], np.ndarray]


def choose(plan: Plan, run: Run, rows: Sequence[Configuration]) -> Iterator[Choice]:
    """Yield the `Choice` of every model, guidance and negative (or group), from tune sets alone.

    Of the strengths that keep at least the level on benign tune sets, the one with the least
    flagged on harmful tune sets; of equals the weaker. If none keeps enough, the one that keeps
    most.

    Args:
        plan: The grid.
        run: Its pictures and floors.
        rows: What to choose from.

    Raises:
        IneError: Subjects are to be kept, and a set's rows name none.
    """
    wanted = plan.file.grid.choose
    if wanted is None:
        return
    for options in _by_defence(c for c in rows if c.is_defended):
        found = []
        for option in options:
            flagged = _tuned(run, option, "harmful", lambda p, _: p.flagged[run.rule])
            kept = _tuned(run, option, "benign", _keeping(run, option, wanted.keep))
            if flagged and kept and not math.isnan(kept.value):
                found.append((option, flagged.value, kept.value))
        if not found:
            continue
        best, reached = best_of(found, wanted.level, lambda option: (option.strength or 0,))
        yield Choice(
            configuration=best[0],
            options=len(options),
            rule=run.rule,
            flagged=best[1],
            keep=wanted.keep,
            kept=best[2],
            level=wanted.level,
            reached=reached,
        )


def best_of(
    options: Sequence[tuple[T, float, float]],
    level: float,
    order: Callable[[T], tuple[float, ...]],
) -> tuple[tuple[T, float, float], bool]:
    """Return (the option to choose, whether it keeps at least the level).

    Of the options that keep the level the one with the least flagged; of equals the first in
    `order`. If none keeps it, the one that keeps most.

    Args:
        options: (what can be chosen, share flagged, mean kept) of each; at least one.
        level: Least that has to be kept.
        order: Rises with the strength of an option.
    """
    able = [option for option in options if option[2] >= level]
    if able:
        return min(able, key=lambda option: (option[1], *order(option[0]))), True
    return max(options, key=lambda option: option[2]), False


def _by_defence(rows: Iterator[Configuration]) -> list[list[Configuration]]:
    """Return the strengths of every model, guidance and negative."""
    found: dict[Configuration, list[Configuration]] = {}
    for row in rows:
        found.setdefault(replace(row, strength=None), []).append(row)
    return list(found.values())


def _keeping(
    run: Run, configuration: Configuration, keep: str
) -> Callable[[Pictures, str], np.ndarray]:
    """Return a function of pictures and their prompt set: what of each is kept, (P,)."""

    def values(pictures: Pictures, prompts: str) -> np.ndarray:
        if keep != KEPT_SUBJECT:
            return run.kept(configuration, prompts, keep)(pictures)
        if not pictures.has("subject"):
            raise IneError(f"choose: keep {keep!r}: rows of prompt set {prompts!r} name no noun")
        return pictures.column("subject")

    return values


def _tuned(
    run: Run,
    configuration: Configuration,
    expects: str,
    values: Callable[[Pictures, str], np.ndarray],
) -> Estimate | None:
    """Return the `Estimate` of a row over all tune sets of a kind; None without pictures."""
    parts = [(p, s) for s in run.sets_of("tune", expects) for p in run.parts(configuration, s)]
    if not parts:
        return None
    found = np.concatenate([np.asarray(values(p, s), dtype=np.float64) for p, s in parts])
    if not np.isfinite(found).all():
        return Estimate(math.nan, math.nan, math.nan, len(found), 0)
    return cluster_bootstrap(found, [label for p, _ in parts for label in p.clusters])


# --- sweeps


def matched(plan: Plan, run: Run, rows: Sequence[Configuration]) -> Iterator[Figure]:
    """Yield defence success where preservation is the level of `choose`, read on test sets."""
    wanted, benign = plan.file.grid.choose, run.sets_of("test", "benign")
    if wanted is None or wanted.keep == KEPT_SUBJECT or not benign:
        return
    for options in _by_defence(c for c in rows if c.strength is not None):
        sweep = sorted(options, key=lambda c: c.strength or 0)
        for harmful in run.sets_of("test", "harmful"):
            if len(sweep) > 1:
                yield from _read_sweep(plan, run, sweep, harmful, benign, wanted)


def _read_sweep(
    plan: Plan,
    run: Run,
    options: Sequence[Configuration],
    harmful: str,
    benign: Sequence[str],
    wanted: GridChoose,
) -> Iterator[Figure]:
    rule = _rule(plan, run)
    safe, kept = [], []
    for option in options:
        on_harmful = run.parts(option, harmful)
        on_benign = [(p, name) for name in benign for p in run.parts(option, name)]
        if not on_harmful or not on_benign:
            return
        safe.append(1 - np.concatenate([p.flagged[rule.name].astype(float) for p in on_harmful]))
        kept.append(
            np.concatenate([run.kept(option, name, wanted.keep)(p) for p, name in on_benign])
        )
    if not np.isfinite(np.array(kept)).all():
        return
    sweep = Sweep(
        strengths=tuple(c.strength for c in options if c.strength is not None),
        safe=np.array(safe),
        kept=np.array(kept),
        safe_clusters=tuple(label for p in on_harmful for label in p.clusters),
        kept_clusters=tuple(label for p, _ in on_benign for label in p.clusters),
    )
    found = success_at(sweep, wanted.level)
    at = "" if math.isnan(found.strength) else f"at strength {found.strength:.3g}"
    yield Figure(
        configuration=replace(options[-1], strength=None),
        prompts=harmful,
        role="test",
        expects="harmful",
        metric=f"{MATCHED} {wanted.keep} is {wanted.level:g}",
        rule=rule.name,
        judge=plan.judge("test") or rule.detector,
        estimate=found.success,
        interval=BOOTSTRAP,
        note=found.note or f"{at}, interpolated; preservation on {', '.join(benign)}",
    )


def _rule(plan: Plan, run: Run) -> Rule | AnyOf:
    return next(rule for rule in plan.file.rules if rule.name == run.rule)
