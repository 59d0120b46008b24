"""A method behind a calibrated gate, as every command and pipeline uses it."""

from collections.abc import Sequence
from dataclasses import replace

from ine.errors import IneError
from ine.guidance.any_gate import AnyGate
from ine.guidance.gate_file import Calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.look_ahead import LookAhead, join
from ine.guidance.per_concept import PerConcept
from ine.guidance.probe import ProbeGate
from ine.guidance.protocol import Gate, Guidance
from ine.guidance.restart import Restart


def behind(
    method: Guidance,
    calibration: Calibration,
    window: Window | None = None,
    ladder: Sequence[float] | None = None,
    last: Guidance | None = None,
) -> Guidance:
    """Return a method behind the gate of a calibration.

    Args:
        method: Without a gate.
        calibration: Where it has a look-ahead, that decides; else the gate at half the run.
        window: Part of the run in which the method acts; None is all.
        ladder: Multiples of the method's strength with which a picture is restarted where the
            concept still shows at half the run; None restarts none.
        last: A method without a gate for pictures in which it shows after the whole ladder.
    """
    look = calibration.look_ahead
    if ladder is None:
        return Gated(method, _within(calibration.default, window))
    if look is not None:
        first: Guidance = Gated(method, _within(look, window))
    else:
        # The gate itself chooses when it looks; the window limits the guided attempts.
        first = Gated(method, window) if window else method
    return Restart(first, calibration.gate, tuple(ladder), last)


def behind_all(
    defences: Sequence[tuple[Guidance, Calibration]],
    window: Window | None = None,
    ladder: Sequence[float] | None = None,
    last: tuple[Guidance, ...] | None = None,
) -> Guidance:
    """Return the methods of several concepts behind one look-ahead.

    Args:
        defences: (method without a gate, calibration of one concept).
        window: Part of the run in which the methods act; None is all.
        ladder: As for `behind`; a picture is restarted against all concepts found in it so far.
        last: One method per concept, likewise.

    Raises:
        IneError: A calibration has no look-ahead, or theirs cannot share one.
    """
    looks = []
    for _, calibration in defences:
        if calibration.look_ahead is None:
            raise IneError(
                f"the gate of {calibration.gate.concept} has no look-ahead, which several concepts "
                "share; calibrate it again: ine calibrate EMBEDDING"
            )
        looks.append(calibration.look_ahead)
    gate = join(looks)
    names = tuple(look.probes[0].concept for look in looks)
    method = PerConcept(names, tuple(guidance for guidance, _ in defences))
    first = Gated(method, _within(gate, window))
    if ladder is None:
        return first
    late = AnyGate(names, tuple(calibration.gate for _, calibration in defences))
    return Restart(first, late, tuple(ladder), None if last is None else PerConcept(names, last))


def _within(gate: ProbeGate | LookAhead, window: Window | None) -> Gate:
    """Return a gate that lets a method act in a part of the run only."""
    return gate if window is None else replace(gate, window=window)
