"""The figures of `ine judge`: how many pictures a rule flags, as JSON and as lines."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ine.detectors.raw import RawOutput
    from ine.detectors.rule import AnyOf, Rule
    from ine.evaluation.judge_check import JudgeError

Facts = dict[str, Any]


def rule_facts(rule: "Rule | AnyOf") -> Facts:
    """Return what a rule is, as plain values for JSON."""
    from ine.detectors.origins import origin_of

    origin = origin_of(rule.name)
    if len(rule.parts) > 1:
        says = rule.condition
    else:
        [part] = rule.parts
        many = len(part.labels) > 1
        how = ("sum of " if part.total else "any of ") if many else ""
        what = f"{len(part.labels)} labels" if many else part.labels[0]
        says = f"{rule.detector}: {how}{what} {rule.condition}"
        if part.floor and part.threshold < part.floor:
            says = f"{rule.detector}: {how}{what} at any score it lets through"
    return {
        "name": rule.name,
        "says": says,
        "detector": rule.detector,
        "labels": sorted({label for part in rule.parts for label in part.labels}),
        "unit": rule.unit,
        "source": rule.source,
        "note": rule.notes,
        "code": vars(origin) if origin else None,
    }


COUNTED = {"boxes": "boxes", "labels": "pictures_with_label"}
"""Unit of a rule that counts -> the name of its counts."""


def figures_of(
    raw: "RawOutput", rule: "Rule | AnyOf", flags: Sequence[bool], detector: str | None
) -> Facts:
    """Return the figures of a rule, as plain values for JSON."""
    from ine.detectors.verdicts import source_for
    from ine.evaluation.stats import cluster_bootstrap, wilson

    shown = [(look, flag) for look, flag in zip(raw.pictures, flags, strict=True) if not look.blank]
    # A picture of one colour may have failed; it is neither safe nor unsafe.
    rate = wilson(sum(flag for _, flag in shown), len(shown)) if shown else None
    facts = {
        **rule_facts(rule),
        **({"scored_by": detector} if detector else {}),
        "flagged": rate.hits if rate else 0,
        "pictures": len(shown),
        "blank": len(raw.pictures) - len(shown),
        "share": rate and rate.share,
        "wilson": rate and [rate.low, rate.high],
    }
    prompts = [look.prompt for look, _ in shown]
    if shown and all(prompts) and len(set(prompts)) < len(prompts):
        mean = cluster_bootstrap([float(flag) for _, flag in shown], prompts)
        facts |= {"prompts": mean.clusters, "by_prompts": [mean.low, mean.high]}
    if rule.unit in COUNTED:
        [part] = rule.parts
        source = detector or source_for(raw, part)
        counts = [part.boxes(look.found[source]) for look in raw.pictures]
        one = (lambda n: n) if rule.unit == "boxes" else bool
        facts[COUNTED[rule.unit]] = {
            label: sum(one(count[label]) for count in counts) for label in part.labels
        }
    facts["verdicts"] = {look.picture: flag for look, flag in zip(raw.pictures, flags, strict=True)}
    return facts


def figure_lines(facts: Facts) -> Iterator[str]:
    """Yield the figures of a rule as lines for a person."""
    by = f", scored by {facts['scored_by']}" if "scored_by" in facts else ""
    if facts["wilson"]:
        low, high = facts["wilson"]
        yield (
            f"{facts['name']}{by}: {facts['flagged']} of {facts['pictures']} flagged, "
            f"{facts['share']:.3f} (Wilson {low:.3f} to {high:.3f})"
        )
    else:
        yield f"{facts['name']}{by}: no share, since every picture is blank"
    yield f"  blank: {facts['blank']} of {facts['pictures'] + facts['blank']}{_about_blank(facts)}"
    if "by_prompts" in facts:
        low, high = facts["by_prompts"]
        yield f"  counting {facts['prompts']} prompts: {low:.3f} to {high:.3f}"
    for unit, counted in COUNTED.items():
        if facts["unit"] == unit:
            counts = ", ".join(f"{label} {n}" for label, n in facts[counted].items())
            yield f"  {counted.replace('_', ' ')}: {counts}"
    if facts["note"]:
        yield f"  {facts['note']}"


def _about_blank(facts: Facts) -> str:
    if not facts["blank"]:
        return ""
    return " (wholly one colour: failed or blacked out, so not in the share)"


def error_rows(found: "JudgeError") -> Facts:
    """Return {name: estimate} of a judge's error."""
    return {
        "false positive rate": found.false_positive,
        "false negative rate": found.false_negative,
        "truly there": found.there,
    }


def error_facts(found: "JudgeError") -> Facts:
    """Return a judge's error as plain values for JSON."""
    return {
        "rule": found.rule,
        "flagged": found.flagged,
        **{
            name.replace(" ", "_"): {
                "value": e.value if math.isfinite(e.value) else None,
                "low": e.low,
                "high": e.high,
            }
            for name, e in error_rows(found).items()
        },
        "answered": found.answered,
        "unsure": found.unsure,
        "left": found.left,
    }


def error_lines(found: "JudgeError") -> Iterator[str]:
    """Yield a judge's error as lines for a person."""
    yield f"{found.rule}, by {found.answered} answers ({found.unsure} unsure, {found.left} left)"
    for name, e in error_rows(found).items():
        value = f"{e.value:.3f}" if math.isfinite(e.value) else "not seen"
        yield f"{name:<20} {value} ({e.low:.3f} to {e.high:.3f})"
    yield f"{'flagged by the judge':<20} {found.flagged:.3f}"
