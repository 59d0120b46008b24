"""What the first step of a pipeline's call shows. Shape letter: B pictures of a call."""

from dataclasses import dataclass

from ine.guidance.protocol import GateSession, Session
from ine.protection.call import Call
from ine.protection.prompts import PipelinePrompts, same
from ine.text.condition import Condition
from ine.watch import Watch


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """What is known once the first step has shown the pipeline's own text states."""

    scale: float
    """w_0, the guidance scale of the first step."""

    empty: Condition
    """Of no negative at all, B rows."""

    own_negative: bool
    """Whether the user gave a negative prompt."""

    session: Session
    gate: GateSession | None
    watch: Watch


def find_empty(prompts: PipelinePrompts, call: Call) -> tuple[Condition, bool]:
    """Return (the condition of no negative, B rows; whether the user gave a negative)."""
    nothing = prompts.nothing()
    if call.halves == 1:
        return nothing.repeat(call.count), False
    own = call.condition(0)
    if prompts.parts.zeros_for_nothing and own.states.any():
        # SDXL writes zeros for no negative, and encodes the empty text where one is given.
        empty = prompts.encode([""])
        nothing = empty if same(own, empty) else nothing
    if same(own, nothing):
        return own, False
    return nothing.repeat(call.count), True
