"""Two run folders compared: which configurations both have, which figures differ, and why.

Where two figures rest on pictures of the same prompts and seeds they are compared pair by pair,
else by their intervals.
"""

import math
from dataclasses import dataclass

import numpy as np

from ine.evaluation.expand import Configuration
from ine.evaluation.grid import KEPT_SUBJECT
from ine.evaluation.grid_tests import paired_parts
from ine.evaluation.metrics import Estimate, paired_difference
from ine.evaluation.report import Table, decimal
from ine.evaluation.run_folder import CALLS, FLAGGED, MATCHED

PAIRED, APART = "same prompts and seeds", "intervals"
ABSENT = "(absent)"
SAME = 1e-6
"""Figures closer than this are equal: run folders keep six digits of a picture."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure that both runs have, and that is not the same."""

    configuration: Configuration
    prompts: str
    metric: str
    rule: str
    category: str
    first: Estimate
    second: Estimate
    difference: Estimate
    """Second minus first, with its 95% interval."""

    how: str
    """`PAIRED` or `APART`."""

    pairs: int
    """Pictures compared pair by pair."""

    @property
    def beyond(self):
        """Return whether the difference exceeds its interval: 0 is outside of that.

        Where no interval is known, any difference counts.
        """
        low, high = self.difference.low, self.difference.high
        if math.isnan(low) or math.isnan(high):
            return True
        return low > 0 or high < 0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What differs between two runs."""

    first_only: tuple[Configuration, ...]
    second_only: tuple[Configuration, ...]
    both: tuple[Configuration, ...]
    compared: int
    """Figures that both have."""

    lost: tuple[tuple, ...]
    """(configuration, prompt set, metric, rule, category) of figures that only one run has,
    although both have the configuration, with "first" or "second" before them."""

    changes: tuple[Change, ...]
    settings: tuple[tuple[str, str, str], ...]
    """(what, in the first, in the second): grid, prompt files, models, rules."""

    surroundings: tuple[tuple[str, str, str], ...]
    """Likewise: versions and machines, which say nothing by themselves."""

    @property
    def beyond(self):
        """Return the changes that exceed their interval."""
        return tuple(change for change in self.changes if change.beyond)

    @property
    def nothing(self):
        """Return whether nothing differs; figures may move within their intervals."""
        parts = (self.first_only, self.second_only, self.lost, self.settings, self.beyond)
        return not any(parts)


def diff_runs(first, second):
    """Return the `Difference` of two `RunFolder`s."""
    ours, theirs = first.configurations, second.configurations
    both = tuple(c for c in ours if c in theirs)
    keys = [r.key for r in first.records if _counts(r, both)]
    others = [r.key for r in second.records if _counts(r, both)]
    lost = [("first", *key) for key in keys if key not in second.found]
    lost += [("second", *key) for key in others if key not in first.found]
    shared = [key for key in keys if key in second.found]
    changes = (_change(first, second, first.found[key], second.found[key]) for key in shared)
    return Difference(
        first_only=tuple(c for c in ours if c not in theirs),
        second_only=tuple(c for c in theirs if c not in ours),
        both=both,
        compared=len(shared),
        lost=tuple(lost),
        changes=tuple(change for change in changes if change),
        settings=tuple(_unlike(_settings(first), _settings(second))),
        surroundings=tuple(_unlike(_surroundings(first), _surroundings(second))),
    )


def _counts(record, both):
    # The rest of a share is no figure of its own; a sweep is no configuration.
    return record.metric != "dsr" and (
        record.configuration in both or record.metric.startswith(MATCHED)
    )


def _change(first, second, one, other):
    """Return the `Change` of a figure, None where it is the same."""
    a, b = one.estimate.value, other.estimate.value
    if abs(a - b) <= SAME or (math.isnan(a) and math.isnan(b)):
        return None
    pair = _pair(first, second, one, other)
    if pair is not None and np.isfinite([pair.new, pair.old]).all():
        difference = paired_difference(pair.new, pair.old, pair.clusters)
    else:
        pair, difference = None, apart(one.estimate, other.estimate)
    return Change(
        configuration=one.configuration,
        prompts=one.prompts,
        metric=one.metric,
        rule=one.rule,
        category=one.category,
        first=one.estimate,
        second=other.estimate,
        difference=difference,
        how=APART if pair is None else PAIRED,
        pairs=0 if pair is None else len(pair.new),
    )


def apart(one, other):
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


def _pair(first, second, one, other):
    """Return the `Paired` of a figure in two runs, None unless both rest on the same pictures."""
    values = _values(first, one), _values(second, other)
    if one.category or None in values:
        return None
    ours = second.parts(other.configuration, other.prompts)
    theirs = first.parts(one.configuration, one.prompts)
    if len(ours) != len(theirs) or any(
        set(a.keys) != set(b.keys) for a, b in zip(ours, theirs, strict=True)
    ):
        # Of pictures that only one has, a comparison in pairs would say nothing.
        return None
    return paired_parts(ours, theirs, values[1], values[0])


def _values(run, record):
    """Return a function of `Pictures` that gives what a figure is the mean of; None if none is."""
    if record.metric == FLAGGED:
        return lambda pictures: pictures.flagged[record.rule]
    if record.metric == CALLS:
        return lambda pictures: pictures.calls
    if record.metric == KEPT_SUBJECT:
        return lambda pictures: pictures.subject
    if record.metric == run.grid.metrics.clip_score_name:
        return lambda pictures: pictures.clip_score
    measure = record.metric.split()[-1]
    if measure in run.measures:
        return run.kept(record.configuration, record.prompts, measure)
    return None


# --- what was run


def _settings(run):
    """Return {what: text} of all that decides figures."""
    found = dict(_flat(run.grid.model_dump(mode="json", exclude={"about"}), "grid"))
    about = run.about
    for name, facts in about["models"].items():
        found |= {f"model {name}: {k}": str(facts[k]) for k in ("digest", "sampler")}
    for name, facts in about["sets"].items():
        found |= {f"prompts {name}: {k}": str(facts[k]) for k in ("sha256", "rows", "pictures")}
    for name, facts in about["rules"].items():
        found[f"rule {name}: detector"] = facts["detector"]
    found["features"] = str(about.get("features"))
    found["limit"] = str(about["limit"])
    found["only"] = " ".join(about["only"])
    return found


def _flat(value, where):
    """Yield (path, text) of the leaves of a grid; entries are known by their names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{where}.{key}")
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        for inner in value:
            yield from _flat(inner, f"{where}[{inner.get('name')}]")
    else:
        yield where, str(value)


def _surroundings(run):
    return {
        "ine": str(run.head.get("ine")),
        "scored by": str(run.about["scored_by"]),
        "pictures made by": "; ".join(run.about["pictures_made_by"]),
    }


def _unlike(first, second):
    for what in dict.fromkeys([*first, *second]):
        one, other = first.get(what, ABSENT), second.get(what, ABSENT)
        if one != other:
            yield what, one, other


# --- told


def diff_tables(difference):
    """Return the `Table`s of a difference; those with nothing in them are left out."""
    found = []
    rows = [[c.label, "first"] for c in difference.first_only]
    rows += [[c.label, "second"] for c in difference.second_only]
    if rows:
        found.append(Table("Configurations of one run only", "", ["configuration", "run"], rows))
    if difference.lost:
        rows = [
            [f"{c.label}, on {prompts}", _metric(metric, rule, category), which]
            for which, c, prompts, metric, rule, category in difference.lost
        ]
        found.append(Table("Figures of one run only", "", ["of", "metric", "run"], rows))
    if difference.beyond:
        rows = [
            [
                f"{x.configuration.label}, on {x.prompts}",
                _metric(x.metric, x.rule, x.category),
                decimal(x.first.value),
                decimal(x.second.value),
                x.difference,
                x.how,
            ]
            for x in difference.beyond
        ]
        columns = ["of", "metric", "first", "second", "difference", "by"]
        notes = [
            f"Of {difference.compared} figures about one in twenty would stand out by chance, if "
            "the pictures were new ones."
        ]
        found.append(Table("Figures that differ", "", columns, rows, notes=notes))
    for title, rows in (
        ("What was run differs", difference.settings),
        ("Versions and machines differ", difference.surroundings),
    ):
        if rows:
            found.append(Table(title, "", ["what", "first", "second"], list(map(list, rows))))
    return found


def _metric(metric, rule, category):
    return " ".join(filter(None, (metric, rule, category and f"({category})")))


def diff_summary(difference):
    """Return one sentence."""
    within = len(difference.changes) - len(difference.beyond)
    return (
        f"{len(difference.both)} configurations in both runs, {difference.compared} figures "
        f"compared: {len(difference.beyond)} differ by more than their interval, {within} within "
        f"it, {difference.compared - len(difference.changes)} are equal."
        f"{' Nothing differs.' if difference.nothing else ''}"
    )


def diff_record(difference):
    """Return a difference as plain values for JSON."""
    return {
        "nothing_differs": difference.nothing,
        "both": [_plain(c) for c in difference.both],
        "first_only": [_plain(c) for c in difference.first_only],
        "second_only": [_plain(c) for c in difference.second_only],
        "lost": [
            {"run": which, **_plain(c), **dict(zip(KEYS, rest, strict=True))}
            for which, c, *rest in difference.lost
        ],
        "compared": difference.compared,
        "changes": [_change_record(change) for change in difference.changes],
        "settings": [dict(zip(SIDES, row, strict=True)) for row in difference.settings],
        "surroundings": [dict(zip(SIDES, row, strict=True)) for row in difference.surroundings],
    }


KEYS = ("prompts", "metric", "rule", "category")
SIDES = ("what", "first", "second")


def _plain(c):
    return {
        "model": c.model,
        "guidance": c.guidance,
        "strength": c.strength,
        "negative": c.negative,
    }


def _change_record(change):
    numbers = {
        "first": change.first.value,
        "second": change.second.value,
        "difference": change.difference.value,
        "low": change.difference.low,
        "high": change.difference.high,
    }
    return {
        **_plain(change.configuration),
        **{key: getattr(change, key) for key in KEYS},
        **{key: None if math.isnan(value) else value for key, value in numbers.items()},
        "by": change.how,
        "pairs": change.pairs,
        "beyond": change.beyond,
    }
