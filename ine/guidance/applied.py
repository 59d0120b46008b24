"""Embeddings as their files recommend them: what `ine generate` and `ine.protect` apply.

Every embedding with a recommendation is a defence of its own, steered only on the pictures in which
its own probe finds the concept. Embeddings without one, and text, act on every picture beside them.
What the user says goes before what a file recommends.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.behind import behind, behind_all
from ine.guidance.beside import Beside
from ine.guidance.gate_file import Calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.given import GivenEmbedding, recommended_gate, recommends_gate
from ine.guidance.negative import Negative
from ine.guidance.overrides import Overrides
from ine.guidance.per_concept import PerConcept
from ine.guidance.protocol import Guidance
from ine.guidance.table import build_guidance, find_method
from ine.text.tokens import trigger_pattern

log = logging.getLogger("ine")

RECOMMENDED = "recommended"
"""In Python, the gate that the embeddings' files recommend, if they do."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """A guidance, and what has to be compared with the model."""

    guidance: Guidance
    gates: tuple[tuple[Calibration, ConceptEmbedding], ...]
    """The recommended gates that were read, each with its embedding."""


def applied(given: Sequence[GivenEmbedding], overrides: Overrides, text: str = "") -> Applied:
    """Return the guidance that files recommend, but for what is overridden; log it, a line a file.

    Args:
        given: Embeddings, of which at least one has a recommendation.
        overrides: What the user says.
        text: A negative text of the user's.

    Raises:
        IneError: A recommended gate is not beside its file, or is another one; what is given does
            not go together.
    """
    defences = [one for one in given if one.recommendation]
    named = trigger_pattern([one.embedding.trigger for one in defences]).search(text)
    if named and len(defences) > 1:
        raise IneError(
            f"negative {text[:60]!r}: names an embedding, and each of several has its own defence; "
            "leave the names out of the text, the embeddings act without"
        )
    for one in defences:
        _say(one, overrides)
    others = tuple(one.embedding for one in given if not one.recommendation)
    methods = [_method(one, overrides, text if named else "") for one in defences]
    read = _recommended_gates(defences, overrides)
    guidance = _behind(defences, methods, [found for found, _ in read], overrides)
    own = Negative("" if named else text, others)
    if own.prompt():
        guidance = Beside(guidance, own)
    return Applied(guidance=guidance, gates=tuple(read))


def _say(one: GivenEmbedding, overrides: Overrides) -> None:
    recommended, asked = one.recommendation, [str(overrides)]
    assert recommended is not None
    if recommended.restart and overrides.ladder == ():
        asked.append("no restarts")
    other = ", ".join(filter(None, asked))
    log.info(
        "%s recommends %s%s%s",
        one.name,
        recommended,
        f"; as asked for instead: {other}" if other else "",
        "; restarts are left out, which this loop cannot make"
        if recommended.restart and overrides.ladder is None and not overrides.can_restart
        else "",
    )


def _method(one: GivenEmbedding, overrides: Overrides, text: str) -> Guidance:
    """Return the guidance of one embedding, without gate and window."""
    recommended = one.recommendation
    assert recommended is not None
    name = overrides.guidance or recommended.guidance
    row, same = find_method(name), name == recommended.guidance
    if overrides.strength is not None and not row.has_strength:
        raise IneError(f"guidance {name!r} has no strength of its own; additive has one")
    strength = overrides.strength
    if strength is None and row.has_strength:
        stated = row.kind.stated_strength([one.embedding])
        strength = recommended.strength if same else stated
    settings = dict(overrides.settings)
    if strength is not None:
        settings["strength"] = strength
    preset = overrides.preset or (recommended.preset if same else None)
    return build_guidance(name, Negative(text, (one.embedding,)), preset, settings)


# --- gates


def _recommended_gates(
    defences: Sequence[GivenEmbedding], overrides: Overrides
) -> list[tuple[Calibration, ConceptEmbedding]]:
    """Return the gates beside the files, with their embeddings; none if others are wanted."""
    asked = [one for one in defences if recommends_gate(one)]
    if overrides.gate is not None or not overrides.gated or not asked:
        return []
    if len(asked) < len(defences):
        (other, *_) = [one for one in defences if not recommends_gate(one)]
        raise IneError(
            f"{other.name} recommends no gate, {asked[0].name} does, so they cannot share a "
            "look-ahead; give one of them, or --no-gate (in Python gate=None)"
        )
    if len(asked) > 1 and overrides.late:
        raise IneError(
            "several embeddings share one look-ahead; leave --no-look-ahead out, or give one"
        )
    return [(recommended_gate(one), one.embedding) for one in defences]


def _gate(
    read: Sequence[Calibration], defences: Sequence[GivenEmbedding], overrides: Overrides
) -> Calibration | None:
    """Return the user's gate, else the only recommended one; or None."""
    gate = overrides.gate
    if gate is not None:
        _check_concepts(gate, defences)
    elif len(read) == 1:
        gate = read[0]
    if gate is not None and overrides.late:
        gate = replace(gate, look_ahead=None)
    return gate


def _check_concepts(gate: Calibration, defences: Sequence[GivenEmbedding]) -> None:
    """Raise `IneError` if a user's gate does not find the concept of an embedding."""
    look = gate.look_ahead
    finds = [probe.concept for probe in look.probes] if look else [gate.gate.concept]
    for one in defences:
        if one.embedding.concept not in finds:
            raise IneError(
                f"the gate finds {', '.join(finds)}, and {one.name} is of "
                f"{one.embedding.concept}, so it would hardly ever act; give a gate of the same "
                "concept, or leave --gate out"
            )


def _behind(
    defences: Sequence[GivenEmbedding],
    methods: Sequence[Guidance],
    read: Sequence[Calibration],
    overrides: Overrides,
) -> Guidance:
    """Return the methods behind their gates; without any, acting on every picture."""
    window, ladder = overrides.window or _widest(defences), _ladder(defences, overrides)
    if ladder and overrides.scale is not None:
        methods = [method.with_fixed_strength(overrides.scale) for method in methods]
    if len(read) > 1:
        # The part of the run is decided for all.
        alike = [
            replace(one, look_ahead=one.look_ahead and replace(one.look_ahead, window=Window()))
            for one in read
        ]
        own = [_last(one, overrides) for one in defences]
        lasts = tuple(a or b for a, b in zip(own, methods, strict=True)) if any(own) else None
        return behind_all(list(zip(methods, alike, strict=True)), window, ladder, lasts)
    method = methods[0]
    if len(methods) > 1:
        method = PerConcept(tuple(one.embedding.concept for one in defences), tuple(methods))
    gate = _gate(read, defences, overrides)
    if gate is not None:
        last = _last(defences[0], overrides) if len(defences) == 1 else None
        return behind(method, gate, window, ladder, last)
    if overrides.ladder:
        raise IneError(
            "--restart needs a gate, which decides which pictures are restarted; leave it or "
            "--no-gate out"
        )
    return Gated(method, window) if window else method


def _last(one: GivenEmbedding, overrides: Overrides) -> Guidance | None:
    """Return the last resort that a file recommends; None where the user says how to restart."""
    recommended = one.recommendation
    if recommended is None or recommended.last_strength is None or overrides.ladder is not None:
        return None
    return Additive(Negative("", (one.embedding,)), recommended.last_strength)


def _ladder(defences: Sequence[GivenEmbedding], overrides: Overrides) -> tuple[float, ...] | None:
    """Return the ladder of restarts, None for none; of several files' the longest and strongest."""
    if overrides.ladder is not None:
        return overrides.ladder or None
    if not overrides.can_restart:
        return None
    ahead = overrides.gate is None or overrides.gate.look_ahead is not None
    if overrides.late or not overrides.gated or not ahead:
        return None
    found = [one.recommendation.restart for one in defences if one.recommendation]
    return max(found, key=lambda ladder: (len(ladder), ladder)) or None


def _widest(defences: Sequence[GivenEmbedding]) -> Window | None:
    """Return the part of the run that holds the recommended parts of all files; None is all."""
    windows = [one.recommendation.window for one in defences if one.recommendation]
    given = [window for window in windows if window is not None]
    if len(given) < len(windows):
        return None
    return Window(min(w.first for w in given), max(w.last for w in given))
