"""Build a guider for a pipeline, bound to its text encoders and its scheduler."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.applied import RECOMMENDED, applied
from ine.guidance.cfg import ClassifierFree
from ine.guidance.coarse import check_model
from ine.guidance.contextual import Contextual
from ine.guidance.given import GivenEmbedding
from ine.guidance.look_ahead import LookAhead
from ine.guidance.overrides import Overrides
from ine.protection.guider import EmbeddingGuider
from ine.protection.guider_look import GuiderLook
from ine.protection.interception import check_components, original
from ine.protection.parts import components_of, parts_of
from ine.protection.prompts import Embeddings, encode_direction, encode_negative, read_given


def embedding_guider(
    pipe: object,
    embeddings: Embeddings,
    gate: LookAhead | str | None = RECOMMENDED,
    **settings: float | str | bool | None,
) -> EmbeddingGuider:
    """Return an `EmbeddingGuider` for a pipeline, e.g. for `pipe.update_components(guider=...)`.

    A file of `ine defend` is used as it recommends, but for what is given here.

    Args:
        pipe: A modular (or ordinary) pipeline with its tokenizers and text encoders loaded.
        embeddings: A `ConceptEmbedding` or the path of one, or several, joined in one string.
        gate: A look-ahead of one concept; None steers every picture, "recommended" is as the
            file recommends, else None.
        settings: Those of `EmbeddingGuider`; `shift=0.25` makes additive guidance contextual.

    Raises:
        IneError: No embedding is given, or it does not fit the pipeline, or the gate is of
            another kind.
    """
    given = read_given(embeddings)
    if any(one.recommendation for one in given):
        gate, settings = _recommended(given, gate, settings)
    negative, empty = encode_negative(pipe, [one.embedding for one in given])
    own = None if gate is None or gate == RECOMMENDED else _look_of(pipe, gate)
    direction = encode_direction(pipe, [one.embedding for one in given])
    conditions = {"negative": negative, "empty": empty, "direction": direction}
    guider = EmbeddingGuider(**conditions, look=own, **settings)
    guider.check_source = _source_of(pipe)
    return guider


def _recommended(
    given: Sequence[GivenEmbedding], gate: LookAhead | str | None, settings: dict[str, Any]
) -> tuple[LookAhead | str | None, dict[str, Any]]:
    """Return (gate, settings) as a file recommends, but for what is given."""
    if len(given) > 1:
        raise IneError(
            f"EmbeddingGuider: {given[0].name} and others are defences of their own, and a guider "
            "steers away from one; use ine.protect, which takes several"
        )
    overrides = Overrides(
        strength=settings.get("strength"), gated=gate == RECOMMENDED, can_restart=False
    )
    method, own = applied(given, overrides).guidance.split()
    if not isinstance(method, Additive | ClassifierFree | Contextual):
        raise IneError(
            f"EmbeddingGuider: {given[0].name} recommends {given[0].recommendation}, and a guider "
            "does cfg, additive and contextual guidance; use ine.protect"
        )
    if isinstance(method, Additive):
        settings = {"strength": method.strength, **settings}
    if isinstance(method, Contextual):
        settings = {"strength": method.strength, "shift": method.shift, **settings}
    if gate == RECOMMENDED:
        gate = own if isinstance(own, LookAhead) else None
    return gate, settings


def _look_of(pipe: Any, gate: LookAhead | str) -> GuiderLook:
    """Return a look-ahead that is bound to a pipeline."""
    if not isinstance(gate, LookAhead) or len(gate.probes) != 1:
        raise IneError(
            "EmbeddingGuider: the gate has to be a look-ahead of one concept, what "
            "read_calibration(FILE).look_ahead is; for others there is ine.protect"
        )
    parts, held = parts_of(pipe), weakref.ref(pipe)
    check_model(parts)
    return GuiderLook(gate=gate, parts=parts, scheduler=lambda: getattr(held(), "scheduler", None))


def _source_of(pipe: object) -> Callable[[], None]:
    """Return a function that raises once the pipeline has other text encoders or tokenizers."""
    held = weakref.ref(pipe)
    kept = {name: weakref.ref(original(part)) for name, part in components_of(pipe).items()}

    def check() -> None:
        check_components(held(), {name: part() for name, part in kept.items()})

    return check
