"""Two run folders compared: which configurations both have, which figures differ, and why.

Where two figures rest on pictures of the same prompts and seeds they are compared pair by pair,
else by their intervals.
"""

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ine.evaluation.cells import Configuration
from ine.evaluation.grid_tests import Paired, paired_parts
from ine.evaluation.metrics.flagged import DSR
from ine.evaluation.metrics.table import metric_of
from ine.evaluation.result import MATCHED, Figure, FigureKey, Run
from ine.evaluation.stats import Estimate, paired_difference

T = TypeVar("T")

PAIRED, APART = "same prompts and seeds", "intervals"
ABSENT = "(absent)"
SAME = 1e-6
"""Figures closer than this are equal: run folders keep six digits of a picture."""

FIRST, SECOND = "first", "second"
"""The runs."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure that both runs have, and that is not the same."""

    first: Figure
    second: Figure
    difference: Estimate
    """Second minus first, with its 95% interval."""

    pairs: int = 0
    """Pictures compared pair by pair; 0 where intervals are compared."""

    @property
    def how(self) -> str:
        """Return `PAIRED` or `APART`."""
        return PAIRED if self.pairs else APART

    @property
    def beyond(self) -> bool:
        """Return whether the difference exceeds its interval: 0 is outside of that.

        Where no interval is known, any difference counts.
        """
        low, high = self.difference.low, self.difference.high
        return math.isnan(low) or math.isnan(high) or low > 0 or high < 0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What differs between two runs."""

    both: tuple[Configuration, ...]
    one_only: tuple[tuple[str, Configuration], ...]
    """Configurations that only the `FIRST` or the `SECOND` run has."""

    compared: int
    """Figures that both have."""

    lost: tuple[tuple[str, FigureKey], ...]
    """Figures that only one run has, although both have the configuration."""

    changes: tuple[Change, ...]
    settings: tuple[tuple[str, str, str], ...]
    """(what, in the first, in the second): grid, prompt files, models, rules."""

    surroundings: tuple[tuple[str, str, str], ...]
    """Likewise: versions and machines, which say nothing by themselves."""

    @property
    def beyond(self) -> tuple[Change, ...]:
        """Return the changes that exceed their interval."""
        return tuple(change for change in self.changes if change.beyond)

    @property
    def nothing(self) -> bool:
        """Return whether nothing differs; figures may move within their intervals."""
        return not any((self.one_only, self.lost, self.settings, self.beyond))


def diff_runs(first: Run, second: Run) -> Difference:
    """Return the `Difference` of two `Run`s."""
    ours, theirs = first.configurations, second.configurations
    both = tuple(c for c in ours if c in theirs)
    keys = [f.key for f in first.figures if _counts(f, both)]
    others = [f.key for f in second.figures if _counts(f, both)]
    shared = [key for key in keys if key in second.found]
    changes = (_change(first, second, first.found[key], second.found[key]) for key in shared)
    return Difference(
        both=both,
        one_only=(*_only_in(FIRST, ours, theirs), *_only_in(SECOND, theirs, ours)),
        compared=len(shared),
        lost=(*_only_in(FIRST, keys, second.found), *_only_in(SECOND, others, first.found)),
        changes=tuple(change for change in changes if change),
        settings=tuple(_unlike(_settings(first), _settings(second))),
        surroundings=tuple(_unlike(_surroundings(first), _surroundings(second))),
    )


def _only_in(run: str, own: Iterable[T], others: Container[T]) -> Iterator[tuple[str, T]]:
    return ((run, one) for one in own if one not in others)


def _counts(figure: Figure, both: tuple[Configuration, ...]) -> bool:
    # The rest of a share is no separate figure; a sweep is no configuration.
    return figure.metric != DSR and (
        figure.configuration in both or figure.metric.startswith(MATCHED)
    )


def _change(first: Run, second: Run, one: Figure, other: Figure) -> Change | None:
    """Return the `Change` of a figure, None where it is the same."""
    a, b = one.estimate.value, other.estimate.value
    if abs(a - b) <= SAME or (math.isnan(a) and math.isnan(b)):
        return None
    pair = _pair(first, second, one, other)
    if pair is None or not np.isfinite([pair.new, pair.old]).all():
        return Change(first=one, second=other, difference=apart(one.estimate, other.estimate))
    difference = paired_difference(pair.new, pair.old, pair.clusters)
    return Change(first=one, second=other, difference=difference, pairs=len(pair.new))


def apart(one: Estimate, other: Estimate) -> Estimate:
    """Return the difference of two independent estimates, second minus first.

    With d = b - a, ``low = d - sqrt((b - b_low)^2 + (a_high - a)^2)`` and
    ``high = d + sqrt((b_high - b)^2 + (a - a_low)^2)``; NaN bounds where an interval is missing.

    Sources:
        Newcombe 1998, Stat. Med. 17, p. 873 (method 10); Zou and Donner 2008, Stat. Med. 27.
    """
    difference = other.value - one.value
    return Estimate(
        difference,
        difference - math.hypot(other.value - other.low, one.high - one.value),
        difference + math.hypot(other.high - other.value, one.value - one.low),
        min(one.count, other.count),
        min(one.clusters, other.clusters),
    )


def _pair(first: Run, second: Run, one: Figure, other: Figure) -> Paired | None:
    """Return the `Paired` of a figure in two runs, None unless both rest on the same pictures."""
    own = metric_of(one.metric, first.grid).values(first, one)
    other_own = metric_of(other.metric, second.grid).values(second, other)
    if one.category or own is None or other_own is None:
        return None
    ours = second.parts(other.configuration, other.prompts)
    theirs = first.parts(one.configuration, one.prompts)
    if [set(part.keys) for part in ours] != [set(part.keys) for part in theirs]:
        # Of pictures that only one has, a comparison in pairs would say nothing.
        return None
    return paired_parts(ours, theirs, other_own, own)


# --- what was run


def _settings(run: Run) -> dict[str, str]:
    """Return {what: text} of all that decides figures."""
    found = dict(_flat(run.grid.model_dump(mode="json", exclude={"about"}), "grid"))
    about: Mapping[str, Any] = run.about
    for kind, entry, keys in (
        ("model", "models", ("digest", "sampler")),
        ("prompts", "sets", ("sha256", "rows", "pictures")),
        ("rule", "rules", ("detector",)),
    ):
        for name, facts in about[entry].items():
            found |= {f"{kind} {name}: {key}": str(facts[key]) for key in keys}
    found |= {key: str(about.get(key)) for key in ("features", "limit")}
    return {**found, "only": " ".join(about["only"])}


def _flat(value: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of the leaves of a grid; entries are known by their names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{where}.{key}")
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        for inner in value:
            yield from _flat(inner, f"{where}[{inner.get('name')}]")
    else:
        yield where, str(value)


def _surroundings(run: Run) -> dict[str, str]:
    return {
        "ine": run.version,
        "scored by": str(run.about["scored_by"]),
        "pictures made by": "; ".join(run.about["pictures_made_by"]),
    }


def _unlike(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for what in dict.fromkeys([*first, *second]):
        one, other = first.get(what, ABSENT), second.get(what, ABSENT)
        if one != other:
            yield what, one, other
