"""Guidance that begins a picture anew, steered from its first step, once a gate has opened.

What a picture will show is decided in its first steps, and is plain to see only later: a gate
that must act early guesses, one that looks late comes too late. Here a picture is made undefended
while the gate watches. Where the gate opens, the picture is begun again from its own noise with
the method acting from the first step, the gate watching again; where it opens again the method
is strengthened, and so on up the ladder.

A picture whose gate stays closed is the undefended one to the bit, at the cost of the gate's
looks. Strength is dosed per picture: nobody pays for the hardest prompt.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

from ine.errors import IneError
from ine.guidance.cfg import classifier_free
from ine.guidance.gates import Gate, Gated, remembering
from ine.guidance.protocol import Guidance, Wanted

LADDER = (1.0, 2.0, 4.0)
"""Strengths of the attempts, as multiples of the method's own."""


@dataclass(frozen=True)
class Rewind:
    """A method, a gate that decides who needs it, and by how much it is strengthened."""

    guidance: Guidance
    gate: Gate
    ladder: tuple[float, ...] = LADDER
    """For a method without a strength only the first counts: there is nothing to strengthen."""

    def __post_init__(self):
        """Raise `IneError` where the ladder is none."""
        if not self.ladder or not all(0 < f < float("inf") for f in self.ladder):
            raise IneError(f"rewind: ladder {self.ladder}: give multiples above 0, such as 1,1.5")

    @property
    def negative(self):
        """Return the negative of the method."""
        return self.guidance.negative

    @property
    def attempts(self):
        """Return the guidance of each attempt; the first is the undefended model, watched."""
        steered = [strengthened(self.guidance, factor) for factor in self.ladder]
        if all(one == self.guidance for one in steered):
            steered = steered[:1]
        return tuple(_Watched(method, self.gate, self.negative) for method in (None, *steered))

    @contextmanager
    def begin(self, prompts):
        """Raise: several runs are needed, which only a loop that knows of them makes."""
        raise IneError(
            "rewind: this loop cannot begin a picture anew; use the gate without it, or make the "
            "pictures with ine"
        )
        yield


def strengthened(guidance, factor):
    """Return a guidance with its strength multiplied; one without a strength as it is.

    A strength of None, what the method would take from the guidance scale, cannot be multiplied
    here and is refused.
    """
    if isinstance(guidance, Gated):
        return replace(guidance, guidance=strengthened(guidance.guidance, factor))
    if not hasattr(guidance, "strength"):
        return guidance
    if guidance.strength is None:
        raise IneError("rewind: the method's strength is not set; give --negative-strength")
    return replace(guidance, strength=guidance.strength * factor)


@dataclass(frozen=True)
class _Watched:
    """One attempt: a method for all pictures of the batch, while a gate watches."""

    guidance: Guidance | None
    """None is the undefended model."""

    gate: Gate
    negative: object

    @contextmanager
    def begin(self, prompts):
        """Begin the method, and the gate beside it."""
        with self.guidance.begin(prompts) if self.guidance else nullcontext() as inner:
            yield _WatchedSession(
                inner=inner,
                watch=self.gate.begin(prompts, self.negative.candidates()),
                empty=prompts.empty(),
                positive=prompts.positive(),
                scale=prompts.scale,
            )


@dataclass(frozen=True, kw_only=True)
class _WatchedSession:
    inner: object
    watch: object
    empty: object
    positive: object
    scale: float

    def predict(self, step, ask, pictures=None):
        ask = remembering(ask, len(self.positive))
        plain = _Plain(ask, self.empty, self.positive)
        if self.inner is None:
            plain.ask()  # first, as the call of the undefended model
        self.watch.open(step, ask, plain)
        if self.inner is None:
            return classifier_free(plain["empty"], plain["positive"], self.scale)
        return self.inner.predict(step, ask)

    @property
    def again(self):
        """The pictures whose gate is open, in order."""
        notes = self.watch.notes()
        return tuple(i for i, note in enumerate(notes) if note["gate"]["opened"])

    def notes(self):
        inner = self.inner.notes() if self.inner else [{} for _ in range(len(self.positive))]
        pairs = zip(inner, self.watch.notes(), strict=True)
        return [{**method, **gate} for method, gate in pairs]


class _Plain(dict):
    """The undefended pair, asked only when a gate looks at it."""

    def __init__(self, ask, empty, positive):
        self._ask, self._conditions = ask, (empty, positive)

    def ask(self):
        empty, positive = self._conditions
        self.update(self._ask([Wanted("empty", empty), Wanted("positive", positive)]))

    def __missing__(self, key):
        self.ask()
        return self[key]
