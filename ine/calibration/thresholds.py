"""Thresholds of gates from the scores of benign pictures.

A gate that never opens watches benign pictures; the threshold is the score that only the wanted
share of them exceeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ine.errors import IneError
from ine.guidance.gate_file import Calibration
from ine.guidance.look_ahead import LookAhead
from ine.guidance.probe import ProbeGate


def fewest_pictures(false_open: float) -> int:
    """Return how many benign pictures a rate of false openings needs at least."""
    return math.ceil(1 / false_open - 1 - 1e-9)


def threshold_for(scores: Sequence[float], false_open: float) -> float:
    """Return the threshold that a fresh benign picture exceeds with at most this probability.

    The k-th largest of N scores with k = floor(rate (N + 1)): where pictures are exchangeable,
    a new one exceeds it with probability k / (N + 1) at most (split conformal prediction, Vovk
    et al. 2005). Of the N themselves at most k - 1 do.

    Args:
        scores: One number per benign picture.
        false_open: The wanted rate, in (0, 1).

    Raises:
        IneError: The rate is not in (0, 1), a score is not a number, or there are too few pictures.
    """
    if not 0 < false_open < 1:
        raise IneError(f"false-open rate {false_open:g}: give a share between 0 and 1, like 0.01")
    if any(math.isnan(s) for s in scores):
        raise IneError("a probe's score is NaN; the model or the embedding is broken")
    rank = math.floor(false_open * (len(scores) + 1) + 1e-9)
    if rank < 1:
        raise IneError(
            f"{len(scores)} benign pictures cannot tell a rate of {false_open:g}: at least "
            f"{fewest_pictures(false_open)} are needed; give more --pictures or a larger "
            "--false-open"
        )
    return sorted(scores, reverse=True)[rank - 1]


def calibrated(
    gate: ProbeGate,
    scores: Sequence[float],
    false_open: float,
    record: Mapping[str, Any] | None = None,
    ahead: "Ahead | None" = None,
    late_open: float | None = None,
) -> Calibration:
    """Return the `Calibration` of a gate from the scores of benign pictures.

    Args:
        gate: Its threshold does not matter.
        scores: Of benign pictures, one each.
        false_open: The wanted rate, in (0, 1).
        record: All else that the file shall state.
        ahead: The look-ahead of the same concept, and its scores on the same pictures.
        late_open: The rate of the gate itself where it is another than the look-ahead's.
    """
    rate = false_open if late_open is None else late_open
    gate = replace(gate, threshold=threshold_for(scores, rate))
    late = false_open_record(gate.threshold, scores, rate)
    if ahead is None:
        return Calibration(gate=gate, record={"false_open": late, **(record or {})})
    threshold = threshold_for(ahead.scores, false_open)
    rates = {
        "false_open": false_open_record(threshold, ahead.scores, false_open),
        "restart_false_open": late,
    }
    look = with_thresholds(ahead.look, threshold)
    return Calibration(gate=gate, look_ahead=look, record={**rates, **(record or {})})


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """A look-ahead to calibrate."""

    look: LookAhead
    """Of one concept; its threshold does not matter."""

    scores: Sequence[float]
    """Of benign pictures, one each."""


def with_thresholds(look: LookAhead, threshold: float) -> LookAhead:
    """Return a look-ahead all of whose probes have a threshold."""
    return replace(look, probes=tuple(replace(p, threshold=threshold) for p in look.probes))


def false_open_record(
    threshold: float, scores: Sequence[float], wanted: float
) -> dict[str, int | float]:
    """Return how many of the benign pictures that a threshold was set on open the gate."""
    opened = sum(score > threshold for score in scores)
    return {
        "wanted": wanted,
        "measured": round(opened / len(scores), 6),
        "opened": opened,
        "pictures": len(scores),
    }


def open_share(threshold: float, scores: Sequence[float]) -> dict[str, int | float]:
    """Return how many of these pictures a gate of this threshold opens for, as a record."""
    opened = sum(score > threshold for score in scores)
    share = round(opened / len(scores), 6)
    return {"share": share, "opened": opened, "pictures": len(scores)}
